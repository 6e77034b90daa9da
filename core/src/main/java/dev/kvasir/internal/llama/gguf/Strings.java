package dev.kvasir.internal.llama.gguf;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** Many short texts in one array of bytes: a vocabulary has a quarter of a million. */
final class Strings {
  private byte[] bytes = new byte[1 << 12];
  private int[] ends = new int[1 << 10];
  private int size;

  int size() {
    return size;
  }

  /** Makes room for a text and returns where its bytes go in {@link #bytes}. */
  int add(int length) {
    int start = start(size);
    int end = Math.addExact(start, length);
    if (end > bytes.length) {
      bytes =
          Arrays.copyOf(
              bytes, Math.max(end, (int) Math.min(Integer.MAX_VALUE - 16, bytes.length * 2L)));
    }
    if (size == ends.length) {
      ends = Arrays.copyOf(ends, Math.multiplyExact(size, 2));
    }
    ends[size++] = end;
    return start;
  }

  byte[] bytes() {
    return bytes;
  }

  int start(int index) {
    return index == 0 ? 0 : ends[index - 1];
  }

  int end(int index) {
    return ends[index];
  }

  /** The text as a C string: up to its first NUL. */
  int endOfText(int index) {
    for (int i = start(index); i < ends[index]; i++) {
      if (bytes[i] == 0) {
        return i;
      }
    }
    return ends[index];
  }

  String get(int index) {
    int start = start(index);
    return new String(bytes, start, endOfText(index) - start, StandardCharsets.UTF_8);
  }
}
