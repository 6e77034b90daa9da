package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ProfileException;
import dev.kvasir.Seeds;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.MovedQueries;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The life of a sequence under Foresight, against what its definition says. */
class ForesightKeeperTest {
  private static final int LAYERS = 2;
  private static final int KV_HEADS = 2;
  private static final int GROUP = 2;
  private static final int SINKS = 4;

  private final long seed = Seeds.of(ForesightKeeperTest.class);
  private final Random random = new Random(seed);

  private static boolean never() {
    return false;
  }

  private static Foresight policy(String statistic) {
    return CachePolicy.foresight()
        .withStatistic(MovedQueries.parse(statistic))
        .withBudget(0.9)
        .withMinimumTokens(100);
  }

  private static LayerShape[] shapes() {
    // As f16 a slot has 64 bytes.
    return new LayerShape[] {
      new LayerShape(0, KV_HEADS, GROUP, 16, 16, 34, 4096, false),
      new LayerShape(1, KV_HEADS, GROUP, 16, 16, 34, 4096, false)
    };
  }

  private FakeStore store() {
    return new FakeStore(seed, 0, shapes());
  }

  /** One slot of a head, and what was asked of it. */
  private static final class Slot {
    double score;
    double[] squares = new double[GROUP];
  }

  /** What is kept, by the definition. */
  private static final class Expected {
    final FakeStore store; // for its attention only
    final Foresight policy;
    final List<TreeMap<Integer, Slot>> heads = new ArrayList<>();
    final TreeMap<Integer, Integer> before = new TreeMap<>(); // queries, by position
    List<Integer> recorded = new ArrayList<>();
    int stride = 1;
    int base;
    int total;
    int length;
    int summedTo;
    int asked = -1;
    boolean decided;

    Expected(FakeStore store, Foresight policy) {
      this.store = store;
      this.policy = policy;
      for (int i = 0; i < LAYERS * KV_HEADS; i++) {
        heads.add(new TreeMap<>());
      }
    }

    void evaluate(int tokens) {
      for (int t = 0; t < tokens; t++, length++) {
        before.put(length, total);
        heads.forEach(head -> head.put(length, new Slot()));
        if ((length - base) % 64 % stride == stride / 2) {
          recorded.add(length);
        }
      }
    }

    void sum(int end) {
      for (int i = 0; i < heads.size(); i++) {
        var head = heads.get(i).headMap(end);
        int[] positions = head.keySet().stream().mapToInt(p -> p).toArray();
        for (int at : recorded) {
          int begin = base + (at - base) / 64 * 64;
          for (int g = 0; g < GROUP; g++) {
            int queryHead = i % KV_HEADS * GROUP + g;
            double[] p =
                store.movedAttention(
                    i / KV_HEADS, queryHead, at, at - begin + end, begin, positions);
            for (int j = 0; j < p.length; j++) {
              head.get(positions[j]).squares[g] += p[j] * p[j];
            }
          }
        }
      }
      total += recorded.size();
      recorded.clear();
      base = end;
      summedTo = end;
    }

    void fold(int smooth) {
      for (int i = 0; i < heads.size(); i++) {
        var slots = new ArrayList<>(heads.get(i).entrySet());
        for (int g = 0; g < GROUP; g++) {
          int queryHead = i % KV_HEADS * GROUP + g;
          var table = policy.headWeights();
          double weight =
              table == null
                  ? store.outputWeight(i / KV_HEADS, queryHead)
                  : table.trace(i / KV_HEADS, queryHead) / 16;
          for (int j = 0; j < slots.size(); j++) {
            double mean = 0;
            int n = 0;
            for (int k = j - smooth / 2; k <= j + smooth / 2; k++) {
              if (k >= 0 && k < slots.size()) {
                mean += slots.get(k).getValue().squares[g];
                n++;
              }
            }
            slots.get(j).getValue().score +=
                weight
                    * (mean / n)
                    * store.distance(i / KV_HEADS, queryHead, slots.get(j).getKey());
          }
        }
        slots.forEach(s -> s.getValue().squares = new double[GROUP]);
      }
    }

