package dev.kvasir.internal.text;

import java.util.List;

/**
 * Finds stop sequences in a stream of text. Text that may be the start of one is held back until
 * that is decided.
 */
public final class StopMatcher {
  private final List<String> stops;
  private final StringBuilder held = new StringBuilder();
  private boolean stopped;

  /** Looks for any of these texts; none may be empty. */
  public StopMatcher(List<String> stops) {
    this.stops = stops;
  }

  /**
   * Whether a stop sequence was found. What came before it was handed out, what comes after is
   * ignored.
   */
  public boolean stopped() {
    return stopped;
  }

  /** Takes more text, and appends what is certain to come before any stop sequence. */
  public void append(CharSequence text, StringBuilder target) {
    if (stopped) {
      return;
    }
    if (stops.isEmpty()) {
      target.append(text);
      return;
    }
    held.append(text);
    int first = -1;
    for (String stop : stops) {
      int at = held.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first)) {
        first = at;
      }
    }
    if (first >= 0) {
      target.append(held, 0, first);
      held.setLength(0);
      stopped = true;
      return;
    }
    int certain = held.length() - longestOpenStart();
    target.append(held, 0, certain);
    held.delete(0, certain);
  }

  /** Appends what is held back: no more text will come. */
  public void finish(StringBuilder target) {
    target.append(held);
    held.setLength(0);
  }

  /** Length of the longest end of the held text that a stop sequence starts with. */
  private int longestOpenStart() {
    int longest = 0;
    for (String stop : stops) {
      for (int length = Math.min(stop.length() - 1, held.length()); length > longest; length--) {
        if (matchesEnd(stop, length)) {
          longest = length;
          break;
        }
      }
    }
    return longest;
  }

  private boolean matchesEnd(String stop, int length) {
    int from = held.length() - length;
    for (int i = 0; i < length; i++) {
      if (held.charAt(from + i) != stop.charAt(i)) {
        return false;
      }
    }
    return true;
  }
}
