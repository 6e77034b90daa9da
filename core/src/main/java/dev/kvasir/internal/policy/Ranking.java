package dev.kvasir.internal.policy;

import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;
import java.util.Arrays;

/**
 * What makes one token more frequent than another: its score, and of equal scores the later
 * position. A rank packs both into a long, so that ranks can be sorted as they are.
 *
 * @param score what a token's attention is divided by
 * @param weight whether attention is weighted by the norm of the token's value
 */
record Ranking(Score score, Weight weight) {
  private static final int MOST_COMPARED = 256;
  private static final int DIGITS = 3;
  private static final int DIGIT_BITS = 11; // 33 of 32: a score is not negative

  boolean needsNorms() {
    return weight == Weight.VALUE;
  }

  /**
   * A token's score.
   *
   * @param attention what the token received from the queries at positions {@code from .. last}
   * @param norm the norm of its value row; any number when norms are not needed
   */
  float score(float attention, int position, float norm, int from, int last) {
    float score = attention;
    if (this.score == Score.MEAN) {
      score /= last - Math.max(position, from) + 1;
    }
    if (weight == Weight.VALUE) {
      score *= norm;
    }
    return score;
  }

  /**
   * The rank of a token: ascending ranks are ascending scores. A negative score or NaN counts as 0.
   */
  static long rank(float score, int position) {
    return (long) Float.floatToRawIntBits(score > 0 ? score : 0) << 32 | position;
  }

  static float scoreOf(long rank) {
    return Float.intBitsToFloat((int) (rank >>> 32));
  }

  static int positionOf(long rank) {
    return (int) rank;
  }

  /**
   * Sorts the first {@code count} ranks. Where they ascend by position, as those of slots do that
   * nothing was evicted from, by the digits of their scores: a sort that keeps the order of equal
   * ones leaves these as they are to be.
   *
   * @param scratch of at least {@code count} elements
   */
  static void sort(long[] ranks, int count, long[] scratch) {
    boolean byPosition = count >= MOST_COMPARED;
    for (int i = 1; i < count && byPosition; i++) {
      byPosition = positionOf(ranks[i - 1]) < positionOf(ranks[i]);
    }
    if (!byPosition) {
      Arrays.sort(ranks, 0, count);
      return;
    }
    var ends = new int[DIGITS][1 << DIGIT_BITS];
    for (int i = 0; i < count; i++) {
      for (int digit = 0; digit < DIGITS; digit++) {
        ends[digit][digitOf(ranks[i], digit)]++;
      }
    }
    long[] from = ranks;
    long[] to = scratch;
    for (int digit = 0; digit < DIGITS; digit++) {
      int[] next = ends[digit];
      for (int value = 0, sum = 0; value < next.length; value++) {
        int have = next[value];
        next[value] = sum;
        sum += have;
      }
      for (int i = 0; i < count; i++) {
        long rank = from[i];
        to[next[digitOf(rank, digit)]++] = rank;
      }
      long[] sorted = to;
      to = from;
      from = sorted;
    }
    if (from != ranks) {
      System.arraycopy(from, 0, ranks, 0, count);
    }
  }

  /** Of the upper half, which is a score: the lowest digit first. */
  private static int digitOf(long rank, int digit) {
    return (int) (rank >>> 32 + digit * DIGIT_BITS) & (1 << DIGIT_BITS) - 1;
  }

  /**
   * What would be at index {@code n} if the first {@code count} ranks were sorted; they are in
   * another order afterwards. Ranks are distinct. Quickselect: O(count) on average.
   */
  static long nth(long[] ranks, int count, int n) {
    int low = 0;
    int high = count - 1;
    while (low < high) {
      long pivot = middle(ranks[low], ranks[(low + high) >>> 1], ranks[high]);
      int i = low;
      int j = high;
      while (i <= j) {
        while (ranks[i] < pivot) {
          i++;
        }
        while (ranks[j] > pivot) {
          j--;
        }
        if (i <= j) {
          long swap = ranks[i];
          ranks[i++] = ranks[j];
          ranks[j--] = swap;
        }
      }
      if (n <= j) {
        high = j;
      } else if (n >= i) {
        low = i;
      } else {
        break;
      }
    }
    return ranks[n];
  }

  private static long middle(long a, long b, long c) {
    return Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
  }
}
