package dev.kvasir.internal.policy;

import dev.kvasir.cache.HeadLosses;
import dev.kvasir.cache.LossProfile;
import java.util.Arrays;
import java.util.concurrent.ForkJoinPool;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Chooses which slots of all heads stay in so many bytes: those whose loss per byte is largest. One
 * threshold holds for all of them; it is found exactly, digit by digit of the losses' bits.
 *
 * <p>Of slots with the same loss per byte as the threshold the first ones stay, by layer, head and
 * slot, as long as the next one fits. A loss that is infinite or no number is the largest.
 */
final class LossChoice {
  /** Bytes of tables for a slot: its cell, position, score and entry by cell. */
  static final long BOOKS = LossProfile.TABLE_BYTES;

  private static final int TOP_SHIFT = 20; // exponent and 3 bits: an eighth of an octave
  private static final int LOW_BITS = 10; // twice
  private static final int LOW = 1 << LOW_BITS;
  private static final int BINS = HeadLosses.BINS;
  private static final int STAYS = -1; // key of what is not chosen; the largest unsigned
  private static final int INFINITE = Float.floatToRawIntBits(Float.POSITIVE_INFINITY);

  /** Below so many slots other threads are not worth their start. */
  private static final int FEW = 1 << 16;

  private final CacheStore store;
  private final int sinks;
  private final int heads;
  private final int[] layerOf; // by head, numbered through
  private final int[] headOf;
  private final long[] bytesOf; // of a slot with its tables
  private final int[] judged; // slots that are chosen from; later ones stay
  private final int[] from; // in keys
  private final int[] counts; // slots that stay
  private final int[] at; // in slots
  private final int[] above; // that stay for sure
  private final int[] tied;

  private final Worker[] workers;
  private int[] partBegin = new int[0];
  private int[] keys = {};
  private int[] slots = {};

  // Of the choice that is being made.
  private int end;
  private float[] scale = {};
  private @Nullable Losses losses;
  private int prefix; // upper digits of the threshold
  private int shift; // of the digit that is counted

  /** Takes how the losses of the heads are distributed, by several threads. */
  interface Losses {
    /**
     * One head, numbered through.
     *
     * @param staying slots of sinks
     * @param bins slots by the bins of {@link HeadLosses}; valid during the call
     */
    void head(int head, int staying, int[] bins);
  }

  private enum Pass {
    KEYS,
    DIGIT,
    COMPARE,
    WRITE
  }

  /** What one thread counts. */
  private static final class Worker {
    int[] position = {};
    float[] score = {};
    final int[] ofHead = new int[BINS];
    final long[] bytes = new long[BINS]; // by digit
    long staying; // bytes of sinks

    void ensure(int slots) {
      if (position.length < slots) {
        position = new int[slots + slots / 2];
        score = new float[position.length];
      }
    }
  }

