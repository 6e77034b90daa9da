package dev.kvasir.examples.eval;

/** What a model expects next: the logarithms of the tokens' probabilities. */
final class Distribution {
  private final float[] logProbabilities;
  private final int top;

  /** From logits, which are not kept. */
  Distribution(float[] logits) {
    int best = 0;
    for (int i = 1; i < logits.length; i++) {
      if (logits[i] > logits[best]) {
        best = i;
      }
    }
    double sum = 0;
    for (float logit : logits) {
      sum += Math.exp((double) logit - logits[best]);
    }
    double normaliser = logits[best] + Math.log(sum);
    logProbabilities = new float[logits.length];
    for (int i = 0; i < logits.length; i++) {
      logProbabilities[i] = (float) (logits[i] - normaliser);
    }
    top = best;
  }

  /** The most probable token. */
  int top() {
    return top;
  }

  /** Kullback-Leibler divergence KL(this || other), in nats. */
  double divergenceTo(Distribution other) {
    double sum = 0;
    for (int i = 0; i < logProbabilities.length; i++) {
      double own = logProbabilities[i];
      sum += Math.exp(own) * (own - other.logProbabilities[i]);
    }
    return Math.max(0, sum);
  }
}
