package dev.kvasir.internal.policy;

import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.Pooling;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.concurrent.ForkJoinPool;
import java.util.stream.IntStream;

/**
 * Computes what every candidate recovers and costs in a head, from the statistic of the prompt.
 *
 * <p>A candidate with static tokens S, window w and k frequent tokens loses, of the columns that
 * are in none of its sets, the mass at distances of at least w (at least 1: a query's own token is
 * never lost). One pass per static set and window over the columns in descending order of their
 * scores, with a running sum, yields every k: O(windows x n) per head after one sort. The recovery
 * is 1 - lost / total.
 *
 * <p>In a sliding-window layer both lost and total are taken over the tokens that are still there.
 *
 * <p>The store brings a few heads at a time; threads of the common pool then measure one head each.
 * Their arrays are reused from head to head.
 */
final class RecoveryMeter {

  /** Candidates that differ in their frequent fraction only, ascending by it. */
  private record Group(byte pinned, int window, int bound, List<Integer> members) {}

  /** Bytes of arrays, of the heads that are measured at once. */
  private static final long MOST_BYTES = 256L << 20;

  private final CacheStore store;
  private final FastGen policy;
  private final Ranking ranking;
  private final TokenLog log;
  private final int from; // position of the first query that was counted
  private final int[] bounds;
  private final List<Candidate> candidates;
  private final List<Candidate>
      measured; // the candidates and, where they are not among them, the paper's
  private final List<Group> groups;
  private final Columns[] columns; // of the heads that are measured at once

  RecoveryMeter(
      CacheStore store,
      FastGen policy,
      TokenLog log,
      int from,
      int[] bounds,
      List<Candidate> candidates) {
    this.store = store;
    this.policy = policy;
    this.ranking = new Ranking(policy.score(), policy.weight());
    this.log = log;
    this.from = from;
    this.bounds = bounds;
    this.candidates = candidates;
    this.measured = new ArrayList<>(candidates);
    if (policy.candidates() != Candidates.PAPER) {
      measured.addAll(CandidateLists.paper(policy));
    }
    this.groups = groups();
    this.columns = new Columns[headsAtOnce()];
    Arrays.setAll(columns, i -> new Columns());
  }

