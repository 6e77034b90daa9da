package dev.kvasir;

import java.util.ArrayList;
import java.util.List;

/**
 * Small vocabularies of every kind that llama.cpp knows, whole ones and such that lack something.
 */
public final class SyntheticVocabulary {
  private static final int NORMAL = 1;
  private static final int UNKNOWN = 2;
  private static final int CONTROL = 3;
  private static final int USER_DEFINED = 4;
  private static final int BYTE = 6;

  private final String model;
  private final List<String> tokens = new ArrayList<>();
  private final List<Integer> types = new ArrayList<>();
  private final List<String> merges = new ArrayList<>();
  private String preTokeniser = "";
  private String chatTemplate = "";
  private int begin = -1;
  private int end = -1;
  private int unknown = -1;

  private SyntheticVocabulary(String model) {
    this.model = model;
  }

  /** SentencePiece: three special tokens, 256 bytes, and the words w0 to w63. */
  public static SyntheticVocabulary sentencePiece() {
    return new SyntheticVocabulary("llama").specials().bytes().words();
  }

  /** SentencePiece with single letters in place of the bytes: é and a line break have no token. */
  public static SyntheticVocabulary sentencePieceWithoutBytes() {
    return new SyntheticVocabulary("llama").specials().letters("▁").words();
  }

  /**
   * Byte pairs: one token for each byte, some merges, and <code>&lt;|turn|></code> as a control
   * token.
   */
  public static SyntheticVocabulary bytePairs(String preTokeniser) {
    SyntheticVocabulary v = new SyntheticVocabulary("gpt2");
    v.preTokeniser = preTokeniser;
    for (int b = 0; b < 256; b++) {
      v.add(Character.toString(printable(b)), NORMAL);
    }
    for (String pair : List.of("a a", "aa aa", "= =", "t h", "th e", "Ġ a")) {
      v.add(pair.replace(" ", ""), NORMAL);
      v.merges.add(pair);
    }
    v.control("<|begin|>").control("<|end|>").control("<|turn|>");
    v.begin = v.tokens.indexOf("<|begin|>");
    v.end = v.tokens.indexOf("<|end|>");
    return v;
  }

  /** Byte pairs on UTF-8 as it is, as Gemma 4 has them: bytes as in SentencePiece. */
  public static SyntheticVocabulary rawBytePairs() {
    SyntheticVocabulary v = new SyntheticVocabulary("gemma4").specials().bytes().letters("▁");
    v.add("aa", NORMAL);
    v.merges.add("a a");
    return v;
  }

  /** WordPiece: ASCII letters, digits and signs at the start of a word and within. */
  public static SyntheticVocabulary wordPiece() {
    SyntheticVocabulary v = new SyntheticVocabulary("bert");
    v.add("[PAD]", CONTROL).add("[UNK]", UNKNOWN).add("[CLS]", CONTROL).add("[SEP]", CONTROL);
    v.letters("▁");
    for (char c = 'a'; c <= 'z'; c++) {
      v.add("▁" + c, NORMAL);
    }
    v.begin = 2;
    v.end = 3;
    v.unknown = 1;
    return v;
  }

  /** Unigrams: ASCII, and an unknown token. */
  public static SyntheticVocabulary unigrams() {
    return new SyntheticVocabulary("t5").specials().letters("▁").words();
  }

  /** RWKV's: every byte, and some words. */
  public static SyntheticVocabulary rwkv() {
    SyntheticVocabulary v = new SyntheticVocabulary("rwkv");
    v.add("<s>", CONTROL);
    for (int b = 0; b < 256; b++) {
      v.add("\\x%02x".formatted(b), NORMAL);
    }
    return v.add("the", NORMAL).add("abc", NORMAL);
  }

  /** PLaMo 2's: special tokens, bytes, letters. */
  public static SyntheticVocabulary plamo2() {
    return new SyntheticVocabulary("plamo2").specials().add("<pad>", CONTROL).bytes().letters("▁");
  }

  /** As it is, but for the entries of that text, which are gone. */
  public SyntheticVocabulary without(String... texts) {
    for (String text : texts) {
      int at = tokens.indexOf(text);
      tokens.set(at, "unused" + at);
    }
    return this;
  }

  /** Adds an entry that stands for itself everywhere in a text. */
  public SyntheticVocabulary userDefined(String text) {
    return add(text, USER_DEFINED);
  }

  /** Adds a control token. */
  public SyntheticVocabulary control(String text) {
    return add(text, CONTROL);
  }

  /** Adds an entry like any other. */
  public SyntheticVocabulary word(String text) {
    return add(text, NORMAL);
  }

  /** Adds the model's chat template. */
  public SyntheticVocabulary chatTemplate(String source) {
    chatTemplate = source;
    return this;
  }

  /** Says that there is no unknown token. */
  public SyntheticVocabulary withoutUnknown() {
    unknown = -1;
    return this;
  }

  /** Number of entries. */
  public int size() {
    return tokens.size();
  }

  void write(GgufWriter file) {
    file.put("tokenizer.ggml.model", model);
    if (!preTokeniser.isEmpty()) {
      file.put("tokenizer.ggml.pre", preTokeniser);
    }
    float[] scores = new float[tokens.size()];
    for (int i = 0; i < scores.length; i++) {
      scores[i] = -i;
    }
    file.put("tokenizer.ggml.tokens", tokens.toArray(String[]::new));
    file.put("tokenizer.ggml.scores", scores);
    file.put("tokenizer.ggml.token_type", types.stream().mapToInt(Integer::intValue).toArray());
    if (model.equals("gpt2") || model.equals("gemma4")) {
      file.put("tokenizer.ggml.merges", merges.toArray(String[]::new));
    }
    if (!chatTemplate.isEmpty()) {
      file.put("tokenizer.chat_template", chatTemplate);
    }
    put(file, "bos", begin);
    put(file, "eos", end);
    put(file, "unknown", unknown);
  }

  private static void put(GgufWriter file, String name, int token) {
    if (token >= 0) {
      file.put("tokenizer.ggml." + name + "_token_id", token);
    }
  }

  private SyntheticVocabulary specials() {
    add("<unk>", UNKNOWN).add("<s>", CONTROL).add("</s>", CONTROL);
    unknown = 0;
    begin = 1;
    end = 2;
    return this;
  }

  private SyntheticVocabulary bytes() {
    for (int b = 0; b < 256; b++) {
      add("<0x%02X>".formatted(b), BYTE);
    }
    return this;
  }

  private SyntheticVocabulary letters(String space) {
    add(space, NORMAL);
    for (int c = '!'; c <= '~'; c++) {
      add(Character.toString(c), NORMAL);
    }
    return this;
  }

  private SyntheticVocabulary words() {
    for (int i = 0; i < 64; i++) {
      add("▁w" + i, NORMAL);
    }
    return this;
  }

  private SyntheticVocabulary add(String text, int type) {
    tokens.add(text);
    types.add(type);
    return this;
  }

  /** GPT-2's way to write a byte as a printable character. */
  private static int printable(int b) {
    int shifted = 256;
    for (int other = 0; other <= b; other++) {
      boolean shown =
          (other >= '!' && other <= '~')
              || (other >= 0xA1 && other <= 0xAC)
              || (other >= 0xAE && other <= 0xFF);
      if (other == b) {
        return shown ? b : shifted;
      }
      shifted += shown ? 0 : 1;
    }
    throw new IllegalArgumentException("no byte: " + b);
  }
}
