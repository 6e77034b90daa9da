package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CacheReport;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Models whose layers differ, and models that know some positions only. */
class ModelShapeTest {
  private static final ModelOptions PLAIN = ModelOptions.defaults().withAdaptiveCache(false);
  private static final SessionOptions OPTIONS =
      SessionOptions.defaults().withContextSize(256).withThreads(1);

  @TempDir Path directory;

  @Test
  void llamaCppsCacheIsReportedLayerByLayer() {
    Path file = FuzzModels.headsByLayer().write(directory.resolve("heads.gguf"));
    try (Model model = Model.load(file, PLAIN);
        Session session = model.newSession(OPTIONS)) {
      session.evaluate(3, 4, 5);
      CacheReport report = session.cacheReport();
      assertEquals(2, report.heads().stream().filter(head -> head.layer() == 0).count());
      assertEquals(4, report.heads().stream().filter(head -> head.layer() == 1).count());
      long slot = 2 * 2 * 16; // a key and a value of 16 elements of two bytes
      assertEquals(6 * slot * 256, report.allocatedBytes());
    }
  }

  @Test
  void aContextEndsWithTheLearnedPositions() {
    Path file = FuzzModels.learnedPositions().write(directory.resolve("positions.gguf"));
    int[] tokens = new int[256];
    Arrays.fill(tokens, 5);
    for (boolean adaptive : new boolean[] {true, false}) {
      try (Model model = Model.load(file, ModelOptions.defaults().withAdaptiveCache(adaptive))) {
        try (Session session = model.newSession(OPTIONS)) {
          session.evaluate(tokens);
          assertEquals(256, session.position());
        }
        InvalidOptionException refused =
            assertThrows(
                InvalidOptionException.class, () -> model.newSession(OPTIONS.withContextSize(257)));
        assertTrue(
            refused.getMessage().contains("256") && refused.getMessage().contains("257"),
            refused.getMessage());
        assertThrows(
            InvalidOptionException.class,
            () -> model.newSessionGroup(2, OPTIONS.withContextSize(1000)));
      }
    }
  }
}
