package dev.kvasir.internal.engine;

import dev.kvasir.DecodeException;
import dev.kvasir.Sampling;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.internal.policy.CacheStore;
import java.nio.FloatBuffer;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Computes the tokens of one sequence or several, and holds their memory. Used by one thread at a
 * time; a decode step allocates nothing.
 */
public interface Decoder extends AutoCloseable {
  /** How a batch ended. */
  enum Outcome {
    DONE,
    /** The abort condition held; a part of the batch may be in the memory. */
    ABORTED
  }

  /** Tokens that a sequence may hold. */
  int capacity();

  /** Most tokens of one decode. */
  int batchSize();

  /** Most tokens that are computed at once. */
  int microBatchSize();

  /**
   * Most tokens of a decode that is to end soon when it is not wanted any more: fewer than {@link
   * #batchSize()} where a device does not ask in between.
   */
  int promptSize();

  /** The store of a sequence; empty without the adaptive cache. */
  Optional<CacheStore> store(int sequence);

  /** Draws tokens from this decoder's logits. It is closed before the decoder is. */
  Sampler sampler(Sampling sampling);

  /**
   * Decodes are given up when this says so, until another condition is set; null: only when the JVM
   * exits. It is asked between two operations of a graph, on the thread that decodes.
   */
  void abortWhen(@Nullable BooleanSupplier condition);

  /**
   * Decodes tokens of one sequence; their ids and their number must be valid.
   *
   * @param from index of the first
   * @param count at most {@link #batchSize()}
   * @param position of the first
   * @param allLogits whether every token's logits are wanted, or only the last one's
   * @throws DecodeException if it fails; what was done of the batch may be in the memory
   */
  Outcome decode(int sequence, int[] source, int from, int count, int position, boolean allLogits);

  /**
   * To be called before a step: one that fails has changed a recurrent state already, so what can
   * be foreseen is refused before. Does nothing for other models.
   *
   * @throws DecodeException if the memory limit leaves no room for a token of every sequence
   */
  void requireRoomForStep(int position);

  /** Decodes one token of the only sequence. */
  Outcome decode(int token, int position);

  /** Decodes one token of every sequence, all at once; the logits have the sequences' indices. */
  Outcome decodeStep(int[] source, int[] position);

  /**
   * To be called before a prompt, and {@link #dropCheckpoint} after it: a recurrent state cannot be
   * cut at a position, so that of the sequence is copied, and {@link #truncate} can take the prompt
   * back. Does nothing for other models.
   *
   * @param position that the prompt begins at
   */
  void saveCheckpoint(int sequence, int position);

  /** Gives the memory of {@link #saveCheckpoint} back. */
  void dropCheckpoint(int sequence);

  /**
   * Takes everything of a sequence from a position on out of the memory; false when that cannot be
   * done and the sequence must be emptied: a sliding window has moved on, and what comes before is
   * no longer whole, or a recurrent state was not saved at that position.
   */
  boolean truncate(int sequence, int position);

  /** Whether {@link #truncate} would leave what comes before the position whole. */
  boolean canTruncate(int sequence, int position);

  /** Forgets everything. */
  void clear();

  /**
   * Copies the logits of the token at an index of the last batch; -1: of the last token.
   *
   * @param target of as many elements as the vocabulary has entries
   */
  void copyLogits(int index, float[] target);

  /** Puts logits that were copied earlier in the place of the last token's. */
  void restoreLogits(float[] logits);

  /**
   * Shows the logits of the token at an index of the last batch, read-only and without a copy. The
   * buffer belongs to this thread, and cannot be read any more when {@code to} returns.
   */
  void showLogits(int index, Consumer<FloatBuffer> to);

  /** The report of a sequence of so many tokens, where there is no store. */
  CacheReport plainReport(int position);

  @Override
  void close();
}
