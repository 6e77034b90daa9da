package dev.kvasir.internal.llama.gguf;

import java.util.Locale;

/** The types of metadata values, in the order of their numbers in a file. */
enum ValueType {
  UINT8(1),
  INT8(1),
  UINT16(2),
  INT16(2),
  UINT32(4),
  INT32(4),
  FLOAT32(4),
  BOOL(1),
  STRING(0),
  ARRAY(0),
  UINT64(8),
  INT64(8),
  FLOAT64(8);

  private static final ValueType[] ALL = values();

  /** Bytes of a value in a file; 0 if that depends on the value. */
  final int bytes;

  ValueType(int bytes) {
    this.bytes = bytes;
  }

  static boolean known(int number) {
    return number >= 0 && number < ALL.length;
  }

  static ValueType of(int number) {
    return ALL[number];
  }

  boolean floating() {
    return this == FLOAT32 || this == FLOAT64;
  }

  @Override
  public String toString() {
    return name().toLowerCase(Locale.ROOT);
  }
}
