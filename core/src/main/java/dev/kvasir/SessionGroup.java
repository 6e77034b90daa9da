package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.Full;
import dev.kvasir.internal.engine.Decoder;
import dev.kvasir.internal.engine.Tokens;
import dev.kvasir.internal.llama.NativeContext;
import dev.kvasir.internal.llama.NativeModel;
import dev.kvasir.internal.policy.CacheManager;
import dev.kvasir.internal.policy.TokenKinds;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Several sequences of tokens that are decoded together: one step computes the next token of all of
 * them at once, which is what throughput comes from. Every sequence has a cache of its own.
 *
 * <p>What the heads keep must be known beforehand: a profile is measured in a {@link Session}, and
 * given to the group by {@link SessionOptions#withProfile}. There is no sampling here and no chat:
 * a group is fed with tokens and asked for logits, and options about either are refused.
 *
 * <p>Any thread may call it; calls wait for each other. Interrupting the thread that decodes is a
 * {@link CancelledException} at the next chance. When the policy of a sequence fails behind a
 * decode, that sequence keeps every token from there on, and {@link CacheReport#policyFailure} says
 * why.
 */
public final class SessionGroup implements AutoCloseable {
  /** Index of the last token of a batch, for llama.cpp. */
  private static final int LAST = -1;

  private static final int NONE = -2;

  private static final BooleanSupplier INTERRUPTED = () -> Thread.currentThread().isInterrupted();

  private final Tokens vocabulary;
  private final Decoder decoder;
  private final @Nullable PrefillListener progress;
  private final List<CacheManager> caches;
  private final int[] positions;
  private final int[] logitsAt;
  private boolean closed;

  static SessionGroup open(NativeModel model, int size, SessionOptions options) {
    if (size < 1) {
      throw new IllegalArgumentException("A group needs at least one sequence, not " + size);
    }
    if (size > NativeContext.mostSequences()) {
      throw new InvalidOptionException(
          "llama.cpp decodes at most %d sequences together, not %d."
              .formatted(NativeContext.mostSequences(), size));
    }
    requireKnownChoice(model, options);
    requireNoReplies(options);
    Decoder decoder =
        new NativeContext(
            model, options, size, options.keyType().ggmlType(), options.valueType().ggmlType());
    return over(decoder, size, options, model.vocabulary(), model::tokenKinds);
  }

  /** A group over a decoder, which it closes, and which is closed when that fails. */
  static SessionGroup over(
      Decoder decoder,
      int size,
      SessionOptions options,
      Tokens vocabulary,
      Supplier<TokenKinds> kinds) {
    try {
      return new SessionGroup(decoder, size, options, vocabulary, kinds);
    } catch (Throwable e) {
      decoder.close();
      throw e;
    }
  }

  private SessionGroup(
      Decoder decoder,
      int size,
      SessionOptions options,
      Tokens vocabulary,
      Supplier<TokenKinds> kinds) {
    this.decoder = decoder;
    this.vocabulary = vocabulary;
    progress = options.prefillListener();
    positions = new int[size];
    logitsAt = new int[size];
    caches =
        IntStream.range(0, size)
            .mapToObj(decoder::store)
            .flatMap(Optional::stream)
            .map(
                store ->
                    new CacheManager(store, options.cachePolicy(), options.profile(), kinds.get()))
            .toList();
    forget();
  }

  private static void requireNoReplies(SessionOptions options) {
    SessionOptions none = SessionOptions.defaults();
    String name =
        !options.sampling().equals(none.sampling())
            ? "sampling"
            : options.systemPrompt() != null
                ? "systemPrompt"
                : !options.stopSequences().isEmpty()
                    ? "stopSequences"
                    : options.maxTokens() != none.maxTokens()
                        ? "maxTokens"
                        : options.controlTokens() ? "controlTokens" : null;
    if (name != null) {
      throw new InvalidOptionException(
          "A session group takes no %s: it draws no tokens and gives no replies. Leave the option as it is by default, or open sessions."
              .formatted(name));
    }
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
    if (options.profile() == null && policy instanceof Foresight) {
      throw new InvalidOptionException(
          "A group takes no CachePolicy.foresight(): its queries are recorded for one sequence. Open sessions, or take another policy.");
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
    return decoder.capacity();
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
   *     leaves no room; the sequence is as it was before, or empty where it {@linkplain Session
   *     cannot be brought back}: the message says so
   * @throws CancelledException if the thread is interrupted; the sequence is as after a {@link
   *     DecodeException}
   * @throws ExitingException if the JVM exits
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
    int chunk = progress == null ? decoder.promptSize() : decoder.microBatchSize();
    Arrays.fill(logitsAt, NONE);
    decoder.saveCheckpoint(sequence, start);
    decoder.abortWhen(INTERRUPTED);
    try {
      if (!caches.isEmpty()) {
        caches.get(sequence).beforePrefill(tokens.length);
      }
      if (progress != null) {
        progress.prefilled(0, tokens.length);
      }
      for (int from = 0; from < tokens.length; from += chunk) {
        int count = Math.min(chunk, tokens.length - from);
        requireDone(
            INTERRUPTED.getAsBoolean()
                ? Decoder.Outcome.ABORTED
                : decoder.decode(sequence, tokens, from, count, start + from, false));
        if (progress != null) {
          progress.prefilled(from + count, tokens.length);
        }
      }
    } catch (Throwable e) {
      rollBackAfter(e, sequence);
      throw e;
    } finally {
      decoder.abortWhen(null);
      decoder.dropCheckpoint(sequence);
    }
    positions[sequence] = start + tokens.length;
    logitsAt[sequence] = LAST;
    if (!caches.isEmpty()) {
      caches.get(sequence).afterPrefill(tokens, 0, tokens.length);
    }
  }

  /** Where a decode was given up, says why: only an interrupt and the JVM's exit end one. */
  private static void requireDone(Decoder.Outcome outcome) {
    if (outcome == Decoder.Outcome.ABORTED) {
      if (INTERRUPTED.getAsBoolean()) {
        throw new CancelledException(
            "The call was given up, as the thread \""
                + Thread.currentThread().getName()
                + "\" was interrupted; nothing of it is in the group.");
      }
      throw new ExitingException();
    }
  }

  /**
   * One decode step of all sequences together.
   *
   * @param tokens the next one of every sequence
   * @throws ContextFullException if a sequence is full; nothing is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the sequences are as they were before, or empty where they {@linkplain
   *     Session cannot be brought back}: the message says so
   * @throws CancelledException if the thread is interrupted; nothing is decoded then
   * @throws ExitingException if the JVM exits
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
    decoder.requireRoomForStep(positions[0]);
    try {
      requireDone(
          INTERRUPTED.getAsBoolean()
              ? Decoder.Outcome.ABORTED
              : decoder.decodeStep(tokens, positions));
    } catch (Throwable e) {
      for (int sequence = 0; sequence < tokens.length; sequence++) {
        rollBackAfter(e, sequence);
      }
      throw e;
    }
    // The tokens are in the memory, whatever the policies make of them.
    for (int sequence = 0; sequence < tokens.length; sequence++) {
      positions[sequence]++;
      logitsAt[sequence] = sequence;
    }
    for (int sequence = 0; sequence < caches.size(); sequence++) {
      caches.get(sequence).afterDecodeStep(tokens[sequence]);
    }
    for (int sequence = 0; sequence < caches.size(); sequence++) {
      caches.get(sequence).prepareStep();
    }
  }

  /**
   * What the model expects after the last token of a sequence, into an array of {@link
   * Model#vocabularySize()} elements.
   *
   * @throws SessionStateException if the last call was neither a step nor a prefill of this
   *     sequence
   */
  public synchronized void logits(int sequence, float[] target) {
    Objects.checkIndex(sequence, size());
    requireOpen();
    if (target.length != vocabulary.size()) {
      throw new IllegalArgumentException(
          "The logits have " + vocabulary.size() + " elements, the array has " + target.length);
    }
    if (logitsAt[sequence] == NONE) {
      throw new SessionStateException(
          "There are no logits of sequence "
              + sequence
              + ": the last call was neither a step nor a prefill of it.");
    }
    decoder.copyLogits(logitsAt[sequence], target);
  }

  /** What the cache of a sequence holds now; the memory is that of all sequences together. */
  public synchronized CacheReport cacheReport(int sequence) {
    Objects.checkIndex(sequence, size());
    requireOpen();
    return caches.isEmpty()
        ? decoder.plainReport(positions[sequence])
        : caches.get(sequence).report();
  }

  /** Forgets everything. */
  public synchronized void clear() {
    requireOpen();
    forget();
    decoder.clear();
    caches.forEach(CacheManager::clear);
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
      decoder.close();
    }
  }

  private void rollBackAfter(Throwable cause, int sequence) {
    try {
      if (!rollBack(sequence)) {
        Emptied.say(cause, "Sequence " + sequence);
      }
    } catch (Throwable e) {
      if (e != cause) {
        cause.addSuppressed(e);
      }
    }
  }

  /** Takes what is behind a sequence's position out of it; false when that emptied it. */
  private boolean rollBack(int sequence) {
    Arrays.fill(logitsAt, NONE);
    if (!caches.isEmpty()) {
      caches.get(sequence).rollBack();
    }
    if (decoder.truncate(sequence, positions[sequence])) {
      if (!caches.isEmpty()) {
        caches.get(sequence).rolledBack();
      }
      return true;
    }
    // A sliding window has moved on and what it dropped cannot be brought back, or the step of a
    // recurrent model failed.
    boolean wasEmpty = positions[sequence] == 0;
    decoder.truncate(sequence, 0);
    positions[sequence] = 0;
    if (!caches.isEmpty()) {
      caches.get(sequence).clear();
    }
    return wasEmpty;
  }

  private void check(int[] tokens) {
    requireOpen();
    vocabulary.checkTokens(tokens);
  }

  private void requireOpen() {
    if (closed) {
      throw new SessionStateException("The session group is closed.");
    }
  }

  private void requireRoom(int sequence, int tokens) {
    int left = decoder.capacity() - positions[sequence];
    if (tokens > left) {
      throw new ContextFullException(
          "Sequence "
              + sequence
              + " is to take "
              + tokens
              + " more tokens, but only "
              + left
              + " of the context's "
              + decoder.capacity()
              + " are left. Open a group with a larger contextSize.");
    }
  }
}
