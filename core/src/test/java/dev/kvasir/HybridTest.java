package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Target;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Models with a recurrent state: hybrids, whose attention layers have the adaptive cache, and
 * recurrent ones, which run without it. A state cannot be cut at a position.
 */
class HybridTest {
  /** Bytes of a token's keys and values: 2 layers of 2 KV heads of 64 in f16. */
  private static final long TOKEN_BYTES = 2 * 2 * 2 * 64 * 2;

  @TempDir static Path directory;
  private static Model adaptive;
  private static Model plain;
  private static Model recurrent;

  @BeforeAll
  static void load() {
    Path file = SyntheticModels.hybrid(directory.resolve("hybrid.gguf"));
    adaptive = Model.load(file, cpu());
    plain = Model.load(file, cpu().withAdaptiveCache(false));
    recurrent =
        Model.load(
            SyntheticModels.recurrent(directory.resolve("mamba.gguf")),
            cpu().withAdaptiveCache(false));
  }

  @AfterAll
  static void close() {
    adaptive.close();
    plain.close();
    recurrent.close();
  }

  private static ModelOptions cpu() {
    return ModelOptions.defaults().withDevice("CPU");
  }

  private static int[] tokens(int count, int seed) {
    return new Random(seed).ints(count, 3, 320).toArray();
  }

  private static SessionOptions options() {
    return TestModels.options()
        .withContextSize(2048)
        .withBatchSize(128)
        .withMicroBatchSize(64)
        .withThreads(1);
  }

  @Test
  void keepingAllAgreesWithLlamaCpp() {
    try (Session ours = adaptive.newSession(options());
        Session theirs = plain.newSession(options());
        Session otherPath = plain.newSession(options().withFlashAttention(false))) {
      List<Session> all = List.of(ours, theirs, otherPath);
      all.forEach(session -> session.evaluate(tokens(500, 1)));
      double worst = 0;
      double noise = 0;
      for (int token : tokens(40, 2)) {
        worst = Math.max(worst, Logits.divergence(theirs.logits(), ours.logits()));
        noise = Math.max(noise, Logits.divergence(theirs.logits(), otherPath.logits()));
        all.forEach(session -> session.step(token));
      }
      // llama.cpp's own two ways to compute attention are the yardstick; the state carries their
      // difference on.
      assertTrue(worst < 2 * noise + 1e-6, "KL " + worst + ", llama.cpp's two paths " + noise);
    }
  }