    void choose(int end) {
      record Judged(int head, int position, float loss) {}
      double full = policy.budget() * (end + 32.5) * heads.size() * 64;
      long left = (long) Math.floor(full - 32.5 * heads.size() * 50);
      var judged = new ArrayList<Judged>();
      for (int i = 0; i < heads.size(); i++) {
        for (var slot : heads.get(i).headMap(end).entrySet()) {
          int p = slot.getKey();
          if (p < policy.sinks()) {
            left -= 50;
          } else {
            float loss = (float) slot.getValue().score * (4f / (total - before.get(p))) / 50;
            judged.add(new Judged(i, p, loss));
          }
        }
      }
      judged.sort(Comparator.comparingDouble(j -> -j.loss));
      for (var slot : judged) {
        left -= 50;
        if (left < 0) {
          heads.get(slot.head).remove(slot.position);
        }
      }
      decided = true;
    }

    void prefilled(int smooth) {
      fold(smooth);
      stride = 1;
      asked = -1;
      if (length >= policy.minimumTokens()) {
        choose(length);
      }
    }

    void stepped() {
      boolean enough = length >= policy.minimumTokens();
      if (asked >= 0) {
        if (length == asked + 2) {
          choose(asked);
          asked = -1;
        }
      } else if (length - summedTo == 64 || (!decided && enough)) {
        sum(length);
        fold(1);
        asked = enough ? length : -1;
      }
    }
  }

  /** A sequence and what is expected of it. */
  private final class Life {
    final FakeStore store;
    final Foresight policy;
    final CacheManager manager;
    final Expected expected;

    Life(FakeStore store, Foresight policy) {
      this(store, policy, store);
    }

    Life(FakeStore store, Foresight policy, CacheStore seen) {
      this.store = store;
      this.policy = policy;
      manager = new CacheManager(seen, policy, null, new FakeKinds());
      expected = new Expected(store, policy);
    }

    void prefill(int tokens, int part) {
      begin();
      for (int done = 0; done < tokens; ) {
        int count = Math.min(part, tokens - done);
        done += count;
        assertTrue(part(count, done == tokens));
      }
      int[] text = new int[tokens];
      manager.afterPrefill(text, 0, tokens);
      int stride = policy.statistic().stride();
      expected.prefilled(stride == 1 ? 1 : stride + 1);
      compare();
    }

    void begin() {
      manager.beforePrefill(1);
      expected.stride = policy.statistic().stride();
    }

    boolean part(int count, boolean last) {
      store.evaluate(count);
      expected.evaluate(count);
      if (policy.statistic().reading() || last) {
        expected.sum(expected.length);
      }
      return manager.afterPart(expected.length, last, ForesightKeeperTest::never);
    }

    void decode(int steps) {
      for (int i = 0; i < steps; i++) {
        store.evaluate(1);
        expected.evaluate(1);
        manager.afterDecodeStep(7);
        expected.stepped();
        manager.prepareStep();
        compare();
      }
    }

    void compare() {
      for (int i = 0; i < expected.heads.size(); i++) {
        assertEquals(
            expected.heads.get(i).keySet(),
            positions(i),
            "head " + i + " at " + expected.length + ", seed " + seed);
      }
      assertEquals(expected.decided, manager.report().decided());
    }

    private Set<Integer> positions(int i) {
      var held = new java.util.TreeSet<Integer>();
      Arrays.stream(store.held(i / KV_HEADS, i % KV_HEADS)).forEach(held::add);
      return held;
    }

