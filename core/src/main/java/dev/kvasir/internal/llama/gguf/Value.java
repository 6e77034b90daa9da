package dev.kvasir.internal.llama.gguf;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.jspecify.annotations.Nullable;

/** A metadata value. Arrays keep their elements only where a check looks at them. */
sealed interface Value {
  /** What the value is, for messages. */
  String describe();

  /**
   * A number or a truth value.
   *
   * @param bits of an integer its value; of a floating-point number that of {@link
   *     Double#doubleToRawLongBits}
   */
  record Scalar(ValueType type, long bits) implements Value {
    double toDouble() {
      return type.floating() ? Double.longBitsToDouble(bits) : bits;
    }

    @Override
    public String describe() {
      return (type.floating() ? Double.toString(toDouble()) : Long.toString(bits))
          + " ("
          + type
          + ")";
    }
  }

  /**
   * A text.
   *
   * @param text as llama.cpp sees it, which is up to the first NUL; its beginning only if it is
   *     long
   */
  record Text(String text) implements Value {
    @Override
    public String describe() {
      return "\"" + (text.length() <= 60 ? text : text.substring(0, 60) + "...") + "\"";
    }
  }

  /**
   * An array of numbers.
   *
   * @param elements little-endian; null if there are too many to look at
   */
  record Numbers(ValueType type, long length, @Nullable ByteBuffer elements) implements Value {
    boolean kept() {
      return elements != null;
    }

    /** An element as a long; of a floating-point number its integer part. */
    long get(int index) {
      ByteBuffer from = elements().order(ByteOrder.LITTLE_ENDIAN);
      return switch (type) {
        case UINT8, BOOL -> from.get(index) & 0xFF;
        case INT8 -> from.get(index);
        case UINT16 -> from.getShort(2 * index) & 0xFFFF;
        case INT16 -> from.getShort(2 * index);
        case UINT32 -> from.getInt(4 * index) & 0xFFFFFFFFL;
        case INT32 -> from.getInt(4 * index);
        case UINT64, INT64 -> from.getLong(8 * index);
        case FLOAT32 -> (long) from.getFloat(4 * index);
        case FLOAT64 -> (long) from.getDouble(8 * index);
        case STRING, ARRAY -> throw new IllegalStateException("no number: " + type);
      };
    }

    @Override
    public ByteBuffer elements() {
      if (elements == null) {
        throw new IllegalStateException("the elements were not kept");
      }
      return elements;
    }

    @Override
    public String describe() {
      return "an array of " + length + " " + type;
    }
  }

  /** An array of texts. */
  record Texts(long length, @Nullable Strings elements) implements Value {
    @Override
    public String describe() {
      return "an array of " + length + " texts";
    }
  }
}
