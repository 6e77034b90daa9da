package dev.kvasir.internal.policy;

import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;

/**
 * What makes one token more frequent than another: its score, and of equal scores the later
 * position. A rank packs both into a long, so that ranks can be sorted as they are.
 *
 * @param score what a token's attention is divided by
 * @param weight whether attention is weighted by the norm of the token's value
 */
record Ranking(Score score, Weight weight) {

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
