package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Profile;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/** How a session runs. Sizes are in tokens. Immutable: every {@code with} method makes a copy. */
public final class SessionOptions {
  private static final SessionOptions DEFAULTS = new SessionOptions();

  private int contextSize = 0;
  private int batchSize = 2048;
  private int microBatchSize = 512;
  private int threads = 0;
  private int batchThreads = 0;
  private KvType keyType = KvType.F16;
  private KvType valueType = KvType.F16;
  private Sampling sampling = Sampling.defaults();
  private @Nullable String systemPrompt = null;
  private List<String> stopSequences = List.of();
  private int maxTokens = 0;
  private boolean controlTokens = false;
  private CachePolicy cachePolicy = CachePolicy.full();
  private @Nullable Profile profile = null;
  private long cacheMemoryLimit = 0;
  private Attention attention = Attention.NATIVE;
  private boolean flashAttention = true;
  private @Nullable PrefillListener prefillListener = null;

  private SessionOptions() {}

  /** A copy with a change, whose ranges are checked. */
  private SessionOptions(SessionOptions from, Consumer<SessionOptions> change) {
    contextSize = from.contextSize;
    batchSize = from.batchSize;
    microBatchSize = from.microBatchSize;
    threads = from.threads;
    batchThreads = from.batchThreads;
    keyType = from.keyType;
    valueType = from.valueType;
    sampling = from.sampling;
    systemPrompt = from.systemPrompt;
    stopSequences = from.stopSequences;
    maxTokens = from.maxTokens;
    controlTokens = from.controlTokens;
    cachePolicy = from.cachePolicy;
    profile = from.profile;
    cacheMemoryLimit = from.cacheMemoryLimit;
    attention = from.attention;
    flashAttention = from.flashAttention;
    prefillListener = from.prefillListener;
    change.accept(this);
    check();
  }

