package dev.kvasir;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;

/** A GGUF file taken apart, to be changed and put together again: rightly or wrongly. */
final class GgufImage {
  static final int UINT8 = 0;
  static final int UINT16 = 2;
  static final int UINT32 = 4;
  static final int INT32 = 5;
  static final int FLOAT32 = 6;
  static final int BOOL = 7;
  static final int STRING = 8;
  static final int ARRAY = 9;
  static final int UINT64 = 10;
  static final int FLOAT64 = 12;

  private static final int[] SIZES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

  int magic = 0x46554747;
  int version = 3;

  /** What the header claims; -1: what is true. */
  long claimedPairs = -1;

  long claimedTensors = -1;
  int alignment = 32;
  final List<Pair> pairs = new ArrayList<>();
  final List<Tensor> tensors = new ArrayList<>();

  static final class Pair {
    byte[] key;
    int type;

    /** Of an array the type of its elements. */
    int elementType;

    /** One element unless it is an array; of a text its bytes. */
    final List<byte[]> elements = new ArrayList<>();

    /** Number of elements or bytes of the text that is claimed; -1: what is true. */
    long claimed = -1;

    Pair(String key, int type) {
      this.key = key.getBytes(StandardCharsets.UTF_8);
      this.type = type;
    }

    String name() {
      return new String(key, StandardCharsets.UTF_8);
    }

    int valueType() {
      return type == ARRAY ? elementType : type;
    }
  }

  static final class Tensor {
    byte[] name;
    long[] shape;
    int type;

    /** Where the data begin; -1: behind those before. */
    long claimedOffset = -1;

    byte[] data;

    Tensor(byte[] name, long[] shape, int type, byte[] data) {
      this.name = name;
      this.shape = shape;
      this.type = type;
      this.data = data;
    }

    String text() {
      return new String(name, StandardCharsets.UTF_8);
    }
  }

