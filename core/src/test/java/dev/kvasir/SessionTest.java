package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.HeadProfile;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What a session promises, on both engines where the engine could matter. */
class SessionTest {
  private static Model model(boolean adaptive) {
    return adaptive ? TestModels.adaptive() : TestModels.plain();
  }

  private static Session session(boolean adaptive) {
    return model(adaptive).newSession(TestModels.options().withMaxTokens(24));
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aSecondPromptContinuesTheConversation(boolean adaptive) {
    try (Session session = session(adaptive)) {
      Reply first = session.chat("My dog is called Rufus.");
      String answer = first.text();
      assertFalse(answer.isBlank());
      assertEquals(answer, first.text());
      int before = session.position();
      Reply second = session.chat("What is my dog called?");
      String name = second.text();
      assertTrue(name.contains("Rufus"), name);
      ReplyStatistics statistics = second.statistics();
      assertTrue(statistics.promptTokens() < 30, "only what is new is prefilled: " + statistics);
      assertTrue(session.position() > before);
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aConversationIsTheRenderedTemplate(boolean adaptive) {
    try (Session session =
        model(adaptive)
            .newSession(TestModels.options().withMaxTokens(5).withSystemPrompt("You are terse."))) {
      Reply first = session.chat("One?");
      first.text();
      Reply second = session.chat("Two?");
      second.text();
      int position = session.position();
      Model model = session.model();
      String opening =
          "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n";
      String next = "<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n";
      // The token that ends a generation is not decoded, and the last one of an answer that was cut
      // off waits for the next prompt.
      int firstAnswer = shown(first);
      int secondAnswer = second.statistics().generatedTokens() - 1;
      assertEquals(
          model.tokenize(opening, false, true).length
              + firstAnswer
              + model.tokenize(next, false, true).length
              + secondAnswer,
          position);
    }
  }

  @Test
  void theModelsOwnTemplateIsRendered() {
    try (Session session = session(true)) {
      Reply reply = session.chat("One?");
      reply.text();
      // llama.cpp's built-in version of the format leaves out the system message that the model's
      // template begins with.
      String opening =
          "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
              + "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n";
      assertEquals(
          session.model().tokenize(opening, false, true).length, reply.statistics().promptTokens());
    }
  }

  @Test
  void aProfileThatWasCutShortStartsAnew() {
    int[] text = TestModels.proseTokens(700);
    try (Session session =
        TestModels.adaptive()
            .newSession(TestModels.options().withCachePolicy(CachePolicy.fastgen()))) {
      session.evaluate(Arrays.copyOf(text, 100));
      assertEquals(Optional.empty(), session.profile());
      Reply reply = session.complete(TestModels.prose().substring(0, 3_000));
      reply.cancel();
      assertEquals("", reply.text());
      assertEquals(100, session.position());
      assertEquals(100, session.cacheReport().tokens());
      session.evaluate(Arrays.copyOfRange(text, 100, 400));
      for (HeadProfile head : session.profile().orElseThrow().heads()) {
        assertTrue(head.recovery() >= 0.95 && head.recovery() <= 1, head.toString());
      }
      assertTrue(session.cacheReport().keptFraction() < 1);
      for (int i = 400; i < 430; i++) {
        session.step(text[i]);
      }
    }
  }

  private static int shown(Reply reply) {
    boolean ended = reply.statistics().stopReason().orElseThrow() == StopReason.END_OF_GENERATION;
    return reply.statistics().generatedTokens() - (ended ? 1 : 0);
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void anAnswerIsWhatEvaluatingTokenByTokenGives(boolean adaptive) {
    String text = "The sea was calm that morning, and the ferry";
    try (Session session = session(adaptive);
        Session manual = session(adaptive)) {
      String completed = session.complete(text).text();
      manual.evaluate(model(adaptive).tokenize(text, false, false));
      int[] tokens = new int[24];
      for (int i = 0; i < tokens.length; i++) {
        tokens[i] = Logits.best(manual.logits());
        manual.step(tokens[i]);
      }
      assertEquals(model(adaptive).detokenize(tokens), completed);
      // The last token of the reply is still to be decoded.
      assertEquals(manual.position() - 1, session.position());
      session.step(tokens[0]);
      manual.step(tokens[0]);
      assertEquals(manual.position(), session.position());
    }
  }

  @Test
  void statisticsAddUp() {
    try (Session session = session(true)) {
      Reply reply = session.complete("One, two, three,");
      assertEquals(new ReplyStatistics(0, 0, 0, 0, Optional.empty(), false), reply.statistics());
      reply.text();
      ReplyStatistics statistics = reply.statistics();
      assertEquals(24, statistics.generatedTokens());
      assertEquals(
          session.model().tokenize("One, two, three,", false, false).length,
          statistics.promptTokens());
      assertEquals(Optional.of(StopReason.MAX_TOKENS), statistics.stopReason());
      assertTrue(statistics.prefillNanos() > 0 && statistics.decodeNanos() > 0);
      assertTrue(statistics.prefillTokensPerSecond() > 0 && statistics.decodeTokensPerSecond() > 0);
    }
  }

  @Test
  void stopSequencesEndTheReplyAndAreNotShown() {
    SessionOptions options = TestModels.options().withMaxTokens(40);
    String whole;
    try (Session session = TestModels.adaptive().newSession(options)) {
      whole = session.complete("Count: one, two, three, four,").text();
    }
    // A stop that begins in one piece and ends in another.
    int from = whole.length() / 2;
    String stop = whole.substring(from, from + 9);
    int first = whole.indexOf(stop);
    try (Session session =
        TestModels.adaptive().newSession(options.withStopSequences("never there", stop))) {
      Reply reply = session.complete("Count: one, two, three, four,");
      StringBuilder text = new StringBuilder();
      for (String piece : reply) {
        assertFalse(piece.isEmpty());
        text.append(piece);
      }
      assertEquals(whole.substring(0, first), text.toString());
      assertEquals(Optional.of(StopReason.STOP_SEQUENCE), reply.statistics().stopReason());
      assertFalse(session.chat("Go on.").text().isEmpty());
    }
  }

  @Test
  void anEndOfGenerationTokenEndsTheReply() {
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withMaxTokens(200))) {
      Reply reply = session.chat("Answer with the single word yes.");
      String text = reply.text();
      assertEquals(Optional.of(StopReason.END_OF_GENERATION), reply.statistics().stopReason());
      assertFalse(text.contains("<|im_end|>"), text);
    }
  }

  @Test
  void piecesAreWholeCodePoints() {
    String text = "\ud83d\ude00".repeat(16);
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withMaxTokens(30))) {
      StringBuilder all = new StringBuilder();
      for (String piece : session.complete(text)) {
        assertFalse(Character.isHighSurrogate(piece.charAt(piece.length() - 1)), piece);
        assertFalse(Character.isLowSurrogate(piece.charAt(0)), piece);
        all.append(piece);
      }
      // Each smiley takes several tokens, and the model goes on with the row.
      assertTrue(all.toString().contains("\ud83d\ude00"), all.toString());
    }
  }

