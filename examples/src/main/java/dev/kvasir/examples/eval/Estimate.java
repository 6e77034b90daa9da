package dev.kvasir.examples.eval;

import java.util.Arrays;

/**
 * A mean over texts with its 95% confidence interval, which is the mean plus or minus {@code
 * halfWidth} (Student's t; the texts are the sample).
 *
 * @param mean of the texts' values
 * @param halfWidth of the interval; NaN for a single text
 */
record Estimate(double mean, double halfWidth) {
  // 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom
  private static final double[] SMALL = {
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281
  };

  static Estimate of(double[] values) {
    int n = values.length;
    double mean = Arrays.stream(values).average().orElse(Double.NaN);
    if (n < 2) {
      return new Estimate(mean, Double.NaN);
    }
    double squares = Arrays.stream(values).map(value -> (value - mean) * (value - mean)).sum();
    return new Estimate(mean, quantile(n - 1) * Math.sqrt(squares / (n - 1) / n));
  }

  /**
   * Cornish-Fisher expansion of the quantile around the normal one, exact to four digits above ten
   * degrees of freedom.
   */
  static double quantile(int degrees) {
    if (degrees <= SMALL.length) {
      return SMALL[degrees - 1];
    }
    double z = 1.959964;
    double z3 = z * z * z;
    double z5 = z3 * z * z;
    double z7 = z5 * z * z;
    return z
        + (z3 + z) / (4.0 * degrees)
        + (5 * z5 + 16 * z3 + 3 * z) / (96.0 * degrees * degrees)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384.0 * degrees * degrees * degrees);
  }
}
