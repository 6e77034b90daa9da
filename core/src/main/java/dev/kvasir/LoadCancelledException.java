package dev.kvasir;

/** The progress listener of {@link ModelOptions} ended the loading of a model. */
public final class LoadCancelledException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public LoadCancelledException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public LoadCancelledException(String message, Throwable cause) {
    super(message, cause);
  }
}
