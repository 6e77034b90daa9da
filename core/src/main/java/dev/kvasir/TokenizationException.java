package dev.kvasir;

/**
 * A text cannot be split into tokens: it is too long, it goes on for too long without a break for
 * the model's pre-tokeniser, or the model's vocabulary has no token for a part of it. Nothing of it
 * was decoded; whoever was asked is as before.
 */
public final class TokenizationException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public TokenizationException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public TokenizationException(String message, Throwable cause) {
    super(message, cause);
  }
}
