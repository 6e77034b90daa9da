package dev.kvasir;

import org.jspecify.annotations.Nullable;

/**
 * The parent of everything that Kvasir throws on its own account. The message says what failed,
 * where, and what can be done; where llama.cpp gave a reason, it is part of the message.
 *
 * <p>Wrong arguments (null, negative sizes and the like) are {@link IllegalArgumentException} and
 * {@link NullPointerException}, as everywhere in Java.
 */
public class KvasirException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private @Nullable String consequence;

  /** Creates the exception with a message that says what failed, where, and what to do. */
  public KvasirException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public KvasirException(String message, Throwable cause) {
    super(message, cause);
  }

  /** Lets the message end with a sentence on what came of the failure. */
  void add(String sentence) {
    consequence = consequence == null ? sentence : consequence + " " + sentence;
  }

  @Override
  public @Nullable String getMessage() {
    String message = super.getMessage();
    return consequence == null ? message : message + " " + consequence;
  }
}
