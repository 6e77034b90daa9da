package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Seeds;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Uniform;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NavigableSet;
import java.util.Random;
import java.util.TreeMap;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Re-applying the policies at every decode step, against a simple reference that holds sets of
 * positions.
 */
class DecodeTest {
  private final long seed = Seeds.of(DecodeTest.class);
  private final Random random = new Random(seed);

  /** What one head should hold, kept step by step in plain sets. */
  private final class SimpleHead {
    final FakeStore store;
    final Candidate candidate;
    final int layer;
    final int head;
    final int window;
    final int sinks;
    final Score score;
    final Weight weight;
    final double phase;
    final List<Integer> tokens = new ArrayList<>();
    final TreeSet<Integer> held = new TreeSet<>();
    List<Integer> toGo = new ArrayList<>(); // ascending by score when it was ranked
    final TreeMap<Integer, Double> rankedAt = new TreeMap<>();
    boolean first = true;
    int batch;
    int leaving = -1; // the position that leaves the window in the next step
    double leavingScore;

    SimpleHead(
        FakeStore store, FastGen policy, Candidate candidate, int l, int h, int n, double phase) {
      this.store = store;
      this.candidate = candidate;
      this.layer = l;
      this.head = h;
      this.window = Math.max(policy.grace(), candidate.local().in(n));
      this.sinks = policy.sinks();
      this.score = policy.score();
      this.weight = policy.weight();
      this.phase = phase;
    }

    double score(int position) {
      for (int s = 0; s < store.slots(layer, head); s++) {
        if (store.position(layer, head, s) == position) {
          float value = store.score(layer, head, s);
          if (score == Score.MEAN) {
            value /= tokens.size() - position;
          }
          return weight == Weight.VALUE ? value * store.norm(layer, head, position) : value;
        }
      }
      throw new AssertionError("position " + position + " is gone, seed " + seed);
    }

    NavigableSet<Integer> pinned() {
      return Reference.pinned(candidate, tokens.stream().mapToInt(t -> t).toArray(), sinks);
    }

    NavigableSet<Integer> frequent() {
      var frequent = new TreeSet<>(held);
      frequent.removeAll(pinned());
      frequent.tailSet(tokens.size() - window).clear();
      return frequent;
    }

    void decode(int token) {
      int position = tokens.size();
      tokens.add(token);
      held.add(position);
      if (candidate.full()) {
        return;
      }
      int left = position - window;
      if (candidate.frequent() == 0) {
        var gone = frequent();
        held.removeAll(gone);
        return;
      }
      if (left >= 0 && left == leaving && !pinned().contains(left) && !toGo.isEmpty()) {
        double score = leavingScore;
        if (score < rankedAt.get(toGo.getLast())) {
          int at = 0;
          while (rankedAt.get(toGo.get(at)) <= score) {
            at++;
          }
          toGo.add(at, left);
          rankedAt.put(left, score);
          if (toGo.size() > batch) {
            toGo.removeLast();
          }
        }
      }
      while (frequent().size() > candidate.frequentIn(tokens.size())) {
        if (toGo.isEmpty()) {
          rank();
        }
        held.remove(toGo.removeFirst());
      }
      prepareStep();
    }

    private void prepareStep() {
      int frequent = frequent().size();
      if (toGo.isEmpty() && frequent > 0 && frequent >= candidate.frequentIn(tokens.size())) {
        rank();
      }
      leaving = tokens.size() - window;
      if (held.contains(leaving)) {
        leavingScore = score(leaving);
      } else {
        leaving = -1;
      }
    }

    private void rank() {
      batch = HeadPolicy.batch(held.size());
      if (first) {
        batch = Math.max(1, (int) (phase * batch));
        first = false;
      }
      rankedAt.clear();
      for (int p : frequent()) {
        rankedAt.put(p, score(p));
      }
      toGo = new ArrayList<>(frequent());
      toGo.sort((a, b) -> Double.compare(rankedAt.get(a), rankedAt.get(b)));
      toGo = new ArrayList<>(toGo.subList(0, Math.min(batch, toGo.size())));
    }

