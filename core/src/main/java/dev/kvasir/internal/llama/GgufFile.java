package dev.kvasir.internal.llama;

import dev.kvasir.ModelLoadException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.gguf_init_params;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.SeekableByteChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/**
 * Looks at a model file before llama.cpp does, so that what is wrong with it can be said in one
 * sentence.
 */
final class GgufFile {
  private static final int MAGIC_BYTES = 4;

  /** Magic, version, number of tensors, number of key-value pairs. */
  private static final int HEADER_BYTES = 24;

  private GgufFile() {}

  /**
   * Reads the header and checks that every tensor lies within the file.
   *
   * @throws ModelLoadException if the file is missing, no GGUF file, or cut off
   */
  static void check(Path file) {
    if (!Files.exists(file)) {
      throw new ModelLoadException("The model file " + file + " does not exist.");
    }
    if (!Files.isRegularFile(file)) {
      throw new ModelLoadException("The model " + file + " is not a file.");
    }
    long size = checkMagic(file);
    NativeLog.clearErrors();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment params = gguf_init_params.allocate(arena);
      gguf_init_params.no_alloc(params, true);
      gguf_init_params.ctx(params, MemorySegment.NULL);
      MemorySegment gguf =
          NativeApi.gguf_init_from_file(arena.allocateFrom(file.toString()), params);
      if (gguf.address() == 0) {
        throw new ModelLoadException(
            "The header of the model file "
                + file
                + " ("
                + size
                + " bytes) is damaged or cut off"
                + because(NativeLog.errors())
                + ". Fetch the file again.");
      }
      try {
        checkExtents(file, size, gguf);
      } finally {
        NativeApi.gguf_free(gguf);
      }
    }
  }

  private static long checkMagic(Path file) {
    try (SeekableByteChannel channel = Files.newByteChannel(file)) {
      long size = channel.size();
      ByteBuffer magic = ByteBuffer.allocate(MAGIC_BYTES);
      while (magic.hasRemaining() && channel.read(magic) >= 0) {
        // until the four bytes are there, or the file ends
      }
      if (size == 0) {
        throw new ModelLoadException("The model file " + file + " is empty.");
      }
      if (magic.hasRemaining()
          || !new String(magic.array(), StandardCharsets.ISO_8859_1).equals("GGUF")) {
        throw new ModelLoadException(
            "The file " + file + " is no GGUF model: it does not start with \"GGUF\".");
      }
      if (size < HEADER_BYTES) {
        throw new ModelLoadException(
            "The model file "
                + file
                + " is cut off: it has only "
                + size
                + " bytes. Fetch the file again.");
      }
      return size;
    } catch (IOException e) {
      throw new ModelLoadException(
          "The model file " + file + " cannot be read: " + e.getMessage(), e);
    }
  }

  private static void checkExtents(Path file, long size, MemorySegment gguf) {
    long data = NativeApi.gguf_get_data_offset(gguf);
    long tensors = NativeApi.gguf_get_n_tensors(gguf);
    for (long i = 0; i < tensors; i++) {
      long end =
          data
              + NativeApi.gguf_get_tensor_offset(gguf, i)
              + NativeApi.gguf_get_tensor_size(gguf, i);
      if (end < 0 || end > size) {
        throw new ModelLoadException(
            "The model file "
                + file
                + " is cut off: it has "
                + size
                + " bytes, its tensor "
                + NativeApi.gguf_get_tensor_name(gguf, i).getString(0)
                + " ends at byte "
                + end
                + ". Fetch the file again.");
      }
    }
  }

  private static String because(List<String> errors) {
    return errors.isEmpty() ? "" : ": " + String.join("; ", errors);
  }
}
