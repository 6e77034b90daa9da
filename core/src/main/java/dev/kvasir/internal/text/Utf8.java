package dev.kvasir.internal.text;

import java.nio.charset.StandardCharsets;

/** Strings as the bytes that llama.cpp reads. */
public final class Utf8 {
  private static final char REPLACEMENT = '\uFFFD';

  private Utf8() {}

  /**
   * The text's bytes. A surrogate without its other half is no character and has no bytes: it
   * becomes U+FFFD, where {@link String#getBytes} would make a question mark of it.
   */
  public static byte[] bytes(String text) {
    int lone = loneSurrogate(text, 0);
    if (lone < 0) {
      return text.getBytes(StandardCharsets.UTF_8);
    }
    char[] chars = text.toCharArray();
    for (; lone >= 0; lone = loneSurrogate(text, lone + 1)) {
      chars[lone] = REPLACEMENT;
    }
    return new String(chars).getBytes(StandardCharsets.UTF_8);
  }

  private static int loneSurrogate(String text, int from) {
    for (int i = from; i < text.length(); i++) {
      char c = text.charAt(i);
      if (Character.isSurrogate(c)) {
        if (Character.isHighSurrogate(c)
            && i + 1 < text.length()
            && Character.isLowSurrogate(text.charAt(i + 1))) {
          i++;
        } else {
          return i;
        }
      }
    }
    return -1;
  }
}
