package dev.kvasir.examples.bench;

import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.OptionalLong;

/**
 * Measures engines against each other. Single runs on a shared machine spread widely, so every
 * repeat visits all engines before the next begins, and begins with another engine than the one
 * before.
 */
final class Bench {
  /** Tokens that the warm-up reads. */
  static final int WARM_UP_PROMPT = 64;

  private static final int WARM_UP_DECODE = 4;

  private final List<Engine> engines;
  private final SessionOptions options;
  private final int repeats;
  private final int[] text;
  private final StandardStreams streams;

  /**
   * A benchmark.
   *
   * @param text tokens to read, at least the longest prompt and {@link #tokensForDecode} of what
   *     will be run
   */
  Bench(
      List<Engine> engines,
      SessionOptions options,
      int repeats,
      int[] text,
      StandardStreams streams) {
    this.engines = engines;
    this.options = options;
    this.repeats = repeats;
    this.text = text;
    this.streams = streams;
  }

  /** Runs every engine once, so that what only the first use of anything takes is behind it. */
  void warmUp() {
    for (var engine : engines) {
      try (var run = new Run(engine, 1, 0, tokensForDecode(WARM_UP_PROMPT, 0, 0), rates())) {
        run.sequences.prefill(Arrays.copyOf(text, WARM_UP_PROMPT));
        run.decode(WARM_UP_PROMPT, WARM_UP_DECODE);
      }
    }
  }

  static int tokensForDecode(int depth, int tokens, int repeats) {
    return depth + WARM_UP_DECODE + tokens * repeats;
  }

  /**
   * A prompt of so many tokens in an empty cache; the policy's work after it is part of the time.
   */
  List<BenchRow> prompt(int tokens) {
    var runs = new ArrayList<Run>();
    try (var bar = new ProgressBar(streams, "pp" + tokens)) {
      for (var engine : engines) {
        var run = new Run(engine, 1, 0, tokens, rates());
        runs.add(run);
        run.sequences.prefill(Arrays.copyOf(text, Math.min(tokens, options.microBatchSize())));
      }
      int[] prompt = Arrays.copyOf(text, tokens);
      for (int r = 0; r < repeats; r++) {
        for (int e = 0; e < runs.size(); e++) {
          bar.update(r * runs.size() + e, repeats * runs.size());
          var run = runs.get((r + e) % runs.size());
          run.sequences.clear();
          run.time(r, tokens, () -> run.sequences.prefill(prompt));
          run.look();
        }
      }
      return runs.stream().map(run -> run.row("pp" + tokens)).toList();
    } finally {
      runs.forEach(Run::close);
    }
  }

  /**
   * The decode of so many tokens, one by one, at a depth. Every repeat goes on where the one before
   * ended.
   *
   * @param parallel sequences that are decoded together
   */
  List<BenchRow> decode(int depth, int tokens, int parallel) {
    var test = "tg" + tokens + (depth > 0 ? "@d" + depth : "") + together(parallel);
    var runs = new ArrayList<Run>();
    try (var bar = new ProgressBar(streams, test)) {
      int steps = engines.size() * (repeats + 1);
      for (var engine : engines) {
        bar.update(runs.size(), steps, "filling");
        var run =
            new Run(engine, parallel, depth, tokensForDecode(depth, tokens, repeats), rates());
        runs.add(run);
        if (depth > 0) {
          run.sequences.prefill(Arrays.copyOf(text, depth));
        }
        run.decode(depth, WARM_UP_DECODE);
        run.look();
      }
      for (int r = 0; r < repeats; r++) {
        int from = depth + WARM_UP_DECODE + r * tokens;
        for (int e = 0; e < runs.size(); e++) {
          bar.update(runs.size() * (r + 1) + e, steps);
          var run = runs.get((r + e) % runs.size());
          run.time(r, tokens * parallel, () -> run.decode(from, tokens));
        }
      }
      return runs.stream().map(run -> run.row(test)).toList();
    } finally {
      runs.forEach(Run::close);
    }
  }

