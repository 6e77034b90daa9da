package dev.kvasir.internal.policy;

import dev.kvasir.cache.Candidate;
import java.util.Arrays;

/**
 * Holds one KV head to its policy: it keeps its pinned tokens, the positions of its window, and of
 * the others at most a fraction of the current length as frequent tokens.
 *
 * <p>In a decode step at most one token leaves the window, so a step costs O(1): that token is
 * dropped, or becomes frequent, and then the least frequent token goes if there are too many. Which
 * ones go is ranked in batches: one pass over the head's slots finds the lowest-ranked frequent
 * tokens, and the following steps drop one after the other. A token that becomes frequent in
 * between takes its place among them if it ranks below any of them. Batches grow with the number of
 * slots, so that the passes, too, cost O(1) per step.
 *
 * <p>In a sliding-window layer tokens also vanish by themselves, when llama.cpp gives their cells
 * to new ones; the policy then holds among the tokens that are still there, and the current length
 * is at most the number of the layer's cells.
 */
final class HeadPolicy {
  private static final int SMALLEST_BATCH = 16;
  private static final int SLOTS_PER_RANKED = 32;
  private static final int FREQUENT_PER_UNRANKED = 8;

  /**
   * What all heads of a sequence have in common.
   *
   * @param store the slots
   * @param log the tokens
   * @param ranking order of the frequent tokens
   * @param scoredFrom position of the first query that the store's scores count
   * @param grace least window
   * @param scratch arrays for passes over one head's slots
   */
  record Common(
      CacheStore store,
      TokenLog log,
      Ranking ranking,
      int scoredFrom,
      int grace,
      Scratch scratch) {}

  /**
   * Arrays for passes over one head's slots; grown ahead of need, so that a decode step hardly ever
   * does.
   */
  static final class Scratch {
    int[] position = new int[0];
    float[] score = new float[0];
    final float[] norm = new float[1];
    long[] rank = new long[0];
    int[] kept = new int[0];

    void ensure(int slots) {
      if (position.length < slots) {
        int capacity = slots + slots / 2 + 1024;
        position = new int[capacity];
        score = new float[capacity];
        rank = new long[capacity];
        kept = new int[capacity];
      }
    }
  }

  private final CacheStore store;
  private final TokenLog log;
  private final Ranking ranking;
  private final Scratch scratch;
  private final int scoredFrom;
  private final CellMap cells;
  private final Candidate candidate;
  private final int layer;
  private final int head;
  private final int capacity; // cells of the layer
  private final boolean sliding;
  private final boolean scoresAtHand;
  private final byte pinned;
  private final int window;
  private final double phase;

  private int slotsHeld; // with the queued eviction carried out
  private int frequentHeld;
  private float[] norm = new float[0]; // by slot; of the tokens outside the window only

  private long[] lowest = new long[SMALLEST_BATCH]; // ranks, descending: the last one goes next
  private int ranked; // entries of lowest
  private int batch; // most entries of lowest
  private boolean first; // nothing has been ranked since the last compaction

  /**
   * Nothing is dropped before {@link #compact()}.
   *
   * @param pinned token flags that are kept for their own sake
   * @param window local tokens; at least the grace period is kept
   * @param phase 0 to 1, shortens the first batch: heads of different phases do not rank in the
   *     same step
   */
  HeadPolicy(
      Common common,
      CellMap cells,
      int layer,
      int head,
      Candidate candidate,
      byte pinned,
      int window,
      double phase) {
    this.store = common.store();
    this.log = common.log();
    this.ranking = common.ranking();
    this.scratch = common.scratch();
    this.scoredFrom = common.scoredFrom();
    this.cells = cells;
    this.candidate = candidate;
    this.layer = layer;
    this.head = head;
    this.capacity = store.shape(layer).cells();
    this.sliding = store.shape(layer).sliding();
    this.scoresAtHand = store.scoresAtHand(layer);
    this.pinned = pinned;
    this.window = Math.max(window, common.grace());
    this.phase = phase;
  }

