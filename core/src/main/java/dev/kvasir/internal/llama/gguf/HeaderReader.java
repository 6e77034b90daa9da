package dev.kvasir.internal.llama.gguf;

import dev.kvasir.ModelLoadException;
import dev.kvasir.bindings.generated.NativeApi;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Reads a header. Nothing in it is believed: a count is refused before anything of its size is
 * allocated, so that the memory is bounded by the size of the file.
 */
final class HeaderReader implements AutoCloseable {
  private static final int MAGIC = 0x46554747; // "GGUF", little-endian
  private static final int OLDEST_VERSION = 2;
  private static final int NEWEST_VERSION = 3;

  /** Of a header without anything: magic, version, number of tensors and of key-value pairs. */
  private static final int SMALLEST = 24;

  /** llama.cpp compares every key, and every tensor's name, with all before it. */
  private static final int MOST_ENTRIES = 1 << 16;

  private static final int LONGEST_KEY = (1 << 16) - 1;
  private static final int LONGEST_STRING = 1 << 30;
  private static final long MOST_ELEMENTS = 1 << 30;

  /** ggml keeps names of 63 bytes and a NUL. */
  private static final int LONGEST_TENSOR_NAME = 63;

  private static final int MOST_DIMENSIONS = 4;

  /** Texts are kept up to this length, arrays of numbers up to this many bytes. */
  private static final int KEPT_TEXT = 1 << 12;

  private static final int KEPT_NUMBERS = 1 << 24;

  /** ggml's buffers begin at multiples of this, and a mapped file's tensors stay where they are. */
  private static final int TENSOR_ALIGNMENT = 32;

  private static final int DEFAULT_ALIGNMENT = 32;

  static final String TOKENS = "tokenizer.ggml.tokens";
  static final String MERGES = "tokenizer.ggml.merges";

  private final Path file;
  private final FileChannel channel;
  private final ByteBuffer buffer = ByteBuffer.allocate(1 << 16).order(ByteOrder.LITTLE_ENDIAN);
  private final long size;

  /** Bytes of the file behind what the buffer has given out. */
  private long left;

  private HeaderReader(Path file) throws IOException {
    this.file = file;
    this.channel = FileChannel.open(file);
    this.size = channel.size();
    this.left = size;
    buffer.limit(0);
  }

  /**
   * Reads the header of a file and checks that it is whole, and that every tensor lies within the
   * file.
   *
   * @throws ModelLoadException if the file is no GGUF file, damaged, or cut off
   */
  static Header read(Path file) {
    try (HeaderReader reader = new HeaderReader(file)) {
      return reader.read();
    } catch (IOException e) {
      throw new ModelLoadException(
          "The model file " + file + " cannot be read: " + e.getMessage(), e);
    }
  }

  @Override
  public void close() throws IOException {
    channel.close();
  }

  private Header read() throws IOException {
    if (size == 0) {
      throw new ModelLoadException("The model file " + file + " is empty.");
    }
    if (size < Integer.BYTES || int32() != MAGIC) {
      throw new ModelLoadException(
          "The file " + file + " is no GGUF model: it does not start with \"GGUF\".");
    }
    if (size < SMALLEST) {
      throw new ModelLoadException(
          "The model file "
              + file
              + " is cut off: it has only "
              + size
              + " bytes. Fetch the file again.");
    }
    checkVersion(int32());
    long tensorCount = int64();
    long pairCount = int64();
    // A pair has at least a key of one byte, a type and a value of one byte; a tensor a name, a
    // number of dimensions, a type and an offset.
    checkCount("key-value pairs", pairCount, 8 + 1 + 4 + 1);
    checkCount("tensors", tensorCount, 8 + 4 + 4 + 8);
    Map<String, Value> values = values((int) pairCount);
    long alignment = alignment(values);
    List<TensorInfo> tensors = tensors((int) tensorCount, alignment);
    long data = tensors.isEmpty() ? size - left : padded(size - left, alignment);
    checkExtents(tensors, data);
    return new Header(file, size, values, tensors, data);
  }

  private void checkVersion(int version) {
    if ((version & 0xFFFF) == 0) {
      throw new ModelLoadException(
          "The model file "
              + file
              + " is of the other byte order, or damaged: its version is "
              + Integer.toHexString(version)
              + " hexadecimal. Use a little-endian file.");
    }
    if (version < OLDEST_VERSION || version > NEWEST_VERSION) {
      throw new ModelLoadException(
          "The model file "
              + file
              + " has version "
              + Integer.toUnsignedString(version)
              + " of the GGUF format; versions "
              + OLDEST_VERSION
              + " and "
              + NEWEST_VERSION
              + " can be read.");
    }
  }

  private void checkCount(String what, long count, int leastBytes) {
    if (count < 0 || count > left / leastBytes) {
      throw damaged(
          "it claims " + Long.toUnsignedString(count) + " " + what + ", for which it has no room");
    }
    if (count > MOST_ENTRIES) {
      throw damaged("it claims " + count + " " + what + ", more than any model has");
    }
  }

