package dev.kvasir.internal.policy;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/**
 * Choosing the policies of 90 KV heads after a prefill, and compacting them: measuring, budget,
 * slots to keep.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.SingleShotTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Warmup(iterations = 3)
@Measurement(iterations = 5)
@Fork(1)
public class SelectionBenchmark {
  @Param({"2048", "8192"})
  int tokens;

  @Param Candidates candidates;

  private CacheManager manager;
  private int[] text;

  @Setup(Level.Invocation)
  public void prefill() {
    var policy =
        CachePolicy.fastgen().withCandidates(candidates).withTarget(Target.budgetFraction(0.25));
    var store = new ArrayStore(1, 30, 3, 3, tokens);
    manager = new CacheManager(store, policy, null, new FakeKinds());
    text = new int[tokens];
    for (int i = 0; i < tokens; i++) {
      text[i] = i % 100;
      store.append();
    }
    manager.beforePrefill(tokens);
  }

  @Benchmark
  public Profile select() {
    manager.afterPrefill(text, 0, tokens);
    return manager.profile().orElseThrow();
  }
}
