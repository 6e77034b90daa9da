package dev.kvasir.internal.policy;

/**
 * What the vocabulary and the chat template say about tokens, as far as the policies ask. The
 * values are bits of {@link TokenLog#flags()}.
 */
public interface TokenKinds {

  /** A token that no policy keeps for its own sake. */
  byte OTHER = 0;

  /** BOS, EOS and every other control token. */
  byte SPECIAL = 1;

  /** A vocabulary entry made of punctuation and symbols only. */
  byte PUNCTUATION = 2;

  /**
   * The kind of a vocabulary entry. Called once per token of the sequence, also during decode: an
   * array lookup.
   *
   * @param token a token id
   * @return {@link #OTHER}, {@link #SPECIAL} or {@link #PUNCTUATION}
   */
  byte kindOf(int token);

  /**
   * The chat template's marker sequences, for example the tokens of {@code
   * <|im_start|>assistant\n}: wherever one occurs in the token stream, all of its tokens are
   * special. Read once, with the first token: the template is rendered for it.
   */
  int[][] markers();
}
