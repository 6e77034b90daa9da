package dev.kvasir.examples.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class StatisticsTest {
  @Test
  void quantilesOfStudentsT() {
    assertEquals(12.7062, Estimate.quantile(1), 1e-4);
    assertEquals(2.2281, Estimate.quantile(10), 1e-4);
    assertEquals(2.2010, Estimate.quantile(11), 2e-4);
    assertEquals(2.0930, Estimate.quantile(19), 1e-4);
    assertEquals(1.9840, Estimate.quantile(100), 1e-4);
  }

  @Test
  void meanAndInterval() {
    var estimate = Estimate.of(new double[] {1, 2, 3, 4});
    assertEquals(2.5, estimate.mean());
    // standard deviation 1.29099, over the root of four texts, times 3.1824
    assertEquals(2.0542, estimate.halfWidth(), 1e-3);
    assertTrue(Double.isNaN(Estimate.of(new double[] {1}).halfWidth()));
  }

  @Test
  void divergence() {
    var even = new Distribution(new float[] {0, 0});
    var skewed = new Distribution(new float[] {(float) Math.log(3), 0});
    assertEquals(0, even.divergenceTo(even));
    assertEquals(
        0.5 * Math.log(0.5 / 0.75) + 0.5 * Math.log(0.5 / 0.25), even.divergenceTo(skewed), 1e-6);
    assertEquals(0.75 * Math.log(1.5) + 0.25 * Math.log(0.5), skewed.divergenceTo(even), 1e-6);
    // logits mean the same whatever is added to all of them
    assertEquals(0, even.divergenceTo(new Distribution(new float[] {1000, 1000})), 1e-6);
    assertEquals(1, new Distribution(new float[] {1, 2, 0}).top());
  }
}
