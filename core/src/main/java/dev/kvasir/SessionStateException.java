package dev.kvasir;

/**
 * A session or reply was used after it was closed, by two threads at once, or while another of its
 * replies is open.
 */
public final class SessionStateException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public SessionStateException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public SessionStateException(String message, Throwable cause) {
    super(message, cause);
  }
}
