package dev.kvasir.cache;

import java.util.HashSet;
import java.util.List;
import java.util.Objects;

/**
 * FastGen (arXiv 2310.01801): the attention of the prompt is profiled, and every KV head keeps what
 * its own attention needs.
 *
 * <p>The recovery of a candidate in a KV head is the mean over the prompt's queries of the
 * attention, not renormalised, that falls on the tokens which the candidate keeps; one minus it is
 * the total variation distance of Eq. 1. A query's own token always counts: it is there in its own
 * step.
 *
 * @param candidates what is chosen from
 * @param target what the choice aims at
 * @param local r<sub>l</sub>: local tokens of the paper's candidates, as a fraction of the prompt's
 *     length
 * @param frequent r<sub>f</sub>: frequent tokens of the paper's candidates, as a fraction of the
 *     current length
 * @param pooling recovery of a KV head from the recoveries of its query heads
 * @param score what ranks the frequent tokens
 * @param weight what a unit of attention counts, for recovery and score
 * @param sinks so many first positions are special tokens
 * @param grace a new token is kept for so many decode steps, whatever its kind; not part of the
 *     recovery
 * @param order the order in which the paper's candidates add their kinds (Table 5 of the paper). A
 *     kind that is left out is never kept for its own sake (Table 4)
 * @param minimumTokens below so many tokens everything is kept, and the profile goes on through
 *     decode and later turns
 */
public record FastGen(
    Candidates candidates,
    Target target,
    double local,
    double frequent,
    Pooling pooling,
    Score score,
    Weight weight,
    int sinks,
    int grace,
    List<Kind> order,
    int minimumTokens)
    implements CachePolicy {
  private static final List<Kind> PAPER_ORDER =
      List.of(Kind.SPECIAL, Kind.PUNCTUATION, Kind.FREQUENT, Kind.LOCAL);
  private static final FastGen PUBLISHED =
      new FastGen(
          Candidates.PAPER,
          Target.recovery(0.95),
          0.3,
          0.3,
          Pooling.MEAN,
          Score.SUM,
          Weight.NONE,
          4,
          16,
          PAPER_ORDER,
          256);
  private static final FastGen DEFAULTS =
      PUBLISHED.withCandidates(Candidates.LATTICE).withScore(Score.MEAN).withWeight(Weight.VALUE);

  /** Checks the ranges. */
  public FastGen {
    Objects.requireNonNull(candidates, "candidates");
    Objects.requireNonNull(target, "target");
    Objects.requireNonNull(pooling, "pooling");
    Objects.requireNonNull(score, "score");
    Objects.requireNonNull(weight, "weight");
    Ranges.fraction("FastGen.local", local);
    Ranges.fraction("FastGen.frequent", frequent);
    Ranges.atLeast("FastGen.sinks", sinks, 0);
    Ranges.atLeast("FastGen.grace", grace, 0);
    Ranges.atLeast("FastGen.minimumTokens", minimumTokens, 1);
    order = List.copyOf(order);
    if (order.isEmpty() || new HashSet<>(order).size() != order.size()) {
      throw new IllegalArgumentException(
          "FastGen.order must name at least one kind, and each once: " + order);
    }
  }

  /**
   * The lattice, 95% recovery, mean scores weighted by the values' norms, 4 sinks, a grace of 16.
   */
  public static FastGen defaults() {
    return DEFAULTS;
  }

  /** As published, with the gaps filled: the paper's five candidates, summed scores, no weights. */
  public static FastGen asPublished() {
    return PUBLISHED;
  }

  /** A copy with another {@link #candidates()}. */
  public FastGen withCandidates(Candidates value) {
    return new FastGen(
        value, target, local, frequent, pooling, score, weight, sinks, grace, order, minimumTokens);
  }

  /** A copy with another {@link #target()}. */
  public FastGen withTarget(Target value) {
    return new FastGen(
        candidates,
        value,
        local,
        frequent,
        pooling,
        score,
        weight,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #local()}. */
  public FastGen withLocal(double value) {
    return new FastGen(
        candidates,
        target,
        value,
        frequent,
        pooling,
        score,
        weight,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #frequent()}. */
  public FastGen withFrequent(double value) {
    return new FastGen(
        candidates,
        target,
        local,
        value,
        pooling,
        score,
        weight,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #pooling()}. */
  public FastGen withPooling(Pooling value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        value,
        score,
        weight,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #score()}. */
  public FastGen withScore(Score value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        pooling,
        value,
        weight,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #weight()}. */
  public FastGen withWeight(Weight value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        pooling,
        score,
        value,
        sinks,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #sinks()}. */
  public FastGen withSinks(int value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        pooling,
        score,
        weight,
        value,
        grace,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #grace()}. */
  public FastGen withGrace(int value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        pooling,
        score,
        weight,
        sinks,
        value,
        order,
        minimumTokens);
  }

  /** A copy with another {@link #order()}. */
  public FastGen withOrder(List<Kind> value) {
    return new FastGen(
        candidates,
        target,
        local,
        frequent,
        pooling,
        score,
        weight,
        sinks,
        grace,
        value,
        minimumTokens);
  }

  /** A copy with another {@link #minimumTokens()}. */
  public FastGen withMinimumTokens(int value) {
    return new FastGen(
        candidates, target, local, frequent, pooling, score, weight, sinks, grace, order, value);
  }

  /** A copy with another {@link #order()}. */
  public FastGen withOrder(Kind... value) {
    return withOrder(List.of(value));
  }
}