  /** As many as there are processors, unless their columns would take too much memory. */
  private int headsAtOnce() {
    long largest = 1;
    for (int l = 0; l < store.layers(); l++) {
      int rows = policy.pooling() == Pooling.MIN ? store.shape(l).queryGroup() : 1;
      long bytes = (long) rows * (bounds.length + 1) * Float.BYTES + Columns.BYTES_PER_SLOT;
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        largest = Math.max(largest, bytes * store.slots(l, h));
      }
    }
    return (int) Math.clamp(MOST_BYTES / largest, 1, ForkJoinPool.getCommonPoolParallelism() + 1);
  }

  private List<Group> groups() {
    var groups = new ArrayList<Group>();
    for (int c = 0; c < measured.size(); c++) {
      var candidate = measured.get(c);
      if (candidate.full()) {
        continue;
      }
      byte pinned = HeadPolicy.pinned(candidate);
      int window = window(candidate);
      Group group = null;
      for (var g : groups) {
        if (g.pinned == pinned && g.window == window) {
          group = g;
        }
      }
      if (group == null) {
        int bound = window == 0 ? 0 : DistanceBounds.nearest(bounds, window);
        group = new Group(pinned, window, bound, new ArrayList<>());
        groups.add(group);
      }
      group.members.add(c);
    }
    for (var group : groups) {
      group.members.sort(Comparator.comparingDouble(c -> measured.get(c).frequent()));
    }
    return groups;
  }

  /**
   * The window that a candidate is measured with: 0 without local tokens, else the nearest of the
   * bounds.
   */
  int window(Candidate candidate) {
    int window = candidate.local().in(log.length());
    return window == 0 ? 0 : bounds[DistanceBounds.nearest(bounds, window)];
  }

  /** Measures all heads, layer by layer. Every choice is left at keeping everything. */
  List<HeadProfile> measure() {
    var heads = new ArrayList<HeadOf>();
    for (int l = 0; l < store.layers(); l++) {
      for (int h = 0; h < store.shape(l).kvHeads(); h++) {
        heads.add(new HeadOf(l, h));
      }
    }
    var profiles = new ArrayList<HeadProfile>();
    for (int from = 0; from < heads.size(); from += columns.length) {
      var some = heads.subList(from, Math.min(from + columns.length, heads.size()));
      some.forEach(this::announce);
      store.readAhead();
      store.awaitAhead();
      profiles.addAll(
          IntStream.range(0, some.size())
              .parallel()
              .mapToObj(i -> columns[i].measure(some.get(i)))
              .toList());
    }
    store.readAhead(); // forgets what was read
    return profiles;
  }

  private record HeadOf(int layer, int head) {}

  private void announce(HeadOf of) {
    int slots = store.slots(of.layer, of.head);
    store.announce(of.layer, of.head, CacheStore.Reading.STATISTIC, 0, slots);
    if (ranking.needsNorms()) {
      store.announce(of.layer, of.head, CacheStore.Reading.VALUE_NORMS, 0, slots);
    }
  }

  private int quota(Group group, int member, int length) {
    return member < group.members.size()
        ? measured.get(group.members.get(member)).frequentIn(length)
        : Integer.MAX_VALUE;
  }

  private HeadProfile profile(int modelLayer, int head, double[] recovery, int[] cost) {
    int full = candidates.size() - 1;
    var rounded = new float[recovery.length];
    for (int c = 0; c < rounded.length; c++) {
      rounded[c] = (float) recovery[c];
    }
    var paper = new LinkedHashMap<String, Float>();
    for (int c = policy.candidates() == Candidates.PAPER ? 0 : full + 1; c < rounded.length; c++) {
      paper.put(measured.get(c).name(), rounded[c]);
    }
    return new HeadProfile(
        modelLayer,
        head,
        full,
        Arrays.copyOf(rounded, full + 1),
        Arrays.copyOf(cost, full + 1),
        paper);
  }

  /** One head's columns. */
  private final class Columns {
    static final int BYTES_PER_SLOT = 52;

    private int layer;
    private int head;
    private int slots;
    private int rows;
    // by slot ...
    private int[] position = new int[0];
    private float[] statistic = new float[0];
    private float[] norm = new float[0];
    private final int[] slotAt = new int[log.length()]; // by position
    // ... and in descending order of rank
    private long[] rank = new long[0];
    private int[] rankedSlot = new int[0];
    private int[] rankedPosition = new int[0];
    private byte[] rankedFlags = new byte[0];
    private float[] rankedNorm = new float[0];
    private long[] unsorted = new long[0];
    private double[] beyond = new double[0]; // mass at the distances that a window does not reach
    private final int[] others = new int[groups.size()]; // that a group keeps as frequent at best

    private void read(HeadOf of) {
      layer = of.layer;
      head = of.head;
      slots = store.slots(layer, head);
      rows = policy.pooling() == Pooling.MIN ? store.shape(layer).queryGroup() : 1;
      int values = Math.multiplyExact(rows * (bounds.length + 1), slots);
      if (statistic.length < values) {
        statistic = new float[values];
      }
      if (position.length < slots) {
        position = new int[slots];
        norm = new float[slots];
        rank = new long[slots];
        rankedSlot = new int[slots];
        rankedPosition = new int[slots];
        rankedFlags = new byte[slots];
        rankedNorm = new float[slots];
        unsorted = new long[slots];
        beyond = new double[slots];
      }
      store.readStatistic(layer, head, statistic, values);
      store.readPositions(layer, head, position, slots);
      if (ranking.needsNorms()) {
        store.valueNorms(layer, head, 0, slots, norm);
      } else {
        Arrays.fill(norm, 0, slots, 1);
      }
    }

    HeadProfile measure(HeadOf of) {
      read(of);
      var shape = store.shape(layer);
      int length = Math.min(log.length(), shape.cells());
      sort();

      var recovery = new double[measured.size()];
      Arrays.fill(recovery, 1);
      var lost = new double[measured.size()];
      for (int row = 0; row < rows; row++) {
        double total = 0;
        Arrays.fill(beyond, 0, slots, 0);
        Arrays.fill(lost, 0);
        for (int bucket = bounds.length; bucket >= 0; bucket--) {
          total += addBucket(row, bucket);
          for (int g = 0; g < others.length; g++) {
            if (groups.get(g).bound == bucket - 1) {
              others[g] = lose(groups.get(g), length, lost);
            }
          }
        }
        for (int c = 0; c < lost.length; c++) {
          double kept = total > 0 ? 1 - lost[c] / total : 1;
          recovery[c] = Math.min(recovery[c], Math.clamp(kept, 0, 1));
        }
      }
      return profile(shape.layer(), head, recovery, costs(length));
    }

    private void sort() {
      int last = log.length() - 1;
      for (int s = 0; s < slots; s++) {
        float attention = 0;
        for (int i = s; i < rows * (bounds.length + 1) * slots; i += slots) {
          attention += statistic[i];
        }
        slotAt[position[s]] = s;
        rank[s] =
            Ranking.rank(
                ranking.score(attention / rows, position[s], norm[s], from, last), position[s]);
      }
      Ranking.sort(rank, slots, unsorted);
      var flags = log.flags();
      for (int r = 0; r < slots; r++) {
        int at = Ranking.positionOf(rank[slots - 1 - r]);
        rankedPosition[r] = at;
        rankedSlot[r] = slotAt[at];
        rankedFlags[r] = flags[at];
        rankedNorm[r] = norm[rankedSlot[r]];
      }
    }

    /** Adds a bucket to the mass beyond, and returns its sum. */
    private double addBucket(int row, int bucket) {
      int column = (row * (bounds.length + 1) + bucket) * slots;
      double sum = 0;
      for (int r = 0; r < slots; r++) {
        double mass = (double) statistic[column + rankedSlot[r]] * rankedNorm[r];
        beyond[r] += mass;
        sum += mass;
      }
      return sum;
    }

    /**
     * What the members of a group lose: the mass beyond their window of the columns that they do
     * not keep.
     *
     * @return columns that are neither pinned nor in the window
     */
    private int lose(Group group, int length, double[] lost) {
      int inWindow = log.length() - group.window; // the first position
      int member = 0;
      int quota = quota(group, member, length);
      int passed = 0;
      double sum = 0;
      for (int r = 0; r < slots; r++) {
        int other = other(r, group.pinned, inWindow);
        double before = sum;
        sum += other * beyond[r];
        passed += other;
        while (passed > quota) {
          lost[group.members.get(member++)] = -before; // kept as frequent so far
          quota = quota(group, member, length);
        }
      }
      for (int m = 0; m < group.members.size(); m++) {
        int c = group.members.get(m);
        lost[c] = m < member ? lost[c] + sum : 0;
      }
      return passed;
    }

    /** Columns that are neither pinned nor in the grace period. */
    private int countOthers(byte pinned) {
      int inWindow = log.length() - policy.grace();
      int count = 0;
      for (int r = 0; r < slots; r++) {
        count += other(r, pinned, inWindow);
      }
      return count;
    }

    /**
     * 1 for a column that is neither pinned nor in the window, else 0: nobody could predict a
     * branch.
     */
    private int other(int r, byte pinned, int inWindow) {
      return ((rankedFlags[r] & pinned) - 1 & rankedPosition[r] - inWindow) >>> 31;
    }

    /** Slots that every candidate keeps, the grace period included. */
    private int[] costs(int length) {
      var cost = new int[measured.size()];
      Arrays.fill(cost, slots);
      for (int g = 0; g < others.length; g++) {
        var group = groups.get(g);
        int other = group.window >= policy.grace() ? others[g] : countOthers(group.pinned);
        int always = slots - other;
        for (int c : group.members) {
          cost[c] = Math.min(slots, always + measured.get(c).frequentIn(length));
        }
      }
      return cost;
    }
  }
}
