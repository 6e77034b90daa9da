package dev.kvasir;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Full;
import dev.kvasir.cache.Profile;
import dev.kvasir.internal.llama.ChatMessage;
import dev.kvasir.internal.llama.ChatTemplate;
import dev.kvasir.internal.llama.ChatTokens;
import dev.kvasir.internal.llama.MessageSpans;
import dev.kvasir.internal.llama.NativeContext;
import dev.kvasir.internal.llama.NativeModel;
import dev.kvasir.internal.llama.PlainCache;
import dev.kvasir.internal.llama.SamplerChain;
import dev.kvasir.internal.llama.Vocabulary;
import dev.kvasir.internal.policy.CacheManager;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.BooleanSupplier;
import org.jspecify.annotations.Nullable;

/**
 * One sequence of tokens and its KV cache.
 *
 * <p>A session is used by one thread at a time. It may move to another thread between calls; a call
 * while another thread is inside throws {@link SessionStateException}, and so does any call after
 * {@link #close()}. While a {@link Reply} is open the session belongs to it: finish or close the
 * reply first.
 */
public final class Session implements AutoCloseable {
  /** Bytes that the logits of one batch of {@link #evaluateAllLogits} may take. */
  private static final long ALL_LOGITS_BYTES = 128L << 20;

  private static final int NONE = -1;

  private static final BooleanSupplier NEVER = () -> false;

  private final Model owner;
  private final NativeModel model;
  private final SessionOptions options;
  private final NativeContext context;
  private final SamplerChain sampler;
  private final @Nullable CacheManager cache;
  private final AtomicReference<@Nullable Thread> inside = new AtomicReference<>();
  private final List<ChatMessage> conversation = new ArrayList<>();
  private final MessageSpans spans = new MessageSpans();

  private int position;
  // Drawn and shown, but not decoded yet: the next step or prompt begins with it.
  private int pending = NONE;
  private boolean hasLogits;
  private boolean closed;
  private @Nullable Reply openReply;

  Session(Model owner, NativeModel model, SessionOptions options) {
    if (!model.adaptive()
        && (options.profile() != null
            || options.cacheMemoryLimit() != 0
            || !(options.cachePolicy() instanceof Full))) {
      throw new InvalidOptionException(
          "The model was loaded without the adaptive cache: its sessions keep everything, and take CachePolicy.full(), no profile and no cacheMemoryLimit.");
    }
    this.owner = owner;
    this.model = model;
    this.options = options;
    this.context =
        new NativeContext(
            model, options, 1, options.keyType().ggmlType(), options.valueType().ggmlType());
    try {
      cache =
          context
              .store(0)
              .map(
                  store ->
                      new CacheManager(
                          store, options.cachePolicy(), options.profile(), model.tokenKinds()))
              .orElse(null);
      sampler = new SamplerChain(options.sampling(), model.vocabulary().size());
    } catch (RuntimeException e) {
      context.close();
      throw e;
    }
  }

  /**
   * Says something to the model, in the chat format that it was trained with. The conversation goes
   * on from the cache as the policy left it: only what is new is prefilled.
   *
   * <p>The message is plain text, whatever it holds: only the chat template makes control tokens.
   * Nothing runs before the reply is read.
   *
   * @throws ContextFullException if the message does not fit into what is left of the context
   * @throws TokenizationException if the message cannot be split into tokens
   * @throws UnsupportedModelException if the model has no chat template, or one that is malformed,
   *     refuses the conversation, leaves out the message, or takes too much time or memory
   */
  public Reply chat(String userMessage) {
    Objects.requireNonNull(userMessage, "userMessage");
    enter();
    try {
      requireNoReply();
      ChatTemplate template =
          model
              .chatTemplate()
              .orElseThrow(
                  () ->
                      new UnsupportedModelException(
                          "The model "
                              + model.file()
                              + " has no chat template. Use Session.complete with a text in its format."));
      ChatMessage message = new ChatMessage(ChatMessage.USER, userMessage);
      ChatTokens prompt;
      if (conversation.isEmpty()) {
        List<ChatMessage> opening = new ArrayList<>(systemMessages());
        opening.add(message);
        prompt = template.opening(opening, begins());
      } else {
        prompt = template.continuation(conversation, message, begins());
      }
      return open(prompt, message);
    } finally {
      exit();
    }
  }

