package dev.kvasir;

/**
 * llama.cpp failed while it computed a batch of tokens, or there was no memory for their keys and
 * values: none at all, or none below {@link SessionOptions#cacheMemoryLimit()}. The session was
 * rolled back to the state before the call, a {@link Reply} to that before its last token. It can
 * go on with fewer tokens, or be cleared; the same call fails again as long as the cache holds as
 * much, and has room in a session with a higher limit. Where the session could not be rolled back,
 * see {@link Session}, the message says that it is empty.
 */
public final class DecodeException extends KvasirException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public DecodeException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public DecodeException(String message, Throwable cause) {
    super(message, cause);
  }
}
