package dev.kvasir.internal.engine;

/** What sessions know of tokens. Any thread may ask. */
public interface Tokens {
  /** Number of entries of the vocabulary. */
  int size();

  /** Whether the token ends a generation. */
  boolean isEndOfGeneration(int token);

  /** Whether the token has no text that a reader should see. */
  boolean isHidden(int token);

  /** The bytes of a token's text; they need not be whole code points. */
  byte[] bytesOf(int token);

  /**
   * Splits a text that goes on where other text ended into tokens.
   *
   * @param parseSpecial takes the text of a special token for that token
   */
  int[] tokenizeContinuation(String text, boolean parseSpecial);

  /**
   * Checks that ids are entries of the vocabulary.
   *
   * @throws IllegalArgumentException if one is not
   */
  void checkTokens(int... tokens);
}
