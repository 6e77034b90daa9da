package dev.kvasir;

/**
 * A thread was interrupted before what it asked for was computed; the session is as it was before,
 * or, where it cannot be brought back (see {@link Session}), the message says that it is empty. The
 * thread's interrupt status stays set.
 */
public final class CancelledException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** What was given up. */
  public CancelledException(String message) {
    super(message);
  }
}
