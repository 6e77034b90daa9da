package dev.kvasir;

/**
 * llama.cpp failed while it computed a batch of tokens. The session was rolled back to the state
 * before the call.
 */
public final class DecodeException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public DecodeException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public DecodeException(String message, Throwable cause) {
    super(message, cause);
  }
}
