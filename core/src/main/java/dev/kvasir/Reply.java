package dev.kvasir;

import dev.kvasir.internal.engine.Tokens;
import dev.kvasir.internal.llama.ChatMessage;
import dev.kvasir.internal.text.StopMatcher;
import dev.kvasir.internal.text.Utf8Assembler;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * An answer while it is generated: pieces of text, each made of whole code points. It can be
 * iterated once. The prompt is prefilled when the first piece is asked for.
 *
 * <p>When it has ended, the session holds exactly what was shown: of a stop sequence nothing, and
 * of the token that one begins in the part before it. (Where the memory cannot be cut, as in some
 * recurrent models, it holds the tokens that the stop sequence began with.)
 *
 * <p>Apart from {@link #cancel()}, a reply follows the threading rule of its session.
 */
public final class Reply implements Iterable<String>, AutoCloseable {
  private enum State {
    NEW,
    GENERATING,
    ENDED
  }

  private final Session session;
  private final int[] prompt;
  private final @Nullable ChatMessage message;
  private final int maxTokens;
  private final boolean controlTokens;
  private final boolean stoppable;
  // Drawn tokens whose text is not handed out yet, the oldest first: it may belong to a stop
  // sequence.
  private final Deque<Held> held = new ArrayDeque<>();
  private final Utf8Assembler utf8 = new Utf8Assembler();
  private final StopMatcher stops;
  private final StringBuilder decoded = new StringBuilder();
  private final StringBuilder piece = new StringBuilder();
  private final StringBuilder text = new StringBuilder();

  private State state = State.NEW;
  private boolean iterated;
  private @Nullable StopReason stopReason;
  private int generatedTokens;
  private boolean sessionEmptied;
  private boolean undecoded; // the token that was drawn last
  private long prefillNanos;
  private long decodeNanos;
  private volatile boolean cancelled;
  private int characters; // of the tokens so far, handed out or not

  /**
   * A token that may be taken back.
   *
   * @param from characters of the reply before it
   * @param to characters of the reply with it
   * @param open whether it ends within a code point
   * @param logits that it was drawn from
   */
  @SuppressWarnings("ArrayRecordComponent") // nobody compares them
  private record Held(int from, int to, boolean open, float[] logits) {
    /** Whether all of its text is among the first characters of the reply. */
    boolean within(int shown) {
      return to < shown || (to == shown && !open);
    }
  }

  /**
   * A reply that has not begun.
   *
   * @param prompt tokens to prefill, which fit into the context
   * @param message that the prompt renders; null for a raw text
   */
  Reply(Session session, int[] prompt, @Nullable ChatMessage message, SessionOptions options) {
    this.session = session;
    this.prompt = prompt;
    this.message = message;
    this.maxTokens = options.maxTokens() == 0 ? Integer.MAX_VALUE : options.maxTokens();
    this.controlTokens = options.controlTokens();
    this.stops = new StopMatcher(options.stopSequences());
    this.stoppable = !options.stopSequences().isEmpty();
  }

  /**
   * The pieces. {@link Iterator#hasNext()} generates until there is text or the reply ends; both it
   * and {@link Iterator#next()} throw {@link DecodeException} when llama.cpp fails or {@link
   * SessionOptions#cacheMemoryLimit()} leaves no room, {@link ExitingException} when the JVM exits,
   * and {@link SessionStateException} as the session's methods do. The reply has ended then, with
   * {@link StopReason#FAILED}; what was handed out stays in the conversation, unless {@link
   * ReplyStatistics#sessionEmptied()}. A thread that is interrupted cancels the reply that it
   * reads, see {@link #cancel()}.
   *
   * @throws SessionStateException at the second call
   */
  @Override
  public Iterator<String> iterator() {
    if (iterated) {
      throw new SessionStateException(
          "A reply can be iterated once; its whole text is what text() returns.");
    }
    iterated = true;
    return new Iterator<>() {
      @Override
      public boolean hasNext() {
        if (piece.isEmpty() && stopReason == StopReason.CLOSED) {
          throw new SessionStateException("The reply was closed before its end.");
        }
        return advance();
      }

      @Override
      public String next() {
        if (!hasNext()) {
          throw new NoSuchElementException("the reply has ended");
        }
        return take();
      }
    };
  }

  /**
   * Runs the reply to its end, and returns the whole text, pieces that were already read included.
   */
  public String text() {
    while (advance()) {
      take();
    }
    return text.toString();
  }

  /**
   * Ends the reply at the next token, or the prefill at the next operation. Any thread may call it.
   * A cancelled prefill is rolled back: the session is as it was before the prompt, or, where it
   * cannot be brought back (see {@link Session}), empty; {@link ReplyStatistics#sessionEmptied()}
   * says which. What was generated stays in the conversation.
   */
  public void cancel() {
    cancelled = true;
  }

  /** Counts and times so far. */
  public ReplyStatistics statistics() {
    return new ReplyStatistics(
        state == State.NEW ? 0 : prompt.length,
        generatedTokens,
        prefillNanos,
        decodeNanos,
        Optional.ofNullable(stopReason),
        sessionEmptied);
  }

  /**
   * Ends the reply where it is; what was generated stays in the conversation, and the session can
   * go on. A second call does nothing.
   *
   * @throws SessionStateException if another thread is inside the session
   */
  @Override
  public void close() {
    if (state != State.ENDED) {
      session.enterReply(this);
      try {
        end(StopReason.CLOSED);
      } finally {
        session.exit();
      }
    }
  }

  /**
   * As {@link #close()}, by a session that is being closed and whose guard the thread already
   * holds.
   */
  void abandon() {
    end(StopReason.CLOSED);
  }

  private String take() {
    String taken = piece.toString();
    piece.setLength(0);
    return taken;
  }

  /**
   * Generates until there is text to hand out; false when the reply has ended and nothing is left.
   */
  private boolean advance() {
    if (!piece.isEmpty() || state == State.ENDED) {
      return !piece.isEmpty();
    }
    session.enterReply(this);
    try {
      if (state == State.NEW) {
        prefill();
      }
      long start = System.nanoTime();
      while (state == State.GENERATING && piece.isEmpty()) {
        step();
      }
      decodeNanos += System.nanoTime() - start;
    } catch (Throwable e) {
      endAfter(e);
      throw e;
    } finally {
      session.exit();
    }
    return !piece.isEmpty();
  }

  private void prefill() {
    long start = System.nanoTime();
    boolean done = session.prefill(prompt, this::unwanted);
    prefillNanos = System.nanoTime() - start;
    if (done) {
      state = State.GENERATING;
      session.replyBegan(message);
    } else {
      end(StopReason.CANCELLED);
    }
  }

  private boolean unwanted() {
    return cancelled || Thread.currentThread().isInterrupted();
  }

  /** To be called by the session when it had to empty itself while the reply went on. */
  void sessionEmptied() {
    sessionEmptied = true;
  }

  /** Whether nothing of it was asked for yet. */
  boolean unread() {
    return state == State.NEW;
  }

  /** Decodes the token that was drawn last, and draws the next. */
  private void step() {
    if (unwanted()) {
      finish(StopReason.CANCELLED);
    } else if (generatedTokens >= maxTokens) {
      finish(StopReason.MAX_TOKENS);
    } else if (!session.decodeHeld()) {
      finish(StopReason.CONTEXT_FULL);
    } else {
      undecoded = false;
      session.settle(held.size());
      draw();
    }
  }

  private void draw() {
    int token = session.draw();
    undecoded = true;
    generatedTokens++;
    Tokens vocabulary = session.vocabulary();
    if (vocabulary.isEndOfGeneration(token)) {
      session.dismissDrawn();
      finish(StopReason.END_OF_GENERATION);
      return;
    }
    int from = characters;
    if (controlTokens || !vocabulary.isHidden(token)) {
      decoded.setLength(0);
      utf8.append(vocabulary.bytesOf(token), decoded);
      characters += decoded.length();
      emit();
    }
    if (stoppable) {
      letGo();
      if (!held.isEmpty() || characters > text.length() || utf8.unfinished()) {
        if (held.isEmpty()) {
          session.mark();
        }
        held.addLast(new Held(from, characters, utf8.unfinished(), session.drawnFrom()));
      }
    }
    if (stops.stopped()) {
      end(StopReason.STOP_SEQUENCE);
    } else {
      session.hold(token);
    }
  }

  /** Lets go of the tokens that are handed out. */
  private void letGo() {
    boolean any = !held.isEmpty();
    while (!held.isEmpty() && held.peekFirst().within(text.length())) {
      held.removeFirst();
    }
    if (any && held.isEmpty()) {
      session.endMark();
    }
  }

  private void emit() {
    int from = piece.length();
    stops.append(decoded, piece);
    text.append(piece, from, piece.length());
  }

  /** Hands out what was held back, and ends. */
  private void finish(StopReason reason) {
    decoded.setLength(0);
    utf8.finish(decoded);
    emit();
    int from = piece.length();
    stops.finish(piece);
    text.append(piece, from, piece.length());
    end(reason);
  }

  private void end(StopReason reason) {
    if (state != State.ENDED) {
      boolean begun = state == State.GENERATING;
      state = State.ENDED;
      stopReason = reason;
      try {
        settle();
      } finally {
        session.replyEnded(begun && !sessionEmptied ? message : null, text.toString());
      }
    }
  }

  /** As {@link #end}, after a failure. */
  private void endAfter(Throwable failure) {
    try {
      end(StopReason.FAILED);
    } catch (Throwable e) {
      if (e != failure) {
        failure.addSuppressed(e);
      }
    }
  }

  /** Makes the session hold what was handed out, and nothing more. */
  private void settle() {
    if (sessionEmptied) { // nothing is left to settle or to take back
      held.clear();
      session.endMark();
      return;
    }
    letGo();
    session.settle(Math.max(0, held.size() - (undecoded ? 1 : 0)));
    Held first = held.peekFirst();
    if (first != null) {
      session.takeBack(
          held.size(), first.logits(), text.substring(Math.min(first.from(), text.length())));
      held.clear();
      session.endMark();
    }
  }
}
