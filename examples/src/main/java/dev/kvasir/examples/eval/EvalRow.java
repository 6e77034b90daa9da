package dev.kvasir.examples.eval;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.ToDoubleFunction;

/** What one way to keep a cache costs, text by text. */
final class EvalRow {
  private final Method.Case what;
  private final List<TextResult> results = new ArrayList<>();

  EvalRow(Method.Case what) {
    this.what = what;
  }

  /** Adds the result of the next text. */
  void add(TextResult result) {
    results.add(result);
  }

  Method.Case what() {
    return what;
  }

  List<TextResult> results() {
    return List.copyOf(results);
  }

  /** Mean divergence per text, in nats. */
  double[] divergences() {
    return values(TextResult::meanDivergence);
  }

  Estimate divergence() {
    return Estimate.of(divergences());
  }

  /** The divergence that one token in a hundred exceeds, over the tokens of all texts. */
  double divergence99() {
    double[] all =
        results.stream()
            .flatMapToDouble(result -> Arrays.stream(result.divergences()))
            .sorted()
            .toArray();
    return all[(int) (0.99 * all.length)];
  }

  Estimate sameTop() {
    return Estimate.of(values(TextResult::sameTop));
  }

  double bytes() {
    return mean(TextResult::bytes);
  }

  double keptAfterPrompt() {
    return mean(TextResult::keptAfterPrompt);
  }

  double keptAtEnd() {
    return mean(TextResult::keptAtEnd);
  }

  int answered() {
    return results.stream().mapToInt(TextResult::answered).sum();
  }

  int found() {
    return results.stream().mapToInt(TextResult::found).sum();
  }

  /** What the model said by itself; empty for tasks where it does not. */
  List<FreeRun> freeRuns() {
    return results.stream().flatMap(result -> result.freeRun().stream()).toList();
  }

  private double mean(ToDoubleFunction<TextResult> value) {
    return Arrays.stream(values(value)).average().orElse(1);
  }

  private double[] values(ToDoubleFunction<TextResult> value) {
    return results.stream().mapToDouble(value).toArray();
  }
}
