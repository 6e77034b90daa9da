package dev.kvasir.examples.eval;

import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;

/**
 * What a cache holds while tokens are evaluated, as a fraction of the bytes that keys and values
 * take as f16 when nothing is dropped. Every held slot counts with its books.
 */
final class HeldBytes {
  /** Books of a slot in a KV head: its cell, position and score, and its entry in the table. */
  static final int BOOKS = 16;

  private final long[] full; // bytes of a slot as f16, by head
  private double held;
  private double whole;

  /**
   * A meter without readings.
   *
   * @param f16SlotBytes bytes of a slot as f16, by KV head in the order of the reports
   */
  HeldBytes(long[] f16SlotBytes) {
    full = f16SlotBytes.clone();
  }

  /** Bytes of a slot of these types, by KV head in the order of the reports, without books. */
  static long[] slotBytes(Model adaptive, SessionOptions options) {
    try (var session =
        adaptive.newSession(options.withContextSize(256).withCachePolicy(CachePolicy.full()))) {
      return session.cacheReport().heads().stream().mapToLong(HeadUse::slotBytes).toArray();
    }
  }

  /** Adds what is held while the next token is evaluated, that token among it. */
  void beforeToken(CacheReport report) {
    var heads = report.heads();
    for (int h = 0; h < heads.size(); h++) {
      var head = heads.get(h);
      held += (head.slots() + 1.0) * (head.slotBytes() + BOOKS);
      whole += (head.fullSlots() + 1.0) * full[h];
    }
  }

  /** The mean over the tokens. */
  double share() {
    return held / whole;
  }
}
