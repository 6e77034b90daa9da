package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.MovedQueries;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Foresight on models of each kind of cache. */
class ForesightModelsTest {
  private static final int WINDOW = 128;

  @TempDir static Path directory;
  private static final Map<String, Model> MODELS = new HashMap<>();

  @BeforeAll
  static void load() {
    MODELS.put("llama", load(SyntheticModels.llama(directory.resolve("llama.gguf"), 2)));
    MODELS.put("window", load(SyntheticModels.slidingWindow(directory.resolve("w.gguf"), WINDOW)));
    MODELS.put("latent", load(SyntheticModels.latent(directory.resolve("latent.gguf"), 2)));
    MODELS.put("hybrid", load(SyntheticModels.hybrid(directory.resolve("hybrid.gguf"))));
  }

  private static Model load(Path file) {
    return Model.load(file, ModelOptions.defaults().withDevice("CPU"));
  }

  @AfterAll
  static void close() {
    MODELS.values().forEach(Model::close);
  }

  private static int[] tokens(int count, int seed) {
    return new Random(seed).ints(count, 3, 320).toArray();
  }

  private static Foresight policy(String statistic) {
    return CachePolicy.foresight()
        .withStatistic(MovedQueries.parse(statistic))
        .withBudget(0.5)
        .withMinimumTokens(128);
  }

  private static SessionOptions options(Foresight policy, Attention attention) {
    return TestModels.options()
        .withMicroBatchSize(64)
        .withAttention(attention)
        .withCachePolicy(policy);
  }

  private static List<Integer> slots(Session session) {
    return session.cacheReport().heads().stream().map(HeadUse::slots).toList();
  }

  @ParameterizedTest
  @CsvSource({
    "llama, u, NATIVE", "llama, c/2, PORTABLE",
    "window, u, NATIVE", "window, c, PORTABLE",
    "latent, u, NATIVE", "latent, c/4, PORTABLE",
    "hybrid, c, NATIVE", "hybrid, u, PORTABLE"
  })
  void keepsToItsBudgetOverTurns(String model, String statistic, Attention attention) {
    SessionOptions options = options(policy(statistic), attention);
    try (Session session = MODELS.get(model).newSession(options)) {
      session.evaluate(tokens(100, 1));
      assertEquals(1, session.cacheReport().keptFraction());
      session.evaluate(tokens(200, 2));
      assertWithinTheBudget(session, 0);
      for (int i = 0; i < 140; i++) {
        session.step(tokens(1, i)[0]);
        assertEquals(Optional.empty(), session.cacheReport().policyFailure());
      }
      assertWithinTheBudget(session, 14);
      session.evaluate(tokens(70, 3));
      assertWithinTheBudget(session, 0);
      assertEquals(510, session.position());
      assertFalse(Float.isNaN(session.logits()[0]));
      LossProfile profile = session.lossProfile().orElseThrow();
      assertEquals(510, profile.tokens());
      long held = held(session.cacheReport());
      assertEquals(1, held / (double) profile.bytesAt(0.5), 0.05);
    }
  }

  private static long held(CacheReport report) {
    return report.keptBytes() + 16 * report.keptSlots();
  }

  private static void assertWithinTheBudget(Session session, int tokensSince) {
    LossProfile profile = session.lossProfile().orElseThrow();
    CacheReport report = session.cacheReport();
    double perToken = 0;
    double half = 0;
    int tokens = session.position() - tokensSince;
    var store = session.context().store(0).orElseThrow();
    for (int l = 0; l < store.layers(); l++) {
      var shape = store.shape(l);
      perToken += shape.kvHeads() * (shape.slotBytes() + 16);
      double seen = shape.sliding() ? Math.min(tokens + 32.5, shape.cells()) : tokens + 32.5;
      half += seen * shape.kvHeads() * shape.halfBytes();
    }
    assertTrue(profile.newBytes() == 32.5 * perToken);
    double allowed = 0.5 * half - 32.5 * perToken + tokensSince * perToken;
    assertTrue(held(report) <= allowed, held(report) + " of " + allowed);
    assertTrue(report.keptFraction() < 0.6, "kept " + report.keptFraction());
  }

  @Test
  void theReportNamesWindows() {
    try (Session session =
        MODELS.get("window").newSession(options(policy("u"), Attention.NATIVE))) {
      session.evaluate(tokens(300, 1));
      assertTrue(
          session.cacheReport().byPolicy().containsKey("foresight, window " + WINDOW),
          session.cacheReport().byPolicy()::toString);
    }
  }

