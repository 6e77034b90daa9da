package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.Target;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The adaptive cache that drops nothing, against unmodified llama.cpp on the default model. */
class EngineTest {
  private static final int PROMPT = 2_000;
  private static final int CHUNK = 250;
  private static final int STEPS = 200;

  /** The logits of a chunk of tokens, one row per token. */
  private static float[][] rows(Session session, int[] tokens) {
    float[][] rows = new float[tokens.length][];
    session.evaluateAllLogits(
        tokens,
        (index, logits) -> {
          rows[index] = new float[logits.remaining()];
          logits.get(rows[index]);
        });
    return rows;
  }

  /**
   * llama.cpp's two attention paths are both right and differ by rounding, which the quantised
   * weights magnify: that difference is what a third right path is allowed.
   */
  @Test
  void keepingAllIsAsNearToLlamaCppAsItsOwnPathsAre() {
    int[] text = TestModels.proseTokens(PROMPT + STEPS);
    SessionOptions options = TestModels.options().withContextSize(2_304);
    double ours = 0;
    double noise = 0;
    double oursDecoding = 0;
    double noiseDecoding = 0;
    try (Session adaptive = TestModels.adaptive().newSession(options);
        Session flash = TestModels.plain().newSession(options);
        Session plain = TestModels.plain().newSession(options.withFlashAttention(false))) {
      for (int from = 0; from < PROMPT; from += CHUNK) {
        int[] chunk = Arrays.copyOfRange(text, from, from + CHUNK);
        float[][] expected = rows(flash, chunk);
        float[][] actual = rows(adaptive, chunk);
        float[][] other = rows(plain, chunk);
        for (int i = 0; i < CHUNK; i++) {
          ours += Logits.divergence(expected[i], actual[i]) / PROMPT;
          noise += Logits.divergence(expected[i], other[i]) / PROMPT;
        }
      }
      for (int i = PROMPT; i < PROMPT + STEPS; i++) {
        for (Session session : new Session[] {adaptive, flash, plain}) {
          session.evaluate(text[i]);
        }
        float[] expected = flash.logits();
        oursDecoding += Logits.divergence(expected, adaptive.logits()) / STEPS;
        noiseDecoding += Logits.divergence(expected, plain.logits()) / STEPS;
      }
      assertEquals(1, adaptive.cacheReport().keptFraction());
    }
    String figures =
        "prefill %.3g (llama.cpp's own paths %.3g), decode %.3g (%.3g)"
            .formatted(ours, noise, oursDecoding, noiseDecoding);
    System.getLogger(EngineTest.class.getName())
        .log(System.Logger.Level.INFO, "mean KL: " + figures);
    assertTrue(ours <= noise, figures);
    assertTrue(oursDecoding <= noiseDecoding, figures);
  }

  @Test
  void thePortablePathIsLlamaCppBitForBit() {
    int[] prompt = TestModels.proseTokens(300);
    int[] next = Arrays.copyOfRange(TestModels.proseTokens(330), 300, 330);
    try (Session portable =
            TestModels.adaptive()
                .newSession(TestModels.options().withAttention(Attention.PORTABLE));
        Session stock = TestModels.plain().newSession(TestModels.options())) {
      float[][] expected = rows(stock, prompt);
      float[][] actual = rows(portable, prompt);
      for (int i = 0; i < prompt.length; i++) {
        assertArrayEquals(expected[i], actual[i], "prompt token " + i);
      }
      for (int token : next) {
        stock.evaluate(token);
        portable.evaluate(token);
        assertArrayEquals(stock.logits(), portable.logits());
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Candidates.class)
  void recoveringEverythingKeepsEverything(Candidates candidates) {
    int[] prompt = TestModels.proseTokens(320);
    int[] next = Arrays.copyOfRange(TestModels.proseTokens(350), 320, 350);
    CachePolicy everything =
        CachePolicy.fastgen().withCandidates(candidates).withTarget(Target.recovery(1));
    try (Session all =
            TestModels.adaptive().newSession(TestModels.options().withCachePolicy(everything));
        Session full = TestModels.adaptive().newSession(TestModels.options())) {
      all.evaluate(prompt);
      full.evaluate(prompt);
      assertTrue(all.profile().isPresent());
      for (int token : next) {
        all.evaluate(token);
        full.evaluate(token);
        assertArrayEquals(full.logits(), all.logits());
      }
      assertEquals(1, all.cacheReport().keptFraction());
      assertEquals(full.cacheReport().keptBytes(), all.cacheReport().keptBytes());
    }
  }
}
