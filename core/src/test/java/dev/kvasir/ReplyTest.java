package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/** Replies over an engine without a model: what is shown, and what the session holds then. */
class ReplyTest {
  private static final int PROMPT = 60;
  private static final int A = 10; // the token of the letter a, and the others follow
  private static final int AA = 40; // of two of them

  private final Faults faults = new Faults();
  private final FakeDecoder engine = FakeDecoder.of(1, faults);

  private static SessionOptions options() {
    return SessionOptions.defaults().withCachePolicy(CachePolicy.h2o(0.3).withMinimumTokens(40));
  }

  private static int[] prompt() {
    return IntStream.range(0, PROMPT).map(i -> 70 + i % 25).toArray();
  }

  private Session session(SessionOptions options) {
    return engine.session(options, faults);
  }

  /** The reply to the prompt, read to its end. */
  private static Reply read(Session session) {
    Reply reply = session.reply(prompt(), null);
    reply.text();
    return reply;
  }

  private static String said(List<Integer> tokens) {
    StringBuilder text = new StringBuilder();
    tokens.forEach(token -> text.append(FakeDecoder.textOf(token)));
    return text.toString();
  }

  private List<Integer> replied() {
    List<Integer> memory = engine.memory.getFirst();
    return List.copyOf(memory.subList(PROMPT, memory.size()));
  }

  @Test
  void ofAStopSequenceNothingIsInTheSession() {
    engine.say(PROMPT, A, A + 1, A + 2, A + 3, A + 4, A + 5);
    Session session = session(options().withStopSequences("cde"));
    Reply reply = read(session);
    assertEquals("ab", reply.text());
    assertEquals(Optional.of(StopReason.STOP_SEQUENCE), reply.statistics().stopReason());
    assertEquals(List.of(A, A + 1), replied());
    assertEquals(PROMPT + 2, session.position());
    assertEquals(PROMPT + 2, session.cacheReport().tokens());
    assertEquals(PROMPT + 2, engine.seen.size());

    // As a session that was given the tokens one by one, whatever was dropped meanwhile.
    FakeDecoder other = FakeDecoder.of(1, faults);
    other.say(PROMPT, A, A + 1, A + 2, A + 3, A + 4, A + 5);
    Session plain = other.session(options(), faults);
    plain.evaluate(prompt());
    plain.step(A);
    plain.step(A + 1);
    assertArrayEquals(plain.logits(), session.logits());
    for (int step = 0; step < 12; step++) {
      assertArrayEquals(other.stores.getFirst().held(1, 0), engine.stores.getFirst().held(1, 0));
      plain.step(80 + step);
      session.step(80 + step);
    }
    assertTrue(session.cacheReport().keptFraction() < 1);
  }

  @Test
  void aReplyGoesOnWhereTheStopSequenceBegan() {
    engine.say(PROMPT, A, A + 1, A + 2, A + 3);
    Session session = session(options().withStopSequences("cd"));
    assertEquals("ab", read(session).text());
    engine.say(PROMPT + 2, A + 2, A + 20);
    assertEquals("cu", session.reply(new int[0], null).text());
    assertEquals(List.of(A, A + 1, A + 2, A + 20), replied());
  }

  @Test
  void aStopSequenceMayBeginInsideOfAToken() {
    engine.say(PROMPT, A, AA + 1, A + 2, A + 3);
    Session session = session(options().withStopSequences("bc"));
    assertEquals("ab", read(session).text());
    engine.say(PROMPT + 2, A + 20);
    assertEquals("u", session.reply(new int[0], null).text());
    assertEquals("abu", said(replied()));
    assertEquals(engine.memory.getFirst(), engine.seen);
  }

  @Test
  void whatIsHeldBackIsHandedOutOrTakenBackAtAnyEnd() {
    engine.say(PROMPT, A, A + 1, A + 2, A + 3, FakeDecoder.END);
    SessionOptions options = options().withStopSequences("cdx");
    assertEquals("abcd", read(session(options)).text());
    assertEquals("abcd", said(replied()));

    FakeDecoder second = FakeDecoder.of(1, faults);
    second.say(PROMPT, A, A + 1, A + 2, A + 3, A + 4);
    Session session = second.session(options, faults);
    Reply reply = session.reply(prompt(), null);
    Iterator<String> pieces = reply.iterator();
    assertEquals("a", pieces.next());
    assertEquals("b", pieces.next());
    faults.fail("decode", 3, () -> new DecodeException("no luck")); // of d; c is decoded by then
    assertThrows(DecodeException.class, pieces::hasNext);
    assertEquals(Optional.of(StopReason.FAILED), reply.statistics().stopReason());
    assertEquals("ab", reply.text());
    assertEquals(PROMPT + 2, session.position());
    assertEquals("cde", session.reply(new int[0], null).text());
  }

