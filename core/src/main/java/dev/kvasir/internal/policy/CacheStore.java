package dev.kvasir.internal.policy;

import dev.kvasir.cache.LayerPlace;
import org.jspecify.annotations.Nullable;

/**
 * The slots of one sequence, as the policies see and change them: per layer and KV head a dense
 * array of slots, each holding one token. Without evictions the slots are in the order of the
 * tokens; an eviction moves the head's last slot into the hole.
 *
 * <p>{@code layer} is always an index into the store's layers, {@code 0 .. layers() - 1}, not the
 * model's layer index. Nothing here allocates, except where said. One thread at a time, never while
 * the model is evaluated.
 */
public interface CacheStore {

  /** Layers with a KV cache, ascending by the model's layer index. */
  int layers();

  /** The shape of a layer; the same object each time. */
  LayerShape shape(int layer);

  /** The device that a layer is on, and how attention over it is computed. */
  LayerPlace place(int layer);

  /** Slots that the head holds now. */
  int slots(int layer, int head);

  /** True position of the token in a slot. */
  int position(int layer, int head, int slot);

  /** llama.cpp's cell of the token in a slot. */
  int cell(int layer, int head, int slot);

  /**
   * Whether scores and norms can be read at any time. A GPU keeps them in its own memory: what was
   * not {@linkplain #readAhead read ahead} there waits for what it is computing.
   */
  boolean scoresAtHand(int layer);

  /** What is read of a head's slots. */
  enum Reading {
    /** {@link #readScores}. */
    SCORES,
    /** {@link #valueNorms}. */
    VALUE_NORMS,
    /** {@link #readStatistic}. */
    STATISTIC
  }

  /**
   * Asks for what the next {@link #readAhead} is to bring, of {@code count} slots from {@code
   * first} on; the statistic only of all slots. At most once for a head and reading.
   */
  void announce(int layer, int head, Reading reading, int first, int count);

  /**
   * Begins to bring all that was announced, as it is now, and forgets what was brought before. A
   * GPU does so behind what it is computing, and the call does not wait for it.
   *
   * <p>From then on that is what the reading methods return, whatever becomes of the slots: the
   * entries are those of the slots at this time. The first one waits for it.
   */
  void readAhead();

  /**
   * Waits for what is read ahead. After that several threads may read it, and positions, at once.
   */
  void awaitAhead();

  /** The slot that holds a cell's token, or -1. */
  int slotOfCell(int layer, int head, int cell);

  /** Copies the first {@code count} entries of the head's positions. */
  void readPositions(int layer, int head, int[] into, int count);

  /** Copies the first {@code count} entries of the head's cells. */
  void readCells(int layer, int head, int[] into, int count);

  /**
   * Copies the scores of {@code count} slots from {@code first} on to {@code into[0 .. count)}:
   * those that were {@linkplain #readAhead read ahead}, if all of these were, else those of now.
   */
  void readScores(int layer, int head, int first, int count, float[] into);

  /**
   * Euclidean norms of the value rows of {@code count} slots from {@code first} on, written to
   * {@code into[0 .. count)}: as they were {@linkplain #readAhead read ahead}, if all of these
   * were.
   */
  void valueNorms(int layer, int head, int first, int count, float[] into);

  /**
   * Keeps the first {@code count} of the given slots (ascending), drops the others and returns
   * their memory.
   */
  void keep(int layer, int head, int[] slots, int count);

  /**
   * Queues the eviction of one slot. Slots are meant as they are before {@link #flushEvictions()};
   * several evictions of one head must be added in descending order of their slots.
   */
  void addEviction(int layer, int head, int slot);

  /** Carries out the queued evictions, all in one native call; does nothing when there are none. */
  void flushEvictions();

  /**
   * Forgets the evictions that are queued, what was announced, and what was read ahead: what they
   * were part of failed. Never fails itself.
   */
  void forgetQueued();

  /** Whether the head's scores go on being accumulated by every query. Off at first. */
  void track(int layer, int head, boolean on);

  /**
   * Starts the statistic of all heads from zero. Bucket b receives the attention weights at
   * distances {@code d = position(query) - position(key)} with {@code bounds[b - 1] <= d <
   * bounds[b]}, and one more bucket those from the last bound on.
   *
   * @param bounds ascending, positive
   * @param perQueryHead one row of sums per query head, instead of one per KV head averaged over
   *     its query heads
   */
  void startStatistic(int[] bounds, boolean perQueryHead);

  /** Ends the statistic and frees its memory; the column totals become the heads' scores. */
  void stopStatistic();

  /**
   * What is counted from here on, and whether a statistic runs, can be taken back, until {@link
   * #endMark} or a change of the slots.
   */
  void mark();

  /** What was counted since the mark stays. */
  void endMark();

  /**
   * Scores and statistic are again what they were at the mark, bit for bit; tokens that came later
   * have zeros, and are to be dropped after this. Ends the mark; does nothing without one.
   */
  void takeBack();

  /**
   * Reads one head's sums: {@code [rows][bounds + 1][slots]}, row-major, with as many rows as query
   * heads when the statistic was started per query head, else one; {@code count} sums in all. They
   * must have been {@linkplain #readAhead read ahead}.
   */
  void readStatistic(int layer, int head, float[] into, int count);

  /**
   * Every {@code stride}-th query of the tokens that come from here on is recorded, in every layer;
   * 0: none, and record and sums are forgotten.
   *
   * @param stride 0, 1, 2, 4 or 8
   */
  void recordQueries(int stride);

  /**
   * Sums up the recorded queries of the tokens before a position, in one layer, and drops them from
   * the record: each block of them is moved so that it begins at {@code end}, and attends to the
   * slots of positions before {@code end} and to a copy of its own tokens. A GPU does so behind
   * what it is computing, and the call does not wait for it.
   *
   * @return how many queries
   */
  int sumMoved(int layer, int end);

  /**
   * Adds to the scores of a layer's slots what was summed up since the last time, as squares of the
   * attention weighted by the query head and by the distance of the value row from the head's mean
   * output, and forgets the sums. Not between {@link #mark} and its end.
   *
   * @param weights of the query heads; null: one over a head's mean squared output
   * @param smooth squares are means over so many neighbouring slots first; odd
   */
  void foldMoved(int layer, float @Nullable [] weights, int smooth);

  /** How a layer's queries are moved. */
  MovedLayer movedLayer(int layer);

  /**
   * {@link #keep} for all heads in one call.
   *
   * @param counts by layer and head, numbered through: how many slots are kept
   * @param slots the slots of all heads, one head's after another's, each ascending
   */
  void keepAll(int[] counts, int[] slots);

  /** Bytes of memory pages that the store occupies now (keys, values and slot tables). */
  long residentBytes();

  /** K and V bytes that an unmodified llama.cpp would have allocated for the context. */
  long fullBytes();
}
