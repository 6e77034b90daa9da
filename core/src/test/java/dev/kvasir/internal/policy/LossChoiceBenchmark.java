package dev.kvasir.internal.policy;

import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/** The choice among all slots of a prompt of 4,096 tokens. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Warmup(iterations = 3, time = 2)
@Measurement(iterations = 5, time = 2)
@Fork(1)
public class LossChoiceBenchmark {
  private static final int TOKENS = 4096;

  /** KV heads of all layers: of the default model, and of a model of 7B without groups. */
  @Param({"90", "1024"})
  int heads;

  private float[] scale;
  private LossChoice choice;

  /** Fills the store. */
  @Setup
  public void fill() {
    var random = new Random(1);
    int[] position = new int[TOKENS];
    Arrays.setAll(position, p -> p);
    var score = new float[heads][TOKENS];
    for (var of : score) {
      for (int s = 0; s < TOKENS; s++) {
        of[s] = (float) Math.exp(4 * random.nextGaussian());
      }
    }
    var store =
        new ArrayStore(1, heads, 1, 1, 1) {
          @Override
          public int slots(int layer, int head) {
            return TOKENS;
          }

          @Override
          public void readPositions(int layer, int head, int[] into, int count) {
            System.arraycopy(position, 0, into, 0, count);
          }

          @Override
          public void readScores(int layer, int head, int first, int count, float[] into) {
            System.arraycopy(score[layer], first, into, 0, count);
          }
        };
    scale = new float[TOKENS];
    Arrays.fill(scale, 4f / TOKENS);
    choice = new LossChoice(store, 4);
  }

  /** One choice of a third. */
  @Benchmark
  public int choose() {
    choice.announce();
    choice.choose(TOKENS, scale, (256L + 16) * heads * TOKENS / 3, null);
    return choice.counts()[0];
  }
}
