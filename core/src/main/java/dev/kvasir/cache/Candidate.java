package dev.kvasir.cache;

import java.util.Objects;

/**
 * A policy that a KV head may be given: it holds its special and punctuation tokens, the tokens of
 * its local window, and the most attended of the others up to a fraction of the current length.
 *
 * @param name how tables and JSON call it
 * @param full keeps every token; the other components do not matter then
 * @param special keeps {@link Kind#SPECIAL} tokens
 * @param punctuation keeps {@link Kind#PUNCTUATION} tokens
 * @param frequent at most this fraction of the current length, 0 to 1, is kept as frequent tokens
 * @param local the window of local tokens
 */
public record Candidate(
    String name,
    boolean full,
    boolean special,
    boolean punctuation,
    double frequent,
    Window local) {

  /** Checks the ranges. */
  public Candidate {
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(local, "local");
    Ranges.fraction("Candidate.frequent", frequent);
  }

  /** The candidate that keeps everything. */
  public static Candidate everything() {
    return new Candidate("full", true, true, true, 1, Window.ofPrompt(1));
  }

  /**
   * Most frequent tokens that a head may hold at a length in tokens: the fraction of it, rounded
   * down.
   */
  public int frequentIn(int length) {
    return Ranges.tokens(frequent, length);
  }
}
