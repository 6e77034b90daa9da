package dev.kvasir.internal.llama;

import java.util.List;

/** A conversation, or its next part, as tokens. */
public final class ChatTokens {
  private final int[] tokens;
  private final List<Span> spans;

  /**
   * What is to be decoded.
   *
   * @param spans which of the tokens hold the messages' contents, in their order; a token in which
   *     a content and the template meet is the content's
   */
  public ChatTokens(int[] tokens, List<Span> spans) {
    this.tokens = tokens;
    this.spans = spans;
  }

  /** The tokens themselves. */
  public int[] tokens() {
    return tokens;
  }

  /** Where the contents are. */
  public List<Span> spans() {
    return spans;
  }

  /**
   * A stretch of tokens that holds a content, or a piece of one.
   *
   * @param role who said it
   * @param from its first token
   * @param to behind its last token
   */
  public record Span(String role, int from, int to) {
    /** The same, further on. */
    public Span plus(int tokens) {
      return new Span(role, from + tokens, to + tokens);
    }
  }
}
