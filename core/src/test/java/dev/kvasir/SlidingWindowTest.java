package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Target;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

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

  /** Cancels the replies that are given to it, when so much of their prompt is decoded. */
  private static final class Canceller implements PrefillListener {
    private Reply reply;
    private int at;

    @Override
    public void prefilled(int done, int total) {
      if (reply != null && done >= at) {
        reply.cancel();
      }
    }

    /** A reply whose prompt is cancelled, read to its end. */
    ReplyStatistics cancel(Session session, int after) {
      try (Reply cancelled = session.reply(tokens(400, 20), null)) {
        reply = cancelled;
        at = after;
        assertEquals("", cancelled.text());
        reply = null;
        assertEquals(StopReason.CANCELLED, cancelled.statistics().stopReason().orElseThrow());
        return cancelled.statistics();
      }
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aPromptThatIsCancelledInItsFirstMicroBatchLeavesNoTrace(boolean withCache) {
    Model model = withCache ? adaptive : plain;
    Canceller canceller = new Canceller();
    try (Session session = model.newSession(options().withPrefillListener(canceller));
        Session other = model.newSession(options().withPrefillListener((done, total) -> {}))) {
      for (Session s : List.of(session, other)) {
        s.evaluate(tokens(400, 9));
      }
      for (int after : new int[] {0, 1, 128}) {
        assertFalse(canceller.cancel(session, after).sessionEmptied(), "after " + after);
        assertEquals(400, session.position());
      }
      for (Session s : List.of(session, other)) {
        s.evaluate(tokens(40, 10));
        s.step(11);
      }
      double divergence = Logits.divergence(other.logits(), session.logits());
      // llama.cpp's own attention sums the cells in their order, which is another one now.
      assertTrue(divergence < (withCache ? 1e-9 : 1e-5), "KL " + divergence);
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aCancelledPromptThatTheWindowCannotTakeBackSaysThatTheSessionIsEmpty(boolean withCache) {
    Model model = withCache ? adaptive : plain;
    Canceller canceller = new Canceller();
    try (Session session = model.newSession(options().withPrefillListener(canceller));
        Session fresh = model.newSession(options())) {
      // There was nothing to lose.
      assertFalse(canceller.cancel(session, 384).sessionEmptied());
      session.evaluate(tokens(300, 12));
      assertTrue(canceller.cancel(session, 384).sessionEmptied());
      assertEquals(0, session.position());
      for (Session s : List.of(session, fresh)) {
        s.evaluate(tokens(80, 13));
      }
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }

  @Test
  void anInterruptedPromptSaysThatTheSessionIsEmpty() {
    PrefillListener interrupting =
        (done, total) -> {
          if (total == 600 && done >= 384) {
            Thread.currentThread().interrupt();
          }
        };
    SessionOptions options =
        SessionOptions.defaults()
            .withContextSize(1024)
            .withMicroBatchSize(128)
            .withThreads(TestModels.threads())
            .withPrefillListener(interrupting);
    try (Session session = adaptive.newSession(options);
        SessionGroup group = adaptive.newSessionGroup(2, options)) {
      session.evaluate(tokens(300, 14));
      CancelledException cancelled =
          assertThrows(CancelledException.class, () -> session.evaluate(tokens(600, 15)));
      assertTrue(Thread.interrupted());
      assertTrue(
          cancelled.getMessage().contains("The session is empty now: "), cancelled.getMessage());
      group.prefill(1, tokens(300, 14));
      cancelled = assertThrows(CancelledException.class, () -> group.prefill(1, tokens(600, 15)));
      assertTrue(Thread.interrupted());
      assertTrue(
          cancelled.getMessage().contains("Sequence 1 is empty now: "), cancelled.getMessage());
      assertEquals(0, group.position(1));
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
