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
 * Wrong files end in an exception of ours or in a model that computes. The system properties {@code
 * kvasir.fuzz.cases}, {@code kvasir.fuzz.first} and {@code kvasir.fuzz.seed} run others, {@code
 * kvasir.fuzz.models} makes them of the model files in a directory.
 */
class FuzzTest {
  private static final long SEED = Long.getLong("kvasir.fuzz.seed", 1);
  private static final long FIRST = Long.getLong("kvasir.fuzz.first", 0);
  private static final long CASES = Long.getLong("kvasir.fuzz.cases", 300);

  @ParameterizedTest
  @EnumSource
  void noFileEndsTheProcess(FuzzCases.Kind kind, @TempDir Path directory)
      throws IOException, InterruptedException {
    Path seeds = Fuzz.seeds(directory);
    String models = System.getProperty("kvasir.fuzz.models");
    Fuzz.Summary summary =
        Fuzz.run(
            kind,
            SEED,
            FIRST,
            CASES,
            directory,
            models == null || kind == FuzzCases.Kind.PROFILE ? seeds : Path.of(models));
    System.out.println(kind + ", seed " + SEED + ": " + summary);
    assertEquals(List.of(), summary.wrong(), () -> "seed " + SEED + ": " + summary);
    assertEquals(
        CASES, summary.loaded() + summary.refused().values().stream().mapToLong(n -> n).sum());
    assertTrue(CASES < 100 || summary.loaded() >= CASES / 50, summary::toString);
  }
}
