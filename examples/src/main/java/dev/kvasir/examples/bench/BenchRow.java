package dev.kvasir.examples.bench;

import java.util.List;
import java.util.OptionalLong;

/**
 * One engine on one test.
 *
 * @param engine {@code llama.cpp} or {@code kvasir}
 * @param test llama-bench's name: {@code pp4096} is a prompt of 4,096 tokens, {@code tg32@d4096}
 *     the decode of 32 after 4,096, {@code pp512+tg128} a prompt and a decode in one
 * @param policy what the cache keeps
 * @param device that holds the model, or several
 * @param sequences decoded together
 * @param keptFraction slots held when the prompt was read (of {@code pp512+tg128}: at the end), as
 *     a fraction of all
 * @param keptSlots the same as a number, over all KV heads
 * @param kvBytes bytes of keys and values then
 * @param rssBytes by how much the process had grown since before the session was opened: cache and
 *     compute buffers
 * @param deviceBytes the same of the memory of its GPUs, by their driver
 * @param tokensPerSecond one per repeat, of all sequences together
 */
record BenchRow(
    String engine,
    String test,
    String policy,
    String device,
    int sequences,
    double keptFraction,
    long keptSlots,
    long kvBytes,
    OptionalLong rssBytes,
    OptionalLong deviceBytes,
    List<Double> tokensPerSecond) {

  /** Copies the list. */
  BenchRow {
    tokensPerSecond = List.copyOf(tokensPerSecond);
  }

  double median() {
    var sorted = sorted();
    int middle = sorted.size() / 2;
    return sorted.size() % 2 == 1
        ? sorted.get(middle)
        : (sorted.get(middle - 1) + sorted.get(middle)) / 2;
  }

  double slowest() {
    return sorted().getFirst();
  }

  double fastest() {
    return sorted().getLast();
  }

  private List<Double> sorted() {
    return tokensPerSecond.stream().sorted().toList();
  }
}
