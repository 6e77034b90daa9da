package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Target;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** Sessions of one model, each on its own thread, know nothing of each other. */
class ConcurrentSessionsTest {
  private static final int PROMPT = 120;
  private static final int STEPS = 30;
  private static final List<CachePolicy> POLICIES =
      List.of(
          CachePolicy.full(),
          CachePolicy.h2o(0.3).withMinimumTokens(1),
          CachePolicy.foresight().withBudget(0.4).withMinimumTokens(1),
          CachePolicy.fastgen().withTarget(Target.budgetFraction(0.4)).withMinimumTokens(1),
          CachePolicy.uniform(0.2, 0.2).withMinimumTokens(1));

  /** The logits after the prompt and after every step, and what the cache holds at the end. */
  private record Run(List<float[]> logits, CacheReport report) {}

  /** Every call begins when all of the barrier's parties are about to make theirs. */
  private static Run run(int index, CyclicBarrier barrier) throws Exception {
    int from = index * (PROMPT + STEPS);
    int[] text = TestModels.proseTokens(from + PROMPT + STEPS);
    List<float[]> logits = new ArrayList<>();
    SessionOptions options =
        TestModels.options()
            .withContextSize(256)
            .withThreads(1)
            .withCachePolicy(POLICIES.get(index));
    try (Session session = TestModels.adaptive().newSession(options)) {
      await(barrier);
      session.evaluate(Arrays.copyOfRange(text, from, from + PROMPT));
      logits.add(session.logits());
      for (int i = from + PROMPT; i < text.length; i++) {
        await(barrier);
        session.step(text[i]);
        logits.add(session.logits());
      }
      return new Run(logits, session.cacheReport());
    }
  }

  /** With a limit, as one that fails would leave the others waiting. */
  private static void await(CyclicBarrier barrier) throws Exception {
    barrier.await(60, TimeUnit.SECONDS);
  }

  @Test
  void decodeAtTheSameTimeWhatTheyDecodeAlone() throws Exception {
    int count = POLICIES.size();
    List<Run> alone = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      alone.add(run(i, new CyclicBarrier(1)));
    }
    List<Run> together = together(count);
    for (int i = 0; i < count; i++) {
      assertEquals(alone.get(i).report(), together.get(i).report());
      for (int step = 0; step <= STEPS; step++) {
        assertArrayEquals(
            alone.get(i).logits().get(step),
            together.get(i).logits().get(step),
            POLICIES.get(i) + ", step " + step);
      }
    }
  }

  private static List<Run> together(int count) throws InterruptedException, ExecutionException {
    CyclicBarrier barrier = new CyclicBarrier(count);
    List<Future<Run>> running = new ArrayList<>();
    try (ExecutorService threads = Executors.newFixedThreadPool(count)) {
      for (int i = 0; i < count; i++) {
        int index = i;
        Callable<Run> task = () -> run(index, barrier);
        running.add(threads.submit(task));
      }
      List<Run> runs = new ArrayList<>();
      for (Future<Run> future : running) {
        runs.add(future.get());
      }
      return runs;
    }
  }
}