  static GgufImage read(Path file) {
    try {
      return read(Files.readAllBytes(file));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Reads a file that is right. What pads a tensor's data counts as a part of them. */
  static GgufImage read(byte[] bytes) {
    ByteBuffer in = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    GgufImage image = new GgufImage();
    image.magic = in.getInt();
    image.version = in.getInt();
    long tensors = in.getLong();
    long pairs = in.getLong();
    for (long i = 0; i < pairs; i++) {
      Pair pair = new Pair(text(in), in.getInt());
      image.pairs.add(pair);
      long count = 1;
      if (pair.type == ARRAY) {
        pair.elementType = in.getInt();
        count = in.getLong();
      }
      for (long e = 0; e < count; e++) {
        int size = SIZES[pair.valueType()];
        byte[] element = new byte[pair.valueType() == STRING ? (int) in.getLong() : size];
        in.get(element);
        pair.elements.add(element);
      }
    }
    int[] offsets = new int[(int) tensors + 1];
    for (int i = 0; i < tensors; i++) {
      byte[] name = text(in).getBytes(StandardCharsets.UTF_8);
      long[] shape = new long[in.getInt()];
      for (int d = 0; d < shape.length; d++) {
        shape[d] = in.getLong();
      }
      image.tensors.add(new Tensor(name, shape, in.getInt(), new byte[0]));
      offsets[i] = (int) in.getLong();
    }
    int data = padded(in.position(), image.alignment);
    offsets[(int) tensors] = bytes.length - data;
    for (int i = 0; i < tensors; i++) {
      image.tensors.get(i).data =
          Arrays.copyOfRange(bytes, data + offsets[i], data + offsets[i + 1]);
    }
    return image;
  }

  private static String text(ByteBuffer in) {
    byte[] bytes = new byte[(int) in.getLong()];
    in.get(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }

  /** The pair of a key. */
  Pair pair(String key) {
    return pairs.stream()
        .filter(pair -> pair.name().equals(key))
        .findFirst()
        .orElseThrow(() -> new NoSuchElementException(key));
  }

  Tensor tensor(String name) {
    return tensors.stream()
        .filter(tensor -> tensor.text().equals(name))
        .findFirst()
        .orElseThrow(() -> new NoSuchElementException(name));
  }

  GgufImage remove(String key) {
    pairs.removeIf(pair -> pair.name().equals(key));
    return this;
  }

  private Pair fresh(String key, int type) {
    Pair pair = new Pair(key, type);
    for (int i = 0; i < pairs.size(); i++) {
      if (pairs.get(i).name().equals(key)) {
        pairs.set(i, pair);
        return pair;
      }
    }
    pairs.add(pair);
    return pair;
  }

  GgufImage put(String key, int value) {
    fresh(key, UINT32).elements.add(little(4, value));
    return this;
  }

  GgufImage put(String key, float value) {
    fresh(key, FLOAT32).elements.add(little(4, Float.floatToRawIntBits(value)));
    return this;
  }

  GgufImage put(String key, boolean value) {
    fresh(key, BOOL).elements.add(little(1, value ? 1 : 0));
    return this;
  }

  GgufImage put(String key, String value) {
    fresh(key, STRING).elements.add(value.getBytes(StandardCharsets.UTF_8));
    return this;
  }

  GgufImage putShort(String key, int value) {
    fresh(key, UINT16).elements.add(little(2, value));
    return this;
  }

  GgufImage put(String key, int[] values) {
    Pair pair = fresh(key, ARRAY);
    pair.elementType = INT32;
    for (int value : values) {
      pair.elements.add(little(4, value));
    }
    return this;
  }

  GgufImage put(String key, String[] values) {
    Pair pair = fresh(key, ARRAY);
    pair.elementType = STRING;
    for (String value : values) {
      pair.elements.add(value.getBytes(StandardCharsets.UTF_8));
    }
    return this;
  }

  static byte[] little(int bytes, long value) {
    byte[] result = new byte[bytes];
    for (int i = 0; i < bytes; i++) {
      result[i] = (byte) (value >>> (8 * i));
    }
    return result;
  }

  byte[] bytes() {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    number(out, 4, magic);
    number(out, 4, version);
    number(out, 8, claimedTensors >= 0 ? claimedTensors : tensors.size());
    number(out, 8, claimedPairs >= 0 ? claimedPairs : pairs.size());
    for (Pair pair : pairs) {
      text(out, pair.key, -1);
      number(out, 4, pair.type);
      if (pair.type == ARRAY) {
        number(out, 4, pair.elementType);
        number(out, 8, pair.claimed != -1 ? pair.claimed : pair.elements.size());
      }
      for (byte[] element : pair.elements) {
        if (pair.valueType() == STRING) {
          text(out, element, pair.type == ARRAY ? -1 : pair.claimed);
        } else {
          out.writeBytes(element);
        }
      }
    }
    long offset = 0;
    for (Tensor tensor : tensors) {
      text(out, tensor.name, -1);
      number(out, 4, tensor.shape.length);
      for (long extent : tensor.shape) {
        number(out, 8, extent);
      }
      number(out, 4, tensor.type);
      number(out, 8, tensor.claimedOffset != -1 ? tensor.claimedOffset : offset);
      offset += padded(tensor.data.length, alignment);
    }
    pad(out);
    for (Tensor tensor : tensors) {
      out.writeBytes(tensor.data);
      pad(out);
    }
    return out.toByteArray();
  }

  Path write(Path file) {
    try {
      return Files.write(file, bytes());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private void pad(ByteArrayOutputStream out) {
    out.writeBytes(new byte[padded(out.size(), alignment) - out.size()]);
  }

  private static int padded(int size, int alignment) {
    return (size + alignment - 1) / alignment * alignment;
  }

  private static void text(ByteArrayOutputStream out, byte[] bytes, long claimed) {
    number(out, 8, claimed != -1 ? claimed : bytes.length);
    out.writeBytes(bytes);
  }

  private static void number(ByteArrayOutputStream out, int bytes, long value) {
    out.writeBytes(little(bytes, value));
  }
}