  /**
   * Continues a raw text, without a chat template. At the start of a session the model's
   * begin-of-sequence token is put first, if it wants one. The text of special tokens is plain text
   * here: whoever wrote it cannot begin a turn of the system's. A text that goes on where other
   * text ended is split without the space that SentencePiece puts before a text.
   *
   * <p>Nothing runs before the reply is read.
   *
   * @throws ContextFullException if the text does not fit into what is left of the context
   * @throws TokenizationException if the text cannot be split into tokens
   * @throws IllegalArgumentException if there is nothing to continue: no text, and nothing
   *     evaluated before
   */
  public Reply complete(String text) {
    return complete(text, false);
  }

  /**
   * As {@link #complete(String)}, also for a prompt in the model's own format, with special tokens
   * in it.
   *
   * @param parseSpecial takes the text of a special token for that token, wherever it stands: only
   *     for a prompt of which every part can be trusted
   */
  public Reply complete(String text, boolean parseSpecial) {
    Objects.requireNonNull(text, "text");
    enter();
    try {
      requireNoReply();
      Vocabulary vocabulary = model.vocabulary();
      int[] tokens =
          begins()
              ? vocabulary.tokenize(text, false, parseSpecial)
              : vocabulary.tokenizeContinuation(text, parseSpecial);
      return open(new ChatTokens(tokens, List.of()), null);
    } finally {
      exit();
    }
  }

  private List<ChatMessage> systemMessages() {
    String system = options.systemPrompt();
    return system == null ? List.of() : List.of(new ChatMessage(ChatMessage.SYSTEM, system));
  }

  /** Whether a text begins anew here, and does not go on where other text ended. */
  private boolean begins() {
    return pending == NONE ? position == 0 : model.vocabulary().beginsAfter(pending);
  }

  private Reply open(ChatTokens prompt, @Nullable ChatMessage message) {
    int[] tokens = prompt.tokens();
    int leading = model.vocabulary().leadingToken();
    if (position == 0
        && pending == NONE
        && leading != NONE
        && (tokens.length == 0 || tokens[0] != leading)) {
      tokens = prepend(leading, tokens);
    }
    if (tokens.length == 0 && pending == NONE && !hasLogits) {
      throw new IllegalArgumentException(
          "There is nothing to continue: the text is empty, and so is the session");
    }
    requireRoom(tokens.length);
    int first = position + (pending == NONE ? 0 : 1) + tokens.length - prompt.tokens().length;
    spans.opened(prompt.spans(), first);
    Reply reply = new Reply(this, tokens, message, options);
    openReply = reply;
    return reply;
  }

  private static int[] prepend(int token, int[] tokens) {
    int[] all = new int[tokens.length + 1];
    all[0] = token;
    System.arraycopy(tokens, 0, all, 1, tokens.length);
    return all;
  }

  /** Forgets everything: tokens, conversation, profile and what the policy chose. */
  public void clear() {
    enter();
    try {
      requireNoReply();
      forget();
    } finally {
      exit();
    }
  }

  private void forget() {
    context.clear();
    if (cache != null) {
      cache.clear();
    }
    sampler.reset();
    conversation.clear();
    spans.clear();
    position = 0;
    pending = NONE;
    hasLogits = false;
  }

  /** What the cache holds now, by layer and KV head. */
  public CacheReport cacheReport() {
    enter();
    try {
      return cache == null ? PlainCache.report(context, options, position) : cache.report();
    } finally {
      exit();
    }
  }

  /** The profile that the policy chose by; empty as long as nothing was chosen. */
  public Optional<Profile> profile() {
    enter();
    try {
      return cache == null ? Optional.empty() : cache.profile();
    } finally {
      exit();
    }
  }

  /**
   * Appends tokens to the sequence, with the cache policy applied exactly as in a reply: several
   * tokens are a prefill, a single one is a decode step.
   *
   * @throws ContextFullException if they do not fit; nothing of them is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the session is as it was before
   * @throws IllegalArgumentException if there are none, or an id is not in the vocabulary
   */
  public void evaluate(int... tokens) {
    enter();
    try {
      prepareEvaluation(tokens);
      if (tokens.length == 1 && pending == NONE && position > 0) {
        step(tokens[0]);
      } else {
        prefill(tokens, NEVER);
      }
    } finally {
      exit();
    }
  }

