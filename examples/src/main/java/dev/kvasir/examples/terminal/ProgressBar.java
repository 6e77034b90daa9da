package dev.kvasir.examples.terminal;

import java.io.PrintStream;
import java.util.Locale;

/**
 * A line on standard error that shows how far something is, and vanishes when it is closed. Draws
 * nothing unless that is a terminal.
 */
public final class ProgressBar implements AutoCloseable {
  private static final int WIDTH = 30;
  private static final long REDRAW_NANOS = 100_000_000;

  private final PrintStream err;
  private final boolean visible;
  private final String label;
  private long lastDrawn;
  private boolean drawn;

  /** A bar that appears with the first update. */
  public ProgressBar(StandardStreams streams, String label) {
    this.err = streams.err();
    this.visible = streams.errTerminal();
    this.label = label;
  }

  /** Shows {@code done} of {@code total}, in a unit that the label names or that needs no name. */
  public void update(double done, double total) {
    update(done, total, "");
  }

  /** As {@link #update(double, double)}, with a remark behind the bar. */
  public void update(double done, double total, String remark) {
    long now = System.nanoTime();
    if (!visible || (drawn && now - lastDrawn < REDRAW_NANOS && done < total)) {
      return;
    }
    double fraction = total <= 0 ? 0 : Math.clamp(done / total, 0, 1);
    int full = (int) (WIDTH * fraction);
    err.print(
        String.format(
            Locale.ROOT,
            "\r%s [%s%s] %3.0f%%%s\033[K",
            label,
            "#".repeat(full),
            ".".repeat(WIDTH - full),
            100 * fraction,
            remark.isEmpty() ? "" : " " + remark));
    err.flush();
    drawn = true;
    lastDrawn = now;
  }

  /** Takes the line away; another update brings it back. */
  public void clear() {
    if (drawn) {
      err.print("\r\033[K");
      err.flush();
      drawn = false;
    }
  }

  @Override
  public void close() {
    clear();
  }
}
