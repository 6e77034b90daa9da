package dev.kvasir.internal.policy;

import dev.kvasir.ProfileException;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.jspecify.annotations.Nullable;

/**
 * Holds a sequence to {@link Foresight}: has the queries of its tokens recorded, moved behind what
 * was read and summed up, and chooses by these sums which slots stay, after every prompt and after
 * every {@link ForesightBudget#BLOCK} tokens of decoding.
 *
 * <p>In decoding the sums are made behind one token and the choice is carried out behind a later
 * one: a GPU sums while it is asked for the tokens between, and no step waits for it. That is so on
 * every device, so that all keep the same.
 */
final class ForesightKeeper {
  /** Tokens after which the choice is carried out. */
  private static final int LATER = 2;

  /** The factor of {@link Foresight}'s loss: the same for all slots, so no choice depends on it. */
  private static final float LOSS = 4;

  private static final int NONE = -1;

  private final CacheStore store;
  private final Foresight policy;
  private final List<Profile.Layer> layers;
  private final float @Nullable [][] weights; // by layer and query head
  private final QueryCounts counts = new QueryCounts();
  private final LossChoice choice;
  private float[] scale = {}; // by position
  private int recorded; // stride of the queries that are recorded; 0: none are
  private boolean decided;
  private boolean marked;
  private int asked = NONE; // tokens of the sequence when the scores for a choice were asked for
  private boolean reading; // they are being read ahead
  private @Nullable LossProfile profile; // of the last choice behind a prompt, or the first one

  ForesightKeeper(CacheStore store, Foresight policy, List<Profile.Layer> layers) {
    this.store = store;
    this.layers = layers;
    this.policy = policy;
    HeadWeights table = policy.headWeights();
    weights = table == null ? null : weights(store, table);
    choice = new LossChoice(store, policy.sinks());
    record(1);
  }

  private static float[][] weights(CacheStore store, HeadWeights table) {
    float[][] weights = new float[store.layers()][];
    for (int l = 0; l < weights.length; l++) {
      var shape = store.shape(l);
      int heads = shape.kvHeads() * shape.queryGroup();
      int given = shape.layer() < table.layers() ? table.queryHeads(shape.layer()) : 0;
      if (given != heads) {
        throw new ProfileException(
            "the head weights were made for another model: layer %d has %d query heads, and the table has weights for %d"
                .formatted(shape.layer(), heads, given));
      }
      weights[l] = new float[heads];
      for (int h = 0; h < heads; h++) {
        float weight = table.trace(shape.layer(), h) / shape.valueDim();
        weights[l][h] = Math.max(weight, Float.MIN_NORMAL);
      }
    }
    return weights;
  }

  /** How the losses were distributed when it was chosen behind a prompt last. */
  Optional<LossProfile> profile() {
    return Optional.ofNullable(profile);
  }

  /** Whether slots have been chosen. */
  boolean decided() {
    return decided;
  }

  /** Whether a prompt's queries are summed up after each of its micro-batches. */
  boolean sumsWhileReading() {
    return policy.statistic().reading();
  }

  private void record(int stride) {
    if (stride != recorded) {
      store.recordQueries(stride);
      recorded = stride;
    }
  }

  private static boolean never() {
    return false;
  }

  /**
   * Before a prompt, and before it is marked. A choice that waits goes on waiting: it is made again
   * behind the prompt, or goes its way if the prompt is taken back.
   */
  void beforePrefill() {
    record(policy.statistic().stride());
  }

  /**
   * After a part of a prompt was decoded, up to a position, by which the store's slots are; false
   * when it was cancelled between two layers.
   *
   * @param last whether that was the prompt's last part
   */
  boolean afterPart(int end, boolean last, BooleanSupplier cancelled) {
    return (!last && !sumsWhileReading()) || sum(end, cancelled);
  }

  private boolean sum(int end, BooleanSupplier cancelled) {
    int queries = 0;
    for (int l = 0; l < store.layers(); l++) {
      if (cancelled.getAsBoolean()) {
        return false;
      }
      int ofLayer = store.sumMoved(l, end);
      if (l > 0 && ofLayer != queries) {
        throw new IllegalStateException(
            "Of layer %d %d queries were summed up, and %d of the others"
                .formatted(l, ofLayer, queries));
      }
      queries = ofLayer;
    }
    counts.add(end, queries);
    return true;
  }

  /** After a prompt, which is not marked any more. */
  void afterPrefill(int length) {
    if (counts.end() < length) {
      sum(length, ForesightKeeper::never);
    }
    asked = NONE;
    int stride = policy.statistic().stride();
    fold(stride == 1 ? 1 : stride + 1);
    record(1);
    if (length >= policy.minimumTokens()) {
      choice.announce();
      store.readAhead();
      choose(length, true);
    }
  }

  private void fold(int smooth) {
    for (int l = 0; l < store.layers(); l++) {
      store.foldMoved(l, weights == null ? null : weights[l], smooth);
    }
  }

  /** After a decoded token, the last one of so many. */
  void afterStep(int length) {
    if (marked) { // what is folded or dropped could not be taken back
      return;
    }
    if (asked != NONE) {
      if (length >= asked + LATER) {
        choose(asked, !decided);
      }
      return;
    }
    int since = length - counts.end();
    if (since >= ForesightBudget.BLOCK || (!decided && length >= policy.minimumTokens())) {
      sum(length, ForesightKeeper::never);
      fold(1);
      if (length >= policy.minimumTokens()) {
        choice.announce();
        asked = length;
        reading = false;
      }
    }
  }

  /** After {@link #afterStep}: begins to read what the choice needs. */
  void prepareStep() {
    if (asked != NONE && !reading) {
      store.readAhead();
      reading = true;
    }
  }

  private void choose(int end, boolean takeDown) {
    asked = NONE;
    store.awaitAhead();
    if (scale.length < counts.end()) {
      scale = new float[counts.end() + counts.end() / 4];
    }
    counts.divide(LOSS, scale);
    long budget = ForesightBudget.of(store, policy.budget(), end);
    LossCounts losses = takeDown ? new LossCounts(store, layers) : null;
    boolean drops = choice.choose(end, scale, budget, losses);
    if (losses != null) {
      profile = losses.profile(end, policy.budget());
    }
    if (drops) {
      store.keepAll(choice.counts(), choice.slots());
    }
    decided = true;
    choice.trim();
    store.readAhead(); // forgets what was read: the slots are others now
  }

  void mark() {
    marked = true;
    counts.mark();
  }

  void endMark() {
    marked = false;
  }

  /** The store has taken back what was summed up and recorded since the mark. */
  void rollBack() {
    marked = false;
    counts.takeBack();
    record(1);
  }

  /** The policy is given up. */
  void stop() {
    marked = false;
    asked = NONE;
    record(0);
  }

  /** The sequence was emptied. */
  void clear() {
    marked = false;
    asked = NONE;
    decided = false;
    profile = null;
    counts.clear();
    record(0); // the mean outputs were of what is gone
    record(1);
  }

  /** What a layer's heads are held to, in words. */
  String name(int layer) {
    MovedLayer moved = store.movedLayer(layer);
    return "foresight"
        + (moved.turned() ? "" : ", no rotary positions")
        + (moved.window() > 0 ? ", window " + moved.window() : "");
  }
}