  /** The token flags that a candidate keeps for their own sake. */
  static byte pinned(Candidate candidate) {
    return (byte)
        ((candidate.special() ? TokenLog.SPECIAL | TokenLog.SINK : 0)
            | (candidate.punctuation() ? TokenLog.PUNCTUATION : 0));
  }

  /** Most tokens that are ranked in one pass over so many slots. */
  static int batch(int slots) {
    return Math.max(SMALLEST_BATCH, slots / SLOTS_PER_RANKED);
  }

  /** Whether a candidate asks for the head's scores. */
  static boolean scored(Candidate candidate) {
    return !candidate.full() && candidate.frequent() > 0;
  }

  /** Applies the policy to all slots at once: after a prefill. */
  void compact() {
    int slots = store.slots(layer, head);
    int inWindow = log.length() - window; // the first position
    scratch.ensure(slots);
    store.readPositions(layer, head, scratch.position, slots);
    if (scored(candidate)) {
      store.readScores(layer, head, scratch.score, slots);
      if (weighted()) {
        ensureNorms(slots);
        store.valueNorms(layer, head, 0, slots, norm);
      }
    }
    int others = 0;
    for (int s = 0; s < slots; s++) {
      if (isOther(scratch.position[s], inWindow)) {
        scratch.rank[others++] = rank(s);
      }
    }
    frequentHeld = Math.min(others, quota());
    long least =
        frequentHeld == 0
            ? Long.MAX_VALUE
            : Ranking.nth(scratch.rank, others, others - frequentHeld);

    int kept = 0;
    for (int s = 0; s < slots; s++) {
      int at = scratch.position[s];
      if (!isOther(at, inWindow) || rank(s) >= least) {
        scratch.kept[kept++] = s;
      }
    }
    if (kept < slots) {
      store.keep(layer, head, scratch.kept, kept);
      for (int s = 0; weighted() && s < kept; s++) {
        norm[s] = norm[scratch.kept[s]];
      }
    }
    slotsHeld = kept;
    ranked = 0;
    first = true;
    if (lowest.length < batch(kept)) { // ahead of the decode steps
      lowest = new long[2 * batch(kept)];
    }
  }

  /**
   * Applies the policy after a decoded token, whose cell is known: queues what the head has to
   * drop.
   */
  void step() {
    int slots = store.slots(layer, head);
    if (sliding && slots == slotsHeld) {
      discount(cells.overwritten());
    }
    slotsHeld = slots;
    int inWindow = log.length() - window;
    int left = inWindow - 1; // has just left the window
    if (left >= 0 && (log.flags()[left] & pinned) == 0) {
      int slot = cells.slotOf(layer, head, left);
      if (slot >= 0) {
        if (scored(candidate)) {
          becomeFrequent(left, slot);
        } else {
          drop(slot);
        }
      }
    }
    dropLowest(inWindow);
  }

  /** Neither pinned nor local. */
  private boolean isOther(int position, int inWindow) {
    return position < inWindow && (log.flags()[position] & pinned) == 0;
  }

  private int quota() {
    return candidate.frequentIn(Math.min(log.length(), capacity));
  }

  /** Rank of the token in a slot, after the scratch has been filled. */
  private long rank(int slot) {
    return rank(slot, scratch.position[slot], scratch.score[slot]);
  }

  private long rank(int slot, int position, float attention) {
    float norm = weighted() ? this.norm[slot] : 1;
    return Ranking.rank(
        ranking.score(attention, position, norm, scoredFrom, log.length() - 1), position);
  }

  private boolean weighted() {
    return ranking.needsNorms() && scored(candidate);
  }

  private void becomeFrequent(int position, int slot) {
    frequentHeld++;
    if (!scoresAtHand) {
      return; // it is ranked with the others, the next time
    }
    if (weighted()) {
      ensureNorms(slot + 1);
      store.valueNorms(layer, head, slot, 1, scratch.norm);
      norm[slot] = scratch.norm[0];
    }
    insert(rank(slot, position, store.score(layer, head, slot)));
  }

