package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The character that ends a text in C is one like others: in what is said, and in the answer. */
class ZeroTest {
  /** Nearly every entry begins with it, so that whatever is drawn does. */
  private static SyntheticVocabulary vocabulary() {
    SyntheticVocabulary vocabulary = SyntheticVocabulary.rwkv();
    for (int i = 0; i < 4_000; i++) {
      vocabulary.word("\\x00n" + i);
    }
    return vocabulary.chatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            + "{% if add_generation_prompt %}assistant:{% endif %}");
  }

  @Test
  void zerosAreSaidAndAnswered(@TempDir Path directory) {
    Path file = SyntheticModels.llama(directory.resolve("model.gguf"), 1, vocabulary());
    try (Model model = Model.load(file, ModelOptions.defaults().withDevice("CPU"));
        Session session =
            model.newSession(
                SessionOptions.defaults()
                    .withContextSize(512)
                    .withThreads(1)
                    .withMaxTokens(20)
                    .withSystemPrompt("\0")
                    .withSampling(Sampling.defaults().withTemperature(5).withSeed(7)))) {
      int before = 0;
      for (int turn = 0; turn < 3; turn++) {
        String answer = session.chat("a\0b\0").text();
        assertTrue(answer.indexOf('\0') >= 0, answer);
        assertEquals(
            answer.strip(), model.detokenize(model.tokenize(answer, false, false)).strip());
        assertTrue(session.position() > before);
        before = session.position();
      }
      assertTrue(session.complete("c\0d").text().indexOf('\0') >= 0);
    }
  }
}
