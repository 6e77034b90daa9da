package dev.kvasir.internal.policy;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** The tokens of the sequence by position, and why a policy might keep each for its own sake. */
final class TokenLog {
  /** A control token, or part of a marker sequence. */
  static final byte SPECIAL = TokenKinds.SPECIAL;

  /** Punctuation and symbols only. */
  static final byte PUNCTUATION = TokenKinds.PUNCTUATION;

  /** One of the first positions. */
  static final byte SINK = 4;

  private final TokenKinds kinds;
  private int @Nullable [][] markers;
  private final int sinks;
  private int[] tokens;
  private byte[] flags;
  private int length;

  /**
   * An empty log.
   *
   * @param capacity tokens that are expected at most; more may come
   */
  TokenLog(TokenKinds kinds, int sinks, int capacity) {
    this.tokens = new int[capacity];
    this.flags = new byte[capacity];
    this.kinds = kinds;
    this.sinks = sinks;
  }

  int length() {
    return length;
  }

  /**
   * By position: any of {@link #SPECIAL}, {@link #PUNCTUATION} and {@link #SINK}. Valid until the
   * next append.
   */
  byte[] flags() {
    return flags;
  }

  void append(int token) {
    if (length == tokens.length) {
      tokens = Arrays.copyOf(tokens, length + length / 2 + 16);
      flags = Arrays.copyOf(flags, tokens.length);
    }
    tokens[length] = token;
    flags[length] = (byte) (kinds.kindOf(token) | (length < sinks ? SINK : 0));
    length++;
    if (markers == null) {
      markers = kinds.markers();
    }
    for (var marker : markers) {
      if (endsWith(marker)) {
        for (int i = length - marker.length; i < length; i++) {
          flags[i] |= SPECIAL;
        }
      }
    }
  }

  private boolean endsWith(int[] marker) {
    int from = length - marker.length;
    if (marker.length == 0 || from < 0) {
      return false;
    }
    for (int i = marker.length - 1; i >= 0; i--) {
      if (tokens[from + i] != marker[i]) {
        return false;
      }
    }
    return true;
  }

  void clear() {
    length = 0;
  }
}
