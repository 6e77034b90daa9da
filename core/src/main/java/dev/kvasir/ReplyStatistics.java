package dev.kvasir;

import java.util.Optional;

/**
 * Counts and times of one reply.
 *
 * @param promptTokens tokens that were prefilled for this reply
 * @param generatedTokens tokens that were drawn, the end-of-generation token included
 * @param prefillNanos time of the prefill, profiling and compaction included, in nanoseconds
 * @param decodeNanos time from the end of the prefill to the last token, in nanoseconds; time that
 *     the caller spent between the pieces is not part of it
 * @param stopReason why the reply ended; empty while it goes on
 * @param sessionEmptied whether the session is empty since, conversation included: the prompt was
 *     cancelled, or a decode failed, and what was there before could not be brought back ({@link
 *     Session} says when)
 */
public record ReplyStatistics(
    int promptTokens,
    int generatedTokens,
    long prefillNanos,
    long decodeNanos,
    Optional<StopReason> stopReason,
    boolean sessionEmptied) {
  /** Prompt tokens per second, 0 when there was no prefill. */
  public double prefillTokensPerSecond() {
    return prefillNanos == 0 ? 0 : promptTokens * 1e9 / prefillNanos;
  }

  /** Generated tokens per second, 0 when nothing was generated. */
  public double decodeTokensPerSecond() {
    return decodeNanos == 0 ? 0 : generatedTokens * 1e9 / decodeNanos;
  }
}
