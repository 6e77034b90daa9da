package dev.kvasir.cache;

import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.PriorityQueue;

/** Chooses one candidate per head from their recoveries and costs. */
final class Choice {
  private final Candidates candidates;
  private final List<HeadProfile> heads;
  private final long[] slotBytes; // per head
  private final int full;

  Choice(Profile profile) {
    this.candidates = profile.policy().candidates();
    this.heads = profile.heads();
    this.full = profile.candidates().size() - 1;
    this.slotBytes = new long[heads.size()];
    int next = 0;
    for (var layer : profile.layers()) {
      Arrays.fill(slotBytes, next, next + layer.kvHeads(), layer.slotBytes());
      next += layer.kvHeads();
    }
  }

  /** The chosen candidate of every head. */
  int[] of(Target target) {
    return switch (target) {
      case Target.Recovery(double recovery) -> recovering(recovery);
      case Target.BudgetBytes(long bytes) -> within(bytes);
      case Target.BudgetFraction(double fraction) ->
          within((long) Math.floor(fraction * bytes(everything()) + 1e-6));
    };
  }

  long bytes(int[] choice) {
    long sum = 0;
    for (int h = 0; h < choice.length; h++) {
      sum += heads.get(h).cost(choice[h]) * slotBytes[h];
    }
    return sum;
  }

  OptionalDouble recoveryForBudget(long budget) {
    if (bytes(everything()) <= budget) {
      return OptionalDouble.of(1);
    }
    // bytes change only at recoveries that some candidate has
    var steps =
        heads.stream()
            .flatMapToDouble(
                head -> {
                  var of = new double[head.candidates()];
                  Arrays.setAll(of, head::recovery);
                  return Arrays.stream(of);
                })
            .filter(recovery -> recovery < 1)
            .sorted()
            .distinct()
            .toArray();
    int low = -1; // the last step known to fit
    int high = steps.length;
    while (high - low > 1) {
      int middle = (low + high) >>> 1;
      if (bytes(recovering(steps[middle])) <= budget) {
        low = middle;
      } else {
        high = middle;
      }
    }
    if (low >= 0) {
      return OptionalDouble.of(steps[low]);
    }
    return bytes(recovering(0)) <= budget ? OptionalDouble.of(0) : OptionalDouble.empty();
  }

  private int[] everything() {
    var choice = new int[heads.size()];
    Arrays.fill(choice, full);
    return choice;
  }

  /**
   * Eq. 1: per head the cheapest candidate that recovers enough; of equally cheap ones the one that
   * recovers most.
   */
  private int[] recovering(double recovery) {
    if (recovery >= 1) {
      return everything();
    }
    var choice = new int[heads.size()];
    for (int h = 0; h < choice.length; h++) {
      var head = heads.get(h);
      int best = full;
      for (int c = 0; c < full; c++) {
        if (head.recovery(c) >= recovery && better(head, c, best)) {
          best = c;
        }
      }
      choice[h] = best;
    }
    return choice;
  }

  private static boolean better(HeadProfile head, int candidate, int than) {
    return head.cost(candidate) < head.cost(than)
        || (head.cost(candidate) == head.cost(than)
            && head.recovery(candidate) > head.recovery(than));
  }

  private int[] within(long budget) {
    if (bytes(everything()) <= budget) {
      return everything();
    }
    return switch (candidates) {
      case PAPER -> recovering(recoveryForBudget(budget).orElse(0));
      case LATTICE -> losingLeast(budget);
    };
  }

  /**
   * Maximises the sum of recovery - lambda x bytes over all heads, with the smallest lambda whose
   * choice fits the budget, found by bisection; what is left of the budget then buys what gains
   * most per byte.
   */
  private int[] losingLeast(long budget) {
    var choice = recovering(0);
    if (bytes(choice) > budget) {
      return choice; // the cheapest of every head: nothing less can be had
    }
    double low = 0;
    double high =
        1.0 / Arrays.stream(slotBytes).min().orElse(1); // no slot is worth more than all attention
    for (int i = 0; i < 64; i++) {
      double lambda = (low + high) / 2;
      var priced = atPrice(lambda);
      if (bytes(priced) <= budget) {
        high = lambda;
        choice = priced;
      } else {
        low = lambda;
      }
    }
    spend(choice, budget - bytes(choice));
    return choice;
  }

  private int[] atPrice(double lambda) {
    var choice = new int[heads.size()];
    for (int h = 0; h < choice.length; h++) {
      var head = heads.get(h);
      double best = Double.NEGATIVE_INFINITY;
      for (int c = 0; c <= full; c++) {
        double value = head.recovery(c) - lambda * head.cost(c) * slotBytes[h];
        if (value > best || (value == best && better(head, c, choice[h]))) {
          best = value;
          choice[h] = c;
        }
      }
    }
    return choice;
  }

  /** Another candidate for a head, and what recovery it gains per byte. */
  private record Upgrade(int head, int candidate, long bytes, double rate) {}

  /**
   * Buys upgrades, the one that gains most per byte first; of equal ones that of the first head. A
   * head's best upgrade stays its best one until it is bought, or too dear for what is left.
   */
  private void spend(int[] choice, long left) {
    var queue =
        new PriorityQueue<Upgrade>(
            Comparator.comparingDouble((Upgrade u) -> -u.rate).thenComparingInt(u -> u.head));
    for (int h = 0; h < choice.length; h++) {
      upgrade(choice, h, left).ifPresent(queue::add);
    }
    for (Upgrade best = queue.poll(); best != null; best = queue.poll()) {
      if (best.bytes <= left) {
        left -= best.bytes;
        choice[best.head] = best.candidate;
      }
      upgrade(choice, best.head, left).ifPresent(queue::add);
    }
  }

  private Optional<Upgrade> upgrade(int[] choice, int h, long left) {
    var head = heads.get(h);
    Upgrade best = null;
    for (int c = 0; c <= full; c++) {
      long bytes = (long) (head.cost(c) - head.cost(choice[h])) * slotBytes[h];
      double gain = head.recovery(c) - head.recovery(choice[h]);
      // an upgrade at no cost comes before every other
      double rate = bytes <= 0 ? Double.POSITIVE_INFINITY : gain / bytes;
      if (gain > 0 && bytes <= left && (best == null || rate > best.rate)) {
        best = new Upgrade(h, c, bytes, rate);
      }
    }
    return Optional.ofNullable(best);
  }
}
