package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.MovedQueries;
import dev.kvasir.internal.engine.Decoder;
import dev.kvasir.internal.llama.MovedSums;
import dev.kvasir.internal.llama.NativeContext;
import dev.kvasir.internal.llama.NativeModel;
import dev.kvasir.internal.policy.CacheStore;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Foresight on the default model. */
class ForesightTest {
  private static final int BLOCK = 64;
  private static final int BOOKS = 16; // bytes of tables of a slot
  private static final int HEADS = 30 * 3;
  private static final int HALF_BYTES = 2 * 64 * Short.BYTES;

  private static SessionOptions options(String statistic, double budget) {
    return TestModels.options()
        .withMicroBatchSize(128)
        .withCachePolicy(
            CachePolicy.foresight()
                .withStatistic(MovedQueries.parse(statistic))
                .withBudget(budget)
                .withMinimumTokens(128));
  }

  private static SessionOptions onType(SessionOptions options, KvType type) {
    return options.withKeyType(type).withValueType(type);
  }

  private static long allowed(double budget, int tokens, long slotBytes) {
    double full = budget * (tokens + 32.5) * HEADS * HALF_BYTES;
    return (long) Math.floor(full - 32.5 * HEADS * (slotBytes + BOOKS));
  }

  private static long held(CacheReport report) {
    return report.keptBytes() + BOOKS * report.keptSlots();
  }

  /** Looks at what a session does to its store. */
  private static final class Spy {
    final List<double[]> losses = new ArrayList<>(); // by head, summed up over the folds
    final List<long[]> seen = new ArrayList<>(); // queries, by head and slot
    NativeContext context;
    CacheStore store;
    long queries;
    int keeps;

    Session session(NativeModel model, SessionOptions options) {
      context =
          new NativeContext(
              model, options, 1, options.keyType().ggmlType(), options.valueType().ggmlType());
      store = context.store(0).orElseThrow();
      for (int i = 0; i < HEADS; i++) {
        losses.add(new double[0]);
        seen.add(new long[0]);
      }
      CacheStore spied = wrap(CacheStore.class, store);
      Decoder decoder =
          (Decoder)
              Proxy.newProxyInstance(
                  Decoder.class.getClassLoader(),
                  new Class<?>[] {Decoder.class},
                  (proxy, method, arguments) ->
                      method.getName().equals("store")
                          ? Optional.of(spied)
                          : call(context, method, arguments));
      return Session.over(decoder, null, model, options, model.vocabulary(), model::tokenKinds);
    }

    private <T> T wrap(Class<T> type, T object) {
      return type.cast(
          Proxy.newProxyInstance(
              type.getClassLoader(),
              new Class<?>[] {type},
              (proxy, method, arguments) -> {
                if (method.getName().equals("foldMoved")) {
                  beforeFold((int) arguments[0], (int) arguments[2]);
                }
                if (method.getName().equals("keepAll")) {
                  beforeKeep((int[]) arguments[0], (int[]) arguments[1]);
                }
                Object result = call(object, method, arguments);
                if (method.getName().equals("sumMoved") && (int) arguments[0] == 0) {
                  queries += (int) result;
                  count((int) arguments[1], (int) result);
                }
                return result;
              }));
    }

    private static Object call(Object object, Method method, Object[] arguments) throws Throwable {
      try {
        return method.invoke(object, arguments);
      } catch (InvocationTargetException e) {
        throw e.getCause();
      }
    }

    /** Every slot before the position was seen by so many queries more. */
    private void count(int end, int more) {
      for (int i = 0; i < HEADS; i++) {
        long[] counts = Arrays.copyOf(seen.get(i), store.slots(i / 3, i % 3));
        for (int s = 0; s < counts.length; s++) {
          counts[s] += store.position(i / 3, i % 3, s) < end ? more : 0;
        }
        seen.set(i, counts);
      }
    }

    private void beforeFold(int layer, int smooth) {
      for (int i = 3 * layer; i < 3 * layer + 3; i++) {
        double[] more = MovedSums.read(context, layer, i % 3).losses(smooth);
        double[] all = Arrays.copyOf(losses.get(i), more.length);
        for (int s = 0; s < more.length; s++) {
          all[s] += more[s];
        }
        losses.set(i, all);
      }
    }

    double expectedBudget;
    int checkedAt = -1; // position that the choice is about
    int agreed;
    int judged;

    private record Slot(int head, int slot, double loss) {}

