package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.ThreadMXBean;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Target;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A decode step allocates nothing on the Java heap once its code is compiled. */
class AllocationTest {
  private static final int WARM_UP = 20_000;
  private static final int MEASURED = 4_000;

  // Compiling in the background would take its time where the machine is busy: a method is compiled
  // before it goes on.
  @ParameterizedTest
  @ValueSource(strings = {"fastgen", "foresight"})
  void aDecodeStepAllocatesNothing(String policy, @TempDir Path directory)
      throws IOException, InterruptedException {
    ChildJvm child =
        ChildJvm.run(
            directory,
            List.of("-Xbatch"),
            Map.of(),
            600,
            Stepping.class,
            directory.resolve("small.gguf").toString(),
            policy);
    assertEquals(0, child.exitValue(), child.output());
  }

  /** Decodes until everything is compiled, and counts what further steps allocate. */
  static final class Stepping {
    private Stepping() {}

    public static void main(String[] arguments) {
      ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
      Path file = SyntheticModels.llama(Path.of(arguments[0]), 1);
      SessionOptions options =
          TestModels.options()
              .withThreads(1)
              .withContextSize(WARM_UP + MEASURED + 600)
              .withCachePolicy(
                  arguments[1].equals("fastgen")
                      ? CachePolicy.fastgen().withTarget(Target.budgetFraction(0.1))
                      : CachePolicy.foresight().withBudget(0.1).withMinimumTokens(256));
      try (Model model = Model.load(file);
          Session session = model.newSession(options)) {
        int[] prompt = new int[500];
        Arrays.setAll(prompt, i -> 3 + i * 7 % 300);
        session.evaluate(prompt);
        assertTrue(session.cacheReport().decided());
        for (int i = 0; i < WARM_UP; i++) {
          session.step(3 + i * 13 % 300);
        }
        long[] allocated = new long[MEASURED];
        for (int i = 0; i < MEASURED; i++) {
          long before = threads.getCurrentThreadAllocatedBytes();
          session.step(3 + i * 11 % 300);
          allocated[i] = threads.getCurrentThreadAllocatedBytes() - before;
        }
        // The log of tokens and the tables by position grow by a fraction of their size, once in
        // thousands of steps.
        long steps = Arrays.stream(allocated).filter(bytes -> bytes > 0).count();
        assertTrue(
            steps <= 8,
            steps
                + " of "
                + MEASURED
                + " steps allocated "
                + Arrays.stream(allocated).sum()
                + " bytes");
        Arrays.sort(allocated);
        assertEquals(0, allocated[MEASURED - 9]);
      }
    }
  }
}
