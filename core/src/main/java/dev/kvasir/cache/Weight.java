package dev.kvasir.cache;

/** What a unit of attention on a token counts. */
public enum Weight {
  /** The same on every token. */
  NONE,
  /**
   * The Euclidean norm of the token's value row. A dropped token j takes a<sub>ij</sub>
   * (v<sub>j</sub> - o<sub>i</sub>) from output i, so attention on a token with a small value
   * vector is cheap to lose. Applies to recovery and score.
   */
  VALUE
}
