package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/**
 * The memory of what is dropped goes back to the operating system. What a JVM does beside the tests
 * would be counted too, and comes late where the machine is busy: those that look at the process
 * have a JVM of their own, whose heap is touched at its start and which compiles nothing.
 */
@EnabledOnOs(OS.LINUX)
class MemoryTest {
  private static final int PROMPT = 2_600;

  private static final List<String> STILL =
      List.of("-Xint", "-XX:+UseSerialGC", "-Xms512m", "-Xmx512m", "-XX:+AlwaysPreTouch");

  private static void inAStillJvm(Path directory, Class<?> main)
      throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, STILL, Map.of(), 600, main);
    assertEquals(0, child.exitValue(), child.output());
  }

  @Test
  void residentMemoryFallsByTheEvictedBytes(@TempDir Path directory)
      throws IOException, InterruptedException {
    inAStillJvm(directory, Evicting.class);
  }

  /** Evicts most of a prompt, twice: the first time loads what the second needs. */
  static final class Evicting {
    private Evicting() {}

    public static void main(String[] arguments) throws IOException {
      // Nothing is dropped before the step after the prompt: the memory can be looked at in
      // between.
      CachePolicy policy = CachePolicy.h2o(0.2).withMinimumTokens(PROMPT + 2);
      SessionOptions options =
          TestModels.options().withContextSize(PROMPT + 200).withCachePolicy(policy);
      for (boolean measured : new boolean[] {false, true}) {
        try (Session session = TestModels.adaptive().newSession(options)) {
          session.evaluate(TestModels.proseTokens(PROMPT));
          session.step(1);
          CacheReport before = session.cacheReport();
          long rssBefore = residentBytes();
          session.step(2);
          long rssAfter = residentBytes();
          CacheReport after = session.cacheReport();
          assertEquals(1, before.keptFraction());
          assertTrue(after.keptFraction() < 0.25, "kept " + after.keptFraction());
          long evicted = before.keptBytes() - after.keptBytes();
          // Twelve bytes of every slot are its entries in the slot tables, which go back with its
          // rows.
          long returned = before.residentBytes() - after.residentBytes();
          long slots = before.keptSlots() - after.keptSlots();
          assertEquals(evicted + 12 * slots, returned, 0.02 * evicted);
          if (measured) {
            assertEquals(returned, rssBefore - rssAfter, 0.02 * evicted);
          }
        }
      }
    }
  }

  @Test
  void aClearedSessionHoldsNothing() {
    try (Session session = TestModels.adaptive().newSession(TestModels.options())) {
      session.evaluate(TestModels.proseTokens(600));
      long held = session.cacheReport().residentBytes();
      session.clear();
      assertTrue(
          session.cacheReport().residentBytes() < held / 10,
          held + " and then " + session.cacheReport().residentBytes());
    }
  }

  @Test
  void closingASessionReturnsItsMemory(@TempDir Path directory)
      throws IOException, InterruptedException {
    inAStillJvm(directory, Closing.class);
  }

  /** Opens and closes sessions. */
  static final class Closing {
    private Closing() {}

    public static void main(String[] arguments) throws IOException {
      int[] prompt = TestModels.proseTokens(800);
      SessionOptions options = TestModels.options();
      TestModels.adaptive().newSession(options).close();
      long start = residentBytes();
      for (int i = 0; i < 2; i++) {
        try (Session session = TestModels.adaptive().newSession(options)) {
          session.evaluate(prompt);
        }
      }
      long left = residentBytes() - start;
      // One session's cache is 18 MB, and its buffers come on top.
      assertTrue(left < 18_000_000, "two sessions left " + left + " bytes");
    }
  }

  private static long residentBytes() throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/smaps_rollup"))) {
      if (line.startsWith("Rss:")) {
        return Long.parseLong(line.replaceAll("[^0-9]", "")) * 1024;
      }
    }
    throw new IOException("smaps_rollup has no Rss line");
  }
}