    void prefill(int[] text) {
      for (int token : text) {
        held.add(tokens.size());
        tokens.add(token);
      }
      if (candidate.full()) {
        return;
      }
      var others = new ArrayList<>(frequent());
      others.sort((a, b) -> Double.compare(score(b), score(a)));
      int quota = candidate.frequentIn(tokens.size());
      if (others.size() > quota) {
        others.subList(quota, others.size()).forEach(held::remove);
      }
      toGo.clear();
      first = true;
      if (candidate.frequent() > 0) {
        prepareStep();
      }
    }
  }

  /** A profile that gives every head a random candidate of its own. */
  static Profile randomChoice(FakeStore store, FastGen policy, Random random) {
    var candidates = CandidateLists.of(policy);
    var layers = new ArrayList<Profile.Layer>();
    var heads = new ArrayList<HeadProfile>();
    for (int l = 0; l < store.layers(); l++) {
      var s = store.shape(l);
      layers.add(
          new Profile.Layer(
              s.layer(), s.kvHeads(), s.queryGroup(), s.keyDim(), s.valueDim(), s.slotBytes()));
      for (int h = 0; h < s.kvHeads(); h++) {
        var recovery = new float[candidates.size()];
        var cost = new int[candidates.size()];
        recovery[recovery.length - 1] = 1;
        int chosen = random.nextInt(candidates.size());
        heads.add(new HeadProfile(s.layer(), h, chosen, recovery, cost, new LinkedHashMap<>()));
      }
    }
    return new Profile(policy, 1, layers, candidates, heads);
  }

  private FastGen randomPolicy() {
    return FastGen.defaults()
        .withCandidates(random.nextBoolean() ? Candidates.PAPER : Candidates.LATTICE)
        .withScore(random.nextBoolean() ? Score.SUM : Score.MEAN)
        .withWeight(random.nextBoolean() ? Weight.NONE : Weight.VALUE)
        .withLocal(random.nextInt(6) / 10.0)
        .withFrequent(random.nextInt(6) / 10.0)
        .withSinks(random.nextInt(6))
        .withGrace(3 + random.nextInt(18)) // at least a marker sequence
        .withMinimumTokens(20);
  }

  @Test
  void everyStepHoldsWhatTheSimpleReferenceHolds() {
    int steps = 0;
    for (int round = 0; round < 16; round++) {
      boolean noGrace =
          round % 4 == 0; // then a token can be gone before its marker sequence is complete
      var store = FakeStore.of(random.nextLong(), 2, 3, 1 + random.nextInt(2), 1024);
      var policy =
          noGrace
              ? FastGen.asPublished()
                  .withScore(Score.MEAN)
                  .withWeight(Weight.VALUE)
                  .withGrace(0)
                  .withMinimumTokens(20)
              : randomPolicy();
      var profile = randomChoice(store, policy, random);
      var manager = new CacheManager(store, policy, profile, new FakeKinds());
      var prompt = FakeKinds.text(random, 20 + random.nextInt(80));
      var simple = new ArrayList<SimpleHead>();
      for (var head : profile.heads()) {
        double phase = (simple.size() + 1.0) / profile.heads().size();
        simple.add(
            new SimpleHead(
                store,
                policy,
                profile.chosen(head),
                head.layer(),
                head.kvHead(),
                prompt.length,
                phase));
      }
      prefill(manager, store, simple, prompt, policy);
      for (int turn = 0; turn < 3; turn++) {
        int replies = 40 + random.nextInt(80);
        for (int i = 0; i < replies; i++, steps++) {
          // markers now and then, so that tokens become special afterwards
          int[] next =
              noGrace || random.nextInt(20) > 0
                  ? new int[] {random.nextInt(noGrace ? 50 : 100)}
                  : new int[] {50, 51, 52};
          for (int token : next) {
            store.evaluate(1);
            simple.forEach(s -> s.decode(token));
            int flushes = store.flushes;
            manager.afterDecodeStep(token);
            manager.prepareStep();
            assertTrue(store.flushes <= flushes + 1, "one native call per step, seed " + seed);
            compare(store, simple, policy);
          }
        }
        prefill(manager, store, simple, FakeKinds.text(random, 1 + random.nextInt(50)), policy);
      }
    }
    assertTrue(steps > 1500);
  }