  @Test
  void aCancelledReplyLeavesTheSessionUsable() throws InterruptedException {
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withMaxTokens(30))) {
      Reply reply = session.chat("Tell me a long story about a fox.");
      Iterator<String> pieces = reply.iterator();
      pieces.next();
      Thread other = new Thread(reply::cancel);
      other.start();
      other.join();
      while (pieces.hasNext()) {
        pieces.next();
      }
      assertEquals(Optional.of(StopReason.CANCELLED), reply.statistics().stopReason());
      assertFalse(session.chat("And a short one.").text().isEmpty());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aCancelledPrefillIsRolledBack(boolean adaptive) throws InterruptedException {
    int[] start = TestModels.proseTokens(40);
    int[] probe = Arrays.copyOfRange(TestModels.proseTokens(60), 40, 60);
    try (Session session = session(adaptive);
        Session untouched = session(adaptive)) {
      session.evaluate(start);
      untouched.evaluate(start);
      Reply reply = session.complete(TestModels.prose().substring(0, 3500));
      // After the first operations of the first batch, in the middle of a graph.
      Thread other =
          Thread.startVirtualThread(
              () -> {
                try {
                  Thread.sleep(50);
                } catch (InterruptedException e) {
                  Thread.currentThread().interrupt();
                }
                reply.cancel();
              });
      assertEquals("", reply.text());
      other.join();
      assertEquals(Optional.of(StopReason.CANCELLED), reply.statistics().stopReason());
      assertEquals(40, session.position());
      assertEquals(untouched.cacheReport().keptSlots(), session.cacheReport().keptSlots());
      assertThrows(SessionStateException.class, session::logits);
      session.evaluate(probe);
      untouched.evaluate(probe);
      assertArrayEquals(untouched.logits(), session.logits());
    }
  }

  @Test
  void aClosedReplyLeavesTheSessionUsable() {
    try (Session session = session(true)) {
      Reply unread = session.chat("Hello?");
      unread.close();
      assertEquals(0, session.position());
      assertEquals(Optional.of(StopReason.CLOSED), unread.statistics().stopReason());
      assertThrows(SessionStateException.class, () -> unread.iterator().hasNext());
      Reply reply = session.chat("Tell me about ships.");
      Iterator<String> pieces = reply.iterator();
      String first = pieces.next();
      reply.close();
      reply.close();
      assertEquals(first, reply.text());
      assertThrows(SessionStateException.class, pieces::hasNext);
      assertFalse(session.chat("And boats?").text().isEmpty());
    }
  }

  @Test
  void anOpenReplyOwnsTheSession() {
    Session session = session(true);
    Reply reply = session.complete("Once upon a time");
    Iterator<String> pieces = reply.iterator();
    pieces.next();
    assertThrows(SessionStateException.class, () -> session.chat("Stop"));
    assertThrows(SessionStateException.class, () -> session.complete("Stop"));
    assertThrows(SessionStateException.class, session::clear);
    assertThrows(SessionStateException.class, () -> session.evaluate(1));
    assertThrows(SessionStateException.class, reply::iterator);
    assertTrue(pieces.hasNext());
    pieces.next();
    session.close();
    assertThrows(SessionStateException.class, pieces::hasNext);
    assertEquals(Optional.of(StopReason.CLOSED), reply.statistics().stopReason());
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aClearedSessionIsAsNew(boolean adaptive) {
    int[] tokens = TestModels.proseTokens(100);
    try (Session session = session(adaptive)) {
      session.evaluate(tokens);
      float[] expected = session.logits();
      session.chat("Something else").text();
      session.clear();
      assertEquals(0, session.position());
      assertEquals(0, session.cacheReport().keptSlots());
      assertThrows(SessionStateException.class, session::logits);
      session.evaluate(tokens);
      assertArrayEquals(expected, session.logits());
    }
  }

  @Test
  void aSecondThreadIsRefusedWhileOneIsInside() throws InterruptedException {
    CountDownLatch inside = new CountDownLatch(1);
    CountDownLatch tried = new CountDownLatch(1);
    PrefillListener holdUp =
        (done, total) -> {
          inside.countDown();
          try {
            tried.await();
          } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
          }
        };
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withPrefillListener(holdUp))) {
      Thread first = new Thread(() -> session.evaluate(TestModels.proseTokens(10)), "first");
      first.start();
      inside.await();
      try {
        SessionStateException refused =
            assertThrows(SessionStateException.class, () -> session.evaluate(1));
        assertTrue(refused.getMessage().contains("\"first\""), refused.getMessage());
        assertThrows(SessionStateException.class, session::position);
        assertThrows(SessionStateException.class, session::logits);
        assertThrows(SessionStateException.class, session::clear);
        assertThrows(SessionStateException.class, session::close);
        assertThrows(SessionStateException.class, () -> session.chat("Hello"));
      } finally {
        tried.countDown();
      }
      first.join();
      // The first one is out: the session may move to this thread.
      assertEquals(10, session.position());
      session.evaluate(TestModels.proseTokens(3));
      assertEquals(13, session.position());
    }
  }

  @Test
  void aListenerMustNotCallItsSession() {
    AtomicReference<Session> self = new AtomicReference<>();
    PrefillListener nosy = (done, total) -> self.get().position();
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withPrefillListener(nosy))) {
      self.set(session);
      assertThrows(SessionStateException.class, () -> session.evaluate(TestModels.proseTokens(10)));
      // What a listener throws ends the prefill, which is rolled back.
      assertEquals(0, session.position());
    }
  }

  @Test
  void prefillReportsMicroBatches() {
    List<Integer> done = new ArrayList<>();
    SessionOptions options =
        TestModels.options()
            .withMicroBatchSize(64)
            .withPrefillListener(
                (decoded, total) -> {
                  assertEquals(150, total);
                  done.add(decoded);
                });
    try (Session session = TestModels.adaptive().newSession(options)) {
      session.evaluate(TestModels.proseTokens(150));
      assertEquals(List.of(0, 64, 128, 150), done);
    }
  }

  @Test
  void everyCallAfterCloseIsRefused() {
    Session session = session(true);
    Reply reply = session.complete("One");
    session.close();
    session.close();
    assertThrows(SessionStateException.class, () -> session.chat("Hello"));
    assertThrows(SessionStateException.class, () -> session.complete("Hello"));
    assertThrows(SessionStateException.class, () -> session.evaluate(1));
    assertThrows(SessionStateException.class, session::logits);
    assertThrows(SessionStateException.class, session::clear);
    assertThrows(SessionStateException.class, session::position);
    assertThrows(SessionStateException.class, session::cacheReport);
    assertThrows(SessionStateException.class, session::profile);
    assertThrows(SessionStateException.class, () -> reply.iterator().hasNext());
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void anOverLongPromptChangesNothing(boolean adaptive) {
    SessionOptions options = TestModels.options().withContextSize(256).withMaxTokens(4);
    try (Session session = model(adaptive).newSession(options)) {
      session.evaluate(TestModels.proseTokens(200));
      float[] logits = session.logits();
      assertThrows(ContextFullException.class, () -> session.evaluate(TestModels.proseTokens(57)));
      assertThrows(
          ContextFullException.class,
          () -> session.evaluateAllLogits(TestModels.proseTokens(57), (index, row) -> {}));
      assertThrows(ContextFullException.class, () -> session.chat(TestModels.prose()));
      assertThrows(ContextFullException.class, () -> session.complete(TestModels.prose()));
      assertEquals(200, session.position());
      assertArrayEquals(logits, session.logits());
      session.evaluate(TestModels.proseTokens(56));
      assertEquals(256, session.position());
      ContextFullException full =
          assertThrows(ContextFullException.class, () -> session.evaluate(1));
      assertTrue(full.getMessage().contains("256"), full.getMessage());
      // A token can still be drawn, but not be decoded.
      Reply reply = session.complete("");
      reply.text();
      assertEquals(1, reply.statistics().generatedTokens());
      assertEquals(Optional.of(StopReason.CONTEXT_FULL), reply.statistics().stopReason());
      assertThrows(ContextFullException.class, () -> session.chat("More?"));
      session.clear();
      assertFalse(session.chat("Hello").text().isEmpty());
    }
  }

  @Test
  void aReplyEndsWhenTheContextIsFull() {
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withContextSize(256))) {
      session.evaluate(TestModels.proseTokens(240));
      Reply reply = session.complete("");
      reply.text();
      // Sixteen tokens are decoded, and one more is drawn from the last of them.
      assertEquals(17, reply.statistics().generatedTokens());
      assertEquals(Optional.of(StopReason.CONTEXT_FULL), reply.statistics().stopReason());
      assertEquals(256, session.position());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void allLogitsAreThoseOfTheTokensOneByOne(boolean adaptive) {
    int[] tokens = TestModels.proseTokens(90);
    // A batch and single tokens take different matrix kernels, whose rounding the quantised weights
    // magnify.
    double tolerance = 0.05;
    try (Session bulk = model(adaptive).newSession(TestModels.options().withMicroBatchSize(32));
        Session single = model(adaptive).newSession(TestModels.options())) {
      List<float[]> rows = new ArrayList<>();
      bulk.evaluateAllLogits(
          tokens,
          (index, row) -> {
            assertEquals(rows.size(), index);
            float[] copy = new float[row.remaining()];
            row.get(copy);
            rows.add(copy);
          });
      assertEquals(tokens.length, rows.size());
      assertArrayEquals(rows.getLast(), bulk.logits());
      for (int i = 0; i < tokens.length; i++) {
        single.step(tokens[i]);
        assertTrue(Logits.divergence(single.logits(), rows.get(i)) < tolerance, "token " + i);
        if (i > 0) { // and a row of another token would not pass
          assertTrue(Logits.divergence(single.logits(), rows.get(i - 1)) > tolerance, "token " + i);
        }
      }
    }
  }

  @Test
  void seedsDecideWhatIsDrawn() {
    SessionOptions options =
        TestModels.options()
            .withMaxTokens(20)
            .withSampling(Sampling.defaults().withSeed(42).withTemperature(1.2f));
    String text;
    try (Session session = TestModels.adaptive().newSession(options)) {
      text = session.complete("A list of words:").text();
      session.clear();
      assertEquals(text, session.complete("A list of words:").text());
    }
    try (Session session = TestModels.adaptive().newSession(options)) {
      assertEquals(text, session.complete("A list of words:").text());
    }
    try (Session session =
        TestModels.adaptive().newSession(options.withSampling(options.sampling().withSeed(43)))) {
      assertNotEquals(text, session.complete("A list of words:").text());
    }
  }

  @Test
  void aDrawnSeedIsToldAndDrawsTheSameAgain() {
    SessionOptions options =
        TestModels.options()
            .withMaxTokens(20)
            .withSampling(Sampling.defaults().withSeed(-1).withTemperature(1.2f));
    String text;
    long seed;
    try (Session session = TestModels.adaptive().newSession(options)) {
      seed = session.seed();
      assertTrue(seed >= 0 && seed <= 0xFFFF_FFFEL, "" + seed);
      text = session.complete("A list of words:").text();
      session.clear();
      assertEquals(text, session.complete("A list of words:").text(), "seed " + seed);
      assertEquals(seed, session.seed());
    }
    try (Session again =
        TestModels.adaptive().newSession(options.withSampling(options.sampling().withSeed(seed)))) {
      assertEquals(seed, again.seed());
      assertEquals(text, again.complete("A list of words:").text(), "seed " + seed);
    }
    try (Session other = TestModels.adaptive().newSession(options)) {
      assertNotEquals(seed, other.seed()); // equal once in 2^32 runs
    }
  }

  @Test
  void theLogitsOfACallbackEndWithIt() {
    int[] tokens = TestModels.proseTokens(5);
    for (boolean adaptive : new boolean[] {true, false}) {
      List<FloatBuffer> kept = new ArrayList<>();
      try (Session session = model(adaptive).newSession(TestModels.options())) {
        session.evaluateAllLogits(
            tokens,
            (index, logits) -> {
              assertTrue(logits.isReadOnly());
              assertEquals(session.model().vocabularySize(), logits.remaining());
              assertTrue(Float.isFinite(logits.get(index)));
              for (FloatBuffer before : kept) { // of this very batch
                assertThrows(IllegalStateException.class, () -> before.get(0));
              }
              kept.add(logits);
            });
        assertEquals(tokens.length, kept.size());
        requireDead(kept);
      }
      requireDead(kept);
    }
  }

  private static void requireDead(List<FloatBuffer> buffers) {
    for (FloatBuffer buffer : buffers) {
      assertThrows(IllegalStateException.class, () -> buffer.get(0));
      assertThrows(IllegalStateException.class, () -> buffer.get(new float[3]));
      assertThrows(IllegalStateException.class, () -> buffer.duplicate().get());
    }
  }

  @Test
  void penaltiesLookAtThePromptToo() {
    String prompt = "1 2 3 1 2 3 1 2 3 1 2 3";
    SessionOptions options = TestModels.options().withMaxTokens(6);
    try (Session session = TestModels.adaptive().newSession(options)) {
      assertTrue(session.complete(prompt).text().startsWith(" 1 2"));
    }
    SessionOptions penalised = options.withSampling(Sampling.greedy().withPresencePenalty(100f));
    try (Session session = TestModels.adaptive().newSession(penalised)) {
      String text = session.complete(prompt).text();
      assertFalse(text.contains("1") || text.contains("2") || text.contains("3"), text);
    }
  }

  @Test
  void theTokenThatWaitedIsCountedOnce() {
    // A large bonus per occurrence: what was seen most often is drawn.
    Sampling mostFrequent = Sampling.greedy().withFrequencyPenalty(-1e6f).withPenaltyWindow(256);
    try (Session session =
        TestModels.plain()
            .newSession(TestModels.options().withSampling(mostFrequent).withMaxTokens(1))) {
      assertEquals(" cat", session.complete(" cat cat").text());
      assertEquals(" cat", session.complete(" bird").text());
      // four cats by now, two of them drawn and carried over into the next prompt
      assertEquals(" dog", session.complete(" dog dog dog dog dog").text());
    }
  }

  @Test
  void thePolicyOfAnUnmodifiedModelIsToKeepEverything() {
    InvalidOptionException refused =
        assertThrows(
            InvalidOptionException.class,
            () ->
                TestModels.plain()
                    .newSession(TestModels.options().withCachePolicy(CachePolicy.fastgen())));
    assertTrue(refused.getMessage().contains("adaptive cache"), refused.getMessage());
  }
}
