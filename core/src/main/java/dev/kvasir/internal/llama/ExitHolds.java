package dev.kvasir.internal.llama;

import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** Who asks for time before computations are given up at exit, and how long each may take. */
public final class ExitHolds {
  private static final Map<Object, Long> HOLDS = new HashMap<>(); // nanoseconds from the exit on

  private ExitHolds() {}

  /** Adds a hold, or changes its limit. */
  public static void add(Object hold, long nanos) {
    synchronized (HOLDS) {
      HOLDS.put(hold, nanos);
    }
  }

  /** Ends a hold; nothing happens when it has ended. */
  public static void remove(Object hold) {
    synchronized (HOLDS) {
      HOLDS.remove(hold);
      HOLDS.notifyAll();
    }
  }

  /** Returns when every hold has ended or is past its limit, counted from now. */
  static void await() {
    long start = System.nanoTime();
    synchronized (HOLDS) {
      while (true) {
        long passed = System.nanoTime() - start;
        long left = HOLDS.values().stream().mapToLong(limit -> limit - passed).max().orElse(0);
        if (left <= 0) {
          return;
        }
        try {
          TimeUnit.NANOSECONDS.timedWait(HOLDS, left);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
          return;
        }
      }
    }
  }
}