    long bytes() {
      return expected.heads.stream().mapToLong(head -> head.size() * 50L).sum();
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"u", "c", "c/2", "c/4", "c/8"})
  void keepsWhatIsMissedMost(String statistic) {
    var life = new Life(store(), policy(statistic).withBudget(0.6));
    life.prefill(60, 25);
    assertFalse(life.manager.report().decided());
    life.decode(30);
    life.prefill(200, 50);
    assertTrue(life.manager.report().decided());
    long allowed = (long) Math.floor(0.6 * (290 + 32.5) * 4 * 64 - 32.5 * 4 * 50);
    assertTrue(life.bytes() <= allowed && life.bytes() > allowed - 50, "bytes " + life.bytes());
    var profile = life.manager.lossProfile().orElseThrow();
    assertEquals(290, profile.tokens());
    assertEquals(290 * 50 * 4, profile.bytesAt(1));
    assertTrue(Math.abs(life.bytes() - profile.bytesAt(0.6)) <= 4 * 50);
    assertTrue(profile.lossAt(0.3) > profile.lossAt(0.6) && profile.lossAt(0.6) > 0);
    life.decode(150);
    life.prefill(90, 50);
    life.decode(70);
    life.prefill(1, 50);
    life.decode(65);
    life.prefill(30, 50); // while a choice waits
    assertEquals(1, life.store.stride());
  }

  @Test
  void choosesInTheStepThatMakesItEnough() {
    var life = new Life(store(), policy("u").withBudget(0.5));
    life.decode(101);
    assertFalse(life.manager.report().decided());
    assertEquals(101, life.store.slots(0, 0));
    life.decode(1);
    assertTrue(life.manager.report().decided());
    assertTrue(life.manager.report().keptFraction() < 0.6);
    life.decode(200);
  }

  @Test
  void weighsHeadsByATable() {
    float[][] table = new float[LAYERS][KV_HEADS * GROUP];
    for (float[] layer : table) {
      for (int h = 0; h < layer.length; h++) {
        layer[h] = (float) Math.exp(2 * random.nextGaussian());
      }
    }
    var life = new Life(store(), policy("u").withHeadWeights(HeadWeights.of(table)));
    life.prefill(200, 50);
    life.decode(70);
    for (var other : List.of(new float[2][3], new float[1][4], new float[][] {{1, 1, 1, 1}, {}})) {
      Arrays.stream(other).forEach(layer -> Arrays.fill(layer, 1));
      var wrong = policy("u").withHeadWeights(HeadWeights.of(other));
      var e = assertThrows(ProfileException.class, () -> new Life(store(), wrong));
      assertTrue(e.getMessage().contains("another model"), e.getMessage());
    }
  }

  /** On a GPU: the same is kept, and nothing is read that was not asked for ahead. */
  @Test
  void noStepWaitsForScores() {
    for (boolean atHand : new boolean[] {true, false}) {
      var store = new DecodeTest.AheadStore(atHand, seed, shapes());
      var life = new Life(store, policy("u").withBudget(0.5));
      life.prefill(150, 64);
      life.decode(200);
      life.prefill(80, 64);
      life.decode(80);
      assertTrue(atHand || store.waits == 0, store.waits + " waits");
    }
  }

  /** Between two choices a step asks nothing of the store, and changes nothing. */
  @Test
  void stepsInBetweenDoNothing() {
    var store = store();
    var calls = new ArrayList<String>();
    var counting =
        (CacheStore)
            Proxy.newProxyInstance(
                CacheStore.class.getClassLoader(),
                new Class<?>[] {CacheStore.class},
                (proxy, method, arguments) -> {
                  calls.add(method.getName());
                  try {
                    return method.invoke(store, arguments);
                  } catch (InvocationTargetException e) {
                    throw e.getCause();
                  }
                });
    var manager = new CacheManager(counting, policy("u").withBudget(0.5), null, new FakeKinds());
    manager.beforePrefill(200);
    store.evaluate(200);
    manager.afterPart(200, true, ForesightKeeperTest::never);
    manager.afterPrefill(new int[200], 0, 200);
    var busy = new ArrayList<Integer>();
    for (int step = 1; step <= 200; step++) {
      store.evaluate(1);
      calls.clear();
      manager.afterDecodeStep(5);
      manager.prepareStep();
      if (!calls.isEmpty()) {
        busy.add(step);
      }
      assertTrue(calls.stream().filter("keepAll"::equals).count() <= 1);
    }
    assertEquals(List.of(64, 66, 128, 130, 192, 194), busy);
  }

