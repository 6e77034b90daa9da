package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
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
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * One decode round trip on the default model: the token goes to llama.cpp, its graph is computed
 * over the cache, and the policies of all heads are applied again. With {@code -prof gc}: what a
 * step allocates on the Java heap.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 4, time = 10)
@Measurement(iterations = 5, time = 5)
@Fork(1)
public class DecodeBenchmark {
  private static final int CONTEXT = 8_192;

  /** How much is kept: everything, or a quarter under profiled policies. */
  @Param({"full", "lattice-25"})
  String cache;

  /** Tokens of the prompt. */
  @Param({"1024"})
  int depth;

  private Session session;
  private int[] prompt;

  @Setup(Level.Trial)
  public void open() {
    CachePolicy policy =
        cache.equals("full")
            ? CachePolicy.full()
            : CachePolicy.fastgen().withTarget(Target.budgetFraction(0.25));
    session =
        TestModels.adaptive()
            .newSession(TestModels.options().withContextSize(CONTEXT).withCachePolicy(policy));
    prompt = TestModels.proseTokens(depth);
  }

  /** Every iteration begins at the same depth. */
  @Setup(Level.Iteration)
  public void prefill() {
    session.clear();
    session.evaluate(prompt);
  }

  @TearDown(Level.Trial)
  public void close() {
    session.close();
  }

  /** A step with a token of the text. */
  @Benchmark
  public int step() {
    session.step(prompt[session.position() % depth]);
    return session.position();
  }
}