  /** A prompt that is taken back, where the model's memory lets it. */
  @ParameterizedTest
  @CsvSource({"llama", "latent", "hybrid"})
  void aPromptThatIsCancelledLeavesNoTrace(String model) {
    boolean[] cancel = {false};
    SessionOptions options = options(policy("u"), Attention.NATIVE);
    SessionOptions cancelling =
        options.withPrefillListener(
            (done, total) -> {
              if (cancel[0] && done >= 128) {
                throw new IllegalStateException("stop here");
              }
            });
    try (Session session = MODELS.get(model).newSession(cancelling);
        Session fresh = MODELS.get(model).newSession(options)) {
      for (Session s : List.of(session, fresh)) {
        s.evaluate(tokens(200, 4));
        for (int token : tokens(40, 5)) {
          s.step(token);
        }
      }
      cancel[0] = true;
      assertThrows(IllegalStateException.class, () -> session.evaluate(tokens(300, 6)));
      cancel[0] = false;
      assertEquals(240, session.position());
      for (Session s : List.of(session, fresh)) {
        for (int token : tokens(40, 7)) {
          s.step(token);
        }
        s.evaluate(tokens(50, 8));
      }
      assertEquals(slots(fresh), slots(session));
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }

  /** A window's prompt cannot always be taken back: then the session begins anew. */
  @Test
  void anEmptiedSessionBeginsAnew() {
    boolean[] cancel = {false};
    SessionOptions options = options(policy("u"), Attention.NATIVE);
    SessionOptions cancelling =
        options.withPrefillListener(
            (done, total) -> {
              if (cancel[0] && done >= 256) {
                throw new IllegalStateException("stop here");
              }
            });
    try (Session session = MODELS.get("window").newSession(cancelling);
        Session fresh = MODELS.get("window").newSession(options)) {
      session.evaluate(tokens(300, 4));
      cancel[0] = true;
      assertThrows(IllegalStateException.class, () -> session.evaluate(tokens(400, 6)));
      cancel[0] = false;
      assertEquals(0, session.position());
      assertTrue(session.lossProfile().isEmpty());
      for (Session s : List.of(session, fresh)) {
        s.evaluate(tokens(250, 7));
        for (int token : tokens(70, 8)) {
          s.step(token);
        }
      }
      assertEquals(slots(fresh), slots(session));
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }

  /** Where there is no memory for the sums the policy is given up, and the tokens stay. */
  @Test
  void sumsThatTheLimitForbidsAreInTheReport() {
    SessionOptions options = options(policy("c"), Attention.NATIVE);
    long prompt;
    try (Session session =
        MODELS.get("llama").newSession(options.withCachePolicy(CachePolicy.full()))) {
      session.evaluate(tokens(300, 4));
      prompt = session.cacheReport().keptBytes();
    }
    boolean found = false;
    for (long limit = prompt + prompt / 2; !found && limit < 4 * prompt; limit += 16_384) {
      SessionOptions limited = options.withCacheMemoryLimit(limit);
      try (Session session = MODELS.get("llama").newSession(limited)) {
        session.evaluate(tokens(300, 4));
        found = true; // rows and record have room
        String why = session.cacheReport().policyFailure().orElseThrow();
        assertTrue(why.contains("limit"), why);
        assertEquals(1, session.cacheReport().keptFraction());
        session.step(7);
        session.clear();
        session.evaluate(tokens(20, 4));
        assertEquals(Optional.empty(), session.cacheReport().policyFailure());
      } catch (DecodeException e) {
        assertTrue(e.getMessage().contains("limit"), e.getMessage());
      }
    }
    assertTrue(found);
  }

  /** Nothing of an earlier conversation decides on the next. */
  @ParameterizedTest
  @CsvSource({"llama", "window", "latent", "hybrid"})
  void aClearedSessionBeginsAnew(String model) {
    SessionOptions options = options(policy("c/2").withSinks(0), Attention.NATIVE);
    try (Session session = MODELS.get(model).newSession(options);
        Session fresh = MODELS.get(model).newSession(options)) {
      session.evaluate(tokens(300, 4));
      for (int token : tokens(70, 5)) {
        session.step(token);
      }
      session.clear();
      for (Session s : List.of(session, fresh)) {
        s.evaluate(tokens(250, 7));
        for (int token : tokens(70, 8)) {
          s.step(token);
        }
      }
      assertEquals(slots(fresh), slots(session));
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }

  @Test
  void aTableOfWeightsDecidesBetweenHeads() {
    Model model = MODELS.get("llama");
    CacheReport report;
    try (Session session = model.newSession(options(policy("u"), Attention.NATIVE))) {
      session.evaluate(tokens(300, 4));
      report = session.cacheReport();
    }
    int layers = report.layers().size();
    int queryHeads;
    try (Session session = model.newSession(options(policy("u"), Attention.NATIVE))) {
      var shape = session.context().store(0).orElseThrow().shape(0);
      queryHeads = shape.kvHeads() * shape.queryGroup();
    }
    float[][] table = new float[layers][queryHeads];
    for (float[] layer : table) {
      Arrays.fill(layer, 1e-6f);
    }
    Arrays.fill(table[1], 1);
    Foresight weighed = policy("u").withHeadWeights(HeadWeights.of(table));
    try (Session session = model.newSession(options(weighed, Attention.NATIVE))) {
      session.evaluate(tokens(300, 4));
      var byLayer = session.cacheReport().byLayer();
      assertTrue(
          byLayer.get(1).slots() > 2 * byLayer.get(0).slots(),
          byLayer.get(0).slots() + " and " + byLayer.get(1).slots());
    }
    HeadWeights other = HeadWeights.of(new float[][] {{1, 1, 1}});
    SessionOptions wrong = options(policy("u").withHeadWeights(other), Attention.NATIVE);
    ProfileException refused =
        assertThrows(ProfileException.class, () -> model.newSession(wrong).close());
    assertTrue(refused.getMessage().contains("another model"), refused.getMessage());
  }
}
