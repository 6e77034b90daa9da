package dev.kvasir.examples.eval;

import java.util.List;

/**
 * A text of the evaluation.
 *
 * @param prompt what is read before the cache is compressed
 * @param continuation what is fed after it, token by token; empty where the model itself goes on
 * @param answers parts of the continuation that the model should find by itself
 */
record Sample(int[] prompt, int[] continuation, List<Span> answers) {

  Sample(int[] prompt, int[] continuation) {
    this(prompt, continuation, List.of());
  }

  /**
   * Some tokens of a continuation.
   *
   * @param from the first
   * @param to behind the last
   */
  record Span(int from, int to) {}
}