  private void prefill(
      CacheManager manager, FakeStore store, List<SimpleHead> simple, int[] text, FastGen policy) {
    manager.beforePrefill(text.length);
    store.evaluate(text.length);
    simple.forEach(s -> s.prefill(text));
    manager.afterPrefill(text, 0, text.length);
    compare(store, simple, policy);
  }

  private void compare(FakeStore store, List<SimpleHead> simple, FastGen policy) {
    for (var s : simple) {
      assertArrayEquals(
          s.held.stream().mapToInt(p -> p).toArray(),
          store.held(s.layer, s.head),
          () ->
              "layer %d, head %d, %s of %s at %d tokens, seed %d"
                  .formatted(s.layer, s.head, s.candidate, policy, s.tokens.size(), seed));
      int bound =
          s.candidate.full()
              ? s.tokens.size()
              : s.pinned().size() + s.window + s.candidate.frequentIn(s.tokens.size());
      assertTrue(store.slots(s.layer, s.head) <= bound, "seed " + seed);
    }
  }

  /**
   * A store that reads ahead as the real one does: what is read ahead is of that time. Where scores
   * are not at hand, as on a GPU, all else is waited for.
   */
  static class AheadStore extends FakeStore {
    private record Key(int layer, int head, Reading reading) {}

    private record Span(int first, float[] values) {}

    private final Map<Key, Span> announced = new HashMap<>();
    private final Map<Key, Span> ahead = new HashMap<>();
    private final boolean scoresAtHand;
    int waits; // for what was not read ahead

    AheadStore(boolean scoresAtHand, long seed, LayerShape... shapes) {
      super(seed, 0, shapes);
      this.scoresAtHand = scoresAtHand;
    }

    @Override
    public boolean scoresAtHand(int layer) {
      return scoresAtHand;
    }

    @Override
    public void announce(int layer, int head, Reading reading, int first, int count) {
      int columns = reading == Reading.STATISTIC ? bounds().length + 1 : 1;
      var before =
          announced.put(new Key(layer, head, reading), new Span(first, new float[columns * count]));
      assertNull(before, "announced twice");
      assertTrue(first + count <= slots(layer, head), "slots that are not there");
    }

    @Override
    public void forgetQueued() {
      super.forgetQueued();
      announced.clear();
      ahead.clear();
    }

    @Override
    public void readAhead() {
      ahead.clear();
      ahead.putAll(announced);
      announced.clear();
      ahead.forEach(this::readNow);
    }

    private void readNow(Key of, Span to) {
      int count = to.values.length;
      switch (of.reading) {
        case SCORES -> super.readScores(of.layer, of.head, to.first, count, to.values);
        case VALUE_NORMS -> super.valueNorms(of.layer, of.head, to.first, count, to.values);
        case STATISTIC -> super.readStatistic(of.layer, of.head, to.values, count);
      }
    }

    private synchronized void read(
        int layer, int head, Reading reading, int first, int count, float[] into) {
      var key = new Key(layer, head, reading);
      var span = ahead.get(key);
      if (span == null || first < span.first || first + count > span.first + span.values.length) {
        waits++;
        span = new Span(first, new float[count]);
        readNow(key, span);
      }
      System.arraycopy(span.values, first - span.first, into, 0, count);
    }

    @Override
    public void readScores(int layer, int head, int first, int count, float[] into) {
      read(layer, head, Reading.SCORES, first, count, into);
    }

    @Override
    public void valueNorms(int layer, int head, int first, int count, float[] into) {
      read(layer, head, Reading.VALUE_NORMS, first, count, into);
    }

    @Override
    public void readStatistic(int layer, int head, float[] into, int count) {
      read(layer, head, Reading.STATISTIC, 0, count, into);
    }
  }

