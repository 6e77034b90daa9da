package dev.kvasir.internal.policy;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Seeds;
import dev.kvasir.cache.HeadLosses;
import dev.kvasir.cache.LossProfile;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;

/** The slots that stay are those of the largest losses per byte, and no byte more than allowed. */
class LossChoiceTest {
  private final long seed = Seeds.of(LossChoiceTest.class);
  private final Random random = new Random(seed);

  /** Slots with given positions and scores. */
  private static final class GivenStore extends FakeStore {
    final int[][][] position;
    final float[][][] score;

    GivenStore(int[][][] position, float[][][] score, LayerShape... shapes) {
      super(1, 0, shapes);
      this.position = position;
      this.score = score;
    }

    @Override
    public int slots(int layer, int head) {
      return position[layer][head].length;
    }

    @Override
    public void readPositions(int layer, int head, int[] into, int count) {
      System.arraycopy(position[layer][head], 0, into, 0, count);
    }

    @Override
    public void readScores(int layer, int head, int first, int count, float[] into) {
      System.arraycopy(score[layer][head], first, into, 0, count);
    }
  }

  private record Slot(int head, int slot, float loss, long bytes) {}

  private static LayerShape shape(int layer, int heads, long bytes) {
    return new LayerShape(layer, heads, 2, 8, 8, bytes, 1 << 20, false);
  }

  private float score(int kind) {
    return switch (kind) {
      case 0 -> (float) Math.exp(6 * random.nextGaussian());
      case 1 -> random.nextInt(5); // ties
      case 2 ->
          switch (random.nextInt(8)) {
            case 0 -> 0;
            case 1 -> -0f;
            case 2 -> Float.POSITIVE_INFINITY;
            case 3 -> Float.NaN;
            case 4 -> Float.MIN_VALUE * random.nextInt(9);
            case 5 -> Float.MAX_VALUE;
            case 6 -> -1;
            default -> random.nextFloat();
          };
      case 3 -> 1 + random.nextInt(3000) * 0x1p-23f; // differ in the last bits
      default -> 3;
    };
  }

  private GivenStore randomStore(int slots) {
    int layers = 1 + random.nextInt(3);
    var shapes = new LayerShape[layers];
    var position = new int[layers][][];
    var score = new float[layers][][];
    boolean same = random.nextBoolean();
    int kind = random.nextInt(5);
    for (int l = 0; l < layers; l++) {
      int heads = 1 + random.nextInt(3);
      shapes[l] = shape(l, heads, same ? 32 : 16 + 8L * random.nextInt(20));
      position[l] = new int[heads][];
      score[l] = new float[heads][];
      for (int h = 0; h < heads; h++) {
        int n = random.nextInt(slots);
        var of = random.ints(0, 2 * slots).distinct().limit(n).toArray();
        Arrays.sort(of, 0, random.nextBoolean() ? n : 0);
        position[l][h] = of;
        score[l][h] = new float[n];
        for (int s = 0; s < n; s++) {
          score[l][h][s] = score(kind);
        }
      }
    }
    return new GivenStore(position, score, shapes);
  }

