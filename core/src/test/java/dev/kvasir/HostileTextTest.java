package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.internal.text.Utf8;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.Supplier;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Random and hostile texts through {@link Model#tokenize}, {@link Session#complete(String)} and
 * {@link Session#chat}, in a JVM of its own: each is answered, or refused by one exception, and
 * what comes next works. {@code -Dkvasir.test.texts=10000} says how many, {@code
 * -Dkvasir.test.seed=N} which.
 */
class HostileTextTest {
  @TempDir Path directory;

  @Test
  void everyTextIsAnsweredOrRefused() throws Exception {
    String texts = System.getProperty("kvasir.test.texts", "150");
    String seed = System.getProperty("kvasir.test.seed", "1");
    int seconds = 120 + Integer.parseInt(texts);
    ChildJvm child =
        ChildJvm.run(directory, Map.of(), seconds, Texts.class, directory.toString(), texts, seed);
    assertEquals(0, child.exitValue(), child.output());
    assertTrue(child.output().contains("done: " + texts + " texts"), child.output());
    System.out.println(
        child.output().lines().filter(line -> line.startsWith("done: ")).findFirst().orElseThrow());
  }

  /** Runs the texts through some vocabularies. */
  static final class Texts {
    private static final String TEMPLATE =
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
            + "{% if add_generation_prompt %}assistant {% endif %}";

    private Texts() {}

    public static void main(String[] arguments) {
      Path directory = Path.of(arguments[0]);
      int count = Integer.parseInt(arguments[1]);
      long seed = Long.parseLong(arguments[2]);
      Map<String, SyntheticVocabulary> vocabularies = new LinkedHashMap<>();
      vocabularies.put("gpt-2", SyntheticVocabulary.bytePairs("gpt-2"));
      vocabularies.put("gpt-4o", SyntheticVocabulary.bytePairs("gpt-4o"));
      vocabularies.put("bloom", SyntheticVocabulary.bytePairs("bloom"));
      vocabularies.put("sentencePiece", SyntheticVocabulary.sentencePiece());
      vocabularies.put("withoutBytes", SyntheticVocabulary.sentencePieceWithoutBytes());
      vocabularies.put("unigrams", SyntheticVocabulary.unigrams());
      StringBuilder counts = new StringBuilder();
      for (Map.Entry<String, SyntheticVocabulary> each : vocabularies.entrySet()) {
        Path file =
            SyntheticModels.llama(
                directory.resolve(each.getKey() + ".gguf"),
                1,
                each.getValue().chatTemplate(TEMPLATE));
        boolean faithful = !each.getKey().equals("unigrams");
        counts.append(", ").append(each.getKey()).append(' ');
        counts.append(
            run(file, faithful, (count + vocabularies.size() - 1) / vocabularies.size(), seed));
      }
      System.out.println("done: " + count + " texts of seed " + seed + counts);
    }

    /** Returns how many were answered. */
    private static int run(Path file, boolean faithful, int count, long seed) {
      HostileTexts texts = new HostileTexts(seed);
      int answered = 0;
      try (Model model = Model.load(file, ModelOptions.defaults().withDevice("CPU"));
          Session session =
              model.newSession(
                  SessionOptions.defaults()
                      .withContextSize(1024)
                      .withThreads(1)
                      .withMaxTokens(2)
                      .withSampling(Sampling.greedy()))) {
        for (int i = 0; i < count; i++) {
          String text = texts.next();
          boolean trusted = i % 2 == 0;
          try {
            boolean split = split(model, text, faithful);
            boolean said = said(() -> session.complete(text, trusted), session, text);
            boolean chatted = said(() -> session.chat(text), session, text);
            answered += split && said && chatted ? 1 : 0;
          } catch (RuntimeException | Error e) {
            throw new AssertionError("text " + i + " of seed " + seed + " with " + file, e);
          }
        }
      }
      return answered;
    }

    private static boolean split(Model model, String text, boolean faithful) {
      int[] tokens;
      try {
        tokens = model.tokenize(text, false, false);
      } catch (TokenizationException e) {
        return false;
      }
      // llama.cpp leaves out some spaces before punctuation when it joins tokens.
      String back = model.detokenize(tokens).replaceAll("[ \u2581]", "");
      String sent = new String(Utf8.bytes(text), StandardCharsets.UTF_8);
      if (faithful && !back.equals(sent.replaceAll("[ \u2581]", ""))) {
        throw new AssertionError("other text came back");
      }
      return true;
    }

    private static boolean said(Supplier<Reply> what, Session session, String text) {
      try (Reply reply = what.get()) {
        reply.text();
        return true;
      } catch (TokenizationException | ContextFullException e) {
        return false;
      } catch (IllegalArgumentException e) {
        if (!text.isEmpty()) {
          throw e;
        }
        return false;
      } finally {
        session.clear();
      }
    }
  }
}
