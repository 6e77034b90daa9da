package dev.kvasir.internal.llama;

import java.util.List;

/**
 * A conversation, or its next part, as tokens.
 *
 * @param tokens what is to be decoded
 * @param spans which of them hold the messages' contents, in their order; a token in which a
 *     content and the template meet is the content's
 */
public record ChatTokens(int[] tokens, List<Span> spans) {

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
