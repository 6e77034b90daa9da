package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.TokenizationException;
import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.internal.engine.Tokens;
import dev.kvasir.internal.policy.TokenKinds;
import dev.kvasir.internal.text.Utf8;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * A model's vocabulary. The bytes and attributes of its entries are copied once, so that looking at
 * a token costs no native call; splitting text into tokens is llama.cpp's. Any thread may use it
 * while its model lives.
 */
public final class Vocabulary implements Tokens, AutoCloseable {
  private static final byte CONTROL = 1;
  private static final byte END_OF_GENERATION = 2;
  private static final byte HIDDEN = 4;

  private final MemorySegment vocab;
  private final MemorySegment tokenizer;
  private final byte[] bytes;
  private final int[] offsets;
  private final byte[] flags;
  private final byte[] kinds;
  private final int bos;
  private final int eos;
  private final boolean addBos;
  private final boolean prefixes;
  private @Nullable TemplateTokens special;
  private @Nullable Separator separator;

  Vocabulary(MemorySegment vocab) {
    this.vocab = vocab;
    this.tokenizer = tokenizer(vocab);
    int size = NativeApi.llama_vocab_n_tokens(vocab);
    this.bos = NativeApi.llama_vocab_bos(vocab);
    this.eos = NativeApi.llama_vocab_eos(vocab);
    this.addBos = NativeApi.llama_vocab_get_add_bos(vocab) && bos >= 0;
    int type = NativeApi.llama_vocab_type(vocab);
    this.prefixes =
        type == NativeApi.LLAMA_VOCAB_TYPE_SPM() || type == NativeApi.LLAMA_VOCAB_TYPE_UGM();
    this.offsets = new int[size + 1];
    this.flags = new byte[size];
    this.kinds = new byte[size];
    try {
      this.bytes = readEntries(size);
      classify(size);
    } catch (Throwable e) {
      close();
      throw e;
    }
  }

