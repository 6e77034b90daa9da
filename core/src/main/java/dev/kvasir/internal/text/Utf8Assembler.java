package dev.kvasir.internal.text;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * Turns bytes that arrive in arbitrary portions into whole code points; an unfinished one is held
 * back until its bytes are there. Bytes that are no UTF-8 become U+FFFD.
 */
public final class Utf8Assembler {
  private final byte[] held = new byte[4];
  private int heldCount;

  /** Takes more bytes and appends the code points that are complete now. */
  public void append(byte[] bytes, StringBuilder target) {
    byte[] all = bytes;
    if (heldCount > 0) {
      all = Arrays.copyOf(held, heldCount + bytes.length);
      System.arraycopy(bytes, 0, all, heldCount, bytes.length);
      heldCount = 0;
    }
    int complete = all.length - unfinished(all);
    target.append(new String(all, 0, complete, StandardCharsets.UTF_8));
    heldCount = all.length - complete;
    System.arraycopy(all, complete, held, 0, heldCount);
  }

  /** Whether bytes are held back. */
  public boolean unfinished() {
    return heldCount > 0;
  }

  /** Appends U+FFFD for bytes that are still held back: no more will come. */
  public void finish(StringBuilder target) {
    if (heldCount > 0) {
      heldCount = 0;
      target.append('\uFFFD');
    }
  }

  /** Number of bytes at the end that may be the start of a code point. */
  private static int unfinished(byte[] bytes) {
    for (int back = 1; back <= Math.min(3, bytes.length); back++) {
      int b = bytes[bytes.length - back] & 0xFF;
      if (b < 0x80) {
        return 0;
      }
      if (b >= 0xC0) {
        int length = b >= 0xF8 ? 1 : b >= 0xF0 ? 4 : b >= 0xE0 ? 3 : 2;
        return length > back ? back : 0;
      }
    }
    return 0;
  }
}
