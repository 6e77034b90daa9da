package dev.kvasir.examples.eval;

import java.util.Arrays;
import java.util.Optional;

/**
 * What one way to keep a cache costs on one text.
 *
 * @param divergences from what the full cache expects, in nats, after each token
 * @param sameTop fraction of the tokens after which both caches expect the same one most
 * @param bytes held, of those that the same tokens take as f16
 * @param keptAfterPrompt fraction of the slots
 * @param keptAtEnd fraction of the slots
 * @param answered facts that the full cache finds
 * @param found those of them that this cache finds as well
 * @param freeRun what the model said by itself; empty where it was given what to say
 */
record TextResult(
    double[] divergences,
    double sameTop,
    double bytes,
    double keptAfterPrompt,
    double keptAtEnd,
    int answered,
    int found,
    Optional<FreeRun> freeRun) {

  static TextResult of(
      Trace trace, Trace reference, Sample sample, double bytes, Optional<FreeRun> freeRun) {
    var answered = sample.answers().stream().filter(reference::expected).toList();
    return new TextResult(
        trace.divergencesFrom(reference),
        trace.sameTopAs(reference),
        bytes,
        trace.keptAfterPrompt(),
        trace.keptAtEnd(),
        answered.size(),
        (int) answered.stream().filter(trace::expected).count(),
        freeRun);
  }

  double meanDivergence() {
    return Arrays.stream(divergences).average().orElse(0);
  }
}
