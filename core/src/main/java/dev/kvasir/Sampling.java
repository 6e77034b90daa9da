package dev.kvasir;

/**
 * How the next token is drawn. The samplers are llama.cpp's, in its default order: penalties,
 * top-k, top-p, min-p, temperature.
 *
 * @param temperature divides the logits; 0 or less always takes the most probable token
 * @param topK keeps the k most probable tokens; 0 or less: off
 * @param topP keeps the smallest set of tokens whose probabilities sum to this; 1: off
 * @param minP drops tokens less probable than this fraction of the most probable one; 0: off
 * @param repeatPenalty divides the positive logits (and multiplies the negative ones) of recent
 *     tokens; 1: off
 * @param frequencyPenalty is subtracted from a recent token's logit once per occurrence; 0: off
 * @param presencePenalty is subtracted from a recent token's logit once; 0: off
 * @param penaltyWindow number of recent tokens, of prompt and reply, that the penalties look at; 0:
 *     none
 * @param seed of the random generator, an unsigned 32-bit number; -1 takes a random one
 */
public record Sampling(
    float temperature,
    int topK,
    float topP,
    float minP,
    float repeatPenalty,
    float frequencyPenalty,
    float presencePenalty,
    int penaltyWindow,
    long seed) {
  private static final Sampling DEFAULTS = new Sampling(0.8f, 40, 0.95f, 0.05f, 1f, 0f, 0f, 64, -1);

  /** Checks the ranges. */
  public Sampling {
    check(Float.isFinite(temperature), "temperature", temperature);
    check(topP >= 0 && topP <= 1, "topP", topP);
    check(minP >= 0 && minP <= 1, "minP", minP);
    check(repeatPenalty > 0 && Float.isFinite(repeatPenalty), "repeatPenalty", repeatPenalty);
    check(Float.isFinite(frequencyPenalty), "frequencyPenalty", frequencyPenalty);
    check(Float.isFinite(presencePenalty), "presencePenalty", presencePenalty);
    check(penaltyWindow >= 0 && penaltyWindow <= 1 << 20, "penaltyWindow", penaltyWindow);
    check(seed >= -1 && seed <= 0xFFFF_FFFFL, "seed", seed);
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

  /** A copy with another temperature. */
  public Sampling withTemperature(float value) {
    return new Sampling(
        value,
        topK,
        topP,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  /** A copy with another top-k. */
  public Sampling withTopK(int value) {
    return new Sampling(
        temperature,
        value,
        topP,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  /** A copy with another top-p. */
  public Sampling withTopP(float value) {
    return new Sampling(
        temperature,
        topK,
        value,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  /** A copy with another min-p. */
  public Sampling withMinP(float value) {
    return new Sampling(
        temperature,
        topK,
        topP,
        value,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  /** A copy with another repeat penalty. */
  public Sampling withRepeatPenalty(float value) {
    return new Sampling(
        temperature,
        topK,
        topP,
        minP,
        value,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        seed);
  }

  /** A copy with another frequency penalty. */
  public Sampling withFrequencyPenalty(float value) {
    return new Sampling(
        temperature, topK, topP, minP, repeatPenalty, value, presencePenalty, penaltyWindow, seed);
  }

  /** A copy with another presence penalty. */
  public Sampling withPresencePenalty(float value) {
    return new Sampling(
        temperature, topK, topP, minP, repeatPenalty, frequencyPenalty, value, penaltyWindow, seed);
  }

  /** A copy whose penalties look at another number of recent tokens. */
  public Sampling withPenaltyWindow(int value) {
    return new Sampling(
        temperature,
        topK,
        topP,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        value,
        seed);
  }

  /** A copy with another seed. */
  public Sampling withSeed(long value) {
    return new Sampling(
        temperature,
        topK,
        topP,
        minP,
        repeatPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        value);
  }
}
