package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvasir.cache.CachePolicy;
import java.nio.file.Path;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;

/** The example of the README, compiled and run. */
class FiveLinesTest {
  private static void example(Path file, Consumer<String> out) {
    try (var model = Model.load(file);
        var session =
            model.newSession(SessionOptions.defaults().withCachePolicy(CachePolicy.fastgen()));
        var reply = session.chat("Why is the sky blue?")) {
      reply.forEach(out);
    }
  }

  @Test
  void streamsAnAnswer() {
    StringBuilder answer = new StringBuilder();
    // The reader walks away at the first piece: model, session and reply are closed in the middle
    // of
    // the answer.
    assertThrows(
        StoppedReading.class,
        () ->
            example(
                TestModels.path(),
                piece -> {
                  answer.append(piece);
                  throw new StoppedReading();
                }));
    assertFalse(answer.isEmpty());
  }

  private static final class StoppedReading extends RuntimeException {
    private static final long serialVersionUID = 1L;
  }
}
