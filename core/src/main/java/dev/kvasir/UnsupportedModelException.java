package dev.kvasir;

/**
 * A model that llama.cpp can load but that Kvasir cannot run as it was asked to. Encoders and
 * diffusion models do not continue a text. Recurrent models and those with an indexer's cache
 * beside keys and values run without the adaptive cache only.
 */
public final class UnsupportedModelException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public UnsupportedModelException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public UnsupportedModelException(String message, Throwable cause) {
    super(message, cause);
  }
}