  /**
   * A prompt into an empty cache and the decode of so many tokens after it, timed together.
   * Sessions are opened for one repeat of one engine: caches of this length need not fit into
   * memory side by side, and what one takes is seen without the others.
   *
   * @param parallel sequences, each with a prompt of its own, that are decoded together
   */
  List<BenchRow> promptAndDecode(int promptTokens, int tokens, int parallel) {
    var test = "pp" + promptTokens + "+tg" + tokens + together(parallel);
    int[] prompt = Arrays.copyOf(text, promptTokens);
    int warmUp = Math.min(promptTokens, options.microBatchSize());
    var first = new ArrayList<Run>();
    try (var bar = new ProgressBar(streams, test)) {
      for (int r = 0; r < repeats; r++) {
        for (int e = 0; e < engines.size(); e++) {
          bar.update(r * engines.size() + e, repeats * engines.size());
          int engine = (r + e) % engines.size();
          try (var run =
              new Run(
                  engines.get(engine),
                  parallel,
                  promptTokens,
                  tokensForDecode(promptTokens, tokens, 1),
                  r == 0 ? rates() : first.get(engine).rates)) {
            run.sequences.prefill(Arrays.copyOf(text, warmUp));
            run.decode(warmUp, WARM_UP_DECODE);
            run.sequences.clear();
            run.time(
                r,
                (promptTokens + tokens) * parallel,
                () -> {
                  run.sequences.prefill(prompt);
                  run.decode(promptTokens, tokens);
                });
            if (r == 0) {
              run.look();
              first.add(run);
            }
          }
        }
      }
      return first.stream().map(run -> run.row(test)).toList();
    }
  }

  private static String together(int parallel) {
    return parallel > 1 ? " np" + parallel : "";
  }

  private double[] rates() {
    return new double[repeats];
  }

  /** One engine with a session of its own, or a group. */
  private final class Run implements AutoCloseable {
    private final Engine engine;
    private final int parallel;
    private final OptionalLong before;
    private final OptionalLong deviceBefore;
    private final Sequences sequences;
    private final double[] rates;
    private OptionalLong after = OptionalLong.empty();
    private OptionalLong deviceAfter = OptionalLong.empty();
    private CacheReport report;

    /**
     * Opens the session.
     *
     * @param depth tokens of the prompt that a group is given the profile of
     * @param rates where the repeats' rates go
     */
    Run(Engine engine, int parallel, int depth, int contextSize, double[] rates) {
      this.engine = engine;
      this.parallel = parallel;
      this.rates = rates;
      var sized = options.withContextSize(contextSize);
      if (parallel > 1) {
        sized = Sequences.known(engine, sized, Arrays.copyOf(text, depth));
      }
      before = ResidentMemory.bytes();
      deviceBefore = DeviceMemory.free(engine.model().devices());
      sequences =
          parallel > 1 ? Sequences.several(engine, parallel, sized) : Sequences.one(engine, sized);
      report = sequences.report();
    }

    void decode(int from, int tokens) {
      for (int i = from; i < from + tokens; i++) {
        sequences.step(text[i]);
      }
    }

    void time(int repeat, int tokens, Runnable work) {
      long start = System.nanoTime();
      work.run();
      rates[repeat] = tokens * 1e9 / (System.nanoTime() - start);
    }

    /**
     * What the cache holds and takes, at the first call: later ones would see the other engines'
     * memory too.
     */
    void look() {
      if (after.isEmpty()) {
        after = ResidentMemory.bytes();
        deviceAfter = DeviceMemory.free(engine.model().devices());
        report = sequences.report();
      }
    }

    BenchRow row(String test) {
      return new BenchRow(
          engine.name(),
          test,
          engine.policy(),
          String.join(" + ", engine.model().devices()),
          parallel,
          report.keptFraction(),
          report.keptSlots(),
          report.keptBytes(),
          grown(after, before),
          grown(deviceBefore, deviceAfter),
          Arrays.stream(rates).boxed().toList());
    }

    private static OptionalLong grown(OptionalLong larger, OptionalLong smaller) {
      return larger.isPresent() && smaller.isPresent()
          ? OptionalLong.of(Math.max(0, larger.getAsLong() - smaller.getAsLong()))
          : OptionalLong.empty();
    }

    @Override
    public void close() {
      sequences.close();
    }
  }
}
