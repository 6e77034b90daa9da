package dev.kvasir.examples.eval;

import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** Runs the texts with the full cache and with those that are compared with it. */
final class Comparison {
  private final Model stock;
  private final Model adaptive;
  private final SessionOptions options;
  private final List<Sample> samples;
  private final int turns;
  private final int tokens;
  private final long[] f16SlotBytes;
  private final Map<Method.Case, Double> fractions = new HashMap<>();

  /**
   * A comparison.
   *
   * @param stock the model without the adaptive cache
   * @param adaptive the model with it
   * @param options of all sessions, but for policies, KV types and capacity
   * @param turns that the prompts come in
   * @param tokens at most so many after a prompt
   */
  Comparison(
      Model stock,
      Model adaptive,
      SessionOptions options,
      List<Sample> samples,
      int turns,
      int tokens) {
    this.stock = stock;
    this.adaptive = adaptive;
    this.options = options;
    this.samples = samples;
    this.turns = turns;
    this.tokens = tokens;
    this.f16SlotBytes = HeldBytes.slotBytes(adaptive, KvTypes.F16.over(options));
  }

  /** Tokens after a prompt, at most. */
  int tokens() {
    return tokens;
  }

  /** What unmodified llama.cpp expects with its full f16 cache. */
  Trace reference(int text) {
    var sample = samples.get(text);
    return full(sample, feed(sample));
  }

  /** What a compressed cache costs. */
  TextResult result(Method.Case what, int text, Trace reference) {
    var sample = samples.get(text);
    var held = new HeldBytes(f16SlotBytes);
    var trace = compressed(what, sample, fraction(what), held);
    if (!generates(sample)) {
      return TextResult.of(trace, reference, sample, held.share(), Optional.empty());
    }
    var run =
        FreeRun.of(
            trace.tokens(),
            adaptive.detokenize(trace.tokens()),
            reference.tokens(),
            adaptive.detokenize(reference.tokens()));
    // what the full cache expects along what was said here, and not along what it says itself
    var along = full(sample, Trace.Feed.given(trace.tokens()));
    return TextResult.of(trace, along, sample, held.share(), Optional.of(run));
  }

  /**
   * The fraction of the tokens that a policy has to keep so that they take the row's budget of
   * bytes: as it follows from the sizes of slots, and corrected once by what the policy held then
   * on the first text, since windows, sinks and new tokens make it more or less.
   */
  private double fraction(Method.Case what) {
    if (!what.ofTokensAlone()) {
      return 1;
    }
    var known = fractions.get(what);
    if (known != null) {
      return known;
    }
    long[] slot = HeldBytes.slotBytes(adaptive, what.types().over(options));
    double whole = Arrays.stream(f16SlotBytes).sum();
    double own = Arrays.stream(slot).sum() + (double) slot.length * HeldBytes.BOOKS;
    double fraction = Math.min(1, what.budget() * whole / own);
    if (fraction < 1) {
      var held = new HeldBytes(f16SlotBytes);
      compressed(what, samples.getFirst(), fraction, held);
      fraction = Math.min(1, fraction * what.budget() / held.share());
    }
    fractions.put(what, fraction);
    return fraction;
  }

  private Trace compressed(Method.Case what, Sample sample, double fraction, HeldBytes held) {
    var policy = what.ofTokens().apply(fraction);
    return run(adaptive, what.types(), policy, sample, feed(sample), held);
  }

  private Trace full(Sample sample, Trace.Feed feed) {
    return run(stock, KvTypes.F16, CachePolicy.full(), sample, feed, null);
  }

  private Trace run(
      Model on,
      KvTypes types,
      CachePolicy policy,
      Sample sample,
      Trace.Feed feed,
      @Nullable HeldBytes held) {
    int count = generates(sample) ? tokens : sample.continuation().length;
    var all = types.over(options).withCachePolicy(policy);
    return Trace.of(on, all, sample.prompt(), turns, count, feed, held);
  }

  private static Trace.Feed feed(Sample sample) {
    return generates(sample) ? Trace.Feed.greedy() : Trace.Feed.given(sample.continuation());
  }

  private static boolean generates(Sample sample) {
    return sample.continuation().length == 0;
  }
}