  @Test
  void aBudgetThatHoldsEverythingDropsNothing() {
    // q8_0's slots and their tables are 50 of an f16 slot's 64 bytes
    var life = new Life(store(), policy("u").withBudget(50 / 64.0));
    life.prefill(300, 100);
    life.decode(100);
    assertEquals(400, life.store.slots(1, 1));
    assertEquals(1, life.manager.report().keptFraction());
    assertTrue(life.manager.report().decided());
  }

  @Test
  void aBudgetOfNothingLeavesTheSinks() {
    var life = new Life(store(), policy("c").withBudget(0));
    life.prefill(150, 50);
    assertEquals(SINKS, life.store.slots(0, 1));
    life.decode(64 + 2);
    assertEquals(SINKS + 2, life.store.slots(0, 1));
    var none = new Life(store(), policy("c").withBudget(0).withSinks(0));
    none.prefill(150, 50);
    assertEquals(0, none.store.slots(0, 1));
    none.decode(3);
  }

  private void takeBack(Life life) {
    life.manager.rollBack();
    life.store.truncate(life.manager.position());
    life.manager.rolledBack();
  }

  /** A prompt that is taken back in the middle is as if it had never been. */
  @ParameterizedTest
  @ValueSource(strings = {"u", "c", "c/4"})
  void aPromptThatIsTakenBackLeavesNoTrace(String statistic) {
    for (int cancelled : new int[] {0, 1, 2}) {
      var life = new Life(store(), policy(statistic).withBudget(0.6));
      fail(life, cancelled);
      life.prefill(70, 30);
      fail(life, cancelled);
      life.decode(50);
      fail(life, cancelled);
      life.decode(20);
      life.prefill(100, 30);
      fail(life, cancelled);
      life.decode(40);
      fail(life, cancelled);
      life.decode(90);
      life.prefill(40, 40);
      life.decode(10);
    }
  }

  /**
   * Decodes two parts of a prompt; in the second it is cancelled before a layer's sum, or fails.
   */
  private void fail(Life life, int atLayer) {
    int before = life.manager.position();
    life.manager.beforePrefill(120);
    life.store.evaluate(60);
    assertTrue(life.manager.afterPart(before + 60, false, ForesightKeeperTest::never));
    life.store.evaluate(60);
    if (atLayer < 2) {
      int[] asked = {0};
      assertFalse(life.manager.afterPart(before + 120, true, () -> asked[0]++ == atLayer));
      assertEquals(atLayer + 1, asked[0]);
    }
    takeBack(life);
    life.compare();
    assertEquals(1, life.store.stride());
  }

  /** What is held back may be taken back: nothing is chosen until it is known. */
  @Test
  void nothingIsChosenWhileTokensAreHeldBack() {
    var life = new Life(store(), policy("u").withBudget(0.6));
    life.prefill(150, 50);
    life.decode(60);
    life.manager.mark();
    for (int i = 0; i < 6; i++) { // the policy sees them, and others are held back
      life.store.evaluate(1);
      life.expected.evaluate(1);
      life.manager.afterDecodeStep(3);
      life.manager.prepareStep();
      life.compare();
    }
    life.store.evaluate(3);
    takeBack(life);
    life.compare();
    int before = life.store.slots(0, 0);
    life.store.evaluate(1);
    life.manager.afterDecodeStep(3);
    life.manager.prepareStep();
    life.store.evaluate(2);
    life.manager.afterDecodeStep(3);
    life.manager.prepareStep();
    life.manager.afterDecodeStep(3);
    assertTrue(life.store.slots(0, 0) < before + 3, "chosen two tokens later");
  }

