package dev.kvasir;

/** A model was used after it was closed. */
public final class ModelStateException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public ModelStateException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public ModelStateException(String message, Throwable cause) {
    super(message, cause);
  }
}
