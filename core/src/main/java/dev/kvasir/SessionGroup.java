package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Full;
import dev.kvasir.internal.llama.NativeContext;
import dev.kvasir.internal.llama.NativeModel;
import dev.kvasir.internal.llama.PlainCache;
import dev.kvasir.internal.policy.CacheManager;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.stream.IntStream;

/**
 * Several sequences of tokens that are decoded together: one step computes the next token of all of
 * them at once, which is what throughput comes from. Every sequence has a cache of its own.
 *
 * <p>What the heads keep must be known beforehand: a profile is measured in a {@link Session}, and
 * given to the group by {@link SessionOptions#withProfile}. There is no sampling here and no chat:
 * a group is fed with tokens and asked for logits.
 *
 * <p>Any thread may call it; calls wait for each other.
 */
public final class SessionGroup implements AutoCloseable {
  /** Index of the last token of a batch, for llama.cpp. */
  private static final int LAST = -1;

  private static final int NONE = -2;

  private final NativeModel model;
  private final SessionOptions options;
  private final NativeContext context;
  private final List<CacheManager> caches;
  private final int[] positions;
  private final int[] logitsAt;
  private boolean closed;

  SessionGroup(NativeModel model, int size, SessionOptions options) {
    if (size < 1) {
      throw new IllegalArgumentException("A group needs at least one sequence, not " + size);
    }
    if (size > NativeContext.mostSequences()) {
      throw new InvalidOptionException(
          "llama.cpp decodes at most %d sequences together, not %d."
              .formatted(NativeContext.mostSequences(), size));
    }
    requireKnownChoice(model, options);
    this.model = model;
    this.options = options;
    positions = new int[size];
    logitsAt = new int[size];
    context =
        new NativeContext(
            model, options, size, options.keyType().ggmlType(), options.valueType().ggmlType());
    try {
      caches =
          IntStream.range(0, size)
              .mapToObj(context::store)
              .flatMap(Optional::stream)
              .map(
                  store ->
                      new CacheManager(
                          store, options.cachePolicy(), options.profile(), model.tokenKinds()))
              .toList();
    } catch (RuntimeException e) {
      context.close();
      throw e;
    }
    forget();
  }

  private static void requireKnownChoice(NativeModel model, SessionOptions options) {
    CachePolicy policy = options.cachePolicy();
    if (!model.adaptive()
        && (options.profile() != null
            || options.cacheMemoryLimit() != 0
            || !(policy instanceof Full))) {
      throw new InvalidOptionException(
          "The model was loaded without the adaptive cache: its sessions keep everything, and take CachePolicy.full(), no profile and no cacheMemoryLimit.");
    }
    if (options.profile() == null && policy instanceof FastGen) {
      throw new InvalidOptionException(
          "A group does not profile: measure a profile in a session, and give it by SessionOptions.withProfile, or take another policy.");
    }
  }

  /** Number of sequences; they are counted from 0. */
  public int size() {
    return positions.length;
  }

  /** Capacity of each sequence, in tokens. */
  public int contextSize() {
    return context.capacity();
  }

  /** Number of tokens of a sequence so far, dropped ones included. */
  public synchronized int position(int sequence) {
    return positions[sequence];
  }

  /**
   * Appends a prompt to one sequence; the others stay as they are.
   *
   * @throws ContextFullException if it does not fit; nothing of it is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the sequence is as it was before
   * @throws IllegalArgumentException if there are no tokens, or an id is not in the vocabulary
   */
  public synchronized void prefill(int sequence, int... tokens) {
    Objects.checkIndex(sequence, size());
    if (tokens.length == 0) {
      throw new IllegalArgumentException("There are no tokens to evaluate");
    }
    check(tokens);
    requireRoom(sequence, tokens.length);
    int start = positions[sequence];
    boolean done = false;
    context.saveCheckpoint(sequence, start);
    try {
      if (!caches.isEmpty()) {
        caches.get(sequence).beforePrefill(tokens.length);
      }
      for (int from = 0; from < tokens.length; from += context.batchSize()) {
        int count = Math.min(context.batchSize(), tokens.length - from);
        if (context.decode(sequence, tokens, from, count, start + from, false)
            != NativeContext.Outcome.DONE) {
          throw new DecodeException("The prefill was given up, as the JVM exits.");
        }
      }
      done = true;
    } finally {
      Arrays.fill(logitsAt, NONE);
      if (!done) {
        rollBack(sequence);
      }
      context.dropCheckpoint(sequence);
    }
    positions[sequence] = start + tokens.length;
    logitsAt[sequence] = LAST;
    if (!caches.isEmpty()) {
      caches.get(sequence).afterPrefill(tokens, 0, tokens.length);
    }
  }