  @Test
  void aClearedSequenceWithoutRoomToRecordKeepsEverything() {
    var store = store();
    var manager = new CacheManager(store, policy("u").withBudget(0.5), null, new FakeKinds());
    store.noRoomToRecord = true;
    manager.clear();
    assertEquals(Optional.of("no room to record queries"), manager.report().policyFailure());
    store.noRoomToRecord = false;
    manager.clear();
    assertEquals(Optional.empty(), manager.report().policyFailure());
  }

  @Test
  void clearingBeginsAnew() {
    var store = store();
    var life = new Life(store, policy("c/2").withBudget(0.5));
    life.prefill(150, 50);
    life.decode(65);
    store.empty();
    life.manager.clear();
    assertEquals(0, life.manager.position());
    assertFalse(life.manager.report().decided());
    var again = new Expected(store, life.policy);
    life.expected.heads.forEach(TreeMap::clear);
    life.expected.before.clear();
    life.expected.recorded.clear();
    life.expected.base = again.base;
    life.expected.total = 0;
    life.expected.length = 0;
    life.expected.summedTo = 0;
    life.expected.asked = -1;
    life.expected.decided = false;
    life.prefill(120, 50);
    life.decode(80);
  }

  @Test
  void theReportSaysHowLayersAreJudged() {
    var sliding = new LayerShape(2, 1, 2, 8, 8, 32, 64, true);
    var store =
        new FakeStore(
            seed,
            48,
            new LayerShape(0, 1, 2, 8, 8, 32, 512, false),
            new LayerShape(1, 1, 2, 8, 8, 32, 512, false),
            sliding);
    var manager = new CacheManager(store, policy("u").withBudget(0.5), null, new FakeKinds());
    manager.beforePrefill(60);
    store.evaluate(60);
    manager.afterPart(60, true, ForesightKeeperTest::never);
    manager.afterPrefill(new int[60], 0, 60);
    assertEquals(Set.of("undecided"), manager.report().byPolicy().keySet());
    for (int step = 0; step < 300; step++) {
      store.evaluate(1);
      manager.afterDecodeStep(5);
      manager.prepareStep();
    }
    assertEquals(
        Set.of("foresight", "foresight, no rotary positions", "foresight, window 48"),
        manager.report().byPolicy().keySet());
    assertTrue(store.slots(2, 0) < 64);
  }

  @Test
  void theBudgetIsAShareOfAnF16Cache() {
    var store =
        new FakeStore(
            seed,
            48,
            new LayerShape(0, 3, 2, 64, 32, 102, 4096, false),
            new LayerShape(1, 2, 2, 64, 32, 102, 256, true),
            new LayerShape(2, 1, 4, 576, 512, 1152, 1152, 4096, false)); // keys only
    double full = 1032.5 * 3 * 192 + 256 * 2 * 192 + 1032.5 * 1152;
    double block = 32.5 * (3 * 118 + 2 * 118 + 1168);
    assertEquals(full, ForesightBudget.full(store, 1000), 1e-6);
    assertEquals((long) Math.floor(0.25 * full - block), ForesightBudget.of(store, 0.25, 1000));
    assertTrue(ForesightBudget.of(store, 0.01, 10) < 0);
  }

  @Test
  void queriesCountForTheSlotsThatWereThere() {
    var counts = new QueryCounts();
    counts.add(10, 5);
    counts.mark();
    counts.add(30, 20);
    counts.add(30, 1);
    float[] into = new float[31];
    counts.divide(2, into);
    assertEquals(2 / 26f, into[9]);
    assertEquals(2 / 21f, into[10]);
    assertEquals(2 / 21f, into[29]);
    assertEquals(0, into[30]);
    counts.takeBack();
    assertEquals(10, counts.end());
    counts.add(12, 3);
    counts.divide(2, into);
    assertEquals(2 / 8f, into[9]);
    assertEquals(2 / 3f, into[11]);
    for (int i = 0; i < 100; i++) {
      counts.add(13 + i, 1);
    }
    assertEquals(108, counts.total());
    counts.clear();
    assertEquals(0, counts.total());
    assertEquals(0, counts.end());
  }
}