  /**
   * As {@link #evaluate}, and hands over the logits of every token. They are computed in batches;
   * the policy is applied at the end.
   *
   * @throws ContextFullException if they do not fit; nothing of them is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the session is as it was before
   * @throws IllegalArgumentException if there are none, or an id is not in the vocabulary
   */
  public void evaluateAllLogits(int[] tokens, LogitsConsumer consumer) {
    Objects.requireNonNull(consumer, "consumer");
    enter();
    try {
      prepareEvaluation(tokens);
      int skipped = pending == NONE ? 0 : 1;
      int[] all = withPending(tokens);
      long row = (long) model.vocabulary().size() * Float.BYTES;
      int chunk = Math.clamp(ALL_LOGITS_BYTES / row, 1, context.microBatchSize());
      prefill(
          all,
          NEVER,
          chunk,
          (from, count) -> {
            for (int i = 0; i < count; i++) {
              if (from + i >= skipped) {
                consumer.accept(
                    from + i - skipped,
                    context
                        .logits(i)
                        .asByteBuffer()
                        .order(ByteOrder.nativeOrder())
                        .asFloatBuffer()
                        .asReadOnlyBuffer());
              }
            }
          });
    } finally {
      exit();
    }
  }

  private void prepareEvaluation(int[] tokens) {
    requireNoReply();
    if (tokens.length == 0) {
      throw new IllegalArgumentException("There are no tokens to evaluate");
    }
    model.vocabulary().checkTokens(tokens);
    requireRoom(tokens.length);
  }

  /**
   * What the model expects after the last token: one logit per vocabulary entry, in a new array.
   *
   * @throws SessionStateException if nothing was evaluated yet
   */
  public float[] logits() {
    float[] target = new float[model.vocabulary().size()];
    logits(target);
    return target;
  }

  /**
   * As {@link #logits()}, into an array of {@link Model#vocabularySize()} elements.
   *
   * @throws SessionStateException if nothing was evaluated yet
   */
  public void logits(float[] target) {
    enter();
    try {
      if (target.length != model.vocabulary().size()) {
        throw new IllegalArgumentException(
            "The logits have "
                + model.vocabulary().size()
                + " elements, the array has "
                + target.length);
      }
      if (!hasLogits) {
        throw new SessionStateException(
            "The session has no logits: nothing was evaluated since it was opened, cleared or rolled back.");
      }
      MemorySegment logits = context.logits(-1);
      MemorySegment.copy(logits, ValueLayout.JAVA_FLOAT, 0, target, 0, target.length);
    } finally {
      exit();
    }
  }

  /** Number of tokens so far, dropped ones included: the position that the next token gets. */
  public int position() {
    enter();
    try {
      return position;
    } finally {
      exit();
    }
  }

  /** Capacity in tokens. */
  public int contextSize() {
    return context.capacity();
  }

  /** The options that the session was opened with. */
  public SessionOptions options() {
    return options;
  }

  /** The model of this session. */
  public Model model() {
    return owner;
  }

  /**
   * Frees the cache. An open reply is closed with it. A second call does nothing.
   *
   * @throws SessionStateException if another thread is inside the session; the session stays open
   *     then
   */
  @Override
  public void close() {
    Thread me = Thread.currentThread();
    if (!inside.compareAndSet(null, me)) {
      throw busy(me);
    }
    try {
      if (closed) {
        return;
      }
      if (openReply != null) {
        openReply.abandon();
      }
      closed = true;
      sampler.close();
      context.close();
    } finally {
      exit();
    }
  }

  /** Which positions hold the messages of the conversation. */
  List<ChatTokens.Span> messageSpans() {
    return spans.all();
  }

  /** The context behind the session, for tests that look at its slots. */
  NativeContext context() {
    return context;
  }

  // What a reply calls, between enterReply and exit.

  void enterReply(Reply reply) {
    enter();
    if (openReply != reply) {
      exit();
      throw new SessionStateException("The reply has ended: its session has gone on without it.");
    }
  }

  void exit() {
    inside.set(null);
  }

  Vocabulary vocabulary() {
    return model.vocabulary();
  }

  /**
   * Prefills a prompt; false when it was cancelled, and rolled back.
   *
   * @param cancelled asked between two operations, on this thread
   */
  boolean prefill(int[] tokens, BooleanSupplier cancelled) {
    int chunk = options.prefillListener() == null ? context.batchSize() : context.microBatchSize();
    return prefill(withPending(tokens), cancelled, chunk, null);
  }

  /** Keeps a token that was drawn for the next step or prompt. */
  void hold(int token) {
    pending = token;
  }

  /** Decodes the token that is held, if there is one; false when the context has no room for it. */
  boolean decodePending() {
    if (pending == NONE) {
      return true;
    }
    if (position >= context.capacity()) {
      return false;
    }
    step(pending);
    pending = NONE;
    return true;
  }

  /** Draws the token after the last one. */
  int draw() {
    return context.sample(sampler);
  }

  void replyBegan(@Nullable ChatMessage message) {
    if (message != null) {
      if (conversation.isEmpty()) {
        conversation.addAll(systemMessages());
      }
      conversation.add(message);
      spans.began(position);
    }
  }

