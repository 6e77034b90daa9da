package dev.kvasir;

/** Why a reply ended. */
public enum StopReason {
  /** The model produced an end-of-generation token. */
  END_OF_GENERATION,
  /** One of the stop sequences was produced; it is not part of the text. */
  STOP_SEQUENCE,
  /** The limit of {@link SessionOptions#maxTokens()} was reached. */
  MAX_TOKENS,
  /** The context has no room for another token. */
  CONTEXT_FULL,
  /** {@link Reply#cancel()} was called, or the thread that reads the reply was interrupted. */
  CANCELLED,
  /** The reply was closed before its end. */
  CLOSED,
  /** An exception ended it, which the reader got. */
  FAILED
}