  private void check() {
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

  /** Capacity in tokens, prompt and replies together; 0: what the model was trained for. */
  public int contextSize() {
    return contextSize;
  }

  /** Most tokens that llama.cpp is given in one call. */
  public int batchSize() {
    return batchSize;
  }

  /** Most tokens that are computed at once; {@link #batchSize()} where that is smaller. */
  public int microBatchSize() {
    return microBatchSize;
  }

  /** Threads that decode single tokens; 0: chosen from the number of processors. */
  public int threads() {
    return threads;
  }

  /** Threads that prefill; 0: as {@link #threads()}. */
  public int batchThreads() {
    return batchThreads;
  }

  /** Element type of the cached keys. */
  public KvType keyType() {
    return keyType;
  }

  /** Element type of the cached values. */
  public KvType valueType() {
    return valueType;
  }

  /** How tokens are drawn. */
  public Sampling sampling() {
    return sampling;
  }

  /** Opens every conversation of {@link Session#chat}; null: none. */
  public @Nullable String systemPrompt() {
    return systemPrompt;
  }

  /**
   * Texts that end a reply. They are not part of its text, nor is any of them in the session
   * afterwards: see {@link Reply}.
   */
  public List<String> stopSequences() {
    return stopSequences;
  }

  /** Most tokens of one reply; 0: until the context is full. */
  public int maxTokens() {
    return maxTokens;
  }

  /**
   * Whether replies show control tokens, as the vocabulary spells them: those that begin and end
   * tool calls or reasoning, for example. The token that ends a generation is never shown.
   */
  public boolean controlTokens() {
    return controlTokens;
  }

  /** What each KV head keeps; without meaning where there is a {@link #profile()}. */
  public CachePolicy cachePolicy() {
    return cachePolicy;
  }

  /**
   * Of an earlier prompt: its choice and its policy take the place of {@link #cachePolicy()}; null:
   * none.
   */
  public @Nullable Profile profile() {
    return profile;
  }

  /**
   * Most bytes that keys and values of the adaptive cache may occupy, on all devices together and
   * for all sequences of a {@link SessionGroup}; 0: no limit. Whole pages or device buffers count.
   * A prompt is held whole until the policy has seen it. Tokens for which the limit leaves no room
   * are a {@link DecodeException}.
   */
  public long cacheMemoryLimit() {
    return cacheMemoryLimit;
  }

  /** Code that computes attention over the adaptive cache. */
  public Attention attention() {
    return attention;
  }

  /**
   * llama.cpp's flash attention, or its plain one; only for models loaded without the adaptive
   * cache, which takes the place of flash attention, or of the plain one where llama.cpp has no
   * other for a model.
   */
  public boolean flashAttention() {
    return flashAttention;
  }

  /** Hears how far a prefill is; null: nobody. */
  public @Nullable PrefillListener prefillListener() {
    return prefillListener;
  }

  /** A copy with another {@link #contextSize()}. */
  public SessionOptions withContextSize(int value) {
    return new SessionOptions(this, o -> o.contextSize = value);
  }

  /** A copy with another {@link #batchSize()}. */
  public SessionOptions withBatchSize(int value) {
    return new SessionOptions(this, o -> o.batchSize = value);
  }

  /** A copy with another {@link #microBatchSize()}. */
  public SessionOptions withMicroBatchSize(int value) {
    return new SessionOptions(this, o -> o.microBatchSize = value);
  }

  /** A copy with another {@link #threads()}. */
  public SessionOptions withThreads(int value) {
    return new SessionOptions(this, o -> o.threads = value);
  }

  /** A copy with another {@link #batchThreads()}. */
  public SessionOptions withBatchThreads(int value) {
    return new SessionOptions(this, o -> o.batchThreads = value);
  }

  /** A copy with another {@link #keyType()}. */
  public SessionOptions withKeyType(KvType value) {
    return new SessionOptions(this, o -> o.keyType = value);
  }

  /** A copy with another {@link #valueType()}. */
  public SessionOptions withValueType(KvType value) {
    return new SessionOptions(this, o -> o.valueType = value);
  }

  /** A copy with another {@link #sampling()}. */
  public SessionOptions withSampling(Sampling value) {
    return new SessionOptions(this, o -> o.sampling = value);
  }

  /** A copy with another {@link #systemPrompt()}. */
  public SessionOptions withSystemPrompt(@Nullable String value) {
    return new SessionOptions(this, o -> o.systemPrompt = value);
  }

  /** A copy with another {@link #stopSequences()}. */
  public SessionOptions withStopSequences(List<String> value) {
    List<String> copy = List.copyOf(value);
    return new SessionOptions(this, o -> o.stopSequences = copy);
  }

  /** A copy with other {@link #stopSequences()}. */
  public SessionOptions withStopSequences(String... value) {
    return withStopSequences(List.of(value));
  }

  /** A copy with another {@link #maxTokens()}. */
  public SessionOptions withMaxTokens(int value) {
    return new SessionOptions(this, o -> o.maxTokens = value);
  }

  /** A copy with another {@link #controlTokens()}. */
  public SessionOptions withControlTokens(boolean value) {
    return new SessionOptions(this, o -> o.controlTokens = value);
  }

  /**
   * A copy with another {@link #cachePolicy()}, and without a {@link #profile()}, which would take
   * its place.
   */
  public SessionOptions withCachePolicy(CachePolicy value) {
    return new SessionOptions(
        this,
        o -> {
          o.cachePolicy = value;
          o.profile = null;
        });
  }

  /** A copy with another {@link #profile()}. */
  public SessionOptions withProfile(@Nullable Profile value) {
    return new SessionOptions(this, o -> o.profile = value);
  }

  /** A copy with another {@link #cacheMemoryLimit()}. */
  public SessionOptions withCacheMemoryLimit(long value) {
    return new SessionOptions(this, o -> o.cacheMemoryLimit = value);
  }

  /** A copy with another {@link #attention()}. */
  public SessionOptions withAttention(Attention value) {
    return new SessionOptions(this, o -> o.attention = value);
  }

  /** A copy with another {@link #flashAttention()}. */
  public SessionOptions withFlashAttention(boolean value) {
    return new SessionOptions(this, o -> o.flashAttention = value);
  }

  /** A copy with another {@link #prefillListener()}. */
  public SessionOptions withPrefillListener(@Nullable PrefillListener value) {
    return new SessionOptions(this, o -> o.prefillListener = value);
  }

  private List<@Nullable Object> values() {
    return Arrays.asList(
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
        controlTokens,
        cachePolicy,
        profile,
        cacheMemoryLimit,
        attention,
        flashAttention,
        prefillListener);
  }

  @Override
  public boolean equals(@Nullable Object other) {
    return other instanceof SessionOptions options && values().equals(options.values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  @Override
  public String toString() {
    return "SessionOptions" + values();
  }
}
