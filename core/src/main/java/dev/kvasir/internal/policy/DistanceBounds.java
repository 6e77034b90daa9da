package dev.kvasir.internal.policy;

import dev.kvasir.cache.Candidate;
import java.util.List;
import java.util.TreeSet;

/**
 * The bucket bounds of the statistic. The mass that a window of w tokens holds follows exactly when
 * w is a bound: the window of the query at p holds the positions above p - w, which are the
 * distances below w. The first bound is always 1, a query's own token.
 */
final class DistanceBounds {
  private DistanceBounds() {}

  /** Exactly the candidates' windows for a prompt of known length. */
  static int[] forPrompt(List<Candidate> candidates, int promptTokens) {
    var bounds = new TreeSet<Integer>();
    bounds.add(1);
    for (var candidate : candidates) {
      int window = candidate.local().in(promptTokens);
      if (!candidate.full() && window > 0) {
        bounds.add(window);
      }
    }
    return bounds.stream().mapToInt(Integer::intValue).toArray();
  }

  /**
   * Bounds for a profile whose length is not known when it begins: the windows that are given in
   * tokens, even steps up to the shortest length that is judged, and growing steps up to eight
   * times that.
   */
  static int[] forUnknownLength(List<Candidate> candidates, int minimumTokens) {
    var bounds = new TreeSet<Integer>();
    bounds.add(1);
    for (var candidate : candidates) {
      if (candidate.local().tokens() > 0) {
        bounds.add(candidate.local().tokens());
      }
    }
    int step = Math.max(8, minimumTokens / 16);
    for (int bound = step; bound < minimumTokens; bound += step) {
      bounds.add(bound);
    }
    for (double bound = minimumTokens; bound <= 8.0 * minimumTokens; bound *= 1.25) {
      bounds.add((int) bound);
    }
    return bounds.stream().mapToInt(Integer::intValue).toArray();
  }

  /** Index of the bound nearest to a window; the smaller one of two. */
  static int nearest(int[] bounds, int window) {
    int best = 0;
    for (int b = 1; b < bounds.length; b++) {
      if (Math.abs(bounds[b] - window) < Math.abs(bounds[best] - window)) {
        best = b;
      }
    }
    return best;
  }
}
