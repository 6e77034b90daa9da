package dev.kvasir.internal.policy;

import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Kind;
import dev.kvasir.cache.Uniform;
import dev.kvasir.cache.Window;
import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;

/** The candidates that a policy chooses from; in every list the last one keeps everything. */
final class CandidateLists {
  private static final double[] LATTICE_FREQUENT = {
    0, .01, .02, .05, .1, .15, .2, .25, .3, .4, .5, .6, .7, .8
  };
  private static final int[] LATTICE_LOCAL_TOKENS = {16, 32, 64};
  private static final double[] LATTICE_LOCAL = {.05, .1, .2, .3, .4, .5};

  private CandidateLists() {}

  /** What the policy chooses from. */
  static List<Candidate> of(FastGen policy) {
    return switch (policy.candidates()) {
      case PAPER -> paper(policy);
      case LATTICE -> lattice(policy);
    };
  }

  /** Eq. 2 of the paper: each candidate adds the next kind of the order, and is named after it. */
  static List<Candidate> paper(FastGen policy) {
    var list = new ArrayList<Candidate>();
    var kinds = EnumSet.noneOf(Kind.class);
    for (var kind : policy.order()) {
      kinds.add(kind);
      list.add(
          new Candidate(
              kind.label(),
              false,
              kinds.contains(Kind.SPECIAL),
              kinds.contains(Kind.PUNCTUATION),
              kinds.contains(Kind.FREQUENT) ? policy.frequent() : 0,
              kinds.contains(Kind.LOCAL) ? Window.ofPrompt(policy.local()) : Window.NONE));
    }
    list.add(Candidate.everything());
    return list;
  }

  private static List<Candidate> lattice(FastGen policy) {
    var windows = new ArrayList<Window>();
    for (int tokens : LATTICE_LOCAL_TOKENS) {
      windows.add(Window.ofTokens(tokens));
    }
    for (double fraction : LATTICE_LOCAL) {
      windows.add(Window.ofPrompt(fraction));
    }
    boolean special = policy.order().contains(Kind.SPECIAL);
    var list = new ArrayList<Candidate>();
    for (double frequent : LATTICE_FREQUENT) {
      for (var window : windows) {
        list.add(pair(special, frequent, window));
      }
    }
    list.add(Candidate.everything());
    return list;
  }

  /** What every head is given. */
  static Candidate of(Uniform policy) {
    var local = policy.local() == 0 ? Window.NONE : Window.ofPrompt(policy.local());
    return pair(false, policy.frequent(), local);
  }

  private static Candidate pair(boolean special, double frequent, Window local) {
    var parts = new ArrayList<String>();
    if (frequent > 0) {
      parts.add("frequent " + percent(frequent));
    }
    if (local.tokens() > 0) {
      parts.add("local " + local.tokens());
    } else if (local.ofPrompt() > 0) {
      parts.add("local " + percent(local.ofPrompt()));
    }
    var name = parts.isEmpty() ? "sinks" : String.join(" + ", parts);
    return new Candidate(name, false, special, false, frequent, local);
  }

  private static String percent(double fraction) {
    return BigDecimal.valueOf(fraction).movePointRight(2).stripTrailingZeros().toPlainString()
        + "%";
  }
}
