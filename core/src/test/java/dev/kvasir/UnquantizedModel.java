package dev.kvasir;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileChannel.MapMode;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;

/**
 * Writes a GGUF file once more with F32 weights of the same values: every backend multiplies by
 * these alike, while it rounds activations in its own way before it multiplies by quantised ones.
 * For tensors of F32, Q4_1 and Q8_0, which the default model has.
 */
final class UnquantizedModel {
  private static final int F32 = 0;
  private static final int Q4_1 = 3;
  private static final int Q8_0 = 8;
  private static final int BLOCK = 32;

  private static final int[] SIZES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; // by type of value
  private static final int MAGIC_AND_VERSION = 8;

  private record Tensor(ByteBuffer nameAndShape, int type, long elements, long offset) {}

  private final ByteBuffer in;

  private UnquantizedModel(ByteBuffer in) {
    this.in = in.order(ByteOrder.LITTLE_ENDIAN);
  }

  static Path write(Path quantized, Path file) throws IOException {
    try (FileChannel from = FileChannel.open(quantized, StandardOpenOption.READ);
        FileChannel to =
            FileChannel.open(
                file,
                StandardOpenOption.CREATE_NEW,
                StandardOpenOption.READ,
                StandardOpenOption.WRITE)) {
      new UnquantizedModel(from.map(MapMode.READ_ONLY, 0, from.size())).writeTo(to);
    }
    return file;
  }

  private void writeTo(FileChannel file) throws IOException {
    in.position(MAGIC_AND_VERSION);
    long tensors = in.getLong();
    long pairs = in.getLong();
    for (long i = 0; i < pairs; i++) {
      skipString();
      skipValue(in.getInt());
    }
    int endOfPairs = in.position();
    List<Tensor> all = new ArrayList<>();
    for (long i = 0; i < tensors; i++) {
      all.add(readTensor());
    }
    int data = aligned(in.position());

    ByteBuffer header = ByteBuffer.allocate(data).order(ByteOrder.LITTLE_ENDIAN);
    header.put(in.slice(0, endOfPairs));
    long offset = 0;
    for (Tensor tensor : all) {
      header.put(tensor.nameAndShape.duplicate()).putInt(F32).putLong(offset);
      offset += tensor.elements * Float.BYTES; // of rows that are multiples of the alignment
    }
    file.write(header.clear());
    long at = data;
    for (Tensor tensor : all) {
      long bytes = tensor.elements * Float.BYTES;
      FloatBuffer floats =
          file.map(MapMode.READ_WRITE, at, bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
      in.position(Math.toIntExact(data + tensor.offset));
      for (long i = 0; i < tensor.elements; i += BLOCK) {
        block(tensor.type, floats);
      }
      at += bytes;
    }
  }

  private Tensor readTensor() {
    int begin = in.position();
    skipString();
    long elements = 1;
    for (int dimensions = in.getInt(); dimensions > 0; dimensions--) {
      elements *= in.getLong();
    }
    ByteBuffer nameAndShape = in.slice(begin, in.position() - begin);
    return new Tensor(nameAndShape, in.getInt(), elements, in.getLong());
  }

  private void block(int type, FloatBuffer to) {
    switch (type) {
      case F32 -> {
        for (int i = 0; i < BLOCK; i++) {
          to.put(in.getFloat());
        }
      }
      case Q4_1 -> {
        float scale = Float.float16ToFloat(in.getShort());
        float least = Float.float16ToFloat(in.getShort());
        byte[] pairs = new byte[BLOCK / 2];
        in.get(pairs);
        for (byte pair : pairs) {
          to.put((pair & 15) * scale + least);
        }
        for (byte pair : pairs) {
          to.put((pair >> 4 & 15) * scale + least);
        }
      }
      case Q8_0 -> {
        float scale = Float.float16ToFloat(in.getShort());
        for (int i = 0; i < BLOCK; i++) {
          to.put(in.get() * scale);
        }
      }
      default -> throw new IllegalArgumentException("tensors of type " + type);
    }
  }

  private void skipString() {
    long length = in.getLong();
    skip(length);
  }

  private void skipValue(int type) {
    switch (type) {
      case GgufWriter.TYPE_STRING -> skipString();
      case GgufWriter.TYPE_ARRAY -> {
        int of = in.getInt();
        for (long count = in.getLong(); count > 0; count--) {
          skipValue(of);
        }
      }
      default -> skip(SIZES[type]);
    }
  }

  private void skip(long bytes) {
    in.position(Math.toIntExact(in.position() + bytes));
  }

  private static int aligned(int position) {
    return Math.ceilDiv(position, GgufWriter.ALIGNMENT) * GgufWriter.ALIGNMENT;
  }
}
