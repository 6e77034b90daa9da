package dev.kvasir.cache;

import java.util.Objects;

/**
 * Every head keeps the same: sinks, frequent and local tokens, without a profile. {@link
 * CachePolicy#h2o H2O} and {@link CachePolicy#streaming StreamingLLM} are of this kind. The same
 * machinery as FastGen's holds the sets, so that the two can be compared by what they keep alone.
 *
 * @param frequent frequent tokens, as a fraction of the current length
 * @param local local tokens, as a fraction of the prompt's length
 * @param score what ranks the frequent tokens
 * @param weight what a unit of attention counts in the score
 * @param sinks so many first positions are always kept
 * @param grace a new token is kept for so many decode steps
 * @param minimumTokens below so many tokens everything is kept
 */
public record Uniform(
    double frequent,
    double local,
    Score score,
    Weight weight,
    int sinks,
    int grace,
    int minimumTokens)
    implements CachePolicy {

  /** Checks the ranges. */
  public Uniform {
    Ranges.fraction("Uniform.frequent", frequent);
    Ranges.fraction("Uniform.local", local);
    Objects.requireNonNull(score, "score");
    Objects.requireNonNull(weight, "weight");
    Ranges.atLeast("Uniform.sinks", sinks, 0);
    Ranges.atLeast("Uniform.grace", grace, 0);
    Ranges.atLeast("Uniform.minimumTokens", minimumTokens, 1);
  }

  /**
   * The given fractions with summed scores, no weights, 4 sinks, a grace of 16, from 256 tokens on.
   */
  public static Uniform of(double frequent, double local) {
    return new Uniform(frequent, local, Score.SUM, Weight.NONE, 4, 16, 256);
  }

  /** A copy with another {@link #frequent()}. */
  public Uniform withFrequent(double value) {
    return new Uniform(value, local, score, weight, sinks, grace, minimumTokens);
  }

  /** A copy with another {@link #local()}. */
  public Uniform withLocal(double value) {
    return new Uniform(frequent, value, score, weight, sinks, grace, minimumTokens);
  }

  /** A copy with another {@link #score()}. */
  public Uniform withScore(Score value) {
    return new Uniform(frequent, local, value, weight, sinks, grace, minimumTokens);
  }

  /** A copy with another {@link #weight()}. */
  public Uniform withWeight(Weight value) {
    return new Uniform(frequent, local, score, value, sinks, grace, minimumTokens);
  }

  /** A copy with another {@link #sinks()}. */
  public Uniform withSinks(int value) {
    return new Uniform(frequent, local, score, weight, value, grace, minimumTokens);
  }

  /** A copy with another {@link #grace()}. */
  public Uniform withGrace(int value) {
    return new Uniform(frequent, local, score, weight, sinks, value, minimumTokens);
  }

  /** A copy with another {@link #minimumTokens()}. */
  public Uniform withMinimumTokens(int value) {
    return new Uniform(frequent, local, score, weight, sinks, grace, value);
  }
}