  /** Takes a new frequent token in among the ranked ones, if it ranks below any of them. */
  private void insert(long rank) {
    if (ranked == 0 || rank > lowest[0]) {
      return;
    }
    int i;
    if (ranked == batch) { // the highest makes room
      for (i = 0; i + 1 < ranked && lowest[i + 1] > rank; i++) {
        lowest[i] = lowest[i + 1];
      }
    } else {
      for (i = ranked++; i > 0 && lowest[i - 1] < rank; i--) {
        lowest[i] = lowest[i - 1];
      }
    }
    lowest[i] = rank;
  }

  /** A token of the sliding window has gone by itself. */
  private void discount(int position) {
    boolean wasFrequent = position >= 0 && isOther(position, log.length() - 1 - window);
    if (wasFrequent && scored(candidate)) {
      frequentHeld--;
    }
  }

  /**
   * Drops a frequent token if there is one too many. There is never more than one: at most one
   * joins them in a step, and the quota does not fall.
   */
  private void dropLowest(int inWindow) {
    int quota = quota();
    while (frequentHeld > quota) {
      if (ranked == 0) {
        rankLowest(inWindow); // also counts anew
        continue;
      }
      int position = Ranking.positionOf(lowest[--ranked]);
      if (!isOther(
          position, inWindow)) { // has become part of a marker sequence, which is never dropped
        frequentHeld--;
        continue;
      }
      int slot = cells.slotOf(layer, head, position);
      if (slot >= 0) { // else it has gone by itself, and was discounted then
        frequentHeld--;
        drop(slot);
        return;
      }
    }
  }

  /** Finds the lowest-ranked frequent tokens, and counts the frequent tokens anew. */
  private void rankLowest(int inWindow) {
    int slots = store.slots(layer, head);
    scratch.ensure(slots);
    store.readPositions(layer, head, scratch.position, slots);
    store.readScores(layer, head, scratch.score, slots);
    if (!scoresAtHand && weighted()) {
      ensureNorms(slots);
      store.valueNorms(layer, head, 0, slots, norm);
    }
    batch = batch(slots);
    if (!scoresAtHand) { // what becomes frequent meanwhile is not ranked, and must not outlive much
      // better ones
      batch = Math.clamp(frequentHeld / FREQUENT_PER_UNRANKED, 1, batch);
    }
    if (first) {
      batch = Math.max(1, (int) (phase * batch));
      first = false;
    }
    if (lowest.length < batch) {
      lowest = new long[batch * 2];
    }
    frequentHeld = 0;
    for (int s = 0; s < slots; s++) {
      int at = scratch.position[s];
      if (isOther(at, inWindow)) {
        frequentHeld++;
        offer(rank(s));
      }
    }
    Arrays.sort(lowest, 0, ranked);
    for (int i = 0, j = ranked - 1; i < j; i++, j--) {
      long swap = lowest[i];
      lowest[i] = lowest[j];
      lowest[j] = swap;
    }
  }

  /** Keeps the lowest {@link #batch} of the offered ranks, as a heap with the highest on top. */
  private void offer(long rank) {
    int i;
    if (ranked < batch) {
      for (i = ranked++; i > 0 && lowest[(i - 1) / 2] < rank; i = (i - 1) / 2) {
        lowest[i] = lowest[(i - 1) / 2];
      }
    } else if (rank < lowest[0]) {
      i = 0;
      while (true) {
        int child = 2 * i + 1;
        if (child + 1 < ranked && lowest[child + 1] > lowest[child]) {
          child++;
        }
        if (child >= ranked || lowest[child] < rank) {
          break;
        }
        lowest[i] = lowest[child];
        i = child;
      }
    } else {
      return;
    }
    lowest[i] = rank;
  }

  private void drop(int slot) {
    store.addEviction(layer, head, slot);
    slotsHeld--;
    if (weighted()) { // the store moves its last slot into the hole
      ensureNorms(slotsHeld + 1);
      norm[slot] = norm[slotsHeld];
    }
  }

  private void ensureNorms(int slots) {
    if (norm.length < slots) {
      norm = Arrays.copyOf(norm, slots + slots / 4 + 1024);
    }
  }
}
