package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Vocabularies of every kind, also such that lack tokens: text is split, or refused. */
class VocabulariesTest {
  private static final String SPLIT = "split";
  private static final String LOST = "split, with other text";
  private static final String REFUSED = "TokenizationException";

  @TempDir Path directory;

  /** What becomes of a text, by the names of a vocabulary and of the text. */
  private static Map<String, String> outcomes(Path directory) throws Exception {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 120, Splitting.class, directory.toString());
    assertEquals(0, child.exitValue(), child.output());
    return child
        .output()
        .lines()
        .filter(line -> line.startsWith("> "))
        .map(line -> line.substring(2).split(": ", 2))
        .collect(Collectors.toMap(parts -> parts[0], parts -> parts[1]));
  }

  @Test
  void everyTextIsSplitOrRefused() throws Exception {
    Map<String, String> outcomes = outcomes(directory);
    for (String whole : List.of("sentencePiece", "bytePairs", "rawBytePairs", "rwkv", "plamo2")) {
      for (String text : Splitting.TEXTS.keySet()) {
        assertEquals(SPLIT, outcomes.get(whole + ", " + text), whole + ", " + text);
      }
    }
    for (String text : List.of("accent", "line break", "zero", "everything")) {
      assertEquals(REFUSED, outcomes.get("sentencePieceWithoutBytes, " + text), text);
      assertEquals(LOST, outcomes.get("unigrams, " + text), text);
    }
    assertEquals(SPLIT, outcomes.get("sentencePieceWithoutBytes, letters"));
    assertEquals(SPLIT, outcomes.get("unigrams, letters"));
    assertEquals(SPLIT, outcomes.get("wordPiece, letters"));
    // A word that has no token becomes the unknown token, if there is one.
    assertEquals(LOST, outcomes.get("wordPiece, hanzi"));
    assertEquals(REFUSED, outcomes.get("rwkvWithoutLineBreaks, line break"));
    assertEquals(SPLIT, outcomes.get("rwkvWithoutLineBreaks, letters"));
    for (String some : List.of("bytePairsWithoutOne", "rawBytePairsWithoutOne")) {
      assertEquals(SPLIT, outcomes.get(some + ", letters"), some);
      assertEquals(REFUSED, outcomes.get(some + ", hanzi"), some);
    }
    assertEquals("UnsupportedModelException", outcomes.get("rwkvWithoutSingleBytes"));
    assertTrue(outcomes.get("plamo2WithoutBytes").endsWith("LoadException"), "" + outcomes);
  }

  /** Splits every text with every vocabulary. */
  static final class Splitting {
    static final Map<String, String> TEXTS = new LinkedHashMap<>();

    static {
      TEXTS.put("letters", "abc");
      TEXTS.put("spaces", "a b");
      TEXTS.put("accent", "\u00E9");
      TEXTS.put("hanzi", "\u4E2D\u6587");
      TEXTS.put("line break", "a\nb");
      TEXTS.put("zero", "a\0b");
      TEXTS.put("everything", "\t\0 a\u00E9\r\n\uD83D\uDE00<s></s><unk>\u0085\uFFFF<0x0A>");
    }

    private Splitting() {}

    public static void main(String[] arguments) {
      Map<String, SyntheticVocabulary> all = new LinkedHashMap<>();
      all.put("sentencePiece", SyntheticVocabulary.sentencePiece());
      all.put("sentencePieceWithoutBytes", SyntheticVocabulary.sentencePieceWithoutBytes());
      all.put("bytePairs", SyntheticVocabulary.bytePairs("gpt-2"));
      all.put("rawBytePairs", SyntheticVocabulary.rawBytePairs());
      all.put("bytePairsWithoutOne", SyntheticVocabulary.bytePairs("gpt-2").without("\u00E4"));
      all.put("rawBytePairsWithoutOne", SyntheticVocabulary.rawBytePairs().without("<0xE4>"));
      all.put("wordPiece", SyntheticVocabulary.wordPiece());
      all.put("unigrams", SyntheticVocabulary.unigrams());
      all.put("rwkv", SyntheticVocabulary.rwkv());
      all.put("rwkvWithoutLineBreaks", SyntheticVocabulary.rwkv().without("\\x0a"));
      all.put("rwkvWithoutSingleBytes", SyntheticVocabulary.rwkv().without("\\x61"));
      all.put("plamo2", SyntheticVocabulary.plamo2());
      all.put("plamo2WithoutBytes", SyntheticVocabulary.plamo2().without("<0x41>"));
      all.forEach((name, vocabulary) -> split(Path.of(arguments[0]), name, vocabulary));
    }

    private static void split(Path directory, String name, SyntheticVocabulary vocabulary) {
      Path file = SyntheticModels.llama(directory.resolve(name + ".gguf"), 1, vocabulary);
      try (Model model = Model.load(file)) {
        TEXTS.forEach(
            (label, text) ->
                System.out.println("> " + name + ", " + label + ": " + outcome(model, text)));
      } catch (KvasirException e) {
        System.out.println("> " + name + ": " + e.getClass().getSimpleName());
      }
    }

    private static String outcome(Model model, String text) {
      try {
        String back = model.detokenize(model.tokenize(text, false, false));
        // A vocabulary without a token for a space writes this sign for it.
        return back.replace('\u2581', ' ').strip().equals(text.strip()) ? SPLIT : LOST;
      } catch (KvasirException e) {
        return e.getClass().getSimpleName() + (e instanceof TokenizationException ? "" : e);
      }
    }
  }
}
