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
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Looks at a model file before llama.cpp does, so that what is wrong with it can be said in one
 * sentence.
 *
 * @param bytes size of the file; of a split model, of all its parts
 * @param layers that its header names; 0 when it does not
 */
record GgufFile(long bytes, int layers) {
  private static final int MAGIC_BYTES = 4;

  /** Magic, version, number of tensors, number of key-value pairs. */
  private static final int HEADER_BYTES = 24;

  /** More than any model has. */
  private static final int MOST_LAYERS = 1 << 16;

  /** How llama.cpp's tools name the parts of a split model. */
  private static final Pattern FIRST_PART = Pattern.compile("(.+)-00001-of-([0-9]{5})\\.gguf");

  /**
   * Reads the header and checks that every tensor lies within the file.
   *
   * @throws ModelLoadException if the file is missing, no GGUF file, or cut off
   */
  static GgufFile read(Path file) {
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
        return new GgufFile(sizeOfParts(file, size), layers(gguf, arena));
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

  private static long sizeOfParts(Path file, long first) {
    Matcher name = FIRST_PART.matcher(file.getFileName().toString());
    if (!name.matches()) {
      return first;
    }
    long sum = first;
    for (int part = 2; part <= Integer.parseInt(name.group(2)); part++) {
      Path other =
          file.resolveSibling("%s-%05d-of-%s.gguf".formatted(name.group(1), part, name.group(2)));
      try {
        sum += Files.size(other);
      } catch (IOException e) {
        throw new ModelLoadException(
            "The model file "
                + file
                + " is the first of several, and "
                + other
                + " cannot be read.",
            e);
      }
    }
    return sum;
  }

  // What is not of the type that llama.cpp expects is for llama.cpp to refuse.
  private static int layers(MemorySegment gguf, Arena arena) {
    long architecture = NativeApi.gguf_find_key(gguf, arena.allocateFrom("general.architecture"));
    if (architecture < 0
        || NativeApi.gguf_get_kv_type(gguf, architecture) != NativeApi.GGUF_TYPE_STRING()) {
      return 0;
    }
    String name = NativeApi.gguf_get_val_str(gguf, architecture).getString(0) + ".block_count";
    long count = NativeApi.gguf_find_key(gguf, arena.allocateFrom(name));
    if (count < 0 || NativeApi.gguf_get_kv_type(gguf, count) != NativeApi.GGUF_TYPE_UINT32()) {
      return 0;
    }
    int layers = NativeApi.gguf_get_val_u32(gguf, count);
    return layers < 0 || layers > MOST_LAYERS ? 0 : layers;
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
