package dev.kvasir;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * How the next token is drawn. The samplers are llama.cpp's, in its default order: penalties,
 * top-k, top-p, min-p, temperature. Immutable: every {@code with} method makes a copy.
 */
public final class Sampling {
  private static final long RANDOM_SEED = -1;

  /** The next one, of all 32 bits, llama.cpp takes for a wish to have another drawn. */
  private static final long LAST_SEED = 0xFFFF_FFFEL;

  private static final Sampling DEFAULTS = new Sampling();

  private float temperature = 0.8f;
  private int topK = 40;
  private float topP = 0.95f;
  private float minP = 0.05f;
  private float repeatPenalty = 1;
  private float frequencyPenalty = 0;
  private float presencePenalty = 0;
  private int penaltyWindow = 64;
  private long seed = RANDOM_SEED;

  private Sampling() {}

  /** A copy with a change, whose ranges are checked. */
  private Sampling(Sampling from, Consumer<Sampling> change) {
    temperature = from.temperature;
    topK = from.topK;
    topP = from.topP;
    minP = from.minP;
    repeatPenalty = from.repeatPenalty;
    frequencyPenalty = from.frequencyPenalty;
    presencePenalty = from.presencePenalty;
    penaltyWindow = from.penaltyWindow;
    seed = from.seed;
    change.accept(this);
    check();
  }

  private void check() {
    check(Float.isFinite(temperature), "temperature", temperature);
    check(topP >= 0 && topP <= 1, "topP", topP);
    check(minP >= 0 && minP <= 1, "minP", minP);
    check(repeatPenalty > 0 && Float.isFinite(repeatPenalty), "repeatPenalty", repeatPenalty);
    check(Float.isFinite(frequencyPenalty), "frequencyPenalty", frequencyPenalty);
    check(Float.isFinite(presencePenalty), "presencePenalty", presencePenalty);
    check(penaltyWindow >= 0 && penaltyWindow <= 1 << 20, "penaltyWindow", penaltyWindow);
    if (seed < RANDOM_SEED || seed > LAST_SEED) {
      throw new IllegalArgumentException(
          "Sampling.seed is out of range: %d; seeds are 0 to %d, and -1 draws one"
              .formatted(seed, LAST_SEED));
    }
  }

  private static void check(boolean ok, String name, Number value) {
    if (!ok) {
      throw new IllegalArgumentException("Sampling." + name + " is out of range: " + value);
    }
  }

  /**
   * llama.cpp's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties, a random
   * seed.
   */
  public static Sampling defaults() {
    return DEFAULTS;
  }

  /** Always the most probable token. */
  public static Sampling greedy() {
    return DEFAULTS.withTemperature(0);
  }

  /** This, with a seed drawn if it asks for one. */
  Sampling withDrawnSeed() {
    return seed == RANDOM_SEED
        ? withSeed(ThreadLocalRandom.current().nextLong(LAST_SEED + 1))
        : this;
  }

  /** Divides the logits; 0 or less always takes the most probable token. */
  public float temperature() {
    return temperature;
  }

  /** Keeps the k most probable tokens; 0 or less: off. */
  public int topK() {
    return topK;
  }

  /** Keeps the smallest set of tokens whose probabilities sum to this; 1: off. */
  public float topP() {
    return topP;
  }

  /** Drops tokens less probable than this fraction of the most probable one; 0: off. */
  public float minP() {
    return minP;
  }

  /** Divides the positive logits (and multiplies the negative ones) of recent tokens; 1: off. */
  public float repeatPenalty() {
    return repeatPenalty;
  }

  /** Is subtracted from a recent token's logit once per occurrence; 0: off. */
  public float frequencyPenalty() {
    return frequencyPenalty;
  }

  /** Is subtracted from a recent token's logit once; 0: off. */
  public float presencePenalty() {
    return presencePenalty;
  }

  /** Number of recent tokens, of prompt and reply, that the penalties look at; 0: none. */
  public int penaltyWindow() {
    return penaltyWindow;
  }

  /**
   * Of the random generator: 0 to 4,294,967,294. -1 draws one for each session, which {@link
   * Session#seed()} tells.
   */
  public long seed() {
    return seed;
  }

  /** A copy with another {@link #temperature()}. */
  public Sampling withTemperature(float value) {
    return new Sampling(this, o -> o.temperature = value);
  }

  /** A copy with another {@link #topK()}. */
  public Sampling withTopK(int value) {
    return new Sampling(this, o -> o.topK = value);
  }

  /** A copy with another {@link #topP()}. */
  public Sampling withTopP(float value) {
    return new Sampling(this, o -> o.topP = value);
  }

  /** A copy with another {@link #minP()}. */
  public Sampling withMinP(float value) {
    return new Sampling(this, o -> o.minP = value);
  }

  /** A copy with another {@link #repeatPenalty()}. */
  public Sampling withRepeatPenalty(float value) {
    return new Sampling(this, o -> o.repeatPenalty = value);
  }

  /** A copy with another {@link #frequencyPenalty()}. */
  public Sampling withFrequencyPenalty(float value) {
    return new Sampling(this, o -> o.frequencyPenalty = value);
  }

  /** A copy with another {@link #presencePenalty()}. */
  public Sampling withPresencePenalty(float value) {
    return new Sampling(this, o -> o.presencePenalty = value);
  }

  /** A copy with another {@link #penaltyWindow()}. */
  public Sampling withPenaltyWindow(int value) {
    return new Sampling(this, o -> o.penaltyWindow = value);
  }

  /** A copy with another {@link #seed()}. */
  public Sampling withSeed(long value) {
    return new Sampling(this, o -> o.seed = value);
  }

  private List<@Nullable Object> values() {
    return Arrays.asList(
        temperature,
        topK,
        topP,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  @Override
  public boolean equals(@Nullable Object other) {
    return other instanceof Sampling options && values().equals(options.values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  @Override
  public String toString() {
    return "Sampling" + values();
  }
}
