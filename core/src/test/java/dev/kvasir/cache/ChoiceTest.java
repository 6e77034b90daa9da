package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Seeds;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

/** Choosing one candidate per head, against every possible choice. */
class ChoiceTest {
  private final long seed = Seeds.of(ChoiceTest.class);
  private final Random random = new Random(seed);

  /** Heads with random figures; nested ones for the paper's candidates. */
  static Profile randomProfile(Random random, Candidates kind, int layers, int kvHeads, int n) {
    var candidates = new ArrayList<Candidate>();
    for (int c = 0; c < n - 1; c++) {
      candidates.add(new Candidate("c" + c, false, true, false, 0.1, Window.ofTokens(c)));
    }
    candidates.add(Candidate.everything());
    var shape = new ArrayList<Profile.Layer>();
    var heads = new ArrayList<HeadProfile>();
    for (int l = 0; l < layers; l++) {
      shape.add(new Profile.Layer(l, kvHeads, 2, 64, 64, 64L * (1 + random.nextInt(3))));
      for (int h = 0; h < kvHeads; h++) {
        var recovery = new float[n];
        var cost = new int[n];
        for (int c = 0; c < n - 1; c++) {
          recovery[c] = random.nextFloat();
          cost[c] = 1 + random.nextInt(99);
        }
        if (kind == Candidates.PAPER) {
          Arrays.sort(recovery, 0, n - 1);
          Arrays.sort(cost, 0, n - 1);
        }
        recovery[n - 1] = 1;
        cost[n - 1] = 100;
        var paper = new LinkedHashMap<String, Float>();
        paper.put("special", random.nextFloat());
        paper.put("full", 1f);
        heads.add(new HeadProfile(l, h, n - 1, recovery, cost, paper));
      }
    }
    var policy = FastGen.defaults().withCandidates(kind);
    return new Profile(policy, 100, shape, candidates, heads);
  }

  private static Candidates kind(int round) {
    return round % 2 == 0 ? Candidates.PAPER : Candidates.LATTICE;
  }

  private static double sum(Profile profile) {
    return profile.heads().stream().mapToDouble(HeadProfile::recovery).sum();
  }

  @Test
  void recoveryTakesTheCheapestThatIsEnough() {
    for (int round = 0; round < 200; round++) {
      var kind = kind(round);
      var profile = randomProfile(random, kind, 2, 2, 6);
      double target = random.nextDouble();
      for (var head : profile.withTarget(Target.recovery(target)).heads()) {
        assertTrue(head.recovery() >= target, "seed " + seed);
        for (int c = 0; c < 6; c++) {
          assertTrue(head.recovery(c) < target || head.cost(c) >= head.kept(), "seed " + seed);
        }
      }
    }
  }

  @Test
  void oneKeepsEverythingEvenWhereLessWouldDo() {
    var profile = randomProfile(random, Candidates.LATTICE, 1, 1, 2);
    var head =
        new HeadProfile(0, 0, 0, new float[] {1, 1}, new int[] {5, 100}, new LinkedHashMap<>());
    var saturated =
        new Profile(profile.policy(), 100, profile.layers(), profile.candidates(), List.of(head));
    assertEquals(100, saturated.withTarget(Target.recovery(1)).heads().getFirst().kept());
    assertEquals(5, saturated.withTarget(Target.recovery(0.999)).heads().getFirst().kept());
    assertEquals(100, saturated.withTarget(Target.budgetFraction(1)).heads().getFirst().kept());
  }

  @Test
  void budgetsAreNeverExceeded() {
    for (int round = 0; round < 300; round++) {
      var profile = randomProfile(random, kind(round), 3, 2, 8);
      long budget = (long) (random.nextDouble() * 1.1 * profile.fullBytes());
      long least = profile.bytesAt(0);
      long bytes = profile.withTarget(Target.budgetBytes(budget)).bytes();
      assertTrue(bytes <= Math.max(budget, least), "seed " + seed);
      double fraction = random.nextDouble();
      long of = profile.withTarget(Target.budgetFraction(fraction)).bytes();
      assertTrue(
          of <= Math.max((long) (fraction * profile.fullBytes() + 1e-6), least), "seed " + seed);
    }
  }