  /** What stays, by sorting. */
  private static List<Set<Integer>> reference(
      GivenStore store, int sinks, int end, float[] scale, long budget) {
    var kept = new ArrayList<Set<Integer>>();
    var slots = new ArrayList<Slot>();
    long left = budget;
    for (int l = 0; l < store.layers(); l++) {
      long bytes = store.shape(l).slotBytes() + 16;
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        var head = new TreeSet<Integer>();
        kept.add(head);
        for (int s = 0; s < store.slots(l, h); s++) {
          int p = store.position[l][h][s];
          if (p < sinks) {
            head.add(s);
            left -= bytes;
          } else if (p >= end) {
            head.add(s);
          } else {
            float loss = store.score[l][h][s] * scale[p] / bytes;
            loss = Float.isNaN(loss) ? Float.POSITIVE_INFINITY : Math.max(loss, 0) + 0f;
            slots.add(new Slot(kept.size() - 1, s, loss, bytes));
          }
        }
      }
    }
    slots.sort(Comparator.comparingDouble(s -> -s.loss)); // stable
    for (var slot : slots) {
      left -= slot.bytes;
      if (left < 0) {
        break;
      }
      kept.get(slot.head).add(slot.slot);
    }
    return kept;
  }

  private static List<Set<Integer>> chosen(LossChoice choice) {
    var kept = new ArrayList<Set<Integer>>();
    int from = 0;
    for (int count : choice.counts()) {
      var head = new TreeSet<Integer>();
      for (int i = from; i < from + count; i++) {
        assertTrue(head.isEmpty() || choice.slots()[i] > head.last(), "ascending");
        head.add(choice.slots()[i]);
      }
      kept.add(head);
      from += count;
    }
    return kept;
  }

  private void compare(GivenStore store, LossChoice choice, int sinks, int slots) {
    float[] scale = new float[2 * slots];
    for (int p = 0; p < scale.length; p++) {
      scale[p] = random.nextInt(20) == 0 ? Float.POSITIVE_INFINITY : 4f / (1 + p / 16);
    }
    int end = random.nextBoolean() ? 2 * slots : slots;
    long all = 0;
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        all += store.slots(l, h) * (store.shape(l).slotBytes() + 16);
      }
    }
    for (long budget : new long[] {(long) (random.nextDouble() * all), 0, -100, 47, all}) {
      var expected = reference(store, sinks, end, scale, budget);
      choice.announce();
      boolean drops = choice.choose(end, scale, budget, null);
      String at = "budget " + budget + " of " + all + ", seed " + seed;
      boolean any = false;
      int head = 0;
      for (int l = 0; l < store.layers(); l++) {
        for (int h = 0; h < store.shape(l).kvHeads(); h++) {
          any |= expected.get(head++).size() < store.slots(l, h);
        }
      }
      assertEquals(any, drops, at);
      if (drops) {
        assertEquals(expected, chosen(choice), at);
      }
    }
  }

  @Test
  void isThatOfSortingAllOfThem() {
    for (int run = 0; run < 400; run++) {
      int slots = 1 + random.nextInt(60);
      int sinks = random.nextInt(6);
      var store = randomStore(slots);
      compare(store, new LossChoice(store, sinks), sinks, slots);
    }
  }

  @Test
  void isTheSameByManyThreads() {
    for (int run = 0; run < 3; run++) {
      int slots = 40_000;
      var store = randomStore(slots);
      compare(store, new LossChoice(store, 4), 4, slots);
    }
  }

  /** What a profile of the losses says of a budget is what the choice keeps, but for one bin. */
  @Test
  void aProfileOfTheLossesAgrees() {
    for (int run = 0; run < 100; run++) {
      int slots = 1 + random.nextInt(200);
      var store = randomStore(slots);
      var layers = CacheManager.shapes(store);
      float[] scale = new float[2 * slots];
      Arrays.fill(scale, 3);
      var choice = new LossChoice(store, 3);
      double full = ForesightBudget.full(store, 1000);
      double block = ForesightBudget.block(store);
      choice.announce();
      var counts = new LossCounts(store, layers);
      choice.choose(2 * slots, scale, 0, counts);
      LossProfile profile = LossProfile.fromJson(counts.profile(1000, 0).toJson());
      for (double share = 0; share < 1; share += 0.09) {
        long budget = (long) Math.floor(share * full - block);
        choice.announce();
        boolean drops = choice.choose(2 * slots, scale, budget, null);
        var predicted = profile.slotsAt(share);
        int next = 0;
        int different = 0;
        for (int l = 0; l < store.layers(); l++) {
          for (int h = 0; h < store.shape(l).kvHeads(); h++, next++) {
            int actual = drops ? choice.counts()[next] : store.slots(l, h);
            int inBin = largestBin(profile.heads().get(next));
            assertTrue(Math.abs(actual - predicted.get(next)) <= inBin, "seed " + seed);
            different += actual - predicted.get(next);
          }
        }
        // both fill the budget, but for a slot, or one of each head that is rounded down
        assertTrue(Math.abs(different) <= 12 * (1 + next), different + ", seed " + seed);
      }
    }
  }

  private static int largestBin(HeadLosses head) {
    int most = 0;
    for (int bin = head.firstBin(); bin < head.endBin(); bin++) {
      most = Math.max(most, head.slots(bin));
    }
    return most;
  }

  @Test
  void theFirstOfEqualSlotsStay() {
    var store =
        new GivenStore(
            new int[][][] {{{0, 1, 2}, {0, 1, 2}}, {{0, 1, 2}}},
            new float[][][] {{{1, 1, 1}, {1, 2, 1}}, {{1, 1, 0}}},
            shape(0, 2, 84),
            shape(1, 1, 84));
    var choice = new LossChoice(store, 0);
    choice.announce();
    float[] scale = {1, 1, 1};
    assertTrue(choice.choose(3, scale, 599, null));
    assertEquals(
        List.of(new TreeSet<>(List.of(0, 1, 2)), new TreeSet<>(List.of(0, 1)), new TreeSet<>()),
        chosen(choice));
    assertFalse(choice.choose(3, scale, 900, null), "everything fits");
    assertTrue(choice.choose(3, scale, 899, null));
    assertEquals(new TreeSet<>(List.of(0, 1)), chosen(choice).get(2));
  }

  /** A slot that comes while the scores are on their way stays. */
  @Test
  void whatCameLaterStays() {
    int[][][] position = {{{0, 1, 2, 3}}};
    var store = new GivenStore(position, new float[][][] {{{3, 1, 2, 0}}}, shape(0, 1, 84));
    var choice = new LossChoice(store, 0);
    choice.announce();
    position[0][0] = new int[] {0, 1, 2, 3, 4, 5};
    assertTrue(choice.choose(4, new float[] {1, 1, 1, 1}, 200, null));
    assertEquals(List.of(new TreeSet<>(List.of(0, 2, 4, 5))), chosen(choice));
  }
}
