package dev.kvasir;

/** Comparing what two engines expect. */
public final class Logits {
  private Logits() {}

  /** Kullback-Leibler divergence of the second distribution from the first, in nats. */
  public static double divergence(float[] expected, float[] actual) {
    double logSumExpected = logSum(expected);
    double logSumActual = logSum(actual);
    double sum = 0;
    for (int i = 0; i < expected.length; i++) {
      double log = expected[i] - logSumExpected;
      sum += Math.exp(log) * (log - (actual[i] - logSumActual));
    }
    return sum;
  }

  private static double logSum(float[] logits) {
    double most = Double.NEGATIVE_INFINITY;
    for (float logit : logits) {
      most = Math.max(most, logit);
    }
    double sum = 0;
    for (float logit : logits) {
      sum += Math.exp(logit - most);
    }
    return most + Math.log(sum);
  }

  /** The most probable token. */
  public static int best(float[] logits) {
    int best = 0;
    for (int i = 1; i < logits.length; i++) {
      if (logits[i] > logits[best]) {
        best = i;
      }
    }
    return best;
  }
}
