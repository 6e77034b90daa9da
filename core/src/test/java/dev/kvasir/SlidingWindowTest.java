package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Target;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A model whose layers have sliding windows: llama.cpp keeps their tokens in a smaller ring of
 * cells.
 */
class SlidingWindowTest {
  private static final int WINDOW = 128;

  @TempDir static Path directory;
  private static Model adaptive;
  private static Model plain;

  @BeforeAll
  static void load() {
    Path file = SyntheticModels.slidingWindow(directory.resolve("gemma3.gguf"), WINDOW);
    adaptive = Model.load(file);
    plain = Model.load(file, ModelOptions.defaults().withAdaptiveCache(false));
  }

  @AfterAll
  static void close() {
    adaptive.close();
    plain.close();
  }

  private static int[] tokens(int count, int seed) {
    Random random = new Random(seed);
    return random.ints(count, 3, 320).toArray();
  }

  private static SessionOptions options() {
    return TestModels.options().withMicroBatchSize(128);
  }

  @Test
  void keepingAllAgreesWithLlamaCpp() {
    try (Session ours = adaptive.newSession(options());
        Session theirs = plain.newSession(options())) {
      double worst = 0;
      ours.evaluate(tokens(700, 1));
      theirs.evaluate(tokens(700, 1));
      for (int token : tokens(60, 2)) {
        worst = Math.max(worst, Logits.divergence(theirs.logits(), ours.logits()));
        ours.step(token);
        theirs.step(token);
      }
      assertTrue(worst < 1e-5, "KL " + worst);
      assertTrue(ours.cacheReport().keptFraction() > 0);
    }
  }

  @Test
  void policiesRunOverTheRing() {
    SessionOptions options =
        options().withCachePolicy(CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5)));
    try (Session session = adaptive.newSession(options)) {
      session.evaluate(tokens(500, 3));
      assertTrue(session.profile().isPresent());
      for (int token : tokens(200, 4)) {
        session.step(token);
      }
      session.evaluate(tokens(90, 5));
      assertEquals(790, session.position());
      assertFalse(Float.isNaN(session.logits()[0]));
      double kept = session.cacheReport().keptFraction();
      assertTrue(kept < 0.7, "kept " + kept);
    }
  }

  @Test
  void aPrefillThatTheWindowCannotTakeBackClearsTheSession() {
    boolean[] cancel = {false};
    try (Session session =
            adaptive.newSession(
                options()
                    .withPrefillListener(
                        (done, total) -> {
                          if (cancel[0] && done >= 512) {
                            throw new IllegalStateException("stop here");
                          }
                        }));
        Session fresh = adaptive.newSession(options())) {
      session.evaluate(tokens(300, 6));
      cancel[0] = true;
      assertThrows(IllegalStateException.class, () -> session.evaluate(tokens(700, 7)));
      cancel[0] = false;
      assertEquals(0, session.position());
      session.evaluate(tokens(80, 8));
      fresh.evaluate(tokens(80, 8));
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }
}
