package dev.kvasir;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.Full;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import dev.kvasir.internal.engine.Decoder;
import dev.kvasir.internal.engine.Sampler;
import dev.kvasir.internal.engine.Tokens;
import dev.kvasir.internal.llama.ChatMessage;
import dev.kvasir.internal.llama.ChatTemplate;
import dev.kvasir.internal.llama.ChatTokens;
import dev.kvasir.internal.llama.MessageSpans;
import dev.kvasir.internal.llama.NativeContext;
import dev.kvasir.internal.llama.NativeModel;
import dev.kvasir.internal.llama.Vocabulary;
import dev.kvasir.internal.policy.CacheManager;
import dev.kvasir.internal.policy.TokenKinds;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * One sequence of tokens and its KV cache.
 *
 * <p>A session is used by one thread at a time. It may move to another thread between calls; a call
 * while another thread is inside throws {@link SessionStateException}, and so does any call after
 * {@link #close()}. While a {@link Reply} is being read the session belongs to it: finish or close
 * the reply first. A reply of which nothing was read yet is closed by the next call that needs the
 * session.
 *
 * <p>Interrupting the thread that evaluates or reads a reply cancels that: {@link
 * CancelledException}, or a reply that ends with {@link StopReason#CANCELLED}. The interrupt status
 * stays set.
 *
 * <p>What fails or is cancelled is taken back, and the session is as it was before: its tokens, its
 * conversation, and what the policy chose. Two kinds of models cannot always be taken back. The
 * session is then emptied as by {@link #clear()}:
 *
 * <ul>
 *   <li>of a model with sliding windows, when a prompt to a session with tokens had written over
 *       those that the windows still need. Up to {@link SessionOptions#microBatchSize()} decoded
 *       tokens of the prompt never do that. Models that have a recurrent state as well are emptied
 *       in any case.
 *   <li>of a recurrent or hybrid model, when a decode step fails in llama.cpp. Prompts are taken
 *       back, and a step that {@link SessionOptions#cacheMemoryLimit()} forbids is refused before
 *       it has begun.
 * </ul>
 *
 * <p>The message of the exception says so (what a listener threw has it as a suppressed exception),
 * {@link ReplyStatistics#sessionEmptied()} says so of a reply, and {@link #position()} is 0.
 *
 * <p>When the policy fails behind a decode, for want of memory for example, the tokens are in the
 * session all the same: it keeps every token from there on, and {@link CacheReport#policyFailure}
 * says why, until it is cleared.
 */
public final class Session implements AutoCloseable {
  /** Bytes that the logits of one batch of {@link #evaluateAllLogits} may take. */
  private static final long ALL_LOGITS_BYTES = 128L << 20;

  private static final int NONE = -1;

  private static final String SESSION = "The session";

  private static final BooleanSupplier INTERRUPTED = () -> Thread.currentThread().isInterrupted();

  private final Model owner;
  private final NativeModel model;
  private final SessionOptions options;
  private final Decoder decoder;
  private final Tokens vocabulary;
  private final Sampler sampler;
  private final long seed;
  private final @Nullable CacheManager cache;
  private final AtomicReference<@Nullable Thread> inside = new AtomicReference<>();
  private final List<ChatMessage> conversation = new ArrayList<>();
  private final MessageSpans spans = new MessageSpans();

  private int position;
  // Shown, and known to the sampler, but not decoded yet: the next step or prompt begins with them.
  private int[] waiting = new int[4];
  private int waitingCount;
  // Decoded by the last steps, and not known to the policy yet: they may be taken back.
  private int[] unseen = new int[16];
  private int unseenCount;
  private boolean hasLogits;
  private boolean emptied; // by the last roll-back
  private boolean closed;
  private @Nullable Reply openReply;

  static Session open(Model owner, NativeModel model, SessionOptions options) {
    if (!model.adaptive()
        && (options.profile() != null
            || options.cacheMemoryLimit() != 0
            || !(options.cachePolicy() instanceof Full))) {
      throw new InvalidOptionException(
          "The model was loaded without the adaptive cache: its sessions keep everything, and take CachePolicy.full(), no profile and no cacheMemoryLimit.");
    }
    Decoder decoder =
        new NativeContext(
            model, options, 1, options.keyType().ggmlType(), options.valueType().ggmlType());
    return over(decoder, owner, model, options, model.vocabulary(), model::tokenKinds);
  }

  /** A session over a decoder, which it closes, and which is closed when that fails. */
  static Session over(
      Decoder decoder,
      Model owner,
      NativeModel model,
      SessionOptions options,
      Tokens vocabulary,
      Supplier<TokenKinds> kinds) {
    try {
      return new Session(decoder, owner, model, options, vocabulary, kinds);
    } catch (Throwable e) {
      decoder.close();
      throw e;
    }
  }

  private Session(
      Decoder decoder,
      Model owner,
      NativeModel model,
      SessionOptions options,
      Tokens vocabulary,
      Supplier<TokenKinds> kinds) {
    this.decoder = decoder;
    this.owner = owner;
    this.model = model;
    this.options = options;
    this.vocabulary = vocabulary;
    cache =
        decoder
            .store(0)
            .map(
                store ->
                    new CacheManager(store, options.cachePolicy(), options.profile(), kinds.get()))
            .orElse(null);
    Sampling sampling = options.sampling().withDrawnSeed();
    seed = sampling.seed();
    sampler = decoder.sampler(sampling);
  }

  /**
   * Says something to the model, in the chat format that it was trained with. The conversation goes
   * on from the cache as the policy left it: only what is new is prefilled. If that is cancelled or
   * fails, the conversation is as it was before the message, or empty where it {@linkplain Session
   * cannot be brought back}.
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
   * <p>If the prefill is cancelled or fails, the session is as it was before the text, or empty
   * where it {@linkplain Session cannot be brought back}.
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
    return waitingCount == 0
        ? position == 0
        : model.vocabulary().beginsAfter(waiting[waitingCount - 1]);
  }

  private Reply open(ChatTokens prompt, @Nullable ChatMessage message) {
    int[] tokens = prompt.tokens();
    int leading = model.vocabulary().leadingToken();
    if (position == 0
        && waitingCount == 0
        && leading != NONE
        && (tokens.length == 0 || tokens[0] != leading)) {
      tokens = prepend(leading, tokens);
    }
    Reply reply = reply(tokens, message);
    int first = position + waitingCount + tokens.length - prompt.tokens().length;
    spans.opened(prompt.spans(), first);
    return reply;
  }

  /** A reply to a prompt of tokens. */
  Reply reply(int[] tokens, @Nullable ChatMessage message) {
    if (tokens.length == 0 && waitingCount == 0 && !hasLogits) {
      throw new IllegalArgumentException(
          "There is nothing to continue: the text is empty, and so is the session");
    }
    requireRoom(tokens.length);
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
    conversation.clear();
    spans.clear();
    position = 0;
    waitingCount = 0;
    unseenCount = 0;
    hasLogits = false;
    decoder.clear();
    if (cache != null) {
      cache.clear();
    }
    sampler.reset();
  }

  /** What the cache holds now, by layer and KV head. */
  public CacheReport cacheReport() {
    enter();
    try {
      return cache == null ? decoder.plainReport(position) : cache.report();
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
   * How the losses are distributed that {@link dev.kvasir.cache.Foresight} chose by behind the last
   * prompt; empty as long as nothing was chosen, and with other policies.
   */
  public Optional<LossProfile> lossProfile() {
    enter();
    try {
      return cache == null ? Optional.empty() : cache.lossProfile();
    } finally {
      exit();
    }
  }

  /**
   * Appends a prompt: one token or several, prefilled with the cache policy applied behind them, as
   * {@link #complete} does with its text. The penalties of {@link Sampling} see them.
   *
   * @throws ContextFullException if they do not fit; nothing of them is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the session is as it was before, or empty where it {@linkplain Session
   *     cannot be brought back}
   * @throws CancelledException if the thread is interrupted; the session is as it was before, or
   *     empty where it {@linkplain Session cannot be brought back}
   * @throws ExitingException if the JVM exits
   * @throws IllegalArgumentException if there are none, or an id is not in the vocabulary
   */
  public void evaluate(int... tokens) {
    enter();
    try {
      prepareEvaluation(tokens);
      if (!prefill(tokens, INTERRUPTED)) {
        throw takenBack(tokens.length);
      }
    } finally {
      exit();
    }
  }

  /**
   * Appends one token by a decode step, with the cache policy applied as behind each token of a
   * reply. The penalties of {@link Sampling} see it.
   *
   * @throws ContextFullException if it does not fit
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the token is not in the session, which is empty where it {@linkplain
   *     Session cannot be brought back}
   * @throws CancelledException if the thread is interrupted; the token is not in the session
   * @throws ExitingException if the JVM exits
   * @throws IllegalArgumentException if the id is not in the vocabulary
   */
  public void step(int token) {
    enter();
    try {
      requireNoReply();
      vocabulary.checkTokens(token);
      requireRoom(1);
      if (INTERRUPTED.getAsBoolean()) {
        throw interrupted(1);
      }
      while (waitingCount > 0) {
        decodeFirstWaiting();
        settle(0);
      }
      decodeStep(token);
      sampler.accept(token);
      settle(0);
    } finally {
      exit();
    }
  }

  private static CancelledException interrupted(int tokens) {
    return new CancelledException(
        "The evaluation of "
            + tokens
            + " tokens was given up, as the thread \""
            + Thread.currentThread().getName()
            + "\" was interrupted; nothing of them is in the session.");
  }

  /** For a prompt that was cancelled and rolled back. */
  private CancelledException takenBack(int tokens) {
    CancelledException e = interrupted(tokens);
    if (emptied) {
      Emptied.say(e, SESSION);
    }
    return e;
  }

  /**
   * As {@link #evaluate}, and hands over the logits of every token. They are computed in batches;
   * the policy is applied at the end. What the consumer throws ends it; the session is as it was
   * before, or empty where it {@linkplain Session cannot be brought back}.
   *
   * @throws ContextFullException if they do not fit; nothing of them is decoded then
   * @throws DecodeException if llama.cpp fails, or the {@link SessionOptions#cacheMemoryLimit()}
   *     leaves no room; the session is as it was before, or empty where it {@linkplain Session
   *     cannot be brought back}
   * @throws CancelledException if the thread is interrupted; the session is as it was before, or
   *     empty where it {@linkplain Session cannot be brought back}
   * @throws ExitingException if the JVM exits
   * @throws IllegalArgumentException if there are none, or an id is not in the vocabulary
   */
  public void evaluateAllLogits(int[] tokens, LogitsConsumer consumer) {
    Objects.requireNonNull(consumer, "consumer");
    enter();
    try {
      prepareEvaluation(tokens);
      int skipped = waitingCount;
      int[] all = withWaiting(tokens);
      long row = (long) vocabulary.size() * Float.BYTES;
      int chunk = Math.clamp(ALL_LOGITS_BYTES / row, 1, decoder.microBatchSize());
      boolean done =
          prefill(
              all,
              INTERRUPTED,
              chunk,
              (from, count) -> {
                for (int i = 0; i < count; i++) {
                  int index = from + i - skipped;
                  if (index >= 0) {
                    decoder.showLogits(i, logits -> consumer.accept(index, logits));
                  }
                }
              });
      if (!done) {
        throw takenBack(tokens.length);
      }
    } finally {
      exit();
    }
  }

  private void prepareEvaluation(int[] tokens) {
    requireNoReply();
    if (tokens.length == 0) {
      throw new IllegalArgumentException("There are no tokens to evaluate");
    }
    vocabulary.checkTokens(tokens);
    requireRoom(tokens.length);
  }

  /**
   * What the model expects after the last token: one logit per vocabulary entry, in a new array.
   *
   * @throws SessionStateException if nothing was evaluated yet
   */
  public float[] logits() {
    float[] target = new float[vocabulary.size()];
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
      if (target.length != vocabulary.size()) {
        throw new IllegalArgumentException(
            "The logits have " + vocabulary.size() + " elements, the array has " + target.length);
      }
      if (!hasLogits) {
        throw new SessionStateException(
            "The session has no logits: nothing was evaluated since it was opened, cleared or rolled back.");
      }
      decoder.copyLogits(-1, target);
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
    return decoder.capacity();
  }

  /**
   * The seed of the random numbers that tokens are drawn by: that of {@link Sampling#seed()}, or
   * the one that was drawn in its place. A session with this seed draws the same.
   */
  public long seed() {
    return seed;
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
      decoder.close();
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
    return (NativeContext) decoder;
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

  Tokens vocabulary() {
    return vocabulary;
  }

  /**
   * Prefills a prompt; false when it was cancelled, and rolled back.
   *
   * @param cancelled asked between two operations, on this thread
   */
  boolean prefill(int[] tokens, BooleanSupplier cancelled) {
    boolean whole =
        options.prefillListener() == null && (cache == null || !cache.readsByMicroBatch());
    int chunk = whole ? decoder.promptSize() : decoder.microBatchSize();
    return prefill(withWaiting(tokens), cancelled, chunk, null);
  }

  /** Keeps a token that was drawn for the next step or prompt. */
  void hold(int token) {
    if (waitingCount == waiting.length) {
      waiting = Arrays.copyOf(waiting, 2 * waitingCount + 1);
    }
    waiting[waitingCount++] = token;
  }

  /** Decodes the token that is held, if there is one; false when the context has no room for it. */
  boolean decodeHeld() {
    if (waitingCount == 0) {
      return true;
    }
    if (position >= decoder.capacity()) {
      return false;
    }
    decodeFirstWaiting();
    return true;
  }

  /**
   * Applies the policy to the tokens that were decoded by steps, in their order, but for the last
   * ones, which may be taken back.
   */
  void settle(int unsettled) {
    int settled = Math.max(0, unseenCount - unsettled);
    if (cache != null) {
      for (int i = 0; i < settled; i++) {
        cache.afterDecodeStep(unseen[i]);
        cache.prepareStep();
      }
    }
    unseenCount -= settled;
    System.arraycopy(unseen, settled, unseen, 0, unseenCount);
  }

  /** Saves what {@link #takeBack} needs of the state before a token that it may take back. */
  void mark() {
    decoder.saveCheckpoint(0, position);
    if (cache != null) {
      cache.mark();
    }
  }

  /** Ends {@link #mark}: nothing is to be taken back. */
  void endMark() {
    decoder.dropCheckpoint(0);
    if (cache != null) {
      cache.endMark();
    }
  }

  /** A copy of the logits that the last token was drawn from. */
  float[] drawnFrom() {
    float[] logits = new float[vocabulary.size()];
    decoder.copyLogits(-1, logits);
    return logits;
  }

  /**
   * Takes back the tokens that were drawn last, none of which is settled. Where the memory cannot
   * be cut there, what was decoded stays.
   *
   * @param drawn how many tokens
   * @param logits that the first of them was drawn from
   * @param rest text that stays of them
   */
  void takeBack(int drawn, float[] logits, String rest) {
    int decoded = unseenCount;
    waitingCount = 0;
    if (decoded > 0 && !decoder.canTruncate(0, position - decoded)) {
      settle(0);
      sampler.takeBack(drawn - decoded);
      return;
    }
    sampler.takeBack(drawn);
    if (decoded > 0) {
      unseenCount = 0;
      if (!rollBack(position - decoded)) {
        return;
      }
    }
    if (position > 0) {
      decoder.restoreLogits(logits);
      hasLogits = true;
    }
    waiting = rest.isEmpty() ? waiting : vocabulary.tokenizeContinuation(rest, false);
    waitingCount = rest.isEmpty() ? 0 : waiting.length;
    for (int i = 0; i < waitingCount; i++) {
      sampler.accept(waiting[i]);
    }
  }

  /** Draws the token after the last one. */
  int draw() {
    return sampler.draw();
  }

  /** The token that was drawn last will not be in the session. */
  void dismissDrawn() {
    sampler.takeBack(1);
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
      spans.ended(position + waitingCount);
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
    if (openReply != null && openReply.unread()) {
      openReply.abandon();
    }
    if (openReply != null) {
      throw new SessionStateException(
          "A reply of this session is still open. Read it to its end, or close it, first.");
    }
  }

  private void requireRoom(int tokens) {
    int needed = tokens + waitingCount;
    int left = decoder.capacity() - position;
    if (needed > left) {
      throw new ContextFullException(
          "The prompt has "
              + needed
              + " tokens, but only "
              + left
              + " of the context's "
              + decoder.capacity()
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

  private int[] withWaiting(int[] tokens) {
    if (waitingCount == 0) {
      return tokens;
    }
    int[] all = Arrays.copyOf(waiting, waitingCount + tokens.length);
    System.arraycopy(tokens, 0, all, waitingCount, tokens.length);
    return all;
  }

  private boolean prefill(
      int[] tokens, BooleanSupplier cancelled, int chunk, @Nullable BatchListener listener) {
    if (tokens.length == 0) {
      return true;
    }
    int start = position;
    boolean done;
    decoder.saveCheckpoint(0, start);
    try {
      decoder.abortWhen(cancelled);
      try {
        if (cache != null) {
          cache.beforePrefill(tokens.length);
        }
        done = decodeAll(tokens, cancelled, chunk, listener);
      } finally {
        decoder.abortWhen(null);
      }
      if (!done) {
        rollBack(start);
        return false;
      }
    } catch (Throwable e) {
      rollBackAfter(e, start);
      throw e;
    } finally {
      decoder.dropCheckpoint(0);
    }
    // The sampler knows those that were waiting.
    int known = waitingCount;
    waitingCount = 0;
    hasLogits = true;
    if (cache != null) {
      cache.afterPrefill(tokens, 0, tokens.length);
    }
    for (int i = known; i < tokens.length; i++) {
      sampler.accept(tokens[i]);
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
      if (cancelled.getAsBoolean()) {
        return false;
      }
      if (decoder.decode(0, tokens, from, count, position, listener != null)
          == Decoder.Outcome.ABORTED) {
        if (!cancelled.getAsBoolean()) {
          throw new ExitingException();
        }
        return false;
      }
      position += count;
      if (listener != null) {
        listener.decoded(from, count);
      }
      if (progress != null) {
        progress.prefilled(from + count, tokens.length);
      }
      if (cache != null && !cache.afterPart(position, from + count == tokens.length, cancelled)) {
        return false;
      }
    }
    return true;
  }

  private void decodeFirstWaiting() {
    decodeStep(waiting[0]);
    waitingCount--;
    System.arraycopy(waiting, 1, waiting, 0, waitingCount);
  }

  /** One decode step, which the policy does not know of yet. Nothing here allocates. */
  private void decodeStep(int token) {
    if (unseenCount == unseen.length) {
      unseen = Arrays.copyOf(unseen, 2 * unseenCount);
    }
    decoder.requireRoomForStep(position);
    try {
      if (decoder.decode(token, position) == Decoder.Outcome.ABORTED) {
        throw new ExitingException();
      }
    } catch (Throwable e) {
      rollBackAfter(e, position);
      throw e;
    }
    position++;
    hasLogits = true;
    unseen[unseenCount++] = token;
  }

  private void rollBackAfter(Throwable cause, int start) {
    try {
      if (!rollBack(start)) {
        Emptied.say(cause, SESSION);
      }
    } catch (Throwable e) {
      if (e != cause) {
        cause.addSuppressed(e);
      }
    }
  }

  /** Takes everything from a position on out of the session; false when that emptied it. */
  private boolean rollBack(int start) {
    emptied = false;
    hasLogits = false;
    if (cache != null) {
      cache.rollBack();
    }
    if (decoder.truncate(0, start)) {
      position = start;
      if (cache != null) {
        cache.rolledBack();
      }
    } else {
      // A sliding window has moved on and what it dropped cannot be brought back, or the step of a
      // recurrent model failed.
      forget();
      emptied = start > 0;
      if (emptied && openReply != null) {
        openReply.sessionEmptied();
      }
    }
    return !emptied;
  }
}
