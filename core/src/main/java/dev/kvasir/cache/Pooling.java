package dev.kvasir.cache;

/** How the recoveries of the query heads that share a KV head become the KV head's recovery. */
public enum Pooling {
  /** Their mean. */
  MEAN,
  /** Their minimum: no query head of the group loses more than the target allows. */
  MIN
}