  LossChoice(CacheStore store, int sinks) {
    this.store = store;
    this.sinks = sinks;
    int all = 0;
    for (int l = 0; l < store.layers(); l++) {
      all += store.shape(l).kvHeads();
    }
    heads = all;
    layerOf = new int[all];
    headOf = new int[all];
    bytesOf = new long[all];
    judged = new int[all];
    from = new int[all + 1];
    counts = new int[all];
    at = new int[all + 1];
    above = new int[all];
    tied = new int[all];
    int next = 0;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++, next++) {
        layerOf[next] = l;
        headOf[next] = h;
        bytesOf[next] = store.shape(l).slotBytes() + BOOKS;
      }
    }
    workers = new Worker[Math.clamp(ForkJoinPool.getCommonPoolParallelism() + 1, 1, 64)];
  }

  /** Asks for the scores of the slots that there are now; {@link #choose} is about these. */
  void announce() {
    for (int i = 0; i < heads; i++) {
      judged[i] = store.slots(layerOf[i], headOf[i]);
      if (!store.scoresAtHand(layerOf[i]) && judged[i] > 0) {
        store.announce(layerOf[i], headOf[i], CacheStore.Reading.SCORES, 0, judged[i]);
      }
    }
  }

  /** Slots of each head that stay, numbered through. */
  int[] counts() {
    return counts;
  }

  /** The slots that stay, one head's after another's, ascending. */
  int[] slots() {
    return slots;
  }

  /**
   * Chooses, once the announced scores are read ahead; false when everything stays. Slots of
   * positions from {@code end} on stay, and are not counted.
   *
   * @param scale by position: loss of a slot by its score
   * @param budget bytes for all slots that are chosen from, those of sinks included
   * @param losses takes how the losses are distributed; null: it is not wanted
   */
  boolean choose(int end, float[] scale, long budget, @Nullable Losses losses) {
    this.end = end;
    this.scale = scale;
    this.losses = losses;
    int all = 0;
    for (int i = 0; i < heads; i++) {
      from[i] = all;
      all += judged[i];
    }
    from[heads] = all;
    if (keys.length < all) {
      keys = new int[all + all / 4];
    }
    split(all);
    run(Pass.KEYS);
    this.losses = null;
    long left = budget;
    for (int part = 0; part < parts(); part++) {
      left -= workers[part].staying;
    }
    int top = BINS - 1;
    long[] bytes = sum(BINS);
    while (top >= 0 && bytes[top] <= left) {
      left -= bytes[top--];
    }
    if (top < 0) {
      return false;
    }
    prefix = top << TOP_SHIFT;
    for (shift = TOP_SHIFT - LOW_BITS; shift >= 0; shift -= LOW_BITS) {
      run(Pass.DIGIT);
      bytes = sum(LOW);
      int digit = LOW - 1;
      while (digit > 0 && bytes[digit] <= left) { // one of them exceeds it
        left -= bytes[digit--];
      }
      prefix |= digit << shift;
    }
    run(Pass.COMPARE);
    if (!keepTied(left)) {
      return false;
    }
    run(Pass.WRITE);
    return true;
  }

  /** Forgets arrays that were for many more slots than there are now. */
  void trim() {
    int all = 0;
    for (int i = 0; i < heads; i++) {
      all += store.slots(layerOf[i], headOf[i]);
    }
    if (keys.length > 2 * all + FEW) {
      keys = new int[0];
      slots = new int[0];
      Arrays.fill(workers, null);
    }
  }

  private void split(int all) {
    int parts = all < FEW ? 1 : Math.min(heads, workers.length);
    if (partBegin.length != parts + 1) {
      partBegin = new int[parts + 1];
    }
    int head = 0;
    for (int part = 0; part < parts; part++) {
      partBegin[part] = head;
      long until = (long) all * (part + 1) / parts;
      while (head < heads && from[head + 1] <= until) {
        head++;
      }
      if (workers[part] == null) {
        workers[part] = new Worker();
      }
    }
    partBegin[parts] = heads;
  }

  private int parts() {
    return partBegin.length - 1;
  }

  private void run(Pass pass) {
    if (parts() == 1) {
      run(pass, 0);
    } else {
      IntStream.range(0, parts()).parallel().forEach(part -> run(pass, part));
    }
  }

  private void run(Pass pass, int part) {
    switch (pass) {
      case KEYS -> readKeys(part);
      case DIGIT -> countDigit(part);
      case COMPARE -> compare(part);
      case WRITE -> write(part);
    }
  }

  /** The workers' counts of the first bins together, in those of the first. */
  private long[] sum(int bins) {
    long[] sum = workers[0].bytes;
    for (int part = 1; part < parts(); part++) {
      for (int i = 0; i < bins; i++) {
        sum[i] += workers[part].bytes[i];
      }
    }
    return sum;
  }

  private void readKeys(int part) {
    Worker worker = workers[part];
    Losses losses = this.losses;
    Arrays.fill(worker.bytes, 0);
    worker.staying = 0;
    for (int i = partBegin[part]; i < partBegin[part + 1]; i++) {
      int n = judged[i];
      worker.ensure(n);
      int[] position = worker.position;
      float[] score = worker.score;
      store.readPositions(layerOf[i], headOf[i], position, n);
      store.readScores(layerOf[i], headOf[i], 0, n, score);
      int[] bins = worker.ofHead;
      Arrays.fill(bins, 0);
      int pinned = 0;
      float bytes = bytesOf[i];
      for (int s = 0; s < n; s++) {
        int key = STAYS;
        int p = position[s];
        if (p < sinks) {
          pinned++;
        } else if (p < end) {
          key = key(score[s] * scale[p] / bytes);
          bins[key >>> TOP_SHIFT]++;
        }
        keys[from[i] + s] = key;
      }
      worker.staying += pinned * bytesOf[i];
      for (int b = 0; b < BINS; b++) {
        worker.bytes[b] += bins[b] * bytesOf[i];
      }
      if (losses != null) {
        losses.head(i, pinned, bins);
      }
    }
  }

  /** In the order of the losses, for not negative ones: their bits are. */
  private static int key(float loss) {
    return loss >= 0
        ? Float.floatToRawIntBits(loss + 0f) // not -0
        : loss < 0 ? 0 : INFINITE;
  }

  private void countDigit(int part) {
    Worker worker = workers[part];
    long[] bytes = worker.bytes;
    Arrays.fill(bytes, 0, LOW, 0);
    int above = shift + LOW_BITS;
    for (int i = partBegin[part]; i < partBegin[part + 1]; i++) {
      for (int k = from[i]; k < from[i + 1]; k++) {
        if ((keys[k] ^ prefix) >>> above == 0) {
          bytes[keys[k] >>> shift & LOW - 1] += bytesOf[i];
        }
      }
    }
  }

  private void compare(int part) {
    int least = prefix;
    for (int i = partBegin[part]; i < partBegin[part + 1]; i++) {
      int more = 0;
      int equal = 0;
      for (int k = from[i]; k < from[i + 1]; k++) {
        more += larger(keys[k], least) ? 1 : 0;
        equal += keys[k] == least ? 1 : 0;
      }
      above[i] = more;
      tied[i] = equal;
    }
  }

  private static boolean larger(int key, int than) {
    return Integer.compareUnsigned(key, than) > 0;
  }

  /** Lets tied slots stay while they fit, and numbers what stays; false when that is everything. */
  private boolean keepTied(long left) {
    boolean full = false;
    long bytes = left;
    int all = 0;
    boolean drops = false;
    for (int i = 0; i < heads; i++) {
      long fitting = full ? 0 : Math.max(0, bytes / bytesOf[i]);
      full |= fitting < tied[i];
      tied[i] = (int) Math.min(fitting, tied[i]);
      bytes -= tied[i] * bytesOf[i];
      at[i] = all;
      drops |= above[i] + tied[i] < judged[i];
      counts[i] = above[i] + tied[i] + store.slots(layerOf[i], headOf[i]) - judged[i];
      all += counts[i];
    }
    at[heads] = all;
    if (slots.length < all) {
      slots = new int[all + all / 4];
    }
    return drops;
  }

  private void write(int part) {
    int least = prefix;
    for (int i = partBegin[part]; i < partBegin[part + 1]; i++) {
      int to = at[i];
      int ties = tied[i];
      for (int s = 0; s < judged[i]; s++) {
        int key = keys[from[i] + s];
        if (larger(key, least) || (key == least && ties-- > 0)) {
          slots[to++] = s;
        }
      }
      for (int s = judged[i]; to < at[i + 1]; s++) {
        slots[to++] = s;
      }
    }
  }
}
