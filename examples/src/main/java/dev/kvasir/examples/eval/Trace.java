package dev.kvasir.examples.eval;

import dev.kvasir.Model;
import dev.kvasir.Session;
import dev.kvasir.SessionOptions;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * What a session expected, token by token, behind a prompt.
 *
 * @param tokens that were fed
 * @param expectations what was expected after each of them
 * @param keptAfterPrompt fraction of the slots
 * @param keptAtEnd fraction of the slots
 */
record Trace(
    int[] tokens, List<Distribution> expectations, double keptAfterPrompt, double keptAtEnd) {

  /** What is fed next. */
  @FunctionalInterface
  interface Feed {
    /** The {@code index}-th token after the prompt, of which {@code expected} was expected. */
    int token(int index, Distribution expected);

    /** Tokens that are given. */
    static Feed given(int[] tokens) {
      return (index, expected) -> tokens[index];
    }

    /** The most probable token each time. */
    static Feed greedy() {
      return (index, expected) -> expected.top();
    }
  }

  /**
   * Reads a prompt in some turns, so that the cache is compressed after each, and feeds tokens
   * after it.
   *
   * @param held is told what the cache holds at each of these tokens
   */
  static Trace of(
      Model model,
      SessionOptions options,
      int[] prompt,
      int turns,
      int tokens,
      Feed feed,
      @Nullable HeldBytes held) {
    try (var session = model.newSession(options.withContextSize(prompt.length + tokens))) {
      for (int turn = 0; turn < turns; turn++) {
        session.evaluate(
            Arrays.copyOfRange(
                prompt, begin(prompt.length, turn, turns), begin(prompt.length, turn + 1, turns)));
      }
      double keptAfterPrompt = session.cacheReport().keptFraction();
      int[] fed = new int[tokens];
      var expectations = new ArrayList<Distribution>();
      var expected = expectation(session);
      for (int i = 0; i < tokens; i++) {
        if (held != null) {
          held.beforeToken(session.cacheReport());
        }
        fed[i] = feed.token(i, expected);
        session.step(fed[i]);
        expected = expectation(session);
        expectations.add(expected);
      }
      return new Trace(fed, expectations, keptAfterPrompt, session.cacheReport().keptFraction());
    }
  }

  private static int begin(int tokens, int turn, int turns) {
    return (int) ((long) tokens * turn / turns);
  }

  private static Distribution expectation(Session session) {
    return new Distribution(session.logits());
  }

  /** Divergence of what was expected here from what a reference expected, after each token. */
  double[] divergencesFrom(Trace reference) {
    double[] divergences = new double[tokens.length];
    Arrays.setAll(
        divergences, i -> reference.expectations.get(i).divergenceTo(expectations.get(i)));
    return divergences;
  }

  /** Fraction of the tokens after which both expect the same one most. */
  double sameTopAs(Trace reference) {
    int same = 0;
    for (int i = 0; i < tokens.length; i++) {
      same += reference.expectations.get(i).top() == expectations.get(i).top() ? 1 : 0;
    }
    return (double) same / tokens.length;
  }

  /** Whether each token of a part was the most probable one when it was its turn. */
  boolean expected(Sample.Span part) {
    for (int i = part.from(); i < part.to(); i++) {
      if (expectations.get(i - 1).top() != tokens[i]) {
        return false;
      }
    }
    return true;
  }
}