  @Test
  void latticeBudgetIsCloseToTheBestOfAllChoices() {
    for (int round = 0; round < 60; round++) {
      int n = 6;
      var profile = randomProfile(random, Candidates.LATTICE, 4, 1, n);
      long budget =
          profile.bytesAt(0)
              + (long) (random.nextDouble() * (profile.fullBytes() - profile.bytesAt(0)));
      var chosen = profile.withTarget(Target.budgetBytes(budget));
      double best = 0;
      double secondPrice =
          0; // the most that one head can gain: what rounding to whole candidates may cost
      var choice = new int[4];
      for (int code = 0; code < n * n * n * n; code++) {
        long bytes = 0;
        double recovery = 0;
        for (int h = 0, rest = code; h < 4; h++, rest /= n) {
          choice[h] = rest % n;
          bytes += profile.heads().get(h).cost(choice[h]) * profile.layers().get(h).slotBytes();
          recovery += profile.heads().get(h).recovery(choice[h]);
        }
        if (bytes <= budget) {
          best = Math.max(best, recovery);
        }
      }
      for (var head : profile.heads()) {
        for (int c = 0; c < n; c++) {
          for (int d = 0; d < n; d++) {
            secondPrice = Math.max(secondPrice, head.recovery(c) - head.recovery(d));
          }
        }
      }
      assertTrue(chosen.bytes() <= budget, "seed " + seed);
      assertTrue(sum(chosen) >= best - secondPrice, "seed " + seed);
      for (int h = 0; h < 4; h++) { // nothing that is left buys more
        var head = chosen.heads().get(h);
        long slot = profile.layers().get(h).slotBytes();
        for (int c = 0; c < n; c++) {
          boolean fits = chosen.bytes() + (head.cost(c) - head.kept()) * slot <= budget;
          assertTrue(!fits || head.recovery(c) <= head.recovery(), "seed " + seed);
        }
      }
    }
  }

  /**
   * On concave heads (as they are when candidates are many) the budget is spent where it gains
   * most.
   */
  @Test
  void latticeBudgetBeatsEqualRecoveryTargets() {
    double gained = 0;
    for (int round = 0; round < 50; round++) {
      var profile = randomProfile(random, Candidates.LATTICE, 10, 3, 40);
      long budget = profile.fullBytes() / 4;
      double equal = profile.recoveryForBudget(budget).orElse(0);
      double atEqual = sum(profile.withTarget(Target.recovery(equal)));
      double atBudget = sum(profile.withTarget(Target.budgetBytes(budget)));
      assertTrue(atBudget >= atEqual - 1e-6, "seed " + seed);
      gained += atBudget - atEqual;
    }
    assertTrue(gained > 0);
  }

  @Test
  void recoveryForBudgetIsTheHighestThatFits() {
    for (int round = 0; round < 100; round++) {
      var profile = randomProfile(random, kind(round), 2, 2, 6);
      long budget = (long) (random.nextDouble() * profile.fullBytes());
      double expected = -1;
      for (var head : profile.heads()) {
        for (int c = 0; c < 6; c++) {
          double recovery = head.recovery(c);
          if (profile.bytesAt(recovery) <= budget) {
            expected = Math.max(expected, recovery);
          }
        }
      }
      var found = profile.recoveryForBudget(budget);
      if (expected < 0) {
        assertTrue(found.isEmpty(), "seed " + seed);
      } else {
        assertEquals(expected, found.getAsDouble(), "seed " + seed);
        assertTrue(profile.bytesAt(found.getAsDouble()) <= budget, "seed " + seed);
      }
      assertEquals(1, profile.recoveryForBudget(profile.fullBytes()).getAsDouble());
    }
  }

  @Test
  void bytesGrowWithTheTarget() {
    var profile = randomProfile(random, Candidates.PAPER, 3, 3, 5);
    long before = 0;
    for (double t = 0; t <= 1; t += 0.01) {
      long bytes = profile.bytesAt(t);
      assertTrue(bytes >= before, "seed " + seed);
      before = bytes;
    }
    assertEquals(profile.fullBytes(), profile.bytesAt(1));
  }

  @Test
  void aBudgetThatNothingFitsTakesTheCheapest() {
    for (var kind : Candidates.values()) {
      var profile = randomProfile(random, kind, 2, 2, 5);
      assertEquals(profile.bytesAt(0), profile.withTarget(Target.budgetBytes(0)).bytes());
      assertTrue(profile.recoveryForBudget(0).isEmpty());
    }
  }
}
