package dev.kvasir.internal.policy;

import java.util.ArrayDeque;

/**
 * Arrays for passes over one head's slots; grown ahead of need, so that a decode step hardly ever
 * does.
 *
 * <p>After a prefill as many heads are compacted at once as there are processors, each with arrays
 * for all slots of the prompt. These are borrowed by whoever compacts, and what waits to be
 * borrowed is bounded: sequences that decode, or wait, hold none of it.
 */
final class Scratch {
  /** Bytes of arrays that wait to be borrowed, in the process. */
  private static final long MOST_WAITING = 16L << 20;

  /** Bytes of arrays that one compaction works with. */
  private static final long MOST_BORROWED = 128L << 20;

  private static final int BYTES_PER_SLOT = 2 * Integer.BYTES + 2 * Float.BYTES + Long.BYTES;
  private static final ArrayDeque<Scratch> WAITING = new ArrayDeque<>();
  private static long waitingBytes;

  int[] position = new int[0];
  float[] score = new float[0];
  float[] norm = new float[0];
  final float[] one = new float[1];
  long[] rank = new long[0];
  int[] kept = new int[0];
  int keptCount;

  void ensure(int slots) {
    if (position.length < slots) {
      int capacity = capacity(slots);
      position = new int[capacity];
      score = new float[capacity];
      norm = new float[capacity];
      rank = new long[capacity];
      kept = new int[capacity];
    }
  }

  private static int capacity(int slots) {
    return slots + slots / 2 + 1024;
  }

  private long bytes() {
    return (long) position.length * BYTES_PER_SLOT;
  }

  /** Scratches for at most so many heads of at most so many slots, at least one. */
  static Scratch[] borrow(int heads, int slots) {
    long most = MOST_BORROWED / ((long) capacity(slots) * BYTES_PER_SLOT);
    var borrowed = new Scratch[(int) Math.clamp(most, 1, Math.max(1, heads))];
    synchronized (WAITING) {
      for (int i = 0; i < borrowed.length; i++) {
        borrowed[i] = WAITING.poll();
        waitingBytes -= borrowed[i] == null ? 0 : borrowed[i].bytes();
      }
    }
    for (int i = 0; i < borrowed.length; i++) {
      borrowed[i] = borrowed[i] == null ? new Scratch() : borrowed[i];
    }
    return borrowed;
  }

  static void giveBack(Scratch[] borrowed) {
    synchronized (WAITING) {
      for (var scratch : borrowed) {
        if (waitingBytes + scratch.bytes() <= MOST_WAITING) {
          waitingBytes += scratch.bytes();
          WAITING.push(scratch);
        }
      }
    }
  }

  /** Bytes of arrays that wait to be borrowed. */
  static long waitingBytes() {
    synchronized (WAITING) {
      return waitingBytes;
    }
  }
}
