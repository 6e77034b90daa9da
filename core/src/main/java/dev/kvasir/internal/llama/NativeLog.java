package dev.kvasir.internal.llama;

import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.ggml_log_callback;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;

/**
 * llama.cpp's and ggml's log channels, as the loggers {@code dev.kvasir.llama} and {@code
 * dev.kvasir.ggml}. The channels are far chattier than Java's: what they call info is debug here.
 *
 * <p>The last error lines of each thread are kept, so that an exception can say what llama.cpp
 * said.
 */
final class NativeLog {
  private static final int ERRORS_KEPT = 8;

  /**
   * A warning about the very overrides with which {@link NativeModel} keeps the weights on the CPU:
   * no one else can act on it.
   */
  private static final String OVERRIDES_WARNING =
      "tensor overrides to CPU are used with mmap enabled";

  private static final ThreadLocal<Deque<String>> ERRORS = ThreadLocal.withInitial(ArrayDeque::new);

  // Whether this thread told llama.cpp to give up what it computes.
  private static final ThreadLocal<Boolean> ABORTING = ThreadLocal.withInitial(() -> false);

  // Whether this thread tries something whose failure is no news.
  private static final ThreadLocal<Boolean> TRYING = ThreadLocal.withInitial(() -> false);

  private NativeLog() {}

  /** Directs both channels to their loggers, for as long as the JVM lives. */
  static void install() {
    // llama_log_set also sets ggml's channel, so that ggml's own comes second.
    NativeApi.llama_log_set(channel("dev.kvasir.llama"), MemorySegment.NULL);
    NativeApi.ggml_log_set(channel("dev.kvasir.ggml"), MemorySegment.NULL);
  }

  /** Forgets the error lines of this thread. */
  static void clearErrors() {
    ERRORS.get().clear();
  }

  /** The error lines of this thread since {@link #clearErrors()}, the oldest first. */
  static List<String> errors() {
    return List.copyOf(ERRORS.get());
  }

  /** The error lines of a call that is expected to fail; only the log at debug level shows them. */
  static List<String> errorsOf(Runnable call) {
    clearErrors();
    TRYING.set(true);
    try {
      call.run();
      return errors();
    } finally {
      TRYING.set(false);
      clearErrors();
    }
  }

  /**
   * Whether this thread told llama.cpp to give up what it computes: it reports that as an error,
   * which it is not.
   */
  static void aborting(boolean now) {
    ABORTING.set(now);
  }

  /** Whether this thread is in a call whose failure becomes an exception and is no news. */
  static void trying(boolean now) {
    TRYING.set(now);
  }

  private static MemorySegment channel(String name) {
    Channel channel = new Channel(System.getLogger(name));
    return ggml_log_callback.allocate(channel::accept, Arena.global());
  }

  /** Joins the fragments of a line per thread, and logs whole lines. */
  static final class Channel {
    private final Logger logger;
    private final ThreadLocal<Line> line = ThreadLocal.withInitial(Line::new);

    Channel(Logger logger) {
      this.logger = logger;
    }

    private static final class Line {
      final StringBuilder text = new StringBuilder();
      int level = NativeApi.GGML_LOG_LEVEL_INFO();
    }

    private void accept(int level, MemorySegment text, MemorySegment userData) {
      // An exception that leaves an upcall ends the JVM; a lost log line is the smaller evil,
      // whatever the cause.
      try {
        accept(level, text.getString(0));
      } catch (Throwable ignored) {
        // nothing left to report it to
      }
    }

    void accept(int level, String fragment) {
      Line current = line.get();
      if (level != NativeApi.GGML_LOG_LEVEL_CONT()) {
        flush(current);
        current.level = level;
      }
      int start = 0;
      for (int end = fragment.indexOf('\n'); end >= 0; end = fragment.indexOf('\n', start)) {
        current.text.append(fragment, start, end);
        flush(current);
        start = end + 1;
      }
      current.text.append(fragment, start, fragment.length());
    }

    private void flush(Line current) {
      if (current.text.isEmpty()) {
        return;
      }
      String message = current.text.toString();
      current.text.setLength(0);
      Level level =
          ABORTING.get() || ExitGuard.exiting() || message.contains(OVERRIDES_WARNING)
              ? Level.DEBUG
              : levelOf(current.level);
      if (level == Level.ERROR) {
        Deque<String> errors = ERRORS.get();
        if (errors.size() == ERRORS_KEPT) {
          errors.removeFirst();
        }
        errors.addLast(message);
      }
      logger.log(level == Level.ERROR && TRYING.get() ? Level.DEBUG : level, message);
    }

    private static Level levelOf(int level) {
      if (level == NativeApi.GGML_LOG_LEVEL_ERROR()) {
        return Level.ERROR;
      }
      if (level == NativeApi.GGML_LOG_LEVEL_WARN()) {
        return Level.WARNING;
      }
      return level == NativeApi.GGML_LOG_LEVEL_DEBUG() ? Level.TRACE : Level.DEBUG;
    }
  }
}