  private Map<String, Value> values(int count) throws IOException {
    Map<String, Value> values = LinkedHashMap.newLinkedHashMap(count);
    for (int i = 0; i < count; i++) {
      String key = name("the key " + i, LONGEST_KEY);
      if (key.isEmpty()) {
        throw damaged("its key " + i + " is empty");
      }
      int type = int32();
      if (!ValueType.known(type)) {
        throw damaged(key + " has the value type " + type + ", which does not exist");
      }
      if (values.put(key, value(key, ValueType.of(type))) != null) {
        throw damaged("it has the key " + key + " twice");
      }
    }
    return values;
  }

  private Value value(String key, ValueType type) throws IOException {
    return switch (type) {
      case STRING -> text(key);
      case ARRAY -> array(key);
      default -> new Value.Scalar(type, bits(type));
    };
  }

  private long bits(ValueType type) throws IOException {
    fill(type.bytes);
    return switch (type) {
      case UINT8 -> buffer.get() & 0xFF;
      case BOOL -> buffer.get() != 0 ? 1 : 0;
      case INT8 -> buffer.get();
      case UINT16 -> buffer.getShort() & 0xFFFF;
      case INT16 -> buffer.getShort();
      case UINT32 -> buffer.getInt() & 0xFFFFFFFFL;
      case INT32 -> buffer.getInt();
      case UINT64, INT64 -> buffer.getLong();
      case FLOAT32 -> Double.doubleToRawLongBits(buffer.getFloat());
      case FLOAT64 -> Double.doubleToRawLongBits(buffer.getDouble());
      case STRING, ARRAY -> throw new IllegalStateException("no number: " + type);
    };
  }

  private Value text(String key) throws IOException {
    int length = length(key);
    byte[] kept = new byte[Math.min(length, KEPT_TEXT)];
    bytes(kept, 0, kept.length);
    skip(length - kept.length);
    return new Value.Text(upToNul(kept));
  }

  private Value array(String key) throws IOException {
    int number = int32();
    if (!ValueType.known(number) || ValueType.of(number) == ValueType.ARRAY) {
      throw damaged(key + " is an array of the value type " + number + ", which cannot be");
    }
    ValueType type = ValueType.of(number);
    long count = int64();
    int least = type == ValueType.STRING ? Long.BYTES : type.bytes;
    if (count < 0 || count > MOST_ELEMENTS || count > left / least) {
      throw damaged(
          key
              + " claims "
              + Long.toUnsignedString(count)
              + " elements, for which there is no room");
    }
    if (type == ValueType.STRING) {
      return texts(key, count);
    }
    long bytes = count * type.bytes;
    if (bytes > KEPT_NUMBERS) {
      skip(bytes);
      return new Value.Numbers(type, count, null);
    }
    byte[] elements = new byte[(int) bytes];
    bytes(elements, 0, elements.length);
    return new Value.Numbers(type, count, ByteBuffer.wrap(elements));
  }

  private Value texts(String key, long count) throws IOException {
    Strings kept = key.equals(TOKENS) || key.equals(MERGES) ? new Strings() : null;
    for (long i = 0; i < count; i++) {
      int length = length(key);
      if (kept == null) {
        skip(length);
      } else {
        int start;
        try {
          start = kept.add(length);
        } catch (ArithmeticException e) {
          throw damaged(key + " is longer than 2 GiB");
        }
        bytes(kept.bytes(), start, length);
      }
    }
    return new Value.Texts(count, kept);
  }

  private long alignment(Map<String, Value> values) {
    Value value = values.get("general.alignment");
    if (value == null) {
      return DEFAULT_ALIGNMENT;
    }
    if (value instanceof Value.Scalar(ValueType type, long bits)
        && type == ValueType.UINT32
        && Long.bitCount(bits) == 1) {
      return bits;
    }
    throw damaged(
        "general.alignment is "
            + value.describe()
            + "; it must be a power of two of the type uint32");
  }

  private List<TensorInfo> tensors(int count, long alignment) throws IOException {
    List<TensorInfo> tensors = new ArrayList<>(count);
    Set<String> names = HashSet.newHashSet(count);
    long offset = 0;
    for (int i = 0; i < count; i++) {
      TensorInfo tensor = tensor(i);
      if (!names.add(tensor.name())) {
        throw damaged("it has two tensors named " + tensor.name());
      }
      if (tensor.offset() != offset) {
        throw damaged(
            "its tensor "
                + tensor.name()
                + " begins at the offset "
                + Long.toUnsignedString(tensor.offset())
                + ", but the one before it ends at "
                + offset);
      }
      offset += padded(tensor.bytes(), alignment);
      tensors.add(tensor);
    }
    return tensors;
  }

