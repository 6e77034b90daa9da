package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Whatever a String holds is split into tokens, or refused by one exception. */
class AnyTextTest {
  /** One name for each way that llama.cpp splits byte pairs into words. */
  private static final List<String> PRE_TOKENISERS =
      List.of(
          "afmoe",
          "bailingmoe",
          "bloom",
          "chameleon",
          "chatglm-bpe",
          "command-r",
          "dbrx",
          "deepseek-coder",
          "deepseek-llm",
          "deepseek-v3",
          "default",
          "exaone-moe",
          "falcon",
          "gpt-2",
          "gpt-4o",
          "granite-embed-multi-97m",
          "hunyuan",
          "jais-2",
          "kimi-k2",
          "laguna",
          "llama-bpe",
          "minicpm5",
          "qwen2",
          "qwen35",
          "seed-coder",
          "smollm",
          "spark2_5",
          "superbpe",
          "tekken",
          "tiny_aya",
          "ufakzeka",
          "viking",
          "youtu");

  @TempDir Path directory;

  @Test
  void longRunsInEveryPreTokeniser() throws Exception {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 300, Runs.class, directory.toString());
    assertEquals(0, child.exitValue(), child.output());
    assertTrue(child.output().contains("all done"), child.output());
    try (Stream<Path> files = Files.list(directory)) {
      assertTrue(
          files.noneMatch(file -> file.getFileName().toString().startsWith("hs_err")),
          child.output());
    }
  }

  private String refused(Model model, String text, boolean parseSpecial) {
    return assertThrows(
            TokenizationException.class, () -> model.tokenize(text, false, parseSpecial))
        .getMessage();
  }

  private Model model(SyntheticVocabulary vocabulary) {
    return Model.load(
        SyntheticModels.llama(directory.resolve("model.gguf"), 1, vocabulary),
        ModelOptions.defaults().withDevice("CPU"));
  }

  @Test
  void tenMegabytesWithoutASpace() {
    String text = "a".repeat(10_000_000);
    try (Model model = model(SyntheticVocabulary.bytePairs("gpt-4o"))) {
      String message = refused(model, text, false);
      assertTrue(message.contains("10000000 characters"), message);
      // What a pre-tokeniser never puts into one word is no run.
      assertEquals(600_000, model.tokenize("1 ".repeat(300_000), false, false).length);
    }
    try (Model model = model(SyntheticVocabulary.bytePairs("gpt-2"))) {
      assertEquals(2_500_000, model.tokenize(text, false, false).length);
    }
  }

  @Test
  void moreThanIsSplitAtOnce() {
    try (Model model = model(SyntheticVocabulary.sentencePiece())) {
      String message = refused(model, "a".repeat((64 << 20) + 1), false);
      assertTrue(message.contains("67108865 bytes"), message);
    }
  }

  @Test
  void runsThatAnExpressionLooksAtAgainAndAgain() {
    try (Model model = model(SyntheticVocabulary.bytePairs("superbpe"))) {
      for (String unit : new String[] {"1", " ", "\n "}) {
        String message = refused(model, unit.repeat(100_000), false);
        assertTrue(message.contains("in a row"), message);
      }
      assertEquals(1_000, model.tokenize("1".repeat(1_000), false, false).length);
    }
    try (Model model = model(SyntheticVocabulary.bytePairs("llama-bpe"))) {
      assertEquals(100_000, model.tokenize("1".repeat(100_000), false, false).length);
    }
  }

  @Test
  void moreSpecialTokensThanAreFoundInReasonableTime() {
    String text = "<|turn|>".repeat(70_000);
    try (Model model = model(SyntheticVocabulary.bytePairs("gpt-2"))) {
      assertTrue(refused(model, text, true).contains("70000 special tokens"));
      assertEquals(8 * 70_000, model.tokenize(text, false, false).length);
      assertEquals(2_000, model.tokenize("<|turn|>".repeat(2_000), false, true).length);
    }
    try (Model model = model(SyntheticVocabulary.bytePairs("gpt-2").userDefined("<|turned|>"))) {
      assertTrue(
          refused(model, "<|turned|>".repeat(70_000), false).contains("70000 special tokens"));
    }
  }

  @Test
  void moreCharactersWithoutATokenThanAreWrittenAsBytesInReasonableTime() {
    try (Model model = model(SyntheticVocabulary.sentencePiece())) {
      assertTrue(refused(model, "\u00E9".repeat(500_000), false).contains("500000"));
      // The space before the text, as bytes, too.
      assertEquals(3 + 20_000, model.tokenize("\u00E9".repeat(10_000), false, false).length);
    }
    try (Model model = model(SyntheticVocabulary.sentencePieceWithoutBytes())) {
      assertEquals(500_001, model.tokenize("a".repeat(500_000), false, false).length);
    }
  }

  @Test
  void zerosAndHalvesOfSurrogatePairsAreText() {
    try (Model model = model(SyntheticVocabulary.bytePairs("gpt-2"))) {
      String zeros = "a\0b\0\0";
      assertEquals(zeros, model.detokenize(model.tokenize(zeros, false, false)));
      assertEquals(
          "a\uFFFDb\uFFFD\uFFFD \uD83D\uDE00",
          model.detokenize(model.tokenize("a\uD83Db\uDE00\uD83D \uD83D\uDE00", false, false)));
    }
  }

  /** Splits runs of characters of every kind, on a thread with little stack. */
  static final class Runs {
    private static final int LENGTH = 5_000;

    private Runs() {}

    public static void main(String[] arguments) throws InterruptedException {
      Thread thread = new Thread(null, () -> run(Path.of(arguments[0])), "little stack", 512 << 10);
      thread.start();
      thread.join();
    }

    private static void run(Path directory) {
      for (String preTokeniser : PRE_TOKENISERS) {
        Path file =
            SyntheticModels.llama(
                directory.resolve("model.gguf"), 1, SyntheticVocabulary.bytePairs(preTokeniser));
        try (Model model = Model.load(file)) {
          for (String unit :
              new String[] {"a", "A", "=", "\n", "\u0E01", "\u4E2D", "\u00E9", "a ", "!\n/"}) {
            String text = unit.repeat(LENGTH / unit.length());
            int[] tokens = model.tokenize(text, false, false);
            if (!model.detokenize(tokens).equals(text)) {
              throw new AssertionError(preTokeniser + ": other text came back of " + unit);
            }
          }
        }
      }
      System.out.println("all done");
    }
  }
}
