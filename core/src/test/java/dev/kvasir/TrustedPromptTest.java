package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;

import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Special tokens come out of a text only where the caller says that it can be trusted. */
class TrustedPromptTest {
  private static final String TEXT = "<|turn|>a<|turn|>";

  @Test
  void completeParsesSpecialTokensOnRequestOnly(@TempDir Path directory) {
    Path file =
        SyntheticModels.llama(
            directory.resolve("model.gguf"), 1, SyntheticVocabulary.bytePairs("gpt-2"));
    try (Model model = Model.load(file, ModelOptions.defaults().withDevice("CPU"));
        Session session =
            model.newSession(
                TestModels.options().withContextSize(64).withThreads(1).withMaxTokens(1))) {
      int plain = model.tokenize(TEXT, false, false).length;
      int trusted = model.tokenize(TEXT, false, true).length;
      assertNotEquals(plain, trusted);
      assertEquals(plain, read(session, session.complete(TEXT)));
      assertEquals(plain, read(session, session.complete(TEXT, false)));
      assertEquals(trusted, read(session, session.complete(TEXT, true)));
    }
  }

  private static int read(Session session, Reply reply) {
    try (reply) {
      reply.text();
      return reply.statistics().promptTokens();
    } finally {
      session.clear();
    }
  }
}