  /**
   * One decode step of all sequences together.
   *
   * @param tokens the next one of every sequence
   * @throws ContextFullException if a sequence is full; nothing is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the sequences are as they were before
   * @throws IllegalArgumentException if there is not one token for each, or an id is not in the
   *     vocabulary
   */
  public synchronized void step(int... tokens) {
    if (tokens.length != size()) {
      throw new IllegalArgumentException(
          "A step takes one token of each of " + size() + " sequences, not " + tokens.length);
    }
    check(tokens);
    for (int sequence = 0; sequence < tokens.length; sequence++) {
      requireRoom(sequence, 1);
    }
    context.requireRoomForStep(positions[0]);
    boolean done = false;
    try {
      if (context.decodeStep(tokens, positions) != NativeContext.Outcome.DONE) {
        throw new DecodeException("The step was given up, as the JVM exits.");
      }
      done = true;
    } finally {
      for (int sequence = 0; sequence < tokens.length && !done; sequence++) {
        rollBack(sequence);
      }
    }
    for (int sequence = 0; sequence < tokens.length; sequence++) {
      positions[sequence]++;
      logitsAt[sequence] = sequence;
      if (!caches.isEmpty()) {
        caches.get(sequence).afterDecodeStep(tokens[sequence]);
      }
    }
    caches.forEach(CacheManager::prepareStep);
  }

  /**
   * What the model expects after the last token of a sequence, into an array of {@link
   * Model#vocabularySize()} elements.
   *
   * @throws SessionStateException if the last call was neither a step nor a prefill of this
   *     sequence
   */
  public synchronized void logits(int sequence, float[] target) {
    requireOpen();
    if (target.length != model.vocabulary().size()) {
      throw new IllegalArgumentException(
          "The logits have "
              + model.vocabulary().size()
              + " elements, the array has "
              + target.length);
    }
    if (logitsAt[sequence] == NONE) {
      throw new SessionStateException(
          "There are no logits of sequence "
              + sequence
              + ": the last call was neither a step nor a prefill of it.");
    }
    MemorySegment logits = context.logits(logitsAt[sequence]);
    MemorySegment.copy(logits, ValueLayout.JAVA_FLOAT, 0, target, 0, target.length);
  }

  /** What the cache of a sequence holds now; the memory is that of all sequences together. */
  public synchronized CacheReport cacheReport(int sequence) {
    Objects.checkIndex(sequence, size());
    requireOpen();
    return caches.isEmpty()
        ? PlainCache.report(context, options, positions[sequence])
        : caches.get(sequence).report();
  }

  /** Forgets everything. */
  public synchronized void clear() {
    requireOpen();
    context.clear();
    caches.forEach(CacheManager::clear);
    forget();
  }

  private void forget() {
    Arrays.fill(positions, 0);
    Arrays.fill(logitsAt, NONE);
  }

  /** Frees the caches. A second call does nothing. */
  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      context.close();
    }
  }

  private void rollBack(int sequence) {
    Arrays.fill(logitsAt, NONE);
    if (!caches.isEmpty()) {
      caches.get(sequence).rollBack();
    }
    if (context.truncate(sequence, positions[sequence])) {
      if (!caches.isEmpty()) {
        caches.get(sequence).rolledBack();
      }
    } else {
      // A sliding window has moved on and what it dropped cannot be brought back.
      context.truncate(sequence, 0);
      positions[sequence] = 0;
      if (!caches.isEmpty()) {
        caches.get(sequence).clear();
      }
    }
  }

  private void check(int[] tokens) {
    requireOpen();
    model.vocabulary().checkTokens(tokens);
  }

  private void requireOpen() {
    if (closed) {
      throw new SessionStateException("The session group is closed.");
    }
  }

  private void requireRoom(int sequence, int tokens) {
    int left = context.capacity() - positions[sequence];
    if (tokens > left) {
      throw new ContextFullException(
          "Sequence "
              + sequence
              + " is to take "
              + tokens
              + " more tokens, but only "
              + left
              + " of the context's "
              + context.capacity()
              + " are left. Open a group with a larger contextSize.");
    }
  }
}
