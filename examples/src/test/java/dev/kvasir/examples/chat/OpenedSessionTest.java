package dev.kvasir.examples.chat;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvasir.InvalidOptionException;
import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;

class OpenedSessionTest {
  @Test
  void optionsThatDoNotFitAreLeftOutForTheNextOnes() {
    var small = SessionOptions.defaults().withContextSize(64);
    var impossible = small.withContextSize(1 << 30);
    try (var model = Model.load(Path.of(System.getProperty("kvasir.test.model")))) {
      try (var opened = OpenedSession.of(model, List.of(impossible, small))) {
        assertEquals(64, opened.contextSize());
      }
      assertThrows(
          InvalidOptionException.class, () -> OpenedSession.of(model, List.of(impossible)));
    }
  }
}
