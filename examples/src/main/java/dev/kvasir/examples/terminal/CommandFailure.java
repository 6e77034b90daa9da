package dev.kvasir.examples.terminal;

/** A command cannot do what it was asked for; the message is all that a user needs to know. */
public final class CommandFailure extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** A failure with a message of one line. */
  public CommandFailure(String message) {
    super(message);
  }

  /** A failure with its cause, which is shown only when asked for. */
  public CommandFailure(String message, Throwable cause) {
    super(message, cause);
  }
}