    private void beforeKeep(int[] counts, int[] kept) {
      keeps++;
      long slotBytes = store.shape(0).slotBytes();
      long left = allowed(expectedBudget, checkedAt, slotBytes);
      List<Slot> slots = new ArrayList<>();
      boolean[][] expected = new boolean[HEADS][];
      for (int i = 0; i < HEADS; i++) {
        expected[i] = new boolean[store.slots(i / 3, i % 3)];
        for (int s = 0; s < expected[i].length; s++) {
          int position = store.position(i / 3, i % 3, s);
          if (position < 4) {
            expected[i][s] = true;
            left -= slotBytes + BOOKS;
          } else if (position >= checkedAt) {
            expected[i][s] = true;
          } else {
            slots.add(new Slot(i, s, losses.get(i)[s] / seen.get(i)[s]));
          }
        }
      }
      slots.sort(Comparator.comparingDouble(slot -> -slot.loss));
      for (Slot slot : slots) {
        left -= slotBytes + BOOKS;
        expected[slot.head][slot.slot] = left >= 0;
      }
      int from = 0;
      for (int i = 0; i < HEADS; i++) {
        boolean[] actual = new boolean[expected[i].length];
        for (int k = from; k < from + counts[i]; k++) {
          actual[kept[k]] = true;
        }
        for (int s = 0; s < actual.length; s++) {
          judged++;
          agreed += actual[s] == expected[i][s] ? 1 : 0;
        }
        double[] stay = new double[counts[i]];
        long[] counted = new long[counts[i]];
        for (int k = 0; k < counts[i]; k++) {
          int slot = kept[from + k];
          stay[k] = slot < losses.get(i).length ? losses.get(i)[slot] : 0;
          counted[k] = slot < seen.get(i).length ? seen.get(i)[slot] : 0;
        }
        losses.set(i, stay);
        seen.set(i, counted);
        from += counts[i];
      }
    }
  }

  /** What is kept is what the sums of the moved queries say, computed once more. */
  @ParameterizedTest
  @CsvSource({"u, F16", "c/4, Q8_0"})
  void keepsWhatMovedQueriesWouldMiss(String statistic, KvType type) {
    int[] text = TestModels.proseTokens(400);
    Spy spy = new Spy();
    spy.expectedBudget = 0.3;
    NativeModel model =
        NativeModel.load(TestModels.path(), ModelOptions.defaults().withDevice("CPU"));
    try (Session session = spy.session(model, onType(options(statistic, 0.3), type))) {
      long slotBytes = spy.store.shape(0).slotBytes();
      spy.checkedAt = 250;
      session.evaluate(Arrays.copyOf(text, 250));
      assertEquals(1, spy.keeps);
      assertEquals(statistic.equals("u") ? 250 : 62, spy.queries);
      CacheReport report = session.cacheReport();
      assertEquals(List.of("foresight"), List.copyOf(report.byPolicy().keySet()));
      long allowed = allowed(0.3, 250, slotBytes);
      assertTrue(held(report) <= allowed && held(report) > allowed - slotBytes - BOOKS);
      spy.checkedAt = 314;
      for (int i = 250; i < 316; i++) {
        session.step(text[i]);
      }
      assertEquals(2, spy.keeps);
      report = session.cacheReport();
      long since = 2L * HEADS * (slotBytes + BOOKS);
      assertTrue(held(report) - since <= allowed(0.3, 314, slotBytes));
      spy.checkedAt = 400;
      session.evaluate(Arrays.copyOfRange(text, 316, 400));
      assertEquals(3, spy.keeps);
      // One slot in the place of another, whose loss differs by less than a float can tell.
      assertTrue(spy.judged - spy.agreed <= 6, spy.agreed + " of " + spy.judged + " agree");
    } finally {
      model.close();
    }
  }

  @Test
  void memoryFallsAndTheAnswersStayNear() {
    int[] text = TestModels.proseTokens(800);
    SessionOptions half = onType(options("u", 0.35), KvType.Q8_0);
    double divergence = 0;
    try (Session session = TestModels.adaptive().newSession(half);
        Session full = TestModels.adaptive().newSession(half.withCachePolicy(CachePolicy.full()))) {
      for (Session s : List.of(session, full)) {
        s.evaluate(Arrays.copyOf(text, 600));
      }
      CacheReport before = full.cacheReport();
      assertTrue(
          session.cacheReport().residentBytes() < 0.85 * before.residentBytes(),
          session.cacheReport().residentBytes() + " of " + before.residentBytes());
      for (int i = 600; i < 800; i++) {
        session.step(text[i]);
        full.step(text[i]);
        divergence += Logits.divergence(full.logits(), session.logits());
        int chosen = 600 + (i + 1 - 600 - 2) / BLOCK * BLOCK;
        long since = (long) (i + 1 - chosen) * HEADS * (136 + BOOKS);
        if (i + 1 >= 602) {
          assertTrue(held(session.cacheReport()) - since <= allowed(0.35, chosen, 136), "at " + i);
        }
      }
      assertTrue(divergence / 200 < 0.02, divergence / 200 + " nats");
      assertTrue(divergence > 0);
    }
  }

