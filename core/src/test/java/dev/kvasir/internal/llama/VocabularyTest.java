package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ModelOptions;
import dev.kvasir.TestModels;
import dev.kvasir.internal.policy.TokenKinds;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;

class VocabularyTest {
  @Test
  void punctuationIsPunctuationAndSymbolsOnly() {
    for (String text :
        List.of(".", " ,", "--", " $", "_", "\u2026", "(\")", "\ud83d\ude00", "\n.", "+=")) {
      assertTrue(Vocabulary.isPunctuation(text), text);
    }
    for (String text : List.of("", " ", "\n", "a", "a.", " 1", "1.", "\uFFFD", "\u00e9")) {
      assertFalse(Vocabulary.isPunctuation(text), text);
    }
  }

  @Test
  void kindsAndMarkersOfTheDefaultModel() {
    try (NativeModel model = NativeModel.load(TestModels.path(), ModelOptions.defaults())) {
      TokenKinds kinds = model.tokenKinds();
      int[] chat = model.tokenize("<|im_start|>user\nHi, there.<|im_end|>", false, true);
      assertEquals(TokenKinds.SPECIAL, kinds.kindOf(chat[0]));
      assertEquals(TokenKinds.OTHER, kinds.kindOf(chat[1]));
      assertEquals(TokenKinds.SPECIAL, kinds.kindOf(chat[chat.length - 1]));
      int punctuation = 0;
      for (int token : chat) {
        punctuation += kinds.kindOf(token) == TokenKinds.PUNCTUATION ? 1 : 0;
      }
      assertEquals(2, punctuation);
      for (String marker :
          List.of(
              "<|im_start|>user\n",
              "<|im_start|>assistant\n",
              "<|im_start|>system\n",
              "<|im_end|>\n")) {
        int[] tokens = model.tokenize(marker, false, true);
        assertTrue(
            Arrays.stream(kinds.markers()).anyMatch(known -> Arrays.equals(known, tokens)), marker);
      }
      assertEquals(4, kinds.markers().length);
    }
  }
}
