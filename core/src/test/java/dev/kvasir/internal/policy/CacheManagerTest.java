package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ProfileException;
import dev.kvasir.Seeds;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;

/**
 * The life of a sequence: when the statistic runs, when policies are chosen, what later turns and
 * clearing do.
 */
class CacheManagerTest {
  private final long seed = Seeds.of(CacheManagerTest.class);
  private final Random random = new Random(seed);
  private final FakeStore store = FakeStore.of(seed, 2, 2, 2, 2048);
  private final FakeKinds kinds = new FakeKinds();

  private void prefill(CacheManager manager, int[] text) {
    manager.beforePrefill(text.length);
    store.evaluate(text.length);
    manager.afterPrefill(text, 0, text.length);
  }

  private void decode(CacheManager manager, int steps) {
    for (int i = 0; i < steps; i++) {
      store.evaluate(1);
      manager.afterDecodeStep(random.nextInt(100));
      manager.prepareStep();
    }
  }

  private static int[] join(int[] a, int[] b) {
    var joined = Arrays.copyOf(a, a.length + b.length);
    System.arraycopy(b, 0, joined, a.length, b.length);
    return joined;
  }

  @Test
  void fullNeverCountsAndNeverDrops() {
    var manager = new CacheManager(store, CachePolicy.full(), null, kinds);
    prefill(manager, FakeKinds.text(random, 300));
    assertNull(store.bounds());
    decode(manager, 20);
    assertEquals(320, store.slots(1, 1));
    assertEquals(320, manager.position());
    assertTrue(manager.profile().isEmpty());
    var report = manager.report();
    assertTrue(report.decided());
    assertEquals(1, report.keptFraction());
    assertEquals(4, report.byPolicy().get("full").heads());
  }

