package dev.kvasir;

/**
 * A model file cannot be read: it is missing, no GGUF file, truncated, says something that cannot
 * be, or is refused by llama.cpp.
 */
public final class ModelLoadException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public ModelLoadException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public ModelLoadException(String message, Throwable cause) {
    super(message, cause);
  }
}
