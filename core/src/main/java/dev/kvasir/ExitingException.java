package dev.kvasir;

/**
 * The JVM is exiting, and nothing is computed any more: not in its shutdown hooks either, unless an
 * {@link ExitHold} is open. A prompt or token that was being decoded is not in the session.
 */
public final class ExitingException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Says so. */
  public ExitingException() {
    super(
        "The JVM is exiting: nothing is computed any more. Whoever needs time for it, in a shutdown hook too, opens an ExitHold before.");
  }
}
