package dev.kvasir;

/** No device of that name exists on this machine; the message lists those that do. */
public final class UnknownDeviceException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public UnknownDeviceException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public UnknownDeviceException(String message, Throwable cause) {
    super(message, cause);
  }
}
