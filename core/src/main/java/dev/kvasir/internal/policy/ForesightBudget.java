package dev.kvasir.internal.policy;

/**
 * Bytes that Foresight may hold: a share of what the tokens' keys and values take in an f16 cache.
 * Up to the next choice the new tokens are all kept: half a block of them, at this cache's bytes,
 * belongs to the share.
 */
final class ForesightBudget {
  /** Tokens from one choice to the next. */
  static final int BLOCK = 64;

  /** New tokens that there are on the average until the next choice. */
  static final double NEW_TOKENS = (BLOCK + 1) / 2.0;

  private ForesightBudget() {}

  /** K and V bytes of so many tokens and {@link #NEW_TOKENS} more in an f16 cache, all heads. */
  static double full(CacheStore store, int tokens) {
    double bytes = 0;
    for (int l = 0; l < store.layers(); l++) {
      var shape = store.shape(l);
      double held = tokens + NEW_TOKENS;
      held = shape.sliding() ? Math.min(held, shape.cells()) : held;
      bytes += held * shape.kvHeads() * shape.halfBytes();
    }
    return bytes;
  }

  /** Bytes of {@link #NEW_TOKENS} here, with their tables, all heads. */
  static double block(CacheStore store) {
    double bytes = 0;
    for (int l = 0; l < store.layers(); l++) {
      var shape = store.shape(l);
      bytes += NEW_TOKENS * shape.kvHeads() * (shape.slotBytes() + LossChoice.BOOKS);
    }
    return bytes;
  }

  /** Bytes that the slots of so many tokens may take with their tables; less than 0: none. */
  static long of(CacheStore store, double share, int tokens) {
    return (long) Math.floor(share * full(store, tokens) - block(store));
  }
}
