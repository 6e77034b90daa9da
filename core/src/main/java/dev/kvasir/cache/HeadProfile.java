package dev.kvasir.cache;

import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Objects;
import java.util.SequencedMap;

/**
 * What the profile found in one KV head: recovery and cost of every candidate, and the candidate
 * that was chosen. Candidates are named by their index in {@link Profile#candidates()}, the last of
 * which keeps everything.
 */
public final class HeadProfile {
  private final int layer;
  private final int kvHead;
  private final int chosen;
  private final float[] recovery;
  private final int[] cost;
  private final SequencedMap<String, Float> paperRecovery;

  /**
   * A head's figures, which are copied.
   *
   * @param layer the model's layer index
   * @param kvHead the KV head within the layer
   * @param chosen index of the chosen candidate
   * @param recovery attention that each candidate recovers, 0 to 1
   * @param cost slots that each candidate keeps of the prompt, the grace period included
   * @param paperRecovery recovery of the paper's five candidates by name, in the policy's order
   */
  public HeadProfile(
      int layer,
      int kvHead,
      int chosen,
      float[] recovery,
      int[] cost,
      SequencedMap<String, Float> paperRecovery) {
    if (recovery.length != cost.length) {
      throw new IllegalArgumentException(
          recovery.length + " recoveries, but " + cost.length + " costs");
    }
    this.layer = layer;
    this.kvHead = kvHead;
    this.chosen = Objects.checkIndex(chosen, recovery.length);
    this.recovery = recovery.clone();
    this.cost = cost.clone();
    this.paperRecovery = Collections.unmodifiableSequencedMap(new LinkedHashMap<>(paperRecovery));
  }

  HeadProfile choosing(int candidate) {
    return new HeadProfile(layer, kvHead, candidate, recovery, cost, paperRecovery);
  }

  /** The model's layer index. */
  public int layer() {
    return layer;
  }

  /** The KV head within the layer. */
  public int kvHead() {
    return kvHead;
  }

  /** Index of the chosen candidate. */
  public int chosen() {
    return chosen;
  }

  /** Number of candidates. */
  public int candidates() {
    return recovery.length;
  }

  /** Attention that a candidate recovers, 0 to 1. */
  public float recovery(int candidate) {
    return recovery[candidate];
  }

  /** Attention that the chosen candidate recovers, 0 to 1. */
  public float recovery() {
    return recovery[chosen];
  }

  /** Slots that a candidate keeps of the prompt, the grace period included. */
  public int cost(int candidate) {
    return cost[candidate];
  }

  /** Slots that the chosen candidate keeps of the prompt. */
  public int kept() {
    return cost[chosen];
  }

  /** Slots of the prompt in the full cache. */
  public int slots() {
    return cost[cost.length - 1];
  }

  /**
   * Recovery of the paper's candidates, by the kind that each adds last (special, punctuation,
   * frequent, local) and "full"; a kind that the policy's order leaves out is missing. In the
   * policy's order, also where the lattice was chosen from.
   */
  public SequencedMap<String, Float> paperRecovery() {
    return paperRecovery;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof HeadProfile that
        && layer == that.layer
        && kvHead == that.kvHead
        && chosen == that.chosen
        && Arrays.equals(recovery, that.recovery)
        && Arrays.equals(cost, that.cost)
        && List.copyOf(paperRecovery.entrySet()).equals(List.copyOf(that.paperRecovery.entrySet()));
  }

  @Override
  public int hashCode() {
    return Objects.hash(layer, kvHead, chosen, Arrays.hashCode(recovery), Arrays.hashCode(cost));
  }

  @Override
  public String toString() {
    return "HeadProfile[layer=%d, kvHead=%d, chosen=%d, kept=%d of %d, recovery=%.4f]"
        .formatted(layer, kvHead, chosen, kept(), slots(), recovery());
  }
}