  @Test
  void theSessionHoldsWhatWasShown() {
    long seed = Seeds.of(ReplyTest.class);
    Random random = new Random(seed);
    for (int round = 0; round < 400; round++) {
      String at = "round " + round + ", seed " + seed;
      FakeDecoder random1 = FakeDecoder.of(1, faults);
      List<Integer> said = new ArrayList<>();
      for (int i = 0; i < 12; i++) {
        said.add((random.nextBoolean() ? A : AA) + random.nextInt(3));
      }
      random1.say(PROMPT, said.stream().mapToInt(Integer::intValue).toArray());
      List<String> stops = new ArrayList<>();
      for (int i = 0; i < 2; i++) {
        StringBuilder stop = new StringBuilder();
        for (int length = 1 + random.nextInt(5); length > 0; length--) {
          stop.append((char) ('a' + random.nextInt(3)));
        }
        stops.add(stop.toString());
      }
      Session session = random1.session(options().withStopSequences(stops), faults);
      Reply reply = session.reply(prompt(), null);
      String shown = reply.text();
      String whole = said(said);
      assertTrue(whole.startsWith(shown), at);
      boolean stopped =
          reply.statistics().stopReason().equals(Optional.of(StopReason.STOP_SEQUENCE));
      assertEquals(stops.stream().anyMatch(whole::contains), stopped, at);
      // What waits to be decoded comes with the next token.
      session.step(90);
      List<Integer> memory = random1.memory.getFirst();
      assertEquals(shown, said(memory.subList(PROMPT, memory.size() - 1)), at);
      assertEquals(memory.size(), session.cacheReport().tokens(), at);
      assertEquals(memory, random1.seen.subList(0, memory.size()), at);
    }
  }

  @Test
  void aMemoryThatCannotBeCutKeepsWhatWasDecoded() {
    engine.say(PROMPT, A, A + 1, A + 2, A + 3);
    engine.cuttable = false;
    Session session = session(options().withStopSequences("cd"));
    assertEquals("ab", read(session).text());
    assertEquals(List.of(A, A + 1, A + 2), replied());
    assertEquals(PROMPT + 3, session.cacheReport().tokens());
    assertEquals(PROMPT + 3, engine.seen.size());
  }

  @Test
  void controlTokensAreShownOnRequest() {
    engine.say(PROMPT, A, 3, A + 1, 4, FakeDecoder.END);
    assertEquals("ab", read(session(options())).text());
    FakeDecoder other = FakeDecoder.of(1, faults);
    other.say(PROMPT, A, 3, A + 1, 4, FakeDecoder.END);
    Session showing = other.session(options().withControlTokens(true), faults);
    assertEquals("a<3>b<4>", read(showing).text());
  }

  @Test
  void anUnreadReplyLocksNothing() {
    engine.say(PROMPT, A, A + 1, FakeDecoder.END);
    Session session = session(options());
    Reply first = session.reply(prompt(), null);
    session.clear();
    assertEquals(Optional.of(StopReason.CLOSED), first.statistics().stopReason());
    assertThrows(SessionStateException.class, () -> first.iterator().hasNext());
    Reply second = session.reply(prompt(), null);
    session.evaluate(prompt());
    assertEquals(Optional.of(StopReason.CLOSED), second.statistics().stopReason());
    Reply third = session.reply(new int[0], null);
    assertTrue(third.iterator().hasNext());
    assertThrows(SessionStateException.class, session::clear);
    assertThrows(SessionStateException.class, () -> session.step(5));
  }

  @Test
  void anInterruptCancels() {
    engine.say(PROMPT, A, A + 1, A + 2, FakeDecoder.END);
    Session session = session(options());
    try {
      Thread.currentThread().interrupt();
      assertThrows(CancelledException.class, () -> session.evaluate(prompt()));
      assertThrows(CancelledException.class, () -> session.step(5));
      assertThrows(
          CancelledException.class, () -> session.evaluateAllLogits(prompt(), (i, row) -> {}));
      assertEquals(0, session.position());
      Reply cancelled = session.reply(prompt(), null);
      assertEquals("", cancelled.text());
      assertEquals(Optional.of(StopReason.CANCELLED), cancelled.statistics().stopReason());
      assertTrue(Thread.interrupted(), "the status stays");

      Reply reply = session.reply(prompt(), null);
      Iterator<String> pieces = reply.iterator();
      assertEquals("a", pieces.next());
      Thread.currentThread().interrupt();
      assertFalse(pieces.hasNext());
      assertTrue(Thread.interrupted());
      assertEquals(Optional.of(StopReason.CANCELLED), reply.statistics().stopReason());
      assertEquals("bc", session.reply(new int[0], null).text());
    } finally {
      Thread.interrupted();
    }
  }

  @Test
  void anInterruptOfAGroupIsNotAStep() {
    FakeDecoder several = FakeDecoder.of(2, faults);
    SessionGroup group = several.group(SessionOptions.defaults(), faults);
    group.prefill(0, 5, 6, 7);
    try {
      Thread.currentThread().interrupt();
      assertThrows(CancelledException.class, () -> group.step(5, 6));
      assertThrows(CancelledException.class, () -> group.prefill(1, 5, 6));
    } finally {
      assertTrue(Thread.interrupted());
    }
    group.step(5, 6);
    assertEquals(List.of(5, 6, 7, 5), several.memory.getFirst());
    assertEquals(List.of(6), several.memory.getLast());
  }

  @Test
  void thePenaltiesSeeWhatIsEvaluatedByEitherVerb() {
    Session session = session(options());
    session.evaluate(5);
    session.evaluate(6);
    session.step(7);
    session.evaluate(8, 9);
    assertEquals(List.of(5, 6, 7, 8, 9), engine.seen);
    assertEquals(List.of(5, 6, 7, 8, 9), engine.memory.getFirst());
  }
}
