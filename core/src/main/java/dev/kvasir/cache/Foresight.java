package dev.kvasir.cache;

import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Every slot is judged by what queries like the prompt's own would take from it if they came after
 * the prompt: the loss of dropping slot j of a KV head is {@code 4 Σ_g w_g E[p_gj²] |v_j - ō_g|²},
 * over the query heads g of its group, p being the attention of a moved query, v the value row and
 * ō the query head's mean output. One threshold of the loss per byte holds for all slots of all
 * heads and layers; there are no windows, kinds or budgets by head. The choice is made again after
 * every 64 tokens; what was dropped stays so.
 *
 * @param budget bytes that may be held, as a fraction of what keys and values of the same tokens
 *     take in an f16 cache, whatever the types of this one are. A slot's 16 bytes of tables count,
 *     and the new tokens of half a block of 64
 * @param statistic which queries are asked, and when
 * @param headWeights w of every query head; null: one over its mean squared output
 * @param sinks so many first positions are always kept
 * @param minimumTokens below so many tokens everything is kept
 */
public record Foresight(
    double budget,
    MovedQueries statistic,
    @Nullable HeadWeights headWeights,
    int sinks,
    int minimumTokens)
    implements CachePolicy {
  private static final Foresight DEFAULTS =
      new Foresight(0.35, MovedQueries.whileReading(), null, 4, 512);

  /** Checks the ranges. */
  public Foresight {
    Ranges.fraction("Foresight.budget", budget);
    Objects.requireNonNull(statistic, "statistic");
    Ranges.atLeast("Foresight.sinks", sinks, 0);
    Ranges.atLeast("Foresight.minimumTokens", minimumTokens, 1);
  }

  /** 35% of the bytes, asked while reading, no table of weights, 4 sinks, from 512 tokens on. */
  public static Foresight defaults() {
    return DEFAULTS;
  }

  /** A copy with another {@link #budget()}. */
  public Foresight withBudget(double value) {
    return new Foresight(value, statistic, headWeights, sinks, minimumTokens);
  }

  /** A copy with another {@link #statistic()}. */
  public Foresight withStatistic(MovedQueries value) {
    return new Foresight(budget, value, headWeights, sinks, minimumTokens);
  }

  /** A copy with other {@link #headWeights()}; null: one over a head's mean squared output. */
  public Foresight withHeadWeights(@Nullable HeadWeights value) {
    return new Foresight(budget, statistic, value, sinks, minimumTokens);
  }

  /** A copy with another {@link #sinks()}. */
  public Foresight withSinks(int value) {
    return new Foresight(budget, statistic, headWeights, value, minimumTokens);
  }

  /** A copy with another {@link #minimumTokens()}. */
  public Foresight withMinimumTokens(int value) {
    return new Foresight(budget, statistic, headWeights, sinks, value);
  }
}