  private static MemorySegment tokenizer(MemorySegment vocab) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment result = arena.allocate(NativeApi.C_POINTER);
      int status = NativeApi.kvasir_tokenizer_new(vocab, result);
      if (!NativeStatus.ok(status)) {
        throw new UnsupportedModelException(
            "The model's vocabulary cannot be used: " + NativeStatus.text(status) + ".");
      }
      return result.get(NativeApi.C_POINTER, 0);
    }
  }

  /** Frees what splitting text needs, before the model goes. */
  @Override
  public void close() {
    NativeApi.kvasir_tokenizer_free(tokenizer);
  }

  private byte[] readEntries(int size) {
    byte[] all = new byte[size * 8];
    int end = 0;
    try (Arena arena = Arena.ofConfined()) {
      long capacity = 256;
      MemorySegment piece = arena.allocate(capacity);
      MemorySegment needed = arena.allocate(NativeApi.C_LONG);
      for (int token = 0; token < size; token++) {
        readEntry(token, piece, needed);
        if (needed.get(NativeApi.C_LONG, 0) > capacity) {
          capacity = needed.get(NativeApi.C_LONG, 0);
          piece = arena.allocate(capacity);
          readEntry(token, piece, needed);
        }
        int length = Math.toIntExact(needed.get(NativeApi.C_LONG, 0));
        if (end + length > all.length) {
          all = Arrays.copyOf(all, Math.max(end + length, all.length * 2));
        }
        MemorySegment.copy(piece, ValueLayout.JAVA_BYTE, 0, all, end, length);
        end += length;
        offsets[token + 1] = end;
      }
    }
    return Arrays.copyOf(all, end);
  }

  private void readEntry(int token, MemorySegment piece, MemorySegment needed) {
    int status = NativeApi.kvasir_token_piece(tokenizer, token, piece, piece.byteSize(), needed);
    if (!NativeStatus.ok(status)) {
      throw new UnsupportedModelException(
          "The model's vocabulary has an entry "
              + token
              + " that llama.cpp cannot read: "
              + NativeStatus.text(status)
              + ".");
    }
  }

  private void classify(int size) {
    for (int token = 0; token < size; token++) {
      int attributes = NativeApi.llama_vocab_get_attr(vocab, token);
      boolean control = (attributes & NativeApi.LLAMA_TOKEN_ATTR_CONTROL()) != 0;
      boolean unknown = (attributes & NativeApi.LLAMA_TOKEN_ATTR_UNKNOWN()) != 0;
      byte flag = control ? CONTROL : 0;
      if (control || unknown) {
        flag |= HIDDEN;
      }
      if (NativeApi.llama_vocab_is_eog(vocab, token)) {
        flag |= END_OF_GENERATION;
      }
      flags[token] = flag;
      if (control || (flag & END_OF_GENERATION) != 0) {
        kinds[token] = TokenKinds.SPECIAL;
      } else if (isPunctuation(
          new String(
              bytes,
              offsets[token],
              offsets[token + 1] - offsets[token],
              StandardCharsets.UTF_8))) {
        kinds[token] = TokenKinds.PUNCTUATION;
      }
    }
    for (int token : new int[] {bos, eos}) {
      if (token >= 0) {
        kinds[token] = TokenKinds.SPECIAL;
      }
    }
  }

  /** Whether a text consists of punctuation and symbols, spaces around them aside. */
  static boolean isPunctuation(String text) {
    String stripped = text.strip();
    return !stripped.isEmpty() && stripped.codePoints().allMatch(Vocabulary::isPunctuation);
  }

  private static boolean isPunctuation(int codePoint) {
    return switch (Character.getType(codePoint)) {
      case Character.CONNECTOR_PUNCTUATION,
          Character.DASH_PUNCTUATION,
          Character.START_PUNCTUATION,
          Character.END_PUNCTUATION,
          Character.INITIAL_QUOTE_PUNCTUATION,
          Character.FINAL_QUOTE_PUNCTUATION,
          Character.OTHER_PUNCTUATION,
          Character.MATH_SYMBOL,
          Character.CURRENCY_SYMBOL,
          Character.MODIFIER_SYMBOL,
          Character.OTHER_SYMBOL ->
          // A byte that is only a part of a code point decodes to U+FFFD, which is a symbol by its
          // category.
          codePoint != 0xFFFD;
      default -> false;
    };
  }

  /** Number of entries. */
  @Override
  public int size() {
    return flags.length;
  }

  /** The beginning-of-sequence token if the model wants one at the start of a text, else -1. */
  public int leadingToken() {
    return addBos ? bos : -1;
  }

  /** The text of the beginning-of-sequence token; empty without one. */
  String beginText() {
    return bos < 0 ? "" : textOf(bos);
  }

  /** The text of the end-of-sequence token; empty without one. */
  String endText() {
    return eos < 0 ? "" : textOf(eos);
  }

  /** What llama.cpp finds in a text before anything else. */
  synchronized TemplateTokens special() {
    if (special == null) {
      special = new TemplateTokens(vocab, size());
    }
    return special;
  }

  /**
   * Whether a text that follows the token begins anew: SentencePiece puts a space before what
   * follows a control token or a user-defined one.
   */
  public boolean beginsAfter(int token) {
    return special().contains(token);
  }

  /** Whether the token ends a generation. */
  @Override
  public boolean isEndOfGeneration(int token) {
    return (flags[token] & END_OF_GENERATION) != 0;
  }

  /** Whether the token is a control token. */
  public boolean isControl(int token) {
    return (flags[token] & CONTROL) != 0;
  }

  /**
   * Whether the token has no text that a reader should see: control tokens and the unknown token.
   */
  @Override
  public boolean isHidden(int token) {
    return (flags[token] & HIDDEN) != 0;
  }

  /** {@link TokenKinds#SPECIAL}, {@link TokenKinds#PUNCTUATION} or {@link TokenKinds#OTHER}. */
  public byte kindOf(int token) {
    return kinds[token];
  }

  /**
   * The bytes of a token's text, of a control token as well; they need not be whole code points.
   */
  @Override
  public byte[] bytesOf(int token) {
    return Arrays.copyOfRange(bytes, offsets[token], offsets[token + 1]);
  }

  /** Number of bytes of a token's text. */
  int length(int token) {
    return offsets[token + 1] - offsets[token];
  }

  /** The text of a token; bytes that are no UTF-8 become U+FFFD. */
  public String textOf(int token) {
    return new String(
        bytes, offsets[token], offsets[token + 1] - offsets[token], StandardCharsets.UTF_8);
  }

  /**
   * Splits a text into tokens, whatever it holds: zeros, control characters, a surrogate without
   * its other half, which becomes U+FFFD.
   *
   * @param addSpecial adds the tokens that the model wants at the start and end
   * @param parseSpecial takes the text of a special token for that token
   * @throws TokenizationException if it is too long, or the vocabulary has no token for a part
   */
  public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
    byte[] utf8 = Utf8.bytes(text);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment source = arena.allocateFrom(ValueLayout.JAVA_BYTE, utf8);
      MemorySegment count = arena.allocate(NativeApi.C_LONG);
      // Hardly a vocabulary makes more tokens than bytes, but for those that are added.
      MemorySegment tokens = arena.allocate(ValueLayout.JAVA_INT, utf8.length + 16L);
      split(source, addSpecial, parseSpecial, tokens, count);
      long found = count.get(NativeApi.C_LONG, 0);
      if (found * Integer.BYTES > tokens.byteSize()) {
        tokens = arena.allocate(ValueLayout.JAVA_INT, found);
        split(source, addSpecial, parseSpecial, tokens, count);
      }
      return tokens.asSlice(0, found * Integer.BYTES).toArray(ValueLayout.JAVA_INT);
    }
  }

  /**
   * As {@link #tokenize}, for a text that goes on where other text ended: without the space that
   * SentencePiece and unigram vocabularies put before a text.
   *
   * @throws TokenizationException if it is too long, or the vocabulary has no token for a part
   */
  @Override
  public int[] tokenizeContinuation(String text, boolean parseSpecial) {
    if (!prefixes || text.isEmpty()) {
      return tokenize(text, false, parseSpecial);
    }
    synchronized (this) {
      if (separator == null) {
        separator = new Separator(this);
      }
    }
    return separator.split(text, parseSpecial);
  }

  private void split(
      MemorySegment text,
      boolean addSpecial,
      boolean parseSpecial,
      MemorySegment tokens,
      MemorySegment count) {
    int status =
        NativeApi.kvasir_tokenize(
            tokenizer,
            text,
            text.byteSize(),
            addSpecial ? 1 : 0,
            parseSpecial ? 1 : 0,
            tokens,
            tokens.byteSize() / Integer.BYTES,
            count);
    if (!NativeStatus.ok(status)) {
      throw new TokenizationException(
          "The text of "
              + text.byteSize()
              + " bytes cannot be split into tokens: "
              + NativeStatus.text(status)
              + ".");
    }
  }

  /** The text of a sequence of tokens, special tokens included. */
  public String detokenize(int[] tokens) {
    if (tokens.length == 0) {
      return "";
    }
    checkTokens(tokens);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment source = arena.allocateFrom(ValueLayout.JAVA_INT, tokens);
      MemorySegment needed = arena.allocate(NativeApi.C_LONG);
      MemorySegment text = arena.allocate(tokens.length * 8L + 16);
      join(source, text, needed);
      long length = needed.get(NativeApi.C_LONG, 0);
      if (length > text.byteSize()) {
        text = arena.allocate(length);
        join(source, text, needed);
        length = needed.get(NativeApi.C_LONG, 0);
      }
      return new String(
          text.asSlice(0, length).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
    }
  }

  private void join(MemorySegment tokens, MemorySegment text, MemorySegment needed) {
    int status =
        NativeApi.kvasir_detokenize(
            tokenizer, tokens, tokens.byteSize() / Integer.BYTES, text, text.byteSize(), needed);
    if (!NativeStatus.ok(status)) {
      throw new KvasirException(
          "llama.cpp could not turn "
              + tokens.byteSize() / Integer.BYTES
              + " tokens into text: "
              + NativeStatus.text(status)
              + ".");
    }
  }

  /**
   * Checks that ids are entries of this vocabulary; llama.cpp must not see others.
   *
   * @throws IllegalArgumentException if one is not
   */
  @Override
  public void checkTokens(int... tokens) {
    for (int i = 0; i < tokens.length; i++) {
      if (tokens[i] < 0 || tokens[i] >= size()) {
        throw new IllegalArgumentException(
            "Token "
                + i
                + " has the id "
                + tokens[i]
                + ", but the vocabulary has the ids 0 to "
                + (size() - 1));
      }
    }
  }
}
