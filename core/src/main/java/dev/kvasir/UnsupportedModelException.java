package dev.kvasir;

/**
 * A model that llama.cpp can load but that Kvasir cannot run: recurrent, hybrid, diffusion and
 * encoder models have no KV cache of their own to compress.
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
