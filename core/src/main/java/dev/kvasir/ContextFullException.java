package dev.kvasir;

/**
 * A prompt does not fit into what is left of the context. Nothing of it was decoded; the session is
 * as it was.
 */
public final class ContextFullException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public ContextFullException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public ContextFullException(String message, Throwable cause) {
    super(message, cause);
  }
}
