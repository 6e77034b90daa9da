package dev.kvasir.cache;

/** What the KV heads of a session keep of the tokens that they have seen. */
public sealed interface CachePolicy permits Full, FastGen, Foresight, Uniform {

  /** Every head keeps every token. */
  static CachePolicy full() {
    return Full.INSTANCE;
  }

  /**
   * Every head keeps what a profile of the prompt shows that it needs, chosen from the lattice of
   * candidates: the cheapest that recovers 95% of the attention.
   */
  static FastGen fastgen() {
    return FastGen.defaults();
  }

  /**
   * What is kept follows from what queries like the prompt's own would take from it later: 35% of
   * the bytes of an f16 cache.
   */
  static Foresight foresight() {
    return Foresight.defaults();
  }

  /**
   * Every head keeps the same: the sinks, the most attended tokens and the most recent ones.
   * Nothing is profiled.
   *
   * @param frequent frequent tokens, as a fraction of the current length
   * @param local local tokens, as a fraction of the prompt's length
   */
  static Uniform uniform(double frequent, double local) {
    return Uniform.of(frequent, local);
  }

  /**
   * H2O (arXiv 2306.14048): half of the kept tokens are frequent, half are local; the sinks come on
   * top.
   *
   * @param kept fraction of the tokens that are kept, 0 to 1
   */
  static Uniform h2o(double kept) {
    return Uniform.of(kept / 2, kept / 2);
  }

  /**
   * StreamingLLM (arXiv 2309.17453): the sinks and the local tokens.
   *
   * @param kept fraction of the prompt's length that is kept, 0 to 1
   */
  static Uniform streaming(double kept) {
    return Uniform.of(0, kept);
  }
}
