package dev.kvasir;

/**
 * A thread was interrupted before what it asked for was computed; the session is as it was before.
 * The thread's interrupt status stays set.
 */
public final class CancelledException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** What was given up. */
  public CancelledException(String message) {
    super(message);
  }
}
