package dev.kvasir.internal.llama;

import java.util.ArrayList;
import java.util.List;

/** Which positions of a sequence hold the messages of its conversation. */
public final class MessageSpans {
  private final List<ChatTokens.Span> all = new ArrayList<>();
  private List<ChatTokens.Span> opened = List.of();
  private int answerFrom;

  /**
   * A prompt is about to be decoded.
   *
   * @param spans of its messages, from its first token on
   * @param position of its first token
   */
  public void opened(List<ChatTokens.Span> spans, int position) {
    opened = spans.stream().map(span -> span.plus(position)).toList();
  }

  /** It was decoded, and the answer begins at a position. */
  public void began(int position) {
    all.addAll(opened);
    opened = List.of();
    answerFrom = position;
  }

  /** The answer ended before a position. */
  public void ended(int position) {
    if (position > answerFrom) {
      all.add(new ChatTokens.Span(ChatMessage.ASSISTANT, answerFrom, position));
    }
  }

  /** Forgets all. */
  public void clear() {
    all.clear();
    opened = List.of();
  }

  /** The spans in the order of their positions. */
  public List<ChatTokens.Span> all() {
    return List.copyOf(all);
  }
}
