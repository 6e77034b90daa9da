package dev.kvasir.examples.eval;

import java.util.Arrays;

/** What one way to keep a cache costs, text by text. */
final class EvalRow {
  private final Method.Case what;
  private final double[] divergence;
  private final double[] sameTop;
  private final double[] keptAfterPrompt;
  private final double[] keptAtEnd;

  EvalRow(Method.Case what, int texts) {
    this.what = what;
    this.divergence = new double[texts];
    this.sameTop = new double[texts];
    this.keptAfterPrompt = new double[texts];
    this.keptAtEnd = new double[texts];
  }

  void put(
      int text, double meanDivergence, double fractionSameTop, double afterPrompt, double atEnd) {
    divergence[text] = meanDivergence;
    sameTop[text] = fractionSameTop;
    keptAfterPrompt[text] = afterPrompt;
    keptAtEnd[text] = atEnd;
  }

  Method.Case what() {
    return what;
  }

  /** Mean divergence per text, in nats. */
  double[] divergences() {
    return divergence.clone();
  }

  Estimate divergence() {
    return Estimate.of(divergence);
  }

  Estimate sameTop() {
    return Estimate.of(sameTop);
  }

  double keptAfterPrompt() {
    return Arrays.stream(keptAfterPrompt).average().orElse(1);
  }

  double keptAtEnd() {
    return Arrays.stream(keptAtEnd).average().orElse(1);
  }
}
