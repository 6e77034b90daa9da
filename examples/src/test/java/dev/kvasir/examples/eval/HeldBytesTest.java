package dev.kvasir.examples.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What is held, in bytes of the f16 cache. */
class HeldBytesTest {
  private static final long F16 = 256; // two rows of 64 elements
  private static final long Q8_0 = 136;

  private static CacheReport report(long slotBytes, int length, int... slots) {
    var heads = new ArrayList<HeadUse>();
    for (int h = 0; h < slots.length; h++) {
      heads.add(new HeadUse(0, h, "full", slots[h], length, slotBytes));
    }
    return new CacheReport(length, true, List.of(), heads, 0, 0);
  }

  @Test
  void booksCountInWhatIsHeld() {
    var held = new HeldBytes(new long[] {F16, F16});
    held.beforeToken(report(F16, 99, 99, 99));
    assertEquals((F16 + 16) / (double) F16, held.share(), 1e-12);
  }

  @Test
  void theUnitIsF16WhateverTheTypes() {
    var held = new HeldBytes(new long[] {F16, F16});
    held.beforeToken(report(Q8_0, 99, 29, 69));
    assertEquals((30 + 70) * 152.0 / (200 * 256.0), held.share(), 1e-12);
  }

  @Test
  void newTokensOfABlockCountByTheirMean() {
    var held = new HeldBytes(new long[] {F16});
    int kept = 100;
    for (int i = 0; i < 64; i++) {
      held.beforeToken(report(F16, 1000 + i, kept + i));
    }
    assertEquals((kept + 32.5) * 272 / (1032.5 * 256), held.share(), 1e-12);
  }
}
