package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Profile;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * How a session runs. Sizes are in tokens.
 *
 * @param contextSize capacity in tokens, prompt and replies together; 0: what the model was trained
 *     for
 * @param batchSize most tokens that llama.cpp is given in one call
 * @param microBatchSize most tokens that are computed at once; {@code batchSize} where that is
 *     smaller
 * @param threads threads that decode single tokens; 0: chosen from the number of processors
 * @param batchThreads threads that prefill; 0: as {@code threads}
 * @param keyType element type of the cached keys
 * @param valueType element type of the cached values
 * @param sampling how tokens are drawn
 * @param systemPrompt opens every conversation of {@link Session#chat}; null: none
 * @param stopSequences texts that end a reply; they are not part of its text
 * @param maxTokens most tokens of one reply; 0: until the context is full
 * @param cachePolicy what each KV head keeps
 * @param profile of an earlier prompt: its choice and its policy take the place of {@code
 *     cachePolicy}; null: none
 * @param cacheMemoryLimit most bytes that keys and values of the adaptive cache may occupy, on all
 *     devices together and for all sequences of a {@link SessionGroup}; 0: no limit. Whole pages or
 *     device buffers count. A prompt is held whole until the policy has seen it. Tokens for which
 *     the limit leaves no room are a {@link DecodeException}
 * @param attention code that computes attention over the adaptive cache
 * @param flashAttention llama.cpp's flash attention, or its plain one; only for models loaded
 *     without the adaptive cache, which always takes the place of flash attention
 * @param prefillListener hears how far a prefill is; null: nobody
 */
public record SessionOptions(
    int contextSize,
    int batchSize,
    int microBatchSize,
    int threads,
    int batchThreads,
    KvType keyType,
    KvType valueType,
    Sampling sampling,
    @Nullable String systemPrompt,
    List<String> stopSequences,
    int maxTokens,
    CachePolicy cachePolicy,
    @Nullable Profile profile,
    long cacheMemoryLimit,
    Attention attention,
    boolean flashAttention,
    @Nullable PrefillListener prefillListener) {
  private static final SessionOptions DEFAULTS =
      new SessionOptions(
          0,
          2048,
          512,
          0,
          0,
          KvType.F16,
          KvType.F16,
          Sampling.defaults(),
          null,
          List.of(),
          0,
          CachePolicy.full(),
          null,
          0,
          Attention.NATIVE,
          true,
          null);

  /** Checks the ranges. */
  public SessionOptions {
    range(contextSize >= 0 && contextSize <= 1 << 30, "contextSize", contextSize);
    range(batchSize >= 1 && batchSize <= 1 << 20, "batchSize", batchSize);
    range(microBatchSize >= 1 && microBatchSize <= 1 << 20, "microBatchSize", microBatchSize);
    range(threads >= 0 && threads <= 512, "threads", threads);
    range(batchThreads >= 0 && batchThreads <= 512, "batchThreads", batchThreads);
    range(maxTokens >= 0, "maxTokens", maxTokens);
    range(cacheMemoryLimit >= 0, "cacheMemoryLimit", cacheMemoryLimit);
    Objects.requireNonNull(keyType, "keyType");
    Objects.requireNonNull(valueType, "valueType");
    Objects.requireNonNull(sampling, "sampling");
    Objects.requireNonNull(cachePolicy, "cachePolicy");
    Objects.requireNonNull(attention, "attention");
    stopSequences = List.copyOf(stopSequences);
    if (stopSequences.contains("")) {
      throw new IllegalArgumentException(
          "SessionOptions.stopSequences has an empty text, which would end every reply");
    }
  }

  private static void range(boolean ok, String name, long value) {
    if (!ok) {
      throw new IllegalArgumentException("SessionOptions." + name + " is out of range: " + value);
    }
  }

  /**
   * The model's context, batches of 2,048 in micro-batches of 512, F16, llama.cpp's default
   * sampling, and a cache that keeps everything.
   */
  public static SessionOptions defaults() {
    return DEFAULTS;
  }

  /** A copy with another {@link #contextSize()}. */
  public SessionOptions withContextSize(int value) {
    return new SessionOptions(
        value,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #batchSize()}. */
  public SessionOptions withBatchSize(int value) {
    return new SessionOptions(
        contextSize,
        value,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #microBatchSize()}. */
  public SessionOptions withMicroBatchSize(int value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        value,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #threads()}. */
  public SessionOptions withThreads(int value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        value,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #batchThreads()}. */
  public SessionOptions withBatchThreads(int value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        value,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #keyType()}. */
  public SessionOptions withKeyType(KvType value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        value,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #valueType()}. */
  public SessionOptions withValueType(KvType value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        value,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #sampling()}. */
  public SessionOptions withSampling(Sampling value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        value,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #systemPrompt()}. */
  public SessionOptions withSystemPrompt(@Nullable String value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        value,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #stopSequences()}. */
  public SessionOptions withStopSequences(List<String> value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        value,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with other {@link #stopSequences()}. */
  public SessionOptions withStopSequences(String... value) {
    return withStopSequences(List.of(value));
  }

  /** A copy with another {@link #maxTokens()}. */
  public SessionOptions withMaxTokens(int value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        value,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #cachePolicy()}. */
  public SessionOptions withCachePolicy(CachePolicy value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        value,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #profile()}. */
  public SessionOptions withProfile(@Nullable Profile value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        value,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #cacheMemoryLimit()}. */
  public SessionOptions withCacheMemoryLimit(long value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        value,
        attention,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #attention()}. */
  public SessionOptions withAttention(Attention value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        value,
        flashAttention,
        prefillListener);
  }

  /** A copy with another {@link #flashAttention()}. */
  public SessionOptions withFlashAttention(boolean value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        value,
        prefillListener);
  }

  /** A copy with another {@link #prefillListener()}. */
  public SessionOptions withPrefillListener(@Nullable PrefillListener value) {
    return new SessionOptions(
        contextSize,
        batchSize,
        microBatchSize,
        threads,
        batchThreads,
        keyType,
        valueType,
        sampling,
        systemPrompt,
        stopSequences,
        maxTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        value);
  }
}
