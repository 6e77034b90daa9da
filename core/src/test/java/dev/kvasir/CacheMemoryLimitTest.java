package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Target;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

/** What a session may not exceed, and that it goes on where it was when it would have. */
class CacheMemoryLimitTest {
  /** Keys and values of about 1,200 tokens of the default model: 23,040 bytes each. */
  private static final long LIMIT = 28_000_000;

  private static final int HEADS = 30 * 3;
  private static final int PASSAGES = 4;

  private static SessionOptions options() {
    return TestModels.options().withContextSize(2048).withMaxTokens(8);
  }

  /** About 400 tokens. */
  private static String passage(int index) {
    int length = 1_800;
    return TestModels.prose().substring(index * length, (index + 1) * length);
  }

  @Test
  void aConversationFitsThatTheFullCacheDoesNot() {
    CachePolicy half = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5));
    SessionOptions options = options().withCachePolicy(half).withCacheMemoryLimit(LIMIT);
    try (Session session = TestModels.adaptive().newSession(options)) {
      for (int i = 0; i < PASSAGES; i++) {
        assertFalse(session.chat(passage(i)).text().isEmpty());
        CacheReport report = session.cacheReport();
        // The slot tables, 16 bytes beside 256 and rounded to pages, are not part of the limit.
        assertTrue(
            report.keptBytes() <= LIMIT && report.residentBytes() <= LIMIT * 1.15,
            report.keptBytes() + " and " + report.residentBytes());
      }
      assertTrue(
          session.position() * 256L * HEADS > 1.2 * LIMIT, session.position() + " tokens fit");
    }
  }

  @Test
  void theFullCacheFailsAndGoesOn() {
    SessionOptions limited = options().withCacheMemoryLimit(LIMIT);
    try (Session session = TestModels.adaptive().newSession(limited);
        Session free = TestModels.adaptive().newSession(options())) {
      int said = 0;
      DecodeException full = null;
      while (full == null && said < PASSAGES) {
        int before = session.position();
        try {
          session.chat(passage(said)).text();
          said++;
        } catch (DecodeException e) {
          full = e;
          assertEquals(before, session.position());
        }
      }
      assertTrue(full != null && said > 0, said + " passages were taken");
      assertTrue(
          full.getMessage().contains("limit of 26.70 MiB")
              && full.getMessage().lines().count() == 1
              && !full.getMessage().contains("graph"),
          full.getMessage());
      int tooLong = said;
      assertThrows(DecodeException.class, () -> session.chat(passage(tooLong)).text());
      assertTrue(session.cacheReport().keptBytes() <= LIMIT);
      // The session is the one in which nothing was refused.
      for (int i = 0; i < said; i++) {
        free.chat(passage(i)).text();
      }
      String question = "Where does it take place?";
      assertEquals(free.chat(question).text(), session.chat(question).text());
      assertArrayEquals(free.logits(), session.logits());
      session.clear();
      assertFalse(session.chat(passage(tooLong)).text().isEmpty());
    }
  }

  @Test
  void aPromptThatIsTooLongLeavesAFastGenSessionUndecided() {
    SessionOptions options =
        options().withCachePolicy(CachePolicy.fastgen()).withCacheMemoryLimit(LIMIT);
    try (Session session = TestModels.adaptive().newSession(options)) {
      assertThrows(DecodeException.class, () -> session.evaluate(TestModels.proseTokens(1_500)));
      assertEquals(0, session.position());
      assertEquals(0, session.cacheReport().keptSlots());
      assertTrue(session.profile().isEmpty());
      session.evaluate(TestModels.proseTokens(1_000));
      assertTrue(session.profile().isPresent());
    }
  }

  @Test
  void aStepThatHasNoRoom() {
    // Pages of 32 slots for keys and for values: two of each per head, not three.
    SessionOptions options = options().withCacheMemoryLimit(5 * 4096 * HEADS);
    int[] tokens = TestModels.proseTokens(65);
    try (Session session = TestModels.adaptive().newSession(options)) {
      session.evaluate(Arrays.copyOf(tokens, 40));
      for (int i = 40; i < 64; i++) {
        session.step(tokens[i]);
      }
      for (int attempt = 0; attempt < 2; attempt++) {
        assertThrows(DecodeException.class, () -> session.step(tokens[64]));
        assertEquals(64, session.position());
        assertEquals(64 * HEADS, session.cacheReport().keptSlots());
      }
    }
  }

  @Test
  void allSequencesOfAGroupShareIt() {
    SessionOptions options =
        SessionOptions.defaults()
            .withThreads(TestModels.threads())
            .withContextSize(512)
            .withCacheMemoryLimit(12_000_000);
    try (SessionGroup group = TestModels.adaptive().newSessionGroup(2, options)) {
      group.prefill(0, TestModels.proseTokens(300));
      DecodeException full =
          assertThrows(DecodeException.class, () -> group.prefill(1, TestModels.proseTokens(300)));
      assertTrue(full.getMessage().contains("limit"), full.getMessage());
      assertEquals(0, group.position(1));
      assertEquals(300, group.position(0));
      group.prefill(1, TestModels.proseTokens(100));
      group.step(5, 6);
      assertEquals(301, group.position(0));
      assertEquals(101, group.position(1));
    }
  }
}
