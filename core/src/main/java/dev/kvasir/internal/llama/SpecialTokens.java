package dev.kvasir.internal.llama;

import dev.kvasir.ModelLoadException;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;

/**
 * The tokens that a vocabulary adds to a text. llama.cpp drops those that are outside the
 * vocabulary while it loads, and asserts that they are there when it splits a text.
 */
final class SpecialTokens {
  private SpecialTokens() {}

  /**
   * Checks that every token that is added exists.
   *
   * @throws ModelLoadException if one does not
   */
  static void require(MemorySegment vocab, Path file) {
    int type = NativeApi.llama_vocab_type(vocab);
    if (type == NativeApi.LLAMA_VOCAB_TYPE_NONE()) {
      return;
    }
    boolean words = type == NativeApi.LLAMA_VOCAB_TYPE_WPM(); // adds both ends whatever it says
    require(
        words || NativeApi.llama_vocab_get_add_bos(vocab),
        NativeApi.llama_vocab_bos(vocab),
        "bos_token_id",
        "beginning",
        file);
    require(
        NativeApi.llama_vocab_get_add_eos(vocab),
        NativeApi.llama_vocab_eos(vocab),
        "eos_token_id",
        "end",
        file);
    require(words, NativeApi.llama_vocab_sep(vocab), "seperator_token_id", "end", file);
  }

  private static void require(boolean added, int token, String key, String place, Path file) {
    if (added && token < 0) {
      throw new ModelLoadException(
          "The model file "
              + file
              + " cannot be used: its vocabulary adds a token at the "
              + place
              + " of a text, but tokenizer.ggml."
              + key
              + " is missing or outside the vocabulary.");
    }
  }
}
