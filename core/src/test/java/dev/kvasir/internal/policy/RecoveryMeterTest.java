package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Seeds;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.Kind;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Recovery and cost from the statistic, against whole attention matrices in double precision. */
class RecoveryMeterTest {
  private final long seed = Seeds.of(RecoveryMeterTest.class);
  private final Random random = new Random(seed);

  private FastGen randomPolicy(Candidates candidates) {
    var order = new ArrayList<>(List.of(Kind.values()));
    Collections.shuffle(order, random);
    return FastGen.defaults()
        .withCandidates(candidates)
        .withOrder(order.subList(0, 1 + random.nextInt(4)))
        .withPooling(random.nextBoolean() ? Pooling.MEAN : Pooling.MIN)
        .withScore(random.nextBoolean() ? Score.SUM : Score.MEAN)
        .withWeight(random.nextBoolean() ? Weight.NONE : Weight.VALUE)
        .withLocal(random.nextInt(11) / 10.0)
        .withFrequent(random.nextInt(11) / 10.0)
        .withSinks(random.nextInt(6))
        .withGrace(random.nextInt(20))
        .withMinimumTokens(16)
        .withTarget(Target.recovery(0.5 + 0.5 * random.nextDouble()));
  }

  private static Profile profile(FakeStore store, FastGen policy, int[] text) {
    var manager = new CacheManager(store, policy, null, new FakeKinds());
    manager.beforePrefill(text.length);
    store.evaluate(text.length);
    manager.afterPrefill(text, 0, text.length);
    return manager.profile().orElseThrow();
  }

