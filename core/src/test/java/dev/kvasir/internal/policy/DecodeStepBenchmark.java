package dev.kvasir.internal.policy;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OperationsPerInvocation;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/**
 * Re-applying the policies of 90 KV heads after a decode step: every head keeps frequent and local
 * tokens, so that every head drops a token in most steps. An operation is one step; {@code append}
 * is what the benchmark's store adds to it. With {@code -prof gc}: what a step allocates.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.SingleShotTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 1)
@Measurement(iterations = 7)
@Fork(1)
public class DecodeStepBenchmark {
  private static final int STEPS = 200;
  private static final int WARMUP_STEPS = 6000;

  @Param({"1024", "7000"})
  int depth;

  /** Fraction of the tokens that is kept, half of it as frequent tokens. */
  @Param({"0.5"})
  double kept;

  private ArrayStore store;
  private CacheManager manager;

  /** Warms up on a sequence of its own: the measured one stays close to its depth. */
  @Setup(Level.Trial)
  public void prefill() {
    prefill(WARMUP_STEPS);
    for (int i = 0; i < WARMUP_STEPS; i++) {
      store.append();
      manager.afterDecodeStep(70);
      manager.prepareStep();
    }
    prefill(8 * STEPS);
  }

  private void prefill(int steps) {
    store = new ArrayStore(1, 30, 3, 3, depth + steps);
    var policy = CachePolicy.h2o(kept).withScore(Score.MEAN).withWeight(Weight.VALUE);
    manager = new CacheManager(store, policy, null, new FakeKinds());
    var text = new int[depth];
    for (int i = 0; i < depth; i++) {
      text[i] = 70;
      store.append();
    }
    manager.beforePrefill(depth);
    manager.afterPrefill(text, 0, depth);
  }

  @Benchmark
  @OperationsPerInvocation(STEPS)
  public int step() {
    for (int i = 0; i < STEPS; i++) {
      store.append();
      manager.afterDecodeStep(70);
      manager.prepareStep();
    }
    return store.slots(0, 0);
  }

  @Benchmark
  @OperationsPerInvocation(STEPS)
  public int append() {
    for (int i = 0; i < STEPS; i++) {
      store.append();
    }
    return store.slots(0, 0);
  }
}