  @Test
  void theLayersWithAttentionHaveTheCache() {
    CachePolicy half = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5));
    try (Session session = adaptive.newSession(options().withCachePolicy(half))) {
      session.evaluate(tokens(600, 3));
      CacheReport report = session.cacheReport();
      assertEquals(Set.of(1, 3), report.byLayer().keySet());
      assertEquals(List.of(1, 3), report.layers().stream().map(place -> place.layer()).toList());
      assertTrue(report.keptBytes() <= 600 * TOKEN_BYTES / 2, report.keptBytes() + " bytes");
      assertTrue(session.profile().isPresent());
      for (int token : tokens(30, 4)) {
        session.step(token);
      }
      session.evaluate(tokens(100, 5));
      assertEquals(730, session.position());
    }
  }

  @Test
  void aPromptWithoutRoomLeavesNoTrace() {
    SessionOptions limited = options().withCacheMemoryLimit(450 * TOKEN_BYTES);
    try (Session session = adaptive.newSession(limited);
        Session free = adaptive.newSession(options())) {
      for (Session s : List.of(session, free)) {
        s.evaluate(tokens(150, 6));
        s.evaluate(7);
      }
      for (int attempt = 0; attempt < 2; attempt++) {
        // Batches of it are decoded before the one that has no room.
        assertThrows(DecodeException.class, () -> session.evaluate(tokens(500, 8)));
        assertEquals(151, session.position());
        assertEquals(151 * 4, session.cacheReport().keptSlots());
      }
      for (Session s : List.of(session, free)) {
        s.evaluate(tokens(40, 9));
        s.evaluate(10);
      }
      assertArrayEquals(free.logits(), session.logits());
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"adaptive", "plain", "recurrent"})
  void aCancelledPromptLeavesNoTrace(String which) {
    Model model = which.equals("adaptive") ? adaptive : which.equals("plain") ? plain : recurrent;
    Reply[] open = new Reply[1];
    SessionOptions cancelling =
        options()
            .withPrefillListener(
                (done, total) -> {
                  if (open[0] != null && done >= total / 2) {
                    open[0].cancel();
                  }
                });
    try (Session session = model.newSession(cancelling);
        Session other = model.newSession(options())) {
      for (Session s : List.of(session, other)) {
        s.evaluate(tokens(150, 11));
      }
      try (Reply reply = session.complete("w1 w2 w3 w4 w5 w6 w7 ".repeat(40))) {
        open[0] = reply;
        assertEquals("", reply.text());
        assertEquals(StopReason.CANCELLED, reply.statistics().stopReason().orElseThrow());
      }
      open[0] = null;
      assertEquals(150, session.position());
      for (Session s : List.of(session, other)) {
        s.evaluate(tokens(40, 12));
        s.evaluate(13);
      }
      // One reads its prompt in micro-batches, the other in batches.
      assertTrue(
          Logits.divergence(other.logits(), session.logits()) < 1e-9,
          "KL " + Logits.divergence(other.logits(), session.logits()));
    }
  }

  @Test
  void aStepWithoutRoomIsRefusedBeforeTheStateHasChanged() {
    // Pages of 32 slots for keys and for values: two of each per head, not three.
    SessionOptions limited = options().withCacheMemoryLimit(5 * 4096 * 4);
    int[] tokens = tokens(65, 14);
    try (Session session = adaptive.newSession(limited)) {
      session.evaluate(Arrays.copyOf(tokens, 40));
      for (int i = 40; i < 64; i++) {
        session.step(tokens[i]);
      }
      for (int attempt = 0; attempt < 2; attempt++) {
        DecodeException refused =
            assertThrows(DecodeException.class, () -> session.step(tokens[64]));
        assertTrue(refused.getMessage().contains("limit"), refused.getMessage());
        assertEquals(64, session.position());
        assertEquals(64 * 4, session.cacheReport().keptSlots());
      }
    }
  }

  @Test
  void aSequenceOfAGroupThatHasNoRoomForAPrompt() {
    SessionOptions unlimited = options().withSampling(Sampling.defaults());
    SessionOptions limited = unlimited.withCacheMemoryLimit(700 * TOKEN_BYTES);
    try (SessionGroup group = adaptive.newSessionGroup(2, limited);
        SessionGroup free = adaptive.newSessionGroup(2, unlimited)) {
      for (SessionGroup g : List.of(group, free)) {
        g.prefill(0, tokens(200, 15));
        g.prefill(1, tokens(100, 16));
      }
      assertThrows(DecodeException.class, () -> group.prefill(1, tokens(600, 17)));
      assertEquals(100, group.position(1));
      float[] expected = new float[adaptive.vocabularySize()];
      float[] logits = expected.clone();
      for (SessionGroup g : List.of(group, free)) {
        g.prefill(1, tokens(50, 18));
        g.step(5, 6);
      }
      for (int sequence = 0; sequence < 2; sequence++) {
        free.logits(sequence, expected);
        group.logits(sequence, logits);
        assertArrayEquals(expected, logits);
      }
    }
  }

  @Test
  void aRecurrentModelRunsWithoutTheCache() {
    try (Session session = recurrent.newSession(options().withMaxTokens(8))) {
      session.evaluate(tokens(100, 19));
      try (Reply reply = session.complete("w1 w2")) {
        assertFalse(reply.text().isEmpty());
      }
      CacheReport report = session.cacheReport();
      assertEquals(session.position(), report.tokens());
      assertEquals(0, report.keptSlots());
      session.clear();
      assertEquals(0, session.position());
      session.evaluate(tokens(10, 20));
    }
  }

  @Test
  void aRecurrentModelIsRefusedWithTheCache() {
    UnsupportedModelException refused =
        assertThrows(
            UnsupportedModelException.class,
            () -> Model.load(directory.resolve("mamba.gguf"), cpu()));
    for (String part : List.of("recurrent", "withAdaptiveCache(false)", "--kv-policy none")) {
      assertTrue(refused.getMessage().contains(part), refused.getMessage());
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"llama | not causal", "llada | diffusion", "gemma-embedding | an encoder"})
  void aModelThatDoesNotContinueATextIsRefusedEitherWay(String modelAndReason) {
    String[] parts = modelAndReason.split(" \\| ", -1);
    Path file = directory.resolve(parts[0] + ".gguf");
    if (parts[0].equals("gemma-embedding")) {
      SyntheticModels.embedding(file);
    } else {
      SyntheticModels.notCausal(file, parts[0]);
    }
    for (boolean with : new boolean[] {true, false}) {
      UnsupportedModelException refused =
          assertThrows(
              UnsupportedModelException.class,
              () -> Model.load(file, cpu().withAdaptiveCache(with)));
      assertTrue(
          refused.getMessage().contains(parts[1])
              && !refused.getMessage().contains("withAdaptiveCache"),
          refused.getMessage());
    }
  }
}