  private void checkHead(
      FakeStore store,
      FastGen policy,
      int[] text,
      Candidate candidate,
      float actual,
      int l,
      int h) {
    int n = text.length;
    int window = candidate.local().in(n);
    var scores = Reference.scores(store, l, h, n, 0, policy.score(), policy.weight());
    var weights = new double[n];
    for (int j = 0; j < n; j++) {
      weights[j] = policy.weight() == Weight.VALUE ? store.norm(l, h, j) : 1;
    }
    // the static and frequent tokens; those of the last window are of no account to the query's own
    // window
    var always = Reference.kept(candidate, text, policy.sinks(), window, scores);
    int group = store.shape(l).queryGroup();
    double expected = policy.pooling() == Pooling.MIN ? 1 : 0;
    double kept = 0;
    double total = 0;
    for (int q = 0; q < group; q++) {
      var matrix = Reference.matrix(store, l, h * group + q, n);
      double recovery = Reference.recovery(matrix, always, window, weights, 0);
      double mass = 0;
      for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
          mass += matrix[i][j] * weights[j];
        }
      }
      kept += recovery * mass;
      total += mass;
      expected = Math.min(expected, recovery);
    }
    if (policy.pooling() == Pooling.MEAN) {
      expected = kept / total;
    }
    assertEquals(expected, actual, 2e-6, () -> candidate + " in " + policy + ", seed " + seed);
  }

  @ParameterizedTest
  @EnumSource
  void equalsWholeAttentionMatrices(Candidates candidates) {
    for (int round = 0; round < 12; round++) {
      var store = FakeStore.of(random.nextLong(), 2, 2, 1 + random.nextInt(3), 256);
      var policy = randomPolicy(candidates);
      var text = FakeKinds.text(random, 16 + random.nextInt(70));
      var profile = profile(store, policy, text);
      for (var head : profile.heads()) {
        for (int c = 0; c < head.candidates(); c++) {
          var candidate = profile.candidates().get(c);
          checkHead(store, policy, text, candidate, head.recovery(c), head.layer(), head.kvHead());
        }
        for (var candidate : CandidateLists.paper(policy)) {
          float named = head.paperRecovery().get(candidate.name());
          checkHead(store, policy, text, candidate, named, head.layer(), head.kvHead());
        }
      }
    }
  }

  @Test
  void costIsWhatIsHeldAfterCompaction() {
    for (int round = 0; round < 20; round++) {
      var candidates = random.nextBoolean() ? Candidates.PAPER : Candidates.LATTICE;
      var policy = randomPolicy(candidates);
      var text = FakeKinds.text(random, 16 + random.nextInt(100));
      var store = FakeStore.of(random.nextLong(), 2, 2, 2, 256);
      var profile = profile(store, policy, text);
      for (var head : profile.heads()) {
        var chosen = profile.chosen(head);
        int l = head.layer();
        int h = head.kvHead();
        var scores = Reference.scores(store, l, h, text.length, 0, policy.score(), policy.weight());
        int window = Math.max(policy.grace(), chosen.local().in(text.length));
        var expected = Reference.kept(chosen, text, policy.sinks(), window, scores);
        assertArrayEquals(
            expected.stream().mapToInt(p -> p).toArray(),
            store.held(l, h),
            () -> chosen + " in " + policy + ", seed " + seed);
        assertEquals(head.kept(), store.slots(l, h), "seed " + seed);
      }
    }
  }

  @Test
  void paperCandidatesAreNestedInEveryOrder() {
    for (int round = 0; round < 20; round++) {
      var policy = randomPolicy(Candidates.PAPER).withOrder(shuffledKinds());
      var profile =
          profile(
              FakeStore.of(random.nextLong(), 2, 2, 2, 256),
              policy,
              FakeKinds.text(random, 16 + random.nextInt(80)));
      var names = profile.candidates().stream().map(Candidate::name).toList();
      var expected = new ArrayList<>(policy.order().stream().map(Kind::label).toList());
      expected.add("full");
      assertEquals(expected, names);
      for (var head : profile.heads()) {
        for (int c = 1; c < head.candidates(); c++) {
          assertTrue(head.recovery(c) >= head.recovery(c - 1) - 1e-6, "seed " + seed);
          assertTrue(head.cost(c) >= head.cost(c - 1), "seed " + seed);
        }
        assertEquals(1f, head.recovery(head.candidates() - 1));
      }
    }
  }

  private List<Kind> shuffledKinds() {
    var kinds = new ArrayList<>(List.of(Kind.values()));
    Collections.shuffle(kinds, random);
    return kinds;
  }

  @ParameterizedTest
  @EnumSource
  void fullRecoveryKeepsEverything(Candidates candidates) {
    var store = FakeStore.of(seed, 2, 2, 2, 256);
    var text = FakeKinds.text(random, 100);
    var policy = randomPolicy(candidates).withTarget(Target.recovery(1));
    var profile = profile(store, policy, text);
    assertEquals(profile.fullBytes(), profile.bytes());
    for (var head : profile.heads()) {
      assertEquals("full", profile.chosen(head).name());
      assertEquals(100, store.slots(head.layer(), head.kvHead()));
    }
  }

  @Test
  void latticeHasTheBriefsPairs() {
    var lattice = CandidateLists.of(FastGen.defaults());
    assertEquals(14 * 9 + 1, lattice.size());
    assertTrue(lattice.getLast().full());
    assertEquals(lattice.size(), lattice.stream().map(Candidate::name).distinct().count());
    assertTrue(lattice.stream().anyMatch(c -> c.name().equals("frequent 5% + local 10%")));
    assertTrue(lattice.stream().anyMatch(c -> c.name().equals("local 16")));
    assertTrue(lattice.stream().noneMatch(c -> !c.full() && c.punctuation()));
  }

  @Test
  void theNthRankIsTheOneThatSortingWouldPutThere() {
    for (int round = 0; round < 300; round++) {
      int count = 1 + random.nextInt(200);
      var ranks = new long[count + 5]; // what lies behind is not looked at
      for (int i = 0; i < ranks.length; i++) {
        ranks[i] = Ranking.rank(round % 3 == 0 ? i / 7 : random.nextFloat(), i);
      }
      for (int i = count - 1; i > 0 && round % 2 == 0; i--) { // else they ascend
        int other = random.nextInt(i + 1);
        long swap = ranks[i];
        ranks[i] = ranks[other];
        ranks[other] = swap;
      }
      int n = random.nextInt(count);
      var sorted = Arrays.copyOf(ranks, count);
      Arrays.sort(sorted);
      assertEquals(sorted[n], Ranking.nth(ranks, count, n), "seed " + seed);
      Arrays.sort(ranks, 0, count);
      assertArrayEquals(sorted, Arrays.copyOf(ranks, count), "seed " + seed);
    }
  }

  @Test
  void ranksOrderByScoreAndThenByPosition() {
    var ranks = new long[200];
    var scores = new float[200];
    for (int i = 0; i < ranks.length; i++) {
      scores[i] = random.nextInt(4) == 0 ? 0 : random.nextFloat() * random.nextInt(100);
      ranks[i] = Ranking.rank(scores[i], i);
      assertEquals(i, Ranking.positionOf(ranks[i]));
    }
    Arrays.sort(ranks);
    for (int i = 1; i < ranks.length; i++) {
      int a = Ranking.positionOf(ranks[i - 1]);
      int b = Ranking.positionOf(ranks[i]);
      assertTrue(scores[a] < scores[b] || (scores[a] == scores[b] && a < b), "seed " + seed);
    }
    assertEquals(Ranking.rank(0, 3), Ranking.rank(Float.NaN, 3));
    assertEquals(Ranking.rank(0, 3), Ranking.rank(-1, 3));
  }

  @Test
  void measuresTheTokensThatASlidingLayerStillHas() {
    var sliding = new LayerShape(0, 1, 2, 8, 8, 32, 48, true);
    var base = new LayerShape(1, 1, 2, 8, 8, 32, 256, false);
    var store = new FakeStore(seed, 32, sliding, base);
    var policy = randomPolicy(Candidates.PAPER).withOrder(shuffledKinds());
    var profile = profile(store, policy, FakeKinds.text(random, 120));
    HeadProfile head = profile.heads().getFirst();
    assertEquals(48, head.slots());
    assertEquals(120, profile.heads().getLast().slots());
    for (int c = 0; c < head.candidates(); c++) {
      assertTrue(head.recovery(c) >= 0 && head.recovery(c) <= 1);
      assertTrue(head.cost(c) <= 48);
    }
    assertTrue(store.slots(0, 0) == head.kept(), "seed " + seed);
  }
}
