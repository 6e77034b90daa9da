package dev.kvasir;

/** The native libraries are missing, cannot be loaded, or do not fit together. */
public final class NativeLibraryException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public NativeLibraryException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public NativeLibraryException(String message, Throwable cause) {
    super(message, cause);
  }
}
