package dev.kvasir;

/** A saved profile is damaged, was made for another model, or does not fit the session. */
public final class ProfileException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public ProfileException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public ProfileException(String message, Throwable cause) {
    super(message, cause);
  }
}
