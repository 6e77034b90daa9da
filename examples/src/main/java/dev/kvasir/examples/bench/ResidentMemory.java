package dev.kvasir.examples.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.OptionalLong;

/**
 * Memory of this process that is resident, belongs to no file, and is not Java's heap. The pages of
 * a mapped model come and go as the weights are read, and are the same for every engine. The heap
 * grows when it likes: the launcher has it made resident as a whole (-XX:+AlwaysPreTouch), so that
 * its size can be subtracted.
 */
final class ResidentMemory {
  private static final Path STATUS = Path.of("/proc/self/status");
  private static final String FIELD = "RssAnon:";

  private ResidentMemory() {}

  /** Bytes; empty where the operating system has no /proc. */
  static OptionalLong bytes() {
    try (var lines = Files.lines(STATUS)) {
      return lines
          .filter(line -> line.startsWith(FIELD))
          .mapToLong(line -> 1024 * kilobytes(line) - Runtime.getRuntime().totalMemory())
          .findFirst();
    } catch (IOException e) {
      return OptionalLong.empty();
    }
  }

  private static long kilobytes(String line) {
    return Long.parseLong(line.substring(FIELD.length()).replace("kB", "").strip());
  }
}
