package dev.kvasir;

import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Collectors;

/** Element type of the keys or values in the KV cache, with llama.cpp's names. */
public enum KvType {
  F16(1, 1, 2),
  BF16(30, 1, 2),
  Q8_0(8, 32, 34),
  Q5_1(7, 32, 24),
  Q5_0(6, 32, 22),
  Q4_1(3, 32, 20),
  Q4_0(2, 32, 18);

  private final int ggmlType;
  private final int blockSize;
  private final int blockBytes;

  KvType(int ggmlType, int blockSize, int blockBytes) {
    this.ggmlType = ggmlType;
    this.blockSize = blockSize;
    this.blockBytes = blockBytes;
  }

  /** The value of ggml's {@code enum ggml_type}. */
  int ggmlType() {
    return ggmlType;
  }

  /** Number of elements that are quantised together; a head dimension must be a multiple of it. */
  public int blockSize() {
    return blockSize;
  }

  /** Bytes of one block of {@link #blockSize()} elements. */
  public int blockBytes() {
    return blockBytes;
  }

  /** The name that llama.cpp's {@code -ctk} and {@code -ctv} take, for example {@code q8_0}. */
  public String label() {
    return name().toLowerCase(Locale.ROOT);
  }

  /**
   * The type of that llama.cpp name, in any case.
   *
   * @throws InvalidOptionException if there is no such type; the message lists those that exist
   */
  public static KvType of(String label) {
    for (KvType type : values()) {
      if (type.name().equalsIgnoreCase(label)) {
        return type;
      }
    }
    throw new InvalidOptionException(
        "Unknown KV type \""
            + label
            + "\"; known are "
            + Arrays.stream(values()).map(KvType::label).collect(Collectors.joining(", ")));
  }
}
