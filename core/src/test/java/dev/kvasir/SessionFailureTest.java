package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Full;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.MovedQueries;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Uniform;
import dev.kvasir.internal.llama.ChatMessage;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Sessions over an engine without a model, every call to which fails once. */
class SessionFailureTest {
  private static final int MOST_CALLS = 20_000;

  private final Faults faults = new Faults();

  private static SessionOptions options() {
    return SessionOptions.defaults().withSampling(Sampling.greedy());
  }

  private static CachePolicy fastgen() {
    return CachePolicy.fastgen().withMinimumTokens(40).withTarget(Target.budgetFraction(0.4));
  }

  private static CachePolicy h2o() {
    return CachePolicy.h2o(0.3).withMinimumTokens(40);
  }

  private static CachePolicy foresight(String statistic) {
    return CachePolicy.foresight()
        .withStatistic(MovedQueries.parse(statistic))
        .withBudget(0.6)
        .withMinimumTokens(40);
  }

  /** What may go wrong: in the engine, in its memory, and in Java's. */
  record Failure(CachePolicy policy, boolean afterwards, Supplier<Throwable> with) {}

  static Stream<Failure> failures() {
    List<Supplier<Throwable>> kinds =
        List.of(() -> new KvasirException("no luck"), () -> new OutOfMemoryError("no room"));
    return Stream.of(fastgen(), h2o(), foresight("u"), foresight("c/4"), CachePolicy.full())
        .flatMap(
            policy ->
                Stream.of(true, false)
                    .flatMap(
                        after -> kinds.stream().map(with -> new Failure(policy, after, with))));
  }

  private static int[] text(int count, int from) {
    return IntStream.range(0, count).map(i -> 5 + (i * 7 + from) % 90).toArray();
  }

  private static List<Integer> slots(CacheReport report) {
    return report.heads().stream().map(HeadUse::slots).toList();
  }

  /** One call to a session, and the tokens that are in it afterwards, if it returns. */
  private record Call(List<Integer> tokens, Runnable run) {}

  private static List<Call> calls(Session session) {
    List<Call> calls = new ArrayList<>();
    calls.add(evaluate(session, text(50, 0)));
    for (int token : text(6, 3)) {
      calls.add(new Call(List.of(token), () -> session.step(token)));
    }
    calls.add(evaluate(session, text(40, 11)));
    calls.add(
        new Call(
            Arrays.stream(text(5, 1)).boxed().toList(),
            () ->
                session.evaluateAllLogits(
                    text(5, 1), (index, logits) -> assertEquals(100, logits.remaining()))));
    for (int token : text(6, 5)) {
      calls.add(new Call(List.of(token), () -> session.step(token)));
    }
    return calls;
  }

  private static Call evaluate(Session session, int[] tokens) {
    return new Call(Arrays.stream(tokens).boxed().toList(), () -> session.evaluate(tokens));
  }

