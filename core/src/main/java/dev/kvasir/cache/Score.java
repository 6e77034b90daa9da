package dev.kvasir.cache;

/** How the attention that a token has received ranks it among the frequent tokens. */
public enum Score {
  /** All of it, as in the paper. Early tokens are seen by more queries, which favours them. */
  SUM,
  /** Divided by the number of queries that could see the token. */
  MEAN
}