  /**
   * Whatever is chosen and dropped, at the end of prompts, in steps, and after evaluations were
   * taken back: where scores are not at hand the same tokens are held, and nothing is waited for.
   */
  @Test
  void whereScoresAreNotAtHandTheSameIsHeldAndNothingWaitedFor() {
    for (int round = 0; round < 8; round++) {
      var shape = new LayerShape(0, 6, 2, 8, 8, 32, 2048, false);
      long storeSeed = random.nextLong();
      var near = new AheadStore(true, storeSeed, shape);
      var far = new AheadStore(false, storeSeed, shape);
      CachePolicy policy =
          round % 2 == 0
              ? randomPolicy().withTarget(Target.budgetFraction(0.2 + 0.5 * random.nextDouble()))
              : CachePolicy.uniform(0.1 + 0.4 * random.nextDouble(), 0.3 * random.nextDouble())
                  .withScore(random.nextBoolean() ? Score.SUM : Score.MEAN)
                  .withWeight(random.nextBoolean() ? Weight.NONE : Weight.VALUE)
                  .withMinimumTokens(20);
      var nearManager = new CacheManager(near, policy, null, new FakeKinds());
      var farManager = new CacheManager(far, policy, null, new FakeKinds());
      for (int turn = 0; turn < 3; turn++) {
        int[] text = FakeKinds.text(random, 30 + random.nextInt(200));
        prefill(nearManager, near, text);
        prefill(farManager, far, text);
        int steps = 50 + random.nextInt(200);
        for (int step = 0; step < steps; step++) {
          int token = random.nextInt(50); // none of a marker sequence
          decode(nearManager, near, token);
          decode(farManager, far, token);
          for (int h = 0; h < 6; h++) {
            int head = h;
            assertArrayEquals(
                near.held(0, h),
                far.held(0, h),
                () -> "head " + head + " of " + policy + ", seed " + seed);
          }
        }
        assertEquals(0, far.waits, "seed " + seed);
        nearManager.rolledBack();
        farManager.rolledBack();
      }
      assertTrue(held(far) < 6 * far.position(0, 0, far.slots(0, 0) - 1), "nothing was dropped");
    }
  }

  private static void prefill(CacheManager manager, FakeStore store, int[] text) {
    manager.beforePrefill(text.length);
    store.evaluate(text.length);
    manager.afterPrefill(text, 0, text.length);
  }

  private static void decode(CacheManager manager, FakeStore store, int token) {
    store.evaluate(1);
    manager.afterDecodeStep(token);
    manager.prepareStep();
  }