  void replyEnded(@Nullable ChatMessage message, String text) {
    openReply = null;
    if (message != null) {
      conversation.add(new ChatMessage(ChatMessage.ASSISTANT, text));
      spans.ended(position + (pending == NONE ? 0 : 1));
    }
  }

  // The guard.

  private void enter() {
    Thread me = Thread.currentThread();
    if (!inside.compareAndSet(null, me)) {
      throw busy(me);
    }
    if (closed) {
      exit();
      throw new SessionStateException("The session is closed.");
    }
  }

  private SessionStateException busy(Thread me) {
    Thread other = inside.get();
    if (other == me) {
      return new SessionStateException(
          "The session was called from its own listener; it can be used again when the call that the listener is part of returns.");
    }
    return new SessionStateException(
        "The session is in use by thread \""
            + (other == null ? "?" : other.getName())
            + "\" and was called by thread \""
            + me.getName()
            + "\". A session is used by one thread at a time; open one session per thread, they can share the model.");
  }

  private void requireNoReply() {
    if (openReply != null) {
      throw new SessionStateException(
          "A reply of this session is still open. Read it to its end, or close it, first.");
    }
  }

  private void requireRoom(int tokens) {
    int needed = tokens + (pending == NONE ? 0 : 1);
    int left = context.capacity() - position;
    if (needed > left) {
      throw new ContextFullException(
          "The prompt has "
              + needed
              + " tokens, but only "
              + left
              + " of the context's "
              + context.capacity()
              + " are left. Clear the session, shorten the prompt, or open a session with a larger contextSize.");
    }
  }

  // Decoding.

  /**
   * What happens between two batches of a prefill: how many tokens were decoded, and from where on.
   */
  @FunctionalInterface
  private interface BatchListener {
    void decoded(int from, int count);
  }

  private int[] withPending(int[] tokens) {
    return pending == NONE ? tokens : prepend(pending, tokens);
  }

  private boolean prefill(
      int[] tokens, BooleanSupplier cancelled, int chunk, @Nullable BatchListener listener) {
    if (tokens.length == 0) {
      return true;
    }
    int start = position;
    boolean done = false;
    context.saveCheckpoint(0, start);
    if (cancelled != NEVER) {
      context.abortWhen(cancelled);
    }
    try {
      if (cache != null) {
        cache.beforePrefill(tokens.length);
      }
      done = decodeAll(tokens, cancelled, chunk, listener);
    } finally {
      if (cancelled != NEVER) {
        context.abortWhen(null);
      }
      if (!done) {
        rollBack(start);
      }
      context.dropCheckpoint(0);
    }
    if (!done) {
      return false;
    }
    // The sampler saw the token that was pending when it drew it.
    for (int i = pending == NONE ? 0 : 1; i < tokens.length; i++) {
      sampler.acceptPrompt(tokens[i]);
    }
    pending = NONE;
    hasLogits = true;
    if (cache != null) {
      cache.afterPrefill(tokens, 0, tokens.length);
    }
    return true;
  }

  private boolean decodeAll(
      int[] tokens, BooleanSupplier cancelled, int chunk, @Nullable BatchListener listener) {
    PrefillListener progress = options.prefillListener();
    if (progress != null) {
      progress.prefilled(0, tokens.length);
    }
    for (int from = 0; from < tokens.length; from += chunk) {
      int count = Math.min(chunk, tokens.length - from);
      if (cancelled.getAsBoolean()
          || context.decode(0, tokens, from, count, position, listener != null)
              == NativeContext.Outcome.ABORTED) {
        return false;
      }
      position += count;
      if (listener != null) {
        listener.decoded(from, count);
      }
      if (progress != null) {
        progress.prefilled(from + count, tokens.length);
      }
    }
    return true;
  }

  /** One decode step, and what the policy makes of it. Nothing here allocates. */
  private void step(int token) {
    context.requireRoomForStep(position);
    boolean done = false;
    try {
      context.decode(token, position);
      done = true;
    } finally {
      if (!done) {
        rollBack(position);
      }
    }
    position++;
    hasLogits = true;
    if (cache != null) {
      cache.afterDecodeStep(token);
      cache.prepareStep();
    }
  }

  private void rollBack(int start) {
    hasLogits = false;
    if (cache != null) {
      cache.rollBack();
    }
    if (context.truncate(0, start)) {
      position = start;
      if (cache != null) {
        cache.rolledBack();
      }
    } else {
      // A sliding window has moved on and what it dropped cannot be brought back, or the step of a
      // recurrent model failed.
      forget();
    }
  }
}