  private TensorInfo tensor(int index) throws IOException {
    String name = name("the name of tensor " + index, LONGEST_TENSOR_NAME);
    int dimensions = int32();
    if (dimensions < 0 || dimensions > MOST_DIMENSIONS) {
      throw damaged(
          "its tensor "
              + name
              + " has "
              + Integer.toUnsignedString(dimensions)
              + " dimensions, more than "
              + MOST_DIMENSIONS);
    }
    long[] shape = new long[dimensions];
    long elements = 1;
    for (int d = 0; d < dimensions; d++) {
      shape[d] = int64();
      if (shape[d] <= 0) {
        throw damaged("its tensor " + name + " has an extent of " + shape[d]);
      }
      // No element takes less than a bit, so that this many cannot be in the file.
      if (shape[d] > size * 8 / elements) {
        throw cutOff(name, "has more elements than the file can hold");
      }
      elements *= shape[d];
    }
    int type = int32();
    long block =
        type < 0 || type >= NativeApi.GGML_TYPE_COUNT() ? 0 : NativeApi.ggml_blck_size(type);
    if (block == 0) {
      throw damaged("its tensor " + name + " has the type " + type + ", which does not exist");
    }
    String typeName = NativeApi.ggml_type_name(type).getString(0);
    long row = dimensions == 0 ? 1 : shape[0];
    if (row % block != 0) {
      throw damaged(
          "its tensor "
              + name
              + " has rows of "
              + row
              + " elements, no multiple of the "
              + block
              + " of a block of "
              + typeName);
    }
    // At most 8 bits of the file times the bytes of a block: far from an overflow.
    long bytes = elements / block * NativeApi.ggml_type_size(type);
    return new TensorInfo(
        name, dimensions, Arrays.toString(shape), elements / row, type, typeName, int64(), bytes);
  }

  private void checkExtents(List<TensorInfo> tensors, long data) {
    for (TensorInfo tensor : tensors) {
      long end = data + tensor.offset() + tensor.bytes();
      if (end > size) {
        throw cutOff(tensor.name(), "ends at byte " + end);
      }
      if ((data + tensor.offset()) % TENSOR_ALIGNMENT != 0) {
        throw damaged(
            "its tensor "
                + tensor.name()
                + " begins at byte "
                + (data + tensor.offset())
                + ", no multiple of "
                + TENSOR_ALIGNMENT);
      }
    }
  }

  private static long padded(long bytes, long alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
  }

  // What is read of the file

  private String name(String what, int longest) throws IOException {
    int length = length(what);
    if (length > longest) {
      throw damaged(what + " has " + length + " bytes, more than " + longest);
    }
    byte[] bytes = new byte[length];
    bytes(bytes, 0, length);
    for (byte b : bytes) {
      if (b == 0) {
        throw damaged(what + " holds a NUL");
      }
    }
    return new String(bytes, StandardCharsets.UTF_8);
  }

  private static String upToNul(byte[] bytes) {
    int end = 0;
    while (end < bytes.length && bytes[end] != 0) {
      end++;
    }
    return new String(bytes, 0, end, StandardCharsets.UTF_8);
  }

  private int length(String what) throws IOException {
    long length = int64();
    if (length < 0 || length > LONGEST_STRING || length > left) {
      throw damaged(
          what + " claims " + Long.toUnsignedString(length) + " bytes, but " + left + " are left");
    }
    return (int) length;
  }

  private int int32() throws IOException {
    fill(Integer.BYTES);
    return buffer.getInt();
  }

  private long int64() throws IOException {
    fill(Long.BYTES);
    return buffer.getLong();
  }

  private void bytes(byte[] to, int start, int length) throws IOException {
    int done = 0;
    while (done < length) {
      if (!buffer.hasRemaining()) {
        refill();
      }
      int part = Math.min(length - done, buffer.remaining());
      buffer.get(to, start + done, part);
      done += part;
    }
    left -= length;
  }

  private void skip(long length) throws IOException {
    long inBuffer = Math.min(length, buffer.remaining());
    buffer.position(buffer.position() + (int) inBuffer);
    channel.position(channel.position() + length - inBuffer);
    left -= length;
  }

  /** Sees to it that the next bytes are in the buffer, and counts them as given out. */
  private void fill(int bytes) throws IOException {
    if (bytes > left) {
      throw damaged("it ends after " + size + " bytes, in the middle of its header");
    }
    while (buffer.remaining() < bytes) {
      refill();
    }
    left -= bytes;
  }

  private void refill() throws IOException {
    buffer.compact();
    int read = channel.read(buffer);
    buffer.flip();
    if (read <= 0) { // it was longer a moment ago
      throw damaged("it ends in the middle of its header");
    }
  }

  private ModelLoadException damaged(String reason) {
    return new ModelLoadException(
        "The header of the model file "
            + file
            + " ("
            + size
            + " bytes) is damaged or cut off: "
            + reason
            + ". Fetch the file again.");
  }

  private ModelLoadException cutOff(String tensor, String how) {
    return new ModelLoadException(
        "The model file "
            + file
            + " is cut off: it has "
            + size
            + " bytes, its tensor "
            + tensor
            + " "
            + how
            + ". Fetch the file again.");
  }
}
