package dev.kvasir.internal.llama;

import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/**
 * The entries of a vocabulary that llama.cpp finds in a text before anything else, and how it finds
 * them ({@code llama_vocab::impl::tokenizer_st_partition}): the longest first, each in what the
 * longer ones left. User-defined entries are found in any text; control tokens only where they are
 * asked for, which is here.
 */
final class TemplateTokens {
  private record Entry(int token, String text, int bytes, boolean control, int attributes) {}

  /**
   * A piece of text: a special token's, or one without any.
   *
   * @param token the token that its text stands for, or -1
   * @param control whether that is a control token, which ordinary text never becomes
   * @param stripsLeft whether the token takes the white space before it
   * @param stripsRight whether the token takes the white space behind it
   */
  record Piece(String text, int token, boolean control, boolean stripsLeft, boolean stripsRight) {
    static Piece plain(String text) {
      return new Piece(text, -1, false, false, false);
    }
  }

  private final List<Entry> entries = new ArrayList<>();
  private final boolean[] special;

  TemplateTokens(MemorySegment vocab, int size) {
    this.special = new boolean[size];
    int control = NativeApi.LLAMA_TOKEN_ATTR_CONTROL() | NativeApi.LLAMA_TOKEN_ATTR_UNKNOWN();
    for (int token = 0; token < size; token++) {
      int attributes = NativeApi.llama_vocab_get_attr(vocab, token);
      if ((attributes & (control | NativeApi.LLAMA_TOKEN_ATTR_USER_DEFINED())) != 0) {
        special[token] = true;
        String text = NativeApi.llama_vocab_get_text(vocab, token).getString(0);
        if (!text.isEmpty()) {
          int bytes = text.getBytes(StandardCharsets.UTF_8).length;
          entries.add(new Entry(token, text, bytes, (attributes & control) != 0, attributes));
        }
      }
    }
    entries.sort(Comparator.comparingInt(Entry::bytes).reversed());
  }

  /** Whether a token is one of these: SentencePiece puts a space before what follows one. */
  boolean contains(int token) {
    return special[token];
  }

  /** Cuts a text at the special tokens in it. */
  List<Piece> cut(String text) {
    List<Piece> pieces = new ArrayList<>();
    pieces.add(Piece.plain(text));
    for (Entry entry : entries) {
      List<Piece> next = null;
      for (int i = 0; i < pieces.size(); i++) {
        Piece piece = pieces.get(i);
        boolean found = piece.token() < 0 && piece.text().contains(entry.text());
        if (found && next == null) {
          next = new ArrayList<>(pieces.subList(0, i));
        }
        if (found) {
          cut(piece.text(), entry, next);
        } else if (next != null) {
          next.add(piece);
        }
      }
      if (next != null) {
        pieces = next;
      }
    }
    return pieces;
  }

  private static void cut(String text, Entry entry, List<Piece> pieces) {
    boolean left = (entry.attributes() & NativeApi.LLAMA_TOKEN_ATTR_LSTRIP()) != 0;
    boolean right = (entry.attributes() & NativeApi.LLAMA_TOKEN_ATTR_RSTRIP()) != 0;
    int from = 0;
    for (int at = text.indexOf(entry.text()); at >= 0; at = text.indexOf(entry.text(), from)) {
      if (at > from) {
        pieces.add(Piece.plain(text.substring(from, at)));
      }
      pieces.add(new Piece(entry.text(), entry.token(), entry.control(), left, right));
      from = at + entry.text().length();
    }
    if (from < text.length()) {
      pieces.add(Piece.plain(text.substring(from)));
    }
  }

  /** The control tokens in a text, in their order. */
  List<Integer> controls(String text) {
    return cut(text).stream().filter(Piece::control).map(Piece::token).toList();
  }
}
