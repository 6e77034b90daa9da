package dev.kvasir.internal.llama.gguf;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Set;

/** The tokenizer's arrays. */
final class VocabularyCheck {
  /** llama.cpp's number for a token that stands for a byte. */
  private static final int BYTE = 6;

  /** More than any vocabulary has; a model without one reserves memory for as many. */
  private static final int MOST_TOKENS = 1 << 24;

  private static final int LONGEST_TOKEN = 1 << 16;

  /** llama.cpp walks these vocabularies' texts by a function that calls itself for each byte. */
  private static final Set<String> TREES = Set.of("t5", "rwkv", "plamo2");

  private static final int LONGEST_OF_TREE = 1 << 10;

  private static final String SCORES = "tokenizer.ggml.scores";
  private static final String TYPES = "tokenizer.ggml.token_type";

  private VocabularyCheck() {}

  /**
   * Checks the arrays of a header.
   *
   * @throws dev.kvasir.ModelLoadException if they do not agree
   */
  static void check(Header header, String architecture) {
    String model = header.text("tokenizer.ggml.model");
    if (model == null || model.equals("none") || model.equals("no_vocab")) {
      Long size = header.unsigned(architecture + ".vocab_size");
      if (size != null && size > MOST_TOKENS) {
        throw header.refused(
            architecture + ".vocab_size", size, "at most " + MOST_TOKENS + " are possible");
      }
      return;
    }
    Value value = header.get(HeaderReader.TOKENS);
    if (!(value instanceof Value.Texts(long length, Strings tokens)) || tokens == null) {
      throw header.refused(
          HeaderReader.TOKENS,
          value == null ? "missing" : value.describe(),
          "it must be an array of texts");
    }
    if (length == 0 || length > MOST_TOKENS) {
      throw header.refused(
          HeaderReader.TOKENS, "an array of " + length, "1 to " + MOST_TOKENS + " are possible");
    }
    numbers(header, SCORES, length, ValueType.FLOAT32, ValueType.INT32);
    numbers(header, TYPES, length, ValueType.INT32, ValueType.INT32);
    requireLengths(header, tokens, TREES.contains(model) ? LONGEST_OF_TREE : LONGEST_TOKEN);
    requireDistinct(header, tokens);
    requireBytes(header, tokens, model);
    merges(header);
  }

  private static void numbers(
      Header header, String key, long tokens, ValueType type, ValueType orElse) {
    Value value = header.get(key);
    if (value == null) {
      return;
    }
    if (!(value instanceof Value.Numbers numbers)
        || (numbers.type() != type && numbers.type() != orElse)
        || numbers.length() < tokens) {
      throw header.refused(
          key,
          value.describe(),
          "it must be an array of " + type + " with a value for each of the " + tokens + " tokens");
    }
  }

  private static void requireLengths(Header header, Strings tokens, int most) {
    for (int token = 0; token < tokens.size(); token++) {
      int length = tokens.end(token) - tokens.start(token);
      if (length > most) {
        throw header.refused(
            "token " + token + " of " + HeaderReader.TOKENS,
            length + " bytes long",
            "at most " + most + " are possible");
      }
    }
  }

  /**
   * llama.cpp gives an empty token a text of its own and asserts that all differ, so this is exact:
   * a file that is refused here cannot be loaded.
   */
  private static void requireDistinct(Header header, Strings tokens) {
    int size = tokens.size();
    long[] byHash = new long[size];
    byte[][] texts = new byte[size][];
    for (int token = 0; token < size; token++) {
      int start = tokens.start(token);
      int end = tokens.endOfText(token);
      if (start == end) {
        texts[token] = ("[EMPTY_" + token + "]").getBytes(StandardCharsets.US_ASCII);
      }
      int hash = 0;
      byte[] bytes = texts[token] == null ? tokens.bytes() : texts[token];
      int from = texts[token] == null ? start : 0;
      int to = texts[token] == null ? end : bytes.length;
      for (int i = from; i < to; i++) {
        hash = 31 * hash + bytes[i];
      }
      byHash[token] = (long) hash << 32 | token;
    }
    Arrays.sort(byHash);
    for (int i = 0; i < size; i++) {
      for (int j = i + 1; j < size && byHash[i] >> 32 == byHash[j] >> 32; j++) {
        int first = (int) byHash[i];
        int second = (int) byHash[j];
        if (same(tokens, texts, first, second)) {
          throw header.refused(
              HeaderReader.TOKENS
                  + " has the text \""
                  + tokens.get(first)
                  + "\" twice, as token "
                  + first
                  + " and as token "
                  + second
                  + "; llama.cpp takes each text once. Convert the model again");
        }
      }
    }
  }

  private static boolean same(Strings tokens, byte[][] texts, int a, int b) {
    byte[] first = texts[a] == null ? tokens.bytes() : texts[a];
    byte[] second = texts[b] == null ? tokens.bytes() : texts[b];
    return Arrays.equals(
        first,
        texts[a] == null ? tokens.start(a) : 0,
        texts[a] == null ? tokens.endOfText(a) : first.length,
        second,
        texts[b] == null ? tokens.start(b) : 0,
        texts[b] == null ? tokens.endOfText(b) : second.length);
  }

  private static void requireBytes(Header header, Strings tokens, String model) {
    if (!(header.get(TYPES) instanceof Value.Numbers types) || !types.kept()) {
      return;
    }
    for (int token = 0; token < tokens.size(); token++) {
      if (types.get(token) != BYTE) {
        continue;
      }
      if (model.equals("bert")) {
        throw header.refused(
            TYPES, "that of a byte for token " + token, "a vocabulary of words has no bytes");
      }
      if (tokens.endOfText(token) - tokens.start(token) < "<0x00>".length()) {
        throw header.refused(
            "token " + token + " of " + HeaderReader.TOKENS,
            "\"" + tokens.get(token) + "\"",
            "a byte is written <0x00> to <0xFF>");
      }
    }
  }

  /** A merge names two tokens with a space between. */
  private static void merges(Header header) {
    Value value = header.get(HeaderReader.MERGES);
    if (value == null) {
      return;
    }
    if (!(value instanceof Value.Texts(long length, Strings merges)) || merges == null) {
      throw header.refused(HeaderReader.MERGES, value.describe(), "it must be an array of texts");
    }
    for (int merge = 0; merge < merges.size(); merge++) {
      boolean space = false;
      int end = merges.endOfText(merge);
      for (int i = merges.start(merge) + 1; i < end && !space; i++) {
        space = merges.bytes()[i] == ' ';
      }
      if (!space) {
        throw header.refused(
            "merge " + merge + " of " + length + " in " + HeaderReader.MERGES,
            "\"" + merges.get(merge) + "\"",
            "it must be two texts with a space between");
      }
    }
  }
}