  /**
   * After any failure each token is in the memory once or not at all, as the call said, and the
   * session goes on: by its policy if the failure was before the tokens were decoded, else with
   * everything kept.
   */
  @ParameterizedTest
  @MethodSource("failures")
  void goesOnAfterAnyFailure(Failure failure) {
    boolean any = true;
    for (int n = 1; any; n++) {
      assertTrue(n < MOST_CALLS, "the failures do not end");
      FakeDecoder engine = FakeDecoder.of(1, faults);
      faults.fail(Integer.MAX_VALUE, false, failure.with());
      Session session = engine.session(options().withCachePolicy(failure.policy()), faults);
      List<Integer> expected = new ArrayList<>();
      faults.fail(n, failure.afterwards(), failure.with());
      for (Call call : calls(session)) {
        boolean before = faults.failed().isEmpty();
        boolean returned = true;
        try {
          call.run().run();
        } catch (KvasirException | OutOfMemoryError e) {
          returned = false;
          assertFalse(faults.failed().isEmpty(), e::toString);
          assertTrue(before, "failed once, threw twice: " + e);
        }
        String at = "call " + n + ", " + faults.failed();
        if (faults.failed().equals("accept")) { // the token is decoded, the penalties miss it
          returned = true;
        }
        if (returned) {
          expected.addAll(call.tokens());
        } else if (faults.failed().equals("clear")) {
          expected.clear();
        }
        assertEquals(expected, engine.memory.getFirst(), at);
        assertEquals(expected.size(), session.position(), at);
        CacheReport report = session.cacheReport();
        assertEquals(expected.size(), report.tokens(), at);
        boolean kept = before && !faults.failed().isEmpty() && returned;
        if (kept && report.policyFailure().isPresent()) {
          assertTrue(
              report.policyFailure().get().matches("no luck|no room"),
              report.policyFailure()::toString);
        }
      }
      any = !faults.failed().isEmpty();
      String at = "call " + n + ", " + faults.failed();
      faults.fail(Integer.MAX_VALUE, false, failure.with());
      boolean gaveUp = session.cacheReport().policyFailure().isPresent();
      if (gaveUp) { // everything from here on
        List<Integer> slots = slots(session.cacheReport());
        session.step(7);
        session.evaluate(text(20, 2));
        assertEquals(slots.stream().map(s -> s + 21).toList(), slots(session.cacheReport()), at);
        assertTrue(engine.stores.getFirst().bounds() == null, at);
        assertEquals(0, engine.stores.getFirst().stride(), at);
      }
      session.clear();
      assertTrue(session.cacheReport().policyFailure().isEmpty(), at);
      session.evaluate(text(60, 0));
      assertEquals(
          !(failure.policy().equals(CachePolicy.full())),
          session.cacheReport().keptFraction() < 1,
          at);
      session.close();
      assertTrue(engine.closed, at);
    }
  }

