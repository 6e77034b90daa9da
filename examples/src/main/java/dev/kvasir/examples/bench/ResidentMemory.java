package dev.kvasir.examples.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.OptionalLong;

/**
 * Memory of this process that is resident and belongs to no file. The pages of a mapped model are
 * left out: they come and go as the weights are read, and are the same for every engine.
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
          .mapToLong(
              line ->
                  1024 * Long.parseLong(line.substring(FIELD.length()).replace("kB", "").strip()))
          .findFirst();
    } catch (IOException e) {
      return OptionalLong.empty();
    }
  }
}
