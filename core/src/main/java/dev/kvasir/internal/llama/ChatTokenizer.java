package dev.kvasir.internal.llama;

import dev.kvasir.internal.llama.TemplateTokens.Piece;
import dev.kvasir.internal.text.Utf8;
import java.util.ArrayList;
import java.util.List;

/**
 * Splits a rendered conversation into tokens. Control tokens come out of the template's parts
 * alone. What lies between two of them, the template's own words and contents alike, is split as
 * one plain text: so the tokens are those that llama.cpp makes of the whole rendering, which is how
 * the model saw its chats, as long as no content spells a control token.
 */
final class ChatTokenizer {
  private record Stretch(int message, int from, int to) {}

  private final Vocabulary vocabulary;
  private final TemplateTokens special;
  private final List<String> roles;
  private final List<ChatTokens.Span> spans = new ArrayList<>();
  private int[] tokens = {};

  // The plain text since the last control token, and the contents in it.
  private final StringBuilder run = new StringBuilder();
  private final List<Stretch> stretches = new ArrayList<>();
  private boolean stripsLeading;
  private boolean begins;

  private ChatTokenizer(Vocabulary vocabulary, List<String> roles, boolean begins) {
    this.vocabulary = vocabulary;
    this.special = vocabulary.special();
    this.roles = roles;
    this.begins = begins;
  }

  /**
   * The tokens of a text.
   *
   * @param roles of the messages by index
   * @param begins whether it begins a sequence, or follows a special token
   */
  static ChatTokens split(
      ChatText text, List<String> roles, Vocabulary vocabulary, boolean begins) {
    ChatTokenizer tokenizer = new ChatTokenizer(vocabulary, roles, begins);
    for (ChatText.Part part : text.parts()) {
      if (part.ofTemplate()) {
        tokenizer.template(part.text());
      } else {
        tokenizer.content(part);
      }
    }
    tokenizer.endRun(false);
    return new ChatTokens(tokenizer.tokens, List.copyOf(tokenizer.spans));
  }

  private void template(String text) {
    for (Piece piece : special.cut(text)) {
      if (piece.control()) {
        endRun(piece.stripsLeft());
        append(new int[] {piece.token()});
        begins = true;
        stripsLeading = piece.stripsRight();
      } else {
        run.append(piece.text());
      }
    }
  }

  private void content(ChatText.Part part) {
    int from = run.length();
    run.append(part.text());
    stretches.add(new Stretch(part.message(), from, run.length()));
  }

  private void endRun(boolean stripsTrailing) {
    int from = 0;
    int to = run.length();
    while (stripsLeading && from < to && ChatAlignment.isSpace(run.charAt(from))) {
      from++;
    }
    while (stripsTrailing && from < to && ChatAlignment.isSpace(run.charAt(to - 1))) {
      to--;
    }
    if (from < to) {
      String text = run.substring(from, to);
      int[] split =
          begins
              ? vocabulary.tokenize(text, false, false)
              : vocabulary.tokenizeContinuation(text, false);
      int[] ends = ends(text, split);
      for (Stretch stretch : stretches) {
        int first = Math.clamp(stretch.from() - from, 0, text.length());
        int last = Math.clamp(stretch.to() - from, 0, text.length());
        if (first < last) {
          addSpan(stretch.message(), text, first, last, ends);
        }
      }
      append(split);
      begins = false;
    }
    run.setLength(0);
    stretches.clear();
    stripsLeading = false;
  }

  /** Where each token ends in the text's bytes. */
  private int[] ends(String text, int[] split) {
    int[] ends = new int[split.length];
    int end = 0;
    for (int i = 0; i < split.length; i++) {
      end += vocabulary.length(split[i]);
      ends[i] = end;
    }
    // SentencePiece puts a space before the text. Where a vocabulary changes the text in other
    // ways, or does not know a part of it, this is as near as it gets.
    int shift = end - Utf8.bytes(text).length;
    for (int i = 0; i < ends.length; i++) {
      ends[i] -= shift;
    }
    return ends;
  }

  private void addSpan(int message, String text, int first, int last, int[] ends) {
    int begin = Utf8.bytes(text.substring(0, first)).length;
    int end = begin + Utf8.bytes(text.substring(first, last)).length;
    int from = 0;
    while (from < ends.length && ends[from] <= begin) {
      from++;
    }
    int to = from;
    while (to < ends.length && (to == from || ends[to - 1] < end)) {
      to++;
    }
    if (from < to) {
      spans.add(new ChatTokens.Span(roles.get(message), tokens.length + from, tokens.length + to));
    }
  }

  private void append(int[] more) {
    int[] all = new int[tokens.length + more.length];
    System.arraycopy(tokens, 0, all, 0, tokens.length);
    System.arraycopy(more, 0, all, tokens.length, more.length);
    tokens = all;
  }
}
