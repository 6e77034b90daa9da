package dev.kvasir.internal.policy;

import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.NavigableSet;
import java.util.TreeSet;

/**
 * What a policy keeps and recovers, computed the long way from the definitions: sets of positions
 * and whole matrices.
 */
final class Reference {
  private Reference() {}

  /** Positions of the special tokens: kinds, markers and sinks. */
  static NavigableSet<Integer> special(int[] tokens, int sinks) {
    var kinds = new FakeKinds();
    NavigableSet<Integer> special = new TreeSet<>();
    for (int p = 0; p < tokens.length; p++) {
      if (p < sinks || kinds.kindOf(tokens[p]) == TokenKinds.SPECIAL) {
        special.add(p);
      }
      for (var marker : kinds.markers()) {
        boolean matches = p + marker.length <= tokens.length;
        for (int i = 0; matches && i < marker.length; i++) {
          matches = tokens[p + i] == marker[i];
        }
        for (int i = 0; matches && i < marker.length; i++) {
          special.add(p + i);
        }
      }
    }
    return special;
  }

  /** Positions that a candidate keeps for their own sake. */
  static NavigableSet<Integer> pinned(Candidate candidate, int[] tokens, int sinks) {
    NavigableSet<Integer> pinned = candidate.special() ? special(tokens, sinks) : new TreeSet<>();
    if (candidate.punctuation()) {
      var kinds = new FakeKinds();
      for (int p = 0; p < tokens.length; p++) {
        if (kinds.kindOf(tokens[p]) == TokenKinds.PUNCTUATION) {
          pinned.add(p);
        }
      }
    }
    return pinned;
  }

  /** Attention matrix of one query head over a text of which nothing was dropped: [query][key]. */
  static double[][] matrix(FakeStore store, int layer, int queryHead, int tokens) {
    var matrix = new double[tokens][];
    for (int i = 0; i < tokens; i++) {
      var positions = new int[i + 1];
      for (int j = 0; j <= i; j++) {
        positions[j] = j;
      }
      matrix[i] = store.attention(layer, queryHead, i, positions);
    }
    return matrix;
  }

  /**
   * Scores by position: mean over the group of the column sums over queries from {@code from} on.
   */
  static double[] scores(
      FakeStore store, int layer, int head, int tokens, int from, Score score, Weight weight) {
    int group = store.shape(layer).queryGroup();
    var scores = new double[tokens];
    for (int q = 0; q < group; q++) {
      var matrix = matrix(store, layer, head * group + q, tokens);
      for (int i = from; i < tokens; i++) {
        for (int j = 0; j <= i; j++) {
          scores[j] += matrix[i][j] / group;
        }
      }
    }
    for (int j = 0; j < tokens; j++) {
      if (score == Score.MEAN) {
        scores[j] /= tokens - Math.max(j, from);
      }
      if (weight == Weight.VALUE) {
        scores[j] *= store.norm(layer, head, j);
      }
    }
    return scores;
  }

  /** Pinned, the last {@code window} and the best scored of the others. */
  static NavigableSet<Integer> kept(
      Candidate candidate, int[] tokens, int sinks, int window, double[] scores) {
    int n = tokens.length;
    NavigableSet<Integer> kept = new TreeSet<>();
    if (candidate.full()) {
      for (int p = 0; p < n; p++) {
        kept.add(p);
      }
      return kept;
    }
    kept.addAll(pinned(candidate, tokens, sinks));
    for (int p = Math.max(0, n - window); p < n; p++) {
      kept.add(p);
    }
    List<Integer> others = new ArrayList<>();
    for (int p = 0; p < n; p++) {
      if (!kept.contains(p)) {
        others.add(p);
      }
    }
    others.sort(Comparator.comparingDouble(p -> -scores[p]));
    kept.addAll(others.subList(0, Math.min(others.size(), candidate.frequentIn(n))));
    return kept;
  }

  /**
   * Mean over the queries from {@code from} on of the attention on the static and frequent tokens
   * of {@code kept}, on the window of each query, and on its own token; weighted by the columns'
   * weights.
   */
  static double recovery(
      double[][] matrix, NavigableSet<Integer> always, int window, double[] weights, int from) {
    double kept = 0;
    double total = 0;
    for (int i = from; i < matrix.length; i++) {
      for (int j = 0; j <= i; j++) {
        double mass = matrix[i][j] * weights[j];
        total += mass;
        if (always.contains(j) || i - j < window || i == j) {
          kept += mass;
        }
      }
    }
    return kept / total;
  }
}
