package dev.kvasir;

import dev.kvasir.internal.llama.ExitHolds;
import java.time.Duration;

/**
 * Time for replies when the JVM exits. Without one, whatever is computed when the JVM begins to
 * exit is given up at once, with {@link ExitingException}. While one is open sessions go on, so
 * that a server can end its replies in its own shutdown hook:
 *
 * <pre>{@code
 * ExitHold hold = ExitHold.open(Duration.ofSeconds(20));
 * Runtime.getRuntime().addShutdownHook(new Thread(() -> {
 *   server.finishReplies();
 *   hold.close();
 * }));
 * }</pre>
 *
 * <p>Any thread may open and close one.
 */
public final class ExitHold implements AutoCloseable {
  private ExitHold() {}

  /**
   * Asks for time, until {@link #close()}.
   *
   * @param limit most time from the beginning of the exit on
   * @throws IllegalArgumentException if it is negative
   */
  public static ExitHold open(Duration limit) {
    if (limit.isNegative()) {
      throw new IllegalArgumentException("An exit cannot be held for a negative time: " + limit);
    }
    ExitHold hold = new ExitHold();
    // A hundred years; more nanoseconds would not fit.
    Duration longest = Duration.ofDays(36_500);
    ExitHolds.add(hold, (limit.compareTo(longest) > 0 ? longest : limit).toNanos());
    return hold;
  }

  /** Lets the JVM exit, as far as this hold is concerned. A second call does nothing. */
  @Override
  public void close() {
    ExitHolds.remove(this);
  }
}
