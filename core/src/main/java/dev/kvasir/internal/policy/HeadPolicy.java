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
 * <p>A step works by the scores as they were after the step before: where they are not at hand
 * ({@link CacheStore#scoresAtHand}) they are asked for then, so that no step waits for the GPU,
 * which is computing the token meanwhile. On every device the same tokens are kept.
 *
 * <p>In a sliding-window layer tokens also vanish by themselves, when llama.cpp gives their cells
 * to new ones; the policy then holds among the tokens that are still there, and the current length
 * is at most the number of the layer's cells.
 */
final class HeadPolicy {
  private static final int SMALLEST_BATCH = 16;
  private static final int SLOTS_PER_RANKED = 32;

  /**
   * What all heads of a sequence have in common.
   *
   * @param store the slots
   * @param log the tokens
   * @param ranking order of the frequent tokens
   * @param scoredFrom position of the first query that the store's scores count
   * @param grace least window
   * @param scratch arrays for the passes of {@link #step}
   */
  record Common(
      CacheStore store,
      TokenLog log,
      Ranking ranking,
      int scoredFrom,
      int grace,
      Scratch scratch) {}

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

  private int preparedAt; // length of the sequence at prepareStep, 0: it was not called
  private int preparedSlots; // that the head had then
  private int leavingSlot; // then, of the token that leaves the window in the step; -1: none
  private long leavingRank; // of that token, where scores are at hand
  private boolean rankAhead; // the step has to rank, by what is read ahead

  /**
   * Nothing is dropped before {@link #keepChosen}.
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

  // Applying the policy to all slots at once, after a prefill: announce, choose, keepChosen.

  /** Asks for what {@link #choose} reads. */
  void announce() {
    if (scored(candidate)) {
      announce(0, store.slots(layer, head));
    }
  }

  /** Slots that the head holds now. */
  int slots() {
    return store.slots(layer, head);
  }

  private void announce(int first, int count) {
    store.announce(layer, head, CacheStore.Reading.SCORES, first, count);
    if (weighted()) {
      store.announce(layer, head, CacheStore.Reading.VALUE_NORMS, first, count);
    }
  }

  /**
   * Chooses the slots to keep, once what was announced is read ahead. By any thread, with arrays of
   * its own.
   */
  void choose(Scratch scratch) {
    int slots = store.slots(layer, head);
    scratch.ensure(slots);
    store.readPositions(layer, head, scratch.position, slots);
    if (scored(candidate)) {
      store.readScores(layer, head, 0, slots, scratch.score);
    }
    if (weighted()) {
      store.valueNorms(layer, head, 0, slots, scratch.norm);
    }
    int inWindow = log.length() - window; // the first position
    int others = 0;
    for (int s = 0; s < slots; s++) {
      if (isOther(scratch.position[s], inWindow)) {
        scratch.rank[others++] = chosenRank(scratch, s);
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
      if (!isOther(at, inWindow) || chosenRank(scratch, s) >= least) {
        scratch.kept[kept++] = s;
      }
    }
    scratch.keptCount = kept;
    ranked = 0;
    first = true;
    preparedAt = 0;
    if (lowest.length < batch(kept)) { // ahead of the decode steps
      lowest = new long[2 * batch(kept)];
    }
    if (scored(candidate)
        && frequentHeld > 0
        && frequentHeld == quota()) { // from now on one goes in nearly every step
      beginRanking(kept);
      for (int i = others - frequentHeld; i < others; i++) {
        offer(scratch.rank[i]);
      }
      endRanking();
    }
  }

  /** Drops what was not chosen. */
  void keepChosen(Scratch scratch) {
    slotsHeld = scratch.keptCount;
    if (slotsHeld < store.slots(layer, head)) {
      store.keep(layer, head, scratch.kept, slotsHeld);
    }
    if (weighted()) { // of what is kept only: a prompt may have had many times as much
      int capacity = slotsHeld + slotsHeld / 4 + 1024;
      if (norm.length < slotsHeld || norm.length > 2 * capacity) {
        norm = new float[capacity];
      }
      for (int s = 0; s < slotsHeld; s++) {
        norm[s] = scratch.norm[scratch.kept[s]];
      }
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
    boolean prepared = preparedAt == log.length() - 1;
    if (prepared && rankAhead) {
      rankLowest(inWindow - 1, preparedSlots, preparedAt);
    }
    int left = inWindow - 1; // has just left the window
    if (left >= 0 && (log.flags()[left] & pinned) == 0) {
      int slot = cells.slotOf(layer, head, left);
      if (slot >= 0) {
        if (scored(candidate) && quota() > 0) {
          frequentHeld++;
          if (!prepared || slot != leavingSlot) {
            if (scoresAtHand) {
              readNorm(slot);
            } // and the next pass ranks it
          } else if (ranked > 0) {
            insert(scoresAtHand ? leavingRank : rankOf(slot, left, preparedAt));
          }
        } else {
          drop(slot);
        }
      }
    }
    dropLowest(inWindow);
  }

  /**
   * After a step or a compaction that was carried out: takes down the scores that the next step
   * works by, or asks for them where they are not at hand.
   */
  void prepareStep() {
    preparedAt = 0;
    if (!scored(candidate)) {
      return;
    }
    preparedAt = log.length();
    preparedSlots = store.slots(layer, head);
    int leaving = preparedAt - window; // and what comes before is not in the window
    boolean counts = leaving >= 0 && leaving < preparedAt && (log.flags()[leaving] & pinned) == 0;
    leavingSlot = counts ? cells.slotOf(layer, head, leaving) : -1;
    boolean ranking = ranked == 0 && frequentHeld > 0 && frequentHeld >= quota();
    rankAhead = ranking && !scoresAtHand;
    if (rankAhead) {
      announce(0, preparedSlots);
    } else if (ranking) {
      rankLowest(leaving, preparedSlots, preparedAt);
    }
    if (leavingSlot >= 0 && scoresAtHand) {
      leavingRank = rankOf(leavingSlot, leaving, preparedAt);
    } else if (leavingSlot >= 0 && ranked > 0) {
      announce(leavingSlot, 1);
    }
  }

  /** Neither pinned nor local. */
  private boolean isOther(int position, int inWindow) {
    return position < inWindow && (log.flags()[position] & pinned) == 0;
  }

  private int quota() {
    return candidate.frequentIn(Math.min(log.length(), capacity));
  }

  /** Rank of the token in a slot by what {@link #choose} has read. */
  private long chosenRank(Scratch scratch, int slot) {
    float norm = weighted() ? scratch.norm[slot] : 1;
    return rank(scratch.position[slot], scratch.score[slot], norm, log.length());
  }

  /** Rank of the token in a slot by the score in the scratch, of when the sequence was so long. */
  private long rank(Scratch scratch, int slot, int length) {
    return rank(slot, scratch.position[slot], scratch.score[slot], length);
  }

  private long rank(int slot, int position, float attention, int length) {
    return rank(position, attention, weighted() ? norm[slot] : 1, length);
  }

  private long rank(int position, float attention, float norm, int length) {
    return Ranking.rank(ranking.score(attention, position, norm, scoredFrom, length - 1), position);
  }

  /** Rank of a single token, which the score is read for. */
  private long rankOf(int slot, int position, int length) {
    readNorm(slot);
    store.readScores(layer, head, slot, 1, scratch.one);
    return rank(slot, position, scratch.one[0], length);
  }

  private void readNorm(int slot) {
    if (weighted()) {
      ensureNorms(slot + 1);
      store.valueNorms(layer, head, slot, 1, scratch.one);
      norm[slot] = scratch.one[0];
    }
  }

  private boolean weighted() {
    return ranking.needsNorms() && scored(candidate);
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
        // also counts anew
        rankLowest(inWindow, store.slots(layer, head), log.length());
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

  /**
   * Finds the lowest-ranked frequent tokens, and counts the frequent tokens anew.
   *
   * @param slots that there were when the sequence had {@code length} tokens, which the scores are
   *     of
   */
  private void rankLowest(int inWindow, int slots, int length) {
    scratch.ensure(slots);
    store.readPositions(layer, head, scratch.position, slots);
    store.readScores(layer, head, 0, slots, scratch.score);
    if (!scoresAtHand && weighted()) { // else they are known: norms do not change
      ensureNorms(slots);
      store.valueNorms(layer, head, 0, slots, norm);
    }
    beginRanking(slots);
    frequentHeld = 0;
    for (int s = 0; s < slots; s++) {
      int at = scratch.position[s];
      if (isOther(at, inWindow)) {
        frequentHeld++;
        offer(rank(scratch, s, length));
      }
    }
    endRanking();
  }

  private void beginRanking(int slots) {
    batch = batch(slots);
    if (first) {
      batch = Math.max(1, (int) (phase * batch));
      first = false;
    }
    if (lowest.length < batch) {
      lowest = new long[batch * 2];
    }
    ranked = 0;
  }

  private void endRanking() {
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