  private static int held(FakeStore store) {
    int slots = 0;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        slots += store.slots(l, h);
      }
    }
    return slots;
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void longGenerationNeverHoldsMoreThanThePolicySays(boolean scoresAtHand) {
    var shape = new LayerShape(0, 2, 1, 8, 8, 32, 4096, false);
    var store = scoresAtHand ? new FakeStore(seed, 0, shape) : new AheadStore(false, seed, shape);
    var policy = CachePolicy.h2o(0.1).withMinimumTokens(64).withGrace(8);
    var manager = new CacheManager(store, policy, null, new FakeKinds());
    var text = FakeKinds.text(random, 200);
    manager.beforePrefill(text.length);
    store.evaluate(text.length);
    manager.afterPrefill(text, 0, text.length);
    for (int length = 201; length <= 3000; length++) {
      store.evaluate(1);
      manager.afterDecodeStep(random.nextInt(100));
      manager.prepareStep();
      for (int h = 0; h < 2; h++) {
        var held = store.held(0, h);
        assertEquals(4 + 10 + Math.floorDiv(length, 20), held.length, 1, "seed " + seed);
        assertTrue(held.length <= 4 + 10 + length / 20, "seed " + seed);
        for (int sink = 0; sink < 4; sink++) {
          assertEquals(sink, held[sink], "sinks stay, seed " + seed);
        }
        for (int w = 0; w < 10; w++) {
          assertEquals(length - 1 - w, held[held.length - 1 - w], "the window stays, seed " + seed);
        }
      }
    }
    if (store instanceof AheadStore ahead) {
      assertEquals(0, ahead.waits, "seed " + seed);
    }
  }

  /**
   * A policy that ranks new tokens by what they have received so far would drop every one of them
   * at once.
   */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void newTokensFindTheirWayAmongTheFrequentOnes(boolean scoresAtHand) {
    var shape = new LayerShape(0, 1, 1, 8, 8, 32, 2048, false);
    for (var score : Score.values()) {
      var store =
          scoresAtHand
              ? new FakeStore(seed, 0, shape) {
                @Override
                double logit(int layer, int queryHead, int query, int key) {
                  return heavyNowAndThen(key);
                }
              }
              : new AheadStore(false, seed, shape) {
                @Override
                double logit(int layer, int queryHead, int query, int key) {
                  return heavyNowAndThen(key);
                }
              };
      Uniform policy = CachePolicy.uniform(0.1, 0).withScore(score).withMinimumTokens(32);
      var manager = new CacheManager(store, policy, null, new FakeKinds());
      var text = FakeKinds.text(random, 64);
      manager.beforePrefill(text.length);
      store.evaluate(text.length);
      manager.afterPrefill(text, 0, text.length);
      for (int i = 0; i < 600; i++) {
        store.evaluate(1);
        manager.afterDecodeStep(70);
        manager.prepareStep();
      }
      var held = Arrays.stream(store.held(0, 0)).boxed().toList();
      for (int heavy = 10; heavy < 664 - policy.grace(); heavy += 50) {
        assertTrue(held.contains(heavy), score + ": " + heavy + " not in " + held);
      }
    }
  }

  /** Every fiftieth token is a heavy hitter, early or late. */
  private static double heavyNowAndThen(int key) {
    return key % 50 == 10 ? 5 : 0;
  }

  @Test
  void headsWithoutFrequentOrLocalDropATokenAfterTheGracePeriod() {
    var store = FakeStore.of(seed, 1, 1, 1, 512);
    var policy = FastGen.asPublished().withMinimumTokens(16).withGrace(5).withSinks(2);
    var profile = fixed(store, policy, 0); // special only
    var manager = new CacheManager(store, policy, profile, new FakeKinds());
    var text = new int[40];
    Arrays.fill(text, 70);
    text[20] = 3; // a control token
    manager.beforePrefill(40);
    store.evaluate(40);
    manager.afterPrefill(text, 0, 40);
    assertArrayEquals(new int[] {0, 1, 20, 35, 36, 37, 38, 39}, store.held(0, 0));
    store.evaluate(1);
    manager.afterDecodeStep(70);
    assertArrayEquals(new int[] {0, 1, 20, 36, 37, 38, 39, 40}, store.held(0, 0));
  }

  @Test
  void withoutGraceATokenIsDroppedInItsOwnStep() {
    var store = FakeStore.of(seed, 1, 1, 1, 512);
    var policy = FastGen.asPublished().withMinimumTokens(16).withGrace(0).withSinks(1);
    var manager = new CacheManager(store, policy, fixed(store, policy, 0), new FakeKinds());
    var text = new int[20];
    Arrays.fill(text, 70);
    manager.beforePrefill(20);
    store.evaluate(20);
    manager.afterPrefill(text, 0, 20);
    assertArrayEquals(new int[] {0}, store.held(0, 0));
    store.evaluate(1);
    manager.afterDecodeStep(70);
    assertArrayEquals(new int[] {0}, store.held(0, 0));
    store.evaluate(1);
    manager.afterDecodeStep(2);
    assertArrayEquals(new int[] {0, 21}, store.held(0, 0), "true positions, not retained counts");
  }

  private static Profile fixed(FakeStore store, FastGen policy, int candidate) {
    var any = randomChoice(store, policy, new Random(1));
    var heads = new ArrayList<HeadProfile>();
    for (var head : any.heads()) {
      int n = head.candidates();
      heads.add(
          new HeadProfile(
              head.layer(),
              head.kvHead(),
              candidate,
              new float[n],
              new int[n],
              new LinkedHashMap<>()));
    }
    return new Profile(policy, 1, any.layers(), any.candidates(), heads);
  }

  @Test
  void slidingLayersHoldTheirPolicyAmongTheTokensThatAreThere() {
    for (int round = 0; round < 12; round++) {
      var sliding = new LayerShape(0, 3, 1, 8, 8, 32, 64, true);
      var base = new LayerShape(1, 3, 1, 8, 8, 32, 1024, false);
      var again = new LayerShape(2, 3, 1, 8, 8, 32, 64, true);
      var store = new FakeStore(random.nextLong(), 48, sliding, base, again);
      var policy = randomPolicy();
      var profile = randomChoice(store, policy, random);
      var manager = new CacheManager(store, policy, profile, new FakeKinds());
      var tokens = new ArrayList<Integer>();
      var text = FakeKinds.text(random, 20 + random.nextInt(120));
      int promptLength = text.length;
      for (int turn = 0; turn < 3; turn++) {
        manager.beforePrefill(text.length);
        store.evaluate(text.length);
        manager.afterPrefill(text, 0, text.length);
        Arrays.stream(text).forEach(tokens::add);
        checkSliding(store, policy, profile, tokens, promptLength);
        for (int i = 0; i < 100; i++) {
          store.evaluate(1);
          int token = random.nextInt(100);
          tokens.add(token);
          var before = new ArrayList<int[]>();
          profile.heads().forEach(h -> before.add(store.held(h.layer(), h.kvHead())));
          manager.afterDecodeStep(token);
          checkOnlyWhatMustGoGoes(store, policy, profile, tokens, promptLength, before);
          checkSliding(store, policy, profile, tokens, promptLength);
        }
        text = FakeKinds.text(random, 1 + random.nextInt(90));
      }
    }
  }

  /** A frequent token is dropped only by a head that holds all the frequent tokens that it may. */
  private void checkOnlyWhatMustGoGoes(
      FakeStore store,
      FastGen policy,
      Profile profile,
      List<Integer> tokens,
      int promptLength,
      List<int[]> before) {
    var ids = tokens.stream().mapToInt(t -> t).toArray();
    for (int i = 0; i < before.size(); i++) {
      var head = profile.heads().get(i);
      var candidate = profile.chosen(head);
      var held = store.held(head.layer(), head.kvHead());
      if (held.length == before.get(i).length || candidate.frequent() == 0) {
        continue;
      }
      int window = Math.max(policy.grace(), candidate.local().in(promptLength));
      var pinned = Reference.pinned(candidate, ids, policy.sinks());
      long frequent =
          Arrays.stream(held).filter(p -> p < ids.length - window && !pinned.contains(p)).count();
      int cells = store.shape(head.layer()).cells();
      assertEquals(
          candidate.frequentIn(Math.min(ids.length, cells)),
          frequent,
          () -> "layer %d, %s at %d, seed %d".formatted(head.layer(), candidate, ids.length, seed));
    }
  }

  private void checkSliding(
      FakeStore store, FastGen policy, Profile profile, List<Integer> tokens, int promptLength) {
    int length = tokens.size();
    var ids = tokens.stream().mapToInt(t -> t).toArray();
    for (var head : profile.heads()) {
      var candidate = profile.chosen(head);
      int cells = store.shape(head.layer()).cells();
      var held = new TreeSet<Integer>();
      Arrays.stream(store.held(head.layer(), head.kvHead())).forEach(held::add);
      int present = Math.max(0, length - cells);
      String where =
          "layer %d, %s of %s at %d, seed %d"
              .formatted(head.layer(), candidate, policy, length, seed);
      assertTrue(held.isEmpty() || held.getFirst() >= present, where);
      if (candidate.full()) {
        assertEquals(Math.min(length, cells), held.size(), where);
        continue;
      }
      int window = Math.max(policy.grace(), candidate.local().in(promptLength));
      for (int p = Math.max(present, length - window); p < length; p++) {
        assertTrue(held.contains(p), where);
      }
      var pinned = Reference.pinned(candidate, ids, policy.sinks());
      held.removeAll(pinned);
      held.tailSet(length - window).clear();
      int quota = candidate.frequentIn(Math.min(length, cells));
      assertTrue(held.size() <= quota, () -> where + ": " + held.size() + " > " + quota);
    }
  }
}
