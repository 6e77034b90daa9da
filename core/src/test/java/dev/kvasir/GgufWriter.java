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
import java.util.List;

/** Writes small GGUF files, version 3, with F32 tensors. */
final class GgufWriter {
  private static final int TYPE_UINT32 = 4;
  private static final int TYPE_INT32 = 5;
  private static final int TYPE_FLOAT32 = 6;
  private static final int TYPE_BOOL = 7;
  static final int TYPE_STRING = 8;
  static final int TYPE_ARRAY = 9;
  static final int ALIGNMENT = 32;

  private final ByteArrayOutputStream pairs = new ByteArrayOutputStream();
  private final List<Tensor> tensors = new ArrayList<>();
  private int pairCount;

  private record Tensor(String name, long[] shape, float[] data) {}

  GgufWriter put(String key, String value) {
    return key(key, TYPE_STRING).text(value);
  }

  GgufWriter put(String key, int value) {
    return key(key, TYPE_UINT32).number(4, value);
  }

  GgufWriter put(String key, float value) {
    return key(key, TYPE_FLOAT32).number(4, Float.floatToRawIntBits(value));
  }

  GgufWriter put(String key, boolean value) {
    return key(key, TYPE_BOOL).number(1, value ? 1 : 0);
  }

  GgufWriter put(String key, String[] values) {
    key(key, TYPE_ARRAY).number(4, TYPE_STRING).number(8, values.length);
    for (String value : values) {
      text(value);
    }
    return this;
  }

  GgufWriter put(String key, float[] values) {
    key(key, TYPE_ARRAY).number(4, TYPE_FLOAT32).number(8, values.length);
    for (float value : values) {
      number(4, Float.floatToRawIntBits(value));
    }
    return this;
  }

  GgufWriter put(String key, int[] values) {
    key(key, TYPE_ARRAY).number(4, TYPE_INT32).number(8, values.length);
    for (int value : values) {
      number(4, value);
    }
    return this;
  }

  /** Adds a tensor; the first dimension is the one whose elements are adjacent. */
  GgufWriter tensor(String name, float[] data, long... shape) {
    tensors.add(new Tensor(name, shape, data));
    return this;
  }

  void write(Path file) {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    out.writeBytes("GGUF".getBytes(StandardCharsets.US_ASCII));
    number(out, 4, 3);
    number(out, 8, tensors.size());
    number(out, 8, pairCount);
    out.writeBytes(pairs.toByteArray());
    long offset = 0;
    for (Tensor tensor : tensors) {
      text(out, tensor.name);
      number(out, 4, tensor.shape.length);
      for (long extent : tensor.shape) {
        number(out, 8, extent);
      }
      number(out, 4, 0);
      number(out, 8, offset);
      offset += padded(4L * tensor.data.length);
    }
    pad(out);
    for (Tensor tensor : tensors) {
      ByteBuffer bytes = ByteBuffer.allocate(4 * tensor.data.length).order(ByteOrder.LITTLE_ENDIAN);
      bytes.asFloatBuffer().put(tensor.data);
      out.writeBytes(bytes.array());
      pad(out);
    }
    try {
      Files.write(file, out.toByteArray());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static long padded(long size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }

  private static void pad(ByteArrayOutputStream out) {
    while (out.size() % ALIGNMENT != 0) {
      out.write(0);
    }
  }

  private GgufWriter key(String key, int type) {
    pairCount++;
    return text(key).number(4, type);
  }

  private GgufWriter text(String value) {
    text(pairs, value);
    return this;
  }

  private GgufWriter number(int bytes, long value) {
    number(pairs, bytes, value);
    return this;
  }

  private static void text(ByteArrayOutputStream out, String value) {
    byte[] bytes = value.getBytes(StandardCharsets.UTF_8);
    number(out, 8, bytes.length);
    out.writeBytes(bytes);
  }

  private static void number(ByteArrayOutputStream out, int bytes, long value) {
    for (int i = 0; i < bytes; i++) {
      out.write((int) (value >>> (8 * i)));
    }
  }
}