  @Test
  void aLongPromptIsDecidedAtOnce() {
    var policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.4));
    var manager = new CacheManager(store, policy, null, kinds);
    manager.beforePrefill(400);
    assertArrayEquals(new int[] {1, 16, 20, 32, 40, 64, 80, 120, 160, 200}, store.bounds());
    store.evaluate(400);
    manager.afterPrefill(FakeKinds.text(random, 400), 0, 400);
    assertNull(store.bounds(), "the statistic's memory is freed");
    var profile = manager.profile().orElseThrow();
    assertEquals(400, profile.tokens());
    var report = manager.report();
    assertTrue(report.decided());
    assertEquals(profile.bytes(), report.keptBytes());
    assertTrue(report.keptFraction() <= 0.4 && report.keptFraction() > 0.3);
    assertEquals(report.keptBytes(), store.residentBytes());
    for (var head : profile.heads()) {
      var chosen = profile.chosen(head);
      assertEquals(
          chosen.frequent() > 0 && !chosen.full(), store.tracked(head.layer(), head.kvHead()));
    }
  }

  @Test
  void aChatThatOpensShortIsJudgedWhenItIsLongEnough() {
    var policy = FastGen.asPublished().withTarget(Target.recovery(0.8));
    var manager = new CacheManager(store, policy, null, kinds);
    prefill(manager, FakeKinds.text(random, 5));
    decode(manager, 100);
    prefill(manager, FakeKinds.text(random, 50));
    decode(manager, 100);
    assertEquals(255, store.slots(0, 0));
    assertTrue(manager.profile().isEmpty());
    assertFalse(manager.report().decided());
    assertEquals(4, manager.report().byPolicy().get("undecided").heads());
    decode(manager, 1);
    assertEquals(256, manager.profile().orElseThrow().tokens());
    assertTrue(manager.report().decided());
    assertTrue(manager.report().keptFraction() < 1);
  }

  @Test
  void theStatisticOfAShortBeginningStaysExact() {
    for (var candidates : Candidates.values()) {
      var policy =
          FastGen.defaults()
              .withCandidates(candidates)
              .withScore(Score.MEAN)
              .withWeight(Weight.NONE)
              .withPooling(Pooling.MEAN)
              .withMinimumTokens(64);
      store.empty();
      var manager = new CacheManager(store, policy, null, kinds);
      var first = FakeKinds.text(random, 40);
      var second = FakeKinds.text(random, 60);
      prefill(manager, first);
      manager.beforePrefill(60);
      var bounds = store.bounds();
      store.evaluate(60);
      manager.afterPrefill(second, 0, 60);
      checkRecoveries(manager.profile().orElseThrow(), bounds, join(first, second), 0, policy);
    }
  }

  @Test
  void aNegligibleBeginningIsLeftOutForExactWindows() {
    var policy =
        FastGen.defaults()
            .withWeight(Weight.NONE)
            .withMinimumTokens(64)
            .withScore(Score.MEAN)
            .withSinks(0);
    var manager = new CacheManager(store, policy, null, kinds);
    var first = FakeKinds.text(random, 24);
    var second = FakeKinds.text(random, 176);
    prefill(manager, first);
    manager.beforePrefill(176);
    var bounds = store.bounds();
    assertArrayEquals(new int[] {1, 10, 16, 20, 32, 40, 60, 64, 80, 100}, bounds);
    store.evaluate(176);
    manager.afterPrefill(second, 0, 176);
    checkRecoveries(manager.profile().orElseThrow(), bounds, join(first, second), 24, policy);
  }

  @Test
  void aPrefillThatEndsEarlyIsJudgedByWhatWasEvaluated() {
    var policy =
        FastGen.defaults().withWeight(Weight.NONE).withMinimumTokens(64).withScore(Score.MEAN);
    var manager = new CacheManager(store, policy, null, kinds);
    var text = FakeKinds.text(random, 200);
    manager.beforePrefill(200);
    var bounds = store.bounds();
    store.evaluate(90);
    manager.afterPrefill(text, 0, 90);
    assertEquals(90, manager.position());
    checkRecoveries(manager.profile().orElseThrow(), bounds, Arrays.copyOf(text, 90), 0, policy);
  }

  /**
   * Recoveries are exact for the windows that the statistic has bounds for, which are the nearest
   * to those asked for.
   */
  private void checkRecoveries(
      Profile profile, int[] bounds, int[] text, int from, FastGen policy) {
    int n = text.length;
    assertEquals(n, profile.tokens());
    var ones = new double[n];
    Arrays.fill(ones, 1);
    for (var head : profile.heads()) {
      int l = head.layer();
      int h = head.kvHead();
      var scores = Reference.scores(store, l, h, n, from, policy.score(), policy.weight());
      for (int c = 0; c < head.candidates() - 1; c++) {
        var candidate = profile.candidates().get(c);
        int asked = candidate.local().in(n);
        int window = 0;
        for (int bound : bounds) {
          if (asked > 0 && (window == 0 || Math.abs(bound - asked) < Math.abs(window - asked))) {
            window = bound;
          }
        }
        var kept = Reference.kept(candidate, text, policy.sinks(), window, scores);
        double expected = 0;
        for (int q = 0; q < 2; q++) {
          var matrix = Reference.matrix(store, l, 2 * h + q, n);
          expected += Reference.recovery(matrix, kept, window, ones, from) / 2;
        }
        assertEquals(expected, head.recovery(c), 2e-6, candidate + ", seed " + seed);
      }
    }
  }

  @Test
  void aSavedProfileServesAnotherPrompt() {
    var policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5));
    var manager = new CacheManager(store, policy, null, kinds);
    prefill(manager, FakeKinds.text(random, 300));
    var profile = Profile.fromJson(manager.profile().orElseThrow().toJson());

    store.empty();
    var again = new CacheManager(store, CachePolicy.full(), profile, kinds);
    var text = FakeKinds.text(random, 500);
    prefill(again, text);
    assertNull(store.bounds(), "nothing is profiled again");
    assertEquals(profile, again.profile().orElseThrow());
    for (var head : profile.heads()) {
      var chosen = profile.chosen(head);
      var scores =
          Reference.scores(
              store, head.layer(), head.kvHead(), 500, 0, policy.score(), policy.weight());
      int window = Math.max(policy.grace(), chosen.local().in(500));
      var expected = Reference.kept(chosen, text, policy.sinks(), window, scores);
      assertArrayEquals(
          expected.stream().mapToInt(p -> p).toArray(),
          store.held(head.layer(), head.kvHead()),
          chosen + ", seed " + seed);
    }
  }

  @Test
  void aProfileOfAnotherModelIsRefused() {
    var manager = new CacheManager(store, CachePolicy.fastgen(), null, kinds);
    prefill(manager, FakeKinds.text(random, 300));
    var profile = manager.profile().orElseThrow();
    for (var other :
        new FakeStore[] {
          FakeStore.of(1, 3, 2, 2, 2048),
          FakeStore.of(1, 2, 1, 2, 2048),
          FakeStore.of(1, 2, 2, 4, 64)
        }) {
      var e =
          assertThrows(
              ProfileException.class,
              () -> new CacheManager(other, CachePolicy.full(), profile, kinds));
      assertTrue(e.getMessage().contains("another model"), e.getMessage());
    }
  }

  @Test
  void uniformPoliciesGiveEveryHeadTheSame() {
    var manager = new CacheManager(store, CachePolicy.streaming(0.25), null, kinds);
    prefill(manager, FakeKinds.text(random, 400));
    for (int h = 0; h < 2; h++) {
      assertEquals(104, store.slots(0, h));
      assertFalse(store.tracked(0, h));
    }
    assertEquals(4, manager.report().byPolicy().get("local 25%").heads());
    assertTrue(manager.profile().isEmpty());

    store.empty();
    var h2o = new CacheManager(store, CachePolicy.h2o(0.25), null, kinds);
    var text = FakeKinds.text(random, 400);
    prefill(h2o, text);
    assertEquals(104, store.slots(0, 0));
    assertTrue(store.tracked(0, 0));
    assertEquals(4, h2o.report().byPolicy().get("frequent 12.5% + local 12.5%").heads());
  }

  @Test
  void clearingBeginsAnew() {
    var policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.3));
    var manager = new CacheManager(store, policy, null, kinds);
    var text = FakeKinds.text(random, 300);
    prefill(manager, text);
    var profile = manager.profile().orElseThrow();
    decode(manager, 30);
    store.empty();
    manager.clear();
    assertEquals(0, manager.position());
    assertTrue(manager.profile().isEmpty());
    assertFalse(manager.report().decided());
    assertEquals(1, manager.report().keptFraction());
    prefill(manager, text);
    assertEquals(profile, manager.profile().orElseThrow());
    decode(manager, 30);

    store.empty();
    manager.clear();
    prefill(manager, FakeKinds.text(random, 10));
    store.empty();
    manager.clear(); // while the statistic runs
    assertNull(store.bounds());
    prefill(manager, text);
    assertEquals(profile, manager.profile().orElseThrow());
  }

  /** A prefill that fails: what it has done is taken back, and the sequence goes on as before. */
  private void fail(CacheManager manager, int tokens) {
    int before = manager.position();
    manager.beforePrefill(tokens);
    store.evaluate(tokens);
    manager.rollBack();
    store.truncate(before);
    manager.rolledBack();
  }

  /** Before there is a statistic, while it runs, and where the prefill would have begun it anew. */
  @Test
  void aPrefillThatIsTakenBackIsNotCounted() {
    var policy =
        FastGen.defaults().withWeight(Weight.NONE).withMinimumTokens(64).withScore(Score.MEAN);
    var manager = new CacheManager(store, policy, null, kinds);
    fail(manager, 100);
    assertNull(store.bounds());
    var first = FakeKinds.text(random, 30);
    prefill(manager, first);
    var bounds = store.bounds();
    fail(manager, 20);
    assertArrayEquals(bounds, store.bounds());
    fail(manager, 1000);
    assertArrayEquals(bounds, store.bounds());
    var second = FakeKinds.text(random, 60);
    prefill(manager, second);
    checkRecoveries(manager.profile().orElseThrow(), bounds, join(first, second), 0, policy);
    fail(manager, 50);
    decode(manager, 30);
    assertEquals(120, manager.position());
  }

  @Test
  void reportsCountByPolicyAndLayer() {
    var policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5));
    var manager = new CacheManager(store, policy, null, kinds);
    prefill(manager, FakeKinds.text(random, 300));
    decode(manager, 10);
    var report = manager.report();
    assertEquals(310, report.tokens());
    long slots = 0;
    for (int l = 0; l < 2; l++) {
      long inLayer = (long) store.slots(l, 0) + store.slots(l, 1);
      assertEquals(inLayer, report.byLayer().get(l).slots());
      assertEquals(2 * 310, report.byLayer().get(l).fullSlots());
      slots += inLayer;
    }
    assertEquals(slots, report.keptSlots());
    assertEquals(slots * 32, report.keptBytes());
    assertEquals(slots / (4 * 310.0), report.keptFraction(), 1e-12);
    assertEquals(4 * 310 * 32L, report.total().fullBytes());
    assertEquals(slots, report.byPolicy().values().stream().mapToLong(u -> u.slots()).sum());
    assertEquals(store.residentBytes(), report.residentBytes());
    assertEquals(store.fullBytes(), report.allocatedBytes());
  }

  @Test
  void markersAndSinksAreSpecial() {
    var log = new TokenLog(kinds, 2, 4);
    for (int token : new int[] {70, 70, 50, 51, 51, 50, 51, 52, 60, 61, 2, 7}) {
      log.append(token);
    }
    int s = TokenLog.SPECIAL;
    int[] expected = {
      TokenLog.SINK, TokenLog.SINK, 0, 0, 0, s, s, s, s, s, s, TokenLog.PUNCTUATION
    };
    for (int p = 0; p < expected.length; p++) {
      assertEquals(expected[p], log.flags()[p], "position " + p);
    }
  }
}
