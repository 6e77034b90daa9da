package dev.kvasir;

/**
 * An option has a value that does not exist, or that this model, device or library build cannot
 * serve.
 */
public final class InvalidOptionException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public InvalidOptionException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public InvalidOptionException(String message, Throwable cause) {
    super(message, cause);
  }
}