  /** As if it had not been asked: the same is kept and expected afterwards, bit for bit. */
  @ParameterizedTest
  @CsvSource({"u, 128", "c, 256"})
  void aPromptThatIsInterruptedLeavesNoTrace(String statistic, int at) {
    int[] text = TestModels.proseTokens(500);
    boolean[] armed = {false};
    SessionOptions options = options(statistic, 0.4);
    SessionOptions interrupting =
        options.withPrefillListener(
            (done, total) -> {
              if (armed[0] && done >= at) {
                Thread.currentThread().interrupt();
              }
            });
    try (Session session = TestModels.adaptive().newSession(interrupting);
        Session fresh = TestModels.adaptive().newSession(options)) {
      for (Session s : List.of(session, fresh)) {
        s.evaluate(Arrays.copyOf(text, 150));
        for (int i = 150; i < 180; i++) {
          s.step(text[i]);
        }
      }
      armed[0] = true;
      int[] more = Arrays.copyOfRange(text, 180, 436);
      assertThrows(CancelledException.class, () -> session.evaluate(more));
      assertTrue(Thread.interrupted());
      armed[0] = false;
      assertEquals(180, session.position());
      assertEquals(slots(fresh), slots(session));
      for (Session s : List.of(session, fresh)) {
        for (int i = 180; i < 220; i++) {
          s.step(text[i]);
        }
        s.evaluate(Arrays.copyOfRange(text, 220, 260));
      }
      assertTrue(session.cacheReport().keptFraction() < 0.7);
      assertEquals(slots(fresh), slots(session));
      assertArrayEquals(fresh.logits(), session.logits());
    }
  }

  private static List<Integer> slots(Session session) {
    return session.cacheReport().heads().stream().map(HeadUse::slots).toList();
  }

  /**
   * A stop sequence that begins before the 64th token of a reply and ends behind it is not in the
   * session, and the policy goes on behind what is.
   */
  @Test
  void aStopSequenceOverTheEndOfABlockLeavesNothingBehind() {
    int[] prompt = TestModels.proseTokens(150);
    SessionOptions options = options("u", 0.5).withMaxTokens(80);
    String text;
    int[] said;
    try (Session session = TestModels.adaptive().newSession(options)) {
      session.evaluate(prompt);
      try (Reply reply = session.complete("")) {
        text = reply.text();
      }
      said = TestModels.adaptive().tokenize(text, false, false);
    }
    // The stop sequence: from a token before the block's end to one behind it.
    String before = TestModels.adaptive().detokenize(Arrays.copyOf(said, 60));
    String through = TestModels.adaptive().detokenize(Arrays.copyOf(said, 70));
    String stop = through.substring(before.length());
    try (Session session =
        TestModels.adaptive().newSession(options.withStopSequences(stop + "#", stop))) {
      session.evaluate(prompt);
      Reply reply = session.complete("");
      String shown = reply.text();
      assertEquals(StopReason.STOP_SEQUENCE, reply.statistics().stopReason().orElseThrow());
      assertEquals(text.substring(0, text.indexOf(stop)), shown);
      int position = session.position();
      assertTrue(position < 150 + 70, "position " + position);
      CacheStore store = session.context().store(0).orElseThrow();
      for (int i = 0; i < HEADS; i++) {
        for (int s = 0; s < store.slots(i / 3, i % 3); s++) {
          assertTrue(store.position(i / 3, i % 3, s) < position);
        }
      }
      for (int token : Arrays.copyOf(said, 80)) {
        session.step(token);
      }
      assertTrue(session.cacheReport().policyFailure().isEmpty());
      int since = session.position() % BLOCK;
      assertTrue(session.cacheReport().keptFraction() < 0.75, "since " + since);
      assertFalse(session.cacheReport().byPolicy().containsKey("full"));
    }
  }
}
