package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.nio.file.Path;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * A model with multi-head latent attention: one row for each token and layer, of which the values
 * are a part.
 */
class LatentAttentionTest {
  private static final int LAYERS = 3;
  private static final int ELEMENTS = SyntheticModels.LATENT + SyntheticModels.LATENT_ROTARY;

  @TempDir static Path directory;
  private static Model adaptive;
  private static Model plain;

  @BeforeAll
  static void load() {
    Path file = SyntheticModels.latent(directory.resolve("deepseek2.gguf"), LAYERS);
    adaptive = Model.load(file, ModelOptions.defaults().withDevice("CPU"));
    plain = Model.load(file, ModelOptions.defaults().withDevice("CPU").withAdaptiveCache(false));
  }

  @AfterAll
  static void close() {
    adaptive.close();
    plain.close();
  }

  private static int[] tokens(int count, int seed) {
    return new Random(seed).ints(count, 3, 320).toArray();
  }

  @ParameterizedTest
  @EnumSource(Attention.class)
  void keepingAllAgreesWithLlamaCpp(Attention attention) {
    try (Session ours = adaptive.newSession(TestModels.options().withAttention(attention));
        Session theirs = plain.newSession(TestModels.options())) {
      double worst = 0;
      ours.evaluate(tokens(300, 1));
      theirs.evaluate(tokens(300, 1));
      for (int token : tokens(20, 2)) {
        worst = Math.max(worst, Logits.divergence(theirs.logits(), ours.logits()));
        ours.step(token);
        theirs.step(token);
      }
      // ggml's kernels are the same ones; llama.cpp rounds the queries to f16, ours do not.
      double bound = attention == Attention.PORTABLE ? 1e-12 : 5e-5;
      assertTrue(worst < bound, "KL " + worst);
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = KvType.class,
      names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void aRowIsCountedOnce(KvType type) {
    long row = (long) ELEMENTS / type.blockSize() * type.blockBytes();
    SessionOptions options = TestModels.options().withKeyType(type).withValueType(type);
    try (Session ours = adaptive.newSession(options);
        Session theirs = plain.newSession(options)) {
      for (Session session : new Session[] {ours, theirs}) {
        session.evaluate(tokens(70, 3));
        CacheReport report = session.cacheReport();
        assertEquals(LAYERS * 70, report.keptSlots());
        assertEquals(LAYERS * 70 * row, report.keptBytes());
        assertEquals(LAYERS * 1024 * row, report.allocatedBytes());
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Attention.class)
  void fastGenProfilesAndEvicts(Attention attention) {
    SessionOptions options =
        TestModels.options()
            .withAttention(attention)
            .withCachePolicy(CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5)));
    Profile profile;
    try (Session session = adaptive.newSession(options)) {
      session.evaluate(tokens(400, 4));
      profile = session.profile().orElseThrow();
      for (int token : tokens(100, 5)) {
        session.step(token);
      }
      CacheReport report = session.cacheReport();
      assertFalse(Float.isNaN(session.logits()[0]));
      assertEquals(LAYERS, report.total().heads());
      assertTrue(report.keptFraction() < 0.7, "kept " + report.keptFraction());
      assertEquals(report.keptSlots() * ELEMENTS * 2, report.keptBytes());
    }
    assertEquals(LAYERS, profile.heads().size());
    for (Profile.Layer layer : profile.layers()) {
      assertEquals(ELEMENTS, layer.keyDim());
      assertEquals(SyntheticModels.LATENT, layer.valueDim());
      assertEquals(ELEMENTS * 2, layer.slotBytes());
    }
  }

  @Test
  void aPolicyThatWeighsValuesRuns() {
    SessionOptions options =
        TestModels.options().withCachePolicy(CachePolicy.h2o(0.4).withWeight(Weight.VALUE));
    try (Session session = adaptive.newSession(options)) {
      session.evaluate(tokens(400, 6));
      for (int token : tokens(60, 7)) {
        session.step(token);
      }
      double kept = session.cacheReport().keptFraction();
      assertTrue(kept > 0.3 && kept < 0.5, "kept " + kept);
    }
  }

  @ParameterizedTest
  @CsvSource({
    "attention.key_length_mla,32",
    "attention.key_length,64",
    "attention.key_length,128",
    "attention.head_count_kv,2",
    "attention.kv_lora_rank,32"
  })
  void aHeaderThatContradictsItselfIsRefused(String key, int value) {
    Path file = SyntheticModels.latent(directory.resolve("odd.gguf"), 1, Map.of(key, value));
    ModelLoadException refused =
        assertThrows(ModelLoadException.class, () -> Model.load(file).close());
    assertTrue(refused.getMessage().contains("deepseek2.attention."), refused.getMessage());
  }

  @Test
  void keysAndValuesOfTwoTypesAreRefused() {
    InvalidOptionException refused =
        assertThrows(
            InvalidOptionException.class,
            () -> adaptive.newSession(TestModels.options().withKeyType(KvType.Q8_0)));
    assertTrue(refused.getMessage().contains("different K"), refused.getMessage());
  }
}
