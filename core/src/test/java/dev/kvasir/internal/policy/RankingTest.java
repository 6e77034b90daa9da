package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;

class RankingTest {
  private static final long SEED = 20;

  /** With ties, zeros, infinities and the smallest numbers; by position and in any order. */
  @Test
  void ranksAreSorted() {
    var random = new Random(SEED);
    for (int round = 0; round < 200; round++) {
      int count = random.nextInt(round < 100 ? 600 : 5_000);
      var ranks = new long[count + random.nextInt(3)];
      int position = 0;
      for (int i = 0; i < count; i++) {
        float score =
            switch (random.nextInt(8)) {
              case 0 -> 0;
              case 1 -> random.nextInt(4);
              case 2 -> Float.MIN_VALUE * random.nextInt(100);
              case 3 -> random.nextInt(50) == 0 ? Float.POSITIVE_INFINITY : Float.NaN;
              case 4 -> -random.nextFloat();
              default -> (float) Math.exp(30 * random.nextGaussian());
            };
        position += 1 + random.nextInt(3);
        ranks[i] = Ranking.rank(score, position);
      }
      if (round % 3 == 0) {
        for (int i = count - 1; i > 0; i--) {
          int other = random.nextInt(i + 1);
          long swap = ranks[i];
          ranks[i] = ranks[other];
          ranks[other] = swap;
        }
      }
      var expected = ranks.clone();
      Arrays.sort(expected, 0, count);
      Ranking.sort(ranks, count, new long[count]);
      assertArrayEquals(expected, ranks, "round " + round + ", seed " + SEED);
    }
  }

  /** Whatever was compacted, on however many processors, little waits for the next time. */
  @Test
  void arraysThatWaitAreBounded() {
    for (int round = 0; round < 3; round++) {
      var scratches = Scratch.borrow(128, 32_768);
      for (var scratch : scratches) {
        scratch.ensure(32_768);
      }
      Scratch.giveBack(scratches);
    }
    long waiting = Scratch.waitingBytes();
    assertTrue(waiting > 0 && waiting <= 16L << 20, waiting + " bytes");
    assertEquals(1, Scratch.borrow(128, 100_000_000).length);
    assertTrue(Scratch.borrow(128, 1_000_000).length < 8);
    assertEquals(3, Scratch.borrow(3, 1_000).length);
  }
}
