package dev.kvasir.bindings;

import java.io.Serial;
import org.jspecify.annotations.Nullable;

/**
 * The native libraries could not be found, extracted or loaded, or do not fit these bindings. The
 * message says what happened, where, and what to do about it.
 */
public final class NativeLoadException extends RuntimeException {
  @Serial private static final long serialVersionUID = 1;

  NativeLoadException(String message) {
    this(message, null);
  }

  NativeLoadException(String message, @Nullable Throwable cause) {
    super(message, cause);
  }
}
