package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SessionGroupTest {
  private static final int SEQUENCES = 3;
  private static final int STEPS = 24;

  @TempDir private static Path directory;

  private static Path file;
  private static Model model;
  private static int[][] texts;

  @BeforeAll
  static void load() {
    file = SyntheticModels.llama(directory.resolve("llama.gguf"), 3);
    model = Model.load(file, ModelOptions.defaults().withDevice("CPU"));
    Random random = new Random(5);
    texts = new int[SEQUENCES][];
    for (int sequence = 0; sequence < SEQUENCES; sequence++) {
      texts[sequence] = random.ints(300 + 50 * sequence + STEPS, 3, 300).toArray();
    }
  }

  @AfterAll
  static void close() {
    model.close();
  }

  private static SessionOptions options() {
    return TestModels.options().withContextSize(512).withThreads(1);
  }

  /** Without what only replies have. */
  private static SessionOptions forGroup(SessionOptions options) {
    return options.withSampling(Sampling.defaults());
  }

  private static Profile profile(int[] text) {
    FastGen policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.4));
    try (Session session = model.newSession(options().withCachePolicy(policy))) {
      session.evaluate(text);
      return session.profile().orElseThrow();
    }
  }

  @Test
  void everySequenceIsAsInASessionOfItsOwn() {
    agree(model, options().withCachePolicy(CachePolicy.full()), 1);
  }

  @Test
  void aProfileHoldsForEverySequence() {
    agree(model, options().withProfile(profile(texts[0])), 0.6);
  }

  @Test
  void aPolicyWithoutProfileHoldsForEverySequence() {
    agree(model, options().withCachePolicy(CachePolicy.uniform(0.2, 0.2)), 0.6);
  }

  @Test
  void unmodifiedLlamaCppDecodesGroupsToo() {
    try (Model plain =
        Model.load(file, ModelOptions.defaults().withDevice("CPU").withAdaptiveCache(false))) {
      agree(plain, options().withCachePolicy(CachePolicy.full()), 1);
    }
  }

  private static void agree(Model model, SessionOptions options, double mostKept) {
    float[] logits = new float[model.vocabularySize()];
    try (SessionGroup group = model.newSessionGroup(SEQUENCES, forGroup(options))) {
      Session[] alone = new Session[SEQUENCES];
      try {
        for (int sequence = SEQUENCES - 1; sequence >= 0; sequence--) {
          alone[sequence] = model.newSession(options);
          int[] prompt = prompt(sequence);
          group.prefill(sequence, prompt);
          alone[sequence].evaluate(prompt);
          group.logits(sequence, logits);
          assertTrue(Logits.divergence(alone[sequence].logits(), logits) < 1e-4);
        }
        int[] step = new int[SEQUENCES];
        for (int i = 0; i < STEPS; i++) {
          for (int sequence = 0; sequence < SEQUENCES; sequence++) {
            step[sequence] = texts[sequence][prompt(sequence).length + i];
            alone[sequence].step(step[sequence]);
          }
          group.step(step);
          for (int sequence = 0; sequence < SEQUENCES; sequence++) {
            group.logits(sequence, logits);
            double divergence = Logits.divergence(alone[sequence].logits(), logits);
            assertTrue(divergence < 1e-4, "step " + i + ": " + divergence);
          }
        }
        for (int sequence = 0; sequence < SEQUENCES; sequence++) {
          assertEquals(texts[sequence].length, group.position(sequence));
          assertEquals(
              alone[sequence].cacheReport().heads().stream().map(HeadUse::slots).toList(),
              group.cacheReport(sequence).heads().stream().map(HeadUse::slots).toList());
          assertTrue(group.cacheReport(sequence).keptFraction() <= mostKept);
        }
      } finally {
        for (Session session : alone) {
          if (session != null) {
            session.close();
          }
        }
      }
    }
  }

  private static int[] prompt(int sequence) {
    return Arrays.copyOf(texts[sequence], texts[sequence].length - STEPS);
  }

  @Test
  void aGroupCanBeClearedAndUsedAgain() {
    float[] first = new float[model.vocabularySize()];
    float[] second = new float[model.vocabularySize()];
    try (SessionGroup group =
        model.newSessionGroup(2, forGroup(options()).withProfile(profile(texts[0])))) {
      group.prefill(1, prompt(1));
      group.logits(1, first);
      group.clear();
      assertEquals(0, group.position(1));
      assertEquals(0, group.cacheReport(1).keptSlots());
      group.prefill(1, prompt(1));
      group.logits(1, second);
      assertEquals(0, Logits.divergence(first, second), 1e-6);
    }
  }

  @Test
  void profilingIsRefused() {
    String message =
        assertThrows(
                InvalidOptionException.class,
                () ->
                    model.newSessionGroup(
                        2, forGroup(options()).withCachePolicy(CachePolicy.fastgen())))
            .getMessage();
    assertTrue(message.contains("withProfile"), message);
  }

  @Test
  void foresightIsRefusedByName() {
    SessionOptions options = forGroup(options()).withCachePolicy(CachePolicy.foresight());
    String message =
        assertThrows(InvalidOptionException.class, () -> model.newSessionGroup(2, options))
            .getMessage();
    assertTrue(message.contains("CachePolicy.foresight()"), message);
  }

  @Test
  void optionsThatAGroupCannotHonourAreRefusedByName() {
    SessionOptions fine = forGroup(options()).withCachePolicy(CachePolicy.full());
    Map<String, SessionOptions> refused =
        Map.of(
            "sampling", fine.withSampling(Sampling.defaults().withSeed(7)),
            "systemPrompt", fine.withSystemPrompt("Be brief."),
            "stopSequences", fine.withStopSequences("."),
            "maxTokens", fine.withMaxTokens(5),
            "controlTokens", fine.withControlTokens(true));
    refused.forEach(
        (name, options) -> {
          String message =
              assertThrows(InvalidOptionException.class, () -> model.newSessionGroup(2, options))
                  .getMessage();
          assertTrue(message.contains(" no " + name + ":"), name + ": " + message);
        });
    model.newSessionGroup(2, fine).close(); // without them it opens
  }

  @Test
  void theFullPolicyKeepsEverythingBesideAProfile() {
    SessionOptions options =
        forGroup(options()).withProfile(profile(texts[0])).withCachePolicy(CachePolicy.full());
    try (Session session = model.newSession(options)) {
      session.evaluate(prompt(0));
      assertEquals(1, session.cacheReport().keptFraction());
    }
    try (SessionGroup group = model.newSessionGroup(SEQUENCES, options)) {
      for (int sequence = 0; sequence < SEQUENCES; sequence++) {
        group.prefill(sequence, prompt(sequence));
      }
      group.step(5, 6, 7);
      for (int sequence = 0; sequence < SEQUENCES; sequence++) {
        int tokens = prompt(sequence).length + 1;
        assertEquals(1, group.cacheReport(sequence).keptFraction());
        group
            .cacheReport(sequence)
            .heads()
            .forEach(head -> assertEquals(tokens, head.slots(), head.toString()));
      }
    }
  }

  @Test
  void badCallsAreRefusedAndHarmless() {
    SessionOptions options =
        forGroup(options()).withContextSize(256).withCachePolicy(CachePolicy.full());
    assertThrows(IllegalArgumentException.class, () -> model.newSessionGroup(0, options));
    assertThrows(InvalidOptionException.class, () -> model.newSessionGroup(100_000, options));
    float[] logits = new float[model.vocabularySize()];
    SessionGroup group = model.newSessionGroup(2, options);
    try (group) {
      assertEquals(2, group.size());
      assertThrows(IllegalArgumentException.class, () -> group.step(5));
      assertThrows(IllegalArgumentException.class, () -> group.step(5, 1 << 30));
      assertThrows(IllegalArgumentException.class, () -> group.prefill(0));
      assertThrows(IndexOutOfBoundsException.class, () -> group.prefill(2, 5));
      assertThrows(ContextFullException.class, () -> group.prefill(0, new int[257]));
      assertThrows(SessionStateException.class, () -> group.logits(0, logits));
      group.prefill(0, texts[0][0]);
      assertThrows(SessionStateException.class, () -> group.logits(1, logits));
      assertThrows(IllegalArgumentException.class, () -> group.logits(0, new float[3]));
      group.step(5, 6);
      assertEquals(List.of(2, 1), List.of(group.position(0), group.position(1)));
      group.prefill(1, Arrays.copyOf(texts[1], 255));
      assertThrows(ContextFullException.class, () -> group.step(5, 6));
      assertEquals(List.of(2, 256), List.of(group.position(0), group.position(1)));
    }
    group.close();
    assertThrows(SessionStateException.class, () -> group.step(5, 6));
  }
}
