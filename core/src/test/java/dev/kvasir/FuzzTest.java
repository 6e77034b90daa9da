package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Wrong files end in an exception of ours or in a model that computes; {@link Fuzz} runs more of
 * them by command.
 */
class FuzzTest {
  private static final long SEED = 20_261;
  private static final long CASES = 300;

  @ParameterizedTest
  @EnumSource
  void noFileEndsTheProcess(FuzzCases.Kind kind, @TempDir Path directory)
      throws IOException, InterruptedException {
    Fuzz.Summary summary = Fuzz.run(kind, SEED, 0, CASES, directory, Fuzz.seeds(directory));
    System.out.println(kind + ", seed " + SEED + ": " + summary);
    assertEquals(List.of(), summary.wrong(), () -> "seed " + SEED + ": " + summary);
    assertEquals(
        CASES, summary.loaded() + summary.refused().values().stream().mapToLong(n -> n).sum());
    assertTrue(summary.loaded() >= CASES / 50, summary::toString);
  }
}
