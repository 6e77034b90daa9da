package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.MovedQueries;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.internal.policy.CacheStore;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * A prompt that is cancelled leaves no trace: what is chosen, kept and computed afterwards is, bit
 * for bit, what a session does that never saw it.
 */
class TakenBackTest {
  private static final int MICRO_BATCH = 64;

  @TempDir static Path directory;
  private static Model model;

  @BeforeAll
  static void load() {
    model = Model.load(SyntheticModels.llama(directory.resolve("random.gguf"), 4));
  }

  @AfterAll
  static void close() {
    model.close();
  }

  private static int[] tokens(int count, int seed) {
    return new Random(seed).ints(count, 3, 300).toArray();
  }

  /** Two sessions of the same options, of which one sees prompts that are cancelled. */
  private static final class Sessions implements AutoCloseable {
    private final Session alone;
    private final Session other;
    private int cancelAfter = Integer.MAX_VALUE;

    Sessions(SessionOptions options) {
      SessionOptions common = options.withContextSize(2048).withMicroBatchSize(MICRO_BATCH);
      alone = model.newSession(common.withPrefillListener((done, total) -> {}));
      other =
          model.newSession(
              common.withPrefillListener(
                  (done, total) -> {
                    if (done >= cancelAfter) {
                      throw new IllegalStateException("enough");
                    }
                  }));
    }

    void cancel(int[] prompt, int after) {
      int before = other.position();
      cancelAfter = after;
      assertThrows(IllegalStateException.class, () -> other.evaluate(prompt));
      cancelAfter = Integer.MAX_VALUE;
      assertEquals(before, other.position());
    }

    void both(int... tokens) {
      for (Session session : List.of(alone, other)) {
        if (tokens.length == 1) {
          session.step(tokens[0]);
        } else {
          session.evaluate(tokens);
        }
      }
      assertArrayEquals(alone.logits(), other.logits(), "logits at " + alone.position());
      assertEquals(alone.profile(), other.profile());
      assertEquals(held(alone), held(other), "slots at " + alone.position());
    }

    /** What every head holds: positions and scores by slot. */
    private static List<String> held(Session session) {
      CacheStore store = session.context().store(0).orElseThrow();
      List<String> all = new ArrayList<>();
      for (int l = 0; l < store.layers(); l++) {
        for (int h = 0; h < store.shape(l).kvHeads(); h++) {
          int slots = store.slots(l, h);
          float[] scores = new float[slots];
          store.readScores(l, h, 0, slots, scores);
          for (int s = 0; s < slots; s++) {
            all.add(l + "." + h + ": " + store.position(l, h, s) + " " + scores[s]);
          }
        }
      }
      return all;
    }

    double keptFraction() {
      return other.cacheReport().keptFraction();
    }

    @Override
    public void close() {
      alone.close();
      other.close();
    }
  }

  private static SessionOptions fastgen() {
    return TestModels.options()
        .withCachePolicy(CachePolicy.fastgen().withTarget(Target.budgetFraction(0.4)));
  }

  @ParameterizedTest
  @ValueSource(ints = {64, 512, 1024})
  void theFirstPrompt(int after) {
    try (Sessions sessions = new Sessions(fastgen())) {
      sessions.cancel(tokens(1100, after), after);
      sessions.both(tokens(400, 1));
      for (int token : tokens(40, 2)) {
        sessions.both(token);
      }
      assertTrue(sessions.keptFraction() < 0.5, "kept " + sessions.keptFraction());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aPromptBeforeAndAfterTheChoice(boolean perQueryHead) {
    SessionOptions options =
        perQueryHead
            ? TestModels.options()
                .withCachePolicy(
                    CachePolicy.fastgen()
                        .withTarget(Target.budgetFraction(0.4))
                        .withPooling(Pooling.MIN))
            : fastgen();
    try (Sessions sessions = new Sessions(options)) {
      sessions.both(tokens(100, 3)); // counted, and too short to choose by
      sessions.both(7);
      sessions.cancel(tokens(90, 4), 64); // counted by the same statistic
      sessions.both(8);
      sessions.cancel(tokens(1500, 5), 1024); // the statistic would have begun anew
      sessions.both(9);
      sessions.cancel(tokens(1500, 5), 0); // before a token of it was evaluated
      sessions.both(tokens(300, 6));
      assertTrue(sessions.keptFraction() < 0.5, "kept " + sessions.keptFraction());
      for (int token : tokens(20, 7)) {
        sessions.both(token);
      }
      sessions.cancel(tokens(600, 8), 512); // scores went on
      for (int token : tokens(40, 9)) {
        sessions.both(token);
      }
      sessions.cancel(tokens(200, 10), 64);
      sessions.both(tokens(100, 11));
      for (int token : tokens(20, 12)) {
        sessions.both(token);
      }
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"u", "c", "c/4"})
  void promptsWhoseQueriesAreMoved(String statistic) {
    SessionOptions options =
        TestModels.options()
            .withCachePolicy(
                CachePolicy.foresight()
                    .withStatistic(MovedQueries.parse(statistic))
                    .withBudget(0.4)
                    .withMinimumTokens(200));
    try (Sessions sessions = new Sessions(options)) {
      sessions.cancel(tokens(300, 19), 128);
      sessions.both(tokens(100, 20)); // summed up, and too short to choose by
      sessions.cancel(tokens(300, 21), 256);
      for (int token : tokens(20, 22)) {
        sessions.both(token);
      }
      sessions.cancel(tokens(300, 23), 64); // with queries of steps in the record
      sessions.both(9);
      sessions.cancel(tokens(150, 24), 150); // in the last part
      sessions.both(tokens(300, 25));
      assertTrue(sessions.keptFraction() < 0.5, "kept " + sessions.keptFraction());
      int step = 0;
      for (int token : tokens(70, 26)) {
        sessions.both(token);
        if (++step == 30 || step == 64 || step == 65) { // while a choice waits, too
          sessions.cancel(tokens(200, 27), 128);
        }
      }
      sessions.both(tokens(100, 28));
      assertEquals(sessions.alone.lossProfile(), sessions.other.lossProfile());
    }
  }

  @Test
  void policiesThatAreGivenBeforehand() {
    SessionOptions options =
        TestModels.options()
            .withCachePolicy(CachePolicy.h2o(0.3).withScore(Score.MEAN).withMinimumTokens(64));
    try (Sessions sessions = new Sessions(options)) {
      sessions.cancel(tokens(300, 13), 128);
      sessions.both(tokens(40, 14));
      sessions.cancel(tokens(300, 15), 256);
      sessions.both(tokens(200, 16));
      sessions.cancel(tokens(300, 17), 256);
      for (int token : tokens(60, 18)) {
        sessions.both(token);
      }
      assertTrue(sessions.keptFraction() < 0.5, "kept " + sessions.keptFraction());
    }
  }
}
