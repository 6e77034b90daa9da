package dev.kvasir.internal.policy;

import java.util.Random;

/**
 * A vocabulary of 100 tokens: 0 to 4 are control tokens, 5 to 19 are punctuation; 50 51 52 and 60
 * 61 are markers.
 */
public final class FakeKinds implements TokenKinds {
  @Override
  public byte kindOf(int token) {
    return token < 5 ? SPECIAL : token < 20 ? PUNCTUATION : OTHER;
  }

  @Override
  public int[][] markers() {
    return new int[][] {{50, 51, 52}, {60, 61}};
  }

  /** Random text with one marker in it. */
  static int[] text(Random random, int tokens) {
    var text = random.ints(tokens, 3, 100).toArray();
    if (tokens > 12) {
      System.arraycopy(new int[] {50, 51, 52}, 0, text, 7, 3);
    }
    return text;
  }
}