  @Test
  void aFailureBehindADecodeIsInTheReport() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    Session session = engine.session(options().withCachePolicy(h2o()), faults);
    session.evaluate(text(60, 0));
    List<Integer> slots = slots(session.cacheReport());
    int step = 0;
    while (session.cacheReport().policyFailure().isEmpty()) {
      assertTrue(step++ < 100);
      faults.fail("flushEvictions", 1, () -> new KvasirException("no luck"));
      session.step(9);
    }
    assertEquals(Optional.of("no luck"), session.cacheReport().policyFailure());
    assertEquals("full", session.cacheReport().heads().getFirst().policy());
    assertTrue(slots(session.cacheReport()).getFirst() >= slots.getFirst());
  }

  /** Behind the 64th token of a block, and where the choice is carried out. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "sumMoved",
        "foldMoved",
        "readAhead",
        "awaitAhead",
        "readPositions",
        "readScores",
        "keepAll"
      })
  void aChoiceThatFailsBetweenStepsIsInTheReport(String method) {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    Session session = engine.session(options().withCachePolicy(foresight("c/2")), faults);
    session.evaluate(text(60, 0));
    faults.fail(method, 1, () -> new KvasirException("no luck"));
    int steps = 0;
    while (session.cacheReport().policyFailure().isEmpty()) {
      assertTrue(steps++ < 70, "no " + method);
      session.step(9);
    }
    assertTrue(steps >= 64);
    assertEquals(Optional.of("no luck"), session.cacheReport().policyFailure());
    assertEquals(60 + steps, engine.memory.getFirst().size());
    assertEquals(0, engine.stores.getFirst().stride());
    List<Integer> slots = slots(session.cacheReport());
    session.evaluate(text(20, 2));
    for (int i = 0; i < 70; i++) {
      session.step(9);
    }
    assertEquals(slots.stream().map(s -> s + 90).toList(), slots(session.cacheReport()));
    session.clear();
    assertEquals(1, engine.stores.getFirst().stride());
    session.evaluate(text(60, 0));
    assertTrue(session.cacheReport().keptFraction() < 1);
  }

  @Test
  void theTokenOfAReplyIsDecodedOnceWhenThePolicyFailsBehindIt() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    engine.say(60, 10, 11, 12, 13, 14, FakeDecoder.END);
    Session session = engine.session(options().withCachePolicy(h2o()), faults);
    boolean any = true;
    for (int n = 1; any; n++) {
      assertTrue(n < MOST_CALLS);
      faults.fail(n, false, () -> new KvasirException("no luck"));
      String text;
      try {
        Reply reply = session.reply(text(60, 0), null);
        try {
          text = reply.text();
          assertEquals("abcde", text);
        } catch (KvasirException e) {
          assertEquals(Optional.of(StopReason.FAILED), reply.statistics().stopReason());
        }
        any = !faults.failed().isEmpty();
        if (session.position() > 0) {
          String rest = session.reply(new int[0], null).text();
          assertTrue("abcde".endsWith(rest), rest);
        }
        List<Integer> memory = engine.memory.getFirst();
        int said = Math.max(0, memory.size() - 60);
        if (said > 0) {
          assertEquals(
              IntStream.range(10, 10 + said).boxed().toList(), memory.subList(60, 60 + said));
        }
      } finally {
        faults.fail(Integer.MAX_VALUE, false, AssertionError::new);
      }
      session.clear();
    }
  }

  @ParameterizedTest
  @MethodSource("failures")
  void aGroupIsNeverHalfAdvanced(Failure failure) {
    if (!(failure.policy() instanceof Uniform || failure.policy() instanceof Full)) {
      return; // which groups do not take
    }
    boolean any = true;
    for (int n = 1; any; n++) {
      assertTrue(n < MOST_CALLS, "the failures do not end");
      FakeDecoder engine = FakeDecoder.of(3, faults);
      faults.fail(Integer.MAX_VALUE, false, failure.with());
      SessionGroup group =
          engine.group(SessionOptions.defaults().withCachePolicy(failure.policy()), faults);
      for (int s = 0; s < 3; s++) {
        group.prefill(s, text(50 + s, s));
      }
      faults.fail(n, failure.afterwards(), failure.with());
      for (int step = 0; step < 5; step++) {
        List<Integer> before = IntStream.range(0, 3).map(group::position).boxed().toList();
        boolean returned = true;
        try {
          group.step(5 + step, 6 + step, 7 + step);
        } catch (KvasirException | OutOfMemoryError e) {
          returned = false;
        }
        String at = "call " + n + ", " + faults.failed();
        for (int s = 0; s < 3; s++) {
          int position = group.position(s);
          assertEquals(before.get(s) + (returned ? 1 : 0), position, at);
          assertEquals(position, engine.memory.get(s).size(), at);
          assertEquals(position, group.cacheReport(s).tokens(), at);
        }
      }
      any = !faults.failed().isEmpty();
      faults.fail(Integer.MAX_VALUE, false, failure.with());
      group.close();
      assertTrue(engine.closed);
    }
  }

  @Test
  void aFailedConstructionClosesTheEngine() {
    SessionOptions options = options().withCachePolicy(h2o());
    for (Supplier<Throwable> with :
        List.<Supplier<Throwable>>of(
            () -> new KvasirException("no luck"), () -> new OutOfMemoryError("no room"))) {
      FakeDecoder engine = FakeDecoder.of(1, faults);
      faults.fail(1, false, with);
      assertEquals(with.get().getMessage(), thrownBy(() -> engine.session(options, faults)));
      assertEquals("sampler", faults.failed());
      assertTrue(engine.closed);
    }
    FakeDecoder engine = FakeDecoder.of(2, faults);
    assertEquals(
        "no room",
        thrownBy(
            () ->
                SessionGroup.over(
                    engine,
                    2,
                    options,
                    FakeDecoder.TOKENS,
                    () -> {
                      throw new OutOfMemoryError("no room");
                    })));
    assertTrue(engine.closed);
  }

  /** JUnit's own method hands an OutOfMemoryError on. */
  private static String thrownBy(Runnable call) {
    try {
      call.run();
    } catch (KvasirException | OutOfMemoryError e) {
      return e.getMessage();
    }
    return "nothing";
  }

  @Test
  void aSessionThatCouldNotBeBroughtBackSaysSo() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    Session session = engine.session(options(), faults);
    session.evaluate(1, 2, 3);
    engine.cuttable = false;
    faults.fail("decode", 2, () -> new DecodeException("no luck"));
    DecodeException failed =
        assertThrows(DecodeException.class, () -> session.evaluate(text(20, 1)));
    assertTrue(
        failed.getMessage().matches("no luck The session is empty now: .*"), failed.toString());
    assertEquals(0, session.position());

    session.evaluate(1, 2, 3);
    IllegalStateException ofAListener = new IllegalStateException("no luck");
    assertThrows(
        IllegalStateException.class,
        () ->
            session.evaluateAllLogits(
                text(20, 1),
                (index, logits) -> {
                  throw ofAListener;
                }));
    assertTrue(
        ofAListener.getSuppressed()[0].getMessage().startsWith("The session is empty now: "),
        ofAListener.toString());
    assertEquals(0, session.position());
  }

  @Test
  void aSessionThatWasEmptyBeforeIsAsItWas() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    Session session = engine.session(options(), faults);
    engine.cuttable = false;
    faults.fail("decode", 2, () -> new DecodeException("no luck"));
    DecodeException failed =
        assertThrows(DecodeException.class, () -> session.evaluate(text(20, 1)));
    assertEquals("no luck", failed.getMessage());
    assertEquals(0, failed.getSuppressed().length);
  }

  @Test
  void aReplyThatEmptiedItsSessionSaysSoAndLeavesNothingInIt() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    engine.say(60, 10, 11, 12, 13, 14, FakeDecoder.END);
    Session session = engine.session(options().withStopSequences("cdex"), faults);
    Reply reply = session.reply(text(60, 0), new ChatMessage(ChatMessage.USER, "hello"));
    assertEquals("a", reply.iterator().next());
    engine.cuttable = false;
    // the fourth letter's token is drawn, and "cd" held back, when the step after it fails
    faults.fail("decode", 4, true, () -> new DecodeException("no luck"));
    DecodeException failed = assertThrows(DecodeException.class, reply::text);
    assertTrue(
        failed.getMessage().matches("no luck The session is empty now: .*"), failed.toString());
    assertEquals(0, failed.getSuppressed().length, failed::toString);
    assertTrue(reply.statistics().sessionEmptied());
    assertEquals(Optional.of(StopReason.FAILED), reply.statistics().stopReason());
    assertEquals(0, session.position());
    assertEquals(List.of(), engine.seen);
    assertEquals(List.of(), session.messageSpans());
    assertThrows(IllegalArgumentException.class, () -> session.reply(new int[0], null));
    try (Reply next = session.reply(text(30, 0), null)) {
      next.text();
      assertFalse(next.statistics().sessionEmptied());
    }
  }

  @Test
  void aGroupSaysWhichSequencesCouldNotBeBroughtBack() {
    FakeDecoder engine = FakeDecoder.of(3, faults);
    SessionGroup group = engine.group(SessionOptions.defaults(), faults);
    group.prefill(0, text(20, 0));
    group.prefill(1, text(20, 1));
    group.prefill(2, text(20, 2));
    engine.cuttable = false;
    faults.fail("decode", 2, () -> new DecodeException("no luck"));
    DecodeException failed =
        assertThrows(DecodeException.class, () -> group.prefill(1, text(40, 3)));
    assertTrue(
        failed.getMessage().matches("no luck Sequence 1 is empty now: .*"), failed.toString());
    assertEquals(List.of(20, 0, 20), IntStream.range(0, 3).map(group::position).boxed().toList());
    faults.fail("decodeStep", 1, true, () -> new DecodeException("no luck"));
    DecodeException step = assertThrows(DecodeException.class, () -> group.step(5, 6, 7));
    assertTrue(
        step.getMessage()
            .matches("no luck Sequence 0 is empty now: .* Sequence 2 is empty now: [^:]*"),
        step.toString());
  }

  @Test
  void aStepThatWasGivenUpIsNotTakenForDone() {
    FakeDecoder engine = FakeDecoder.of(1, faults);
    Session session = engine.session(options(), faults);
    session.evaluate(1, 2, 3);
    engine.exiting = true;
    assertThrows(ExitingException.class, () -> session.step(4));
    assertThrows(ExitingException.class, () -> session.evaluate(4, 5));
    assertEquals(3, session.position());
    engine.exiting = false;
    session.step(4);
    assertEquals(List.of(1, 2, 3, 4), engine.memory.getFirst());
    assertArrayEquals(new int[] {4}, new int[] {session.position()});
  }
}
