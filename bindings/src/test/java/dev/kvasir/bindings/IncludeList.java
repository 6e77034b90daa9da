package dev.kvasir.bindings;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;

/** The committed lists of what is bound. */
final class IncludeList {
  private static final Path DIRECTORY = Path.of("jextract");

  private IncludeList() {}

  /** The bound names of one kind: {@code function}, {@code struct} or {@code constant}. */
  static List<String> names(String kind) {
    String option = "--include-" + kind + " ";
    return Stream.of("llama.cpp.includes", "kvasir.includes")
        .flatMap(IncludeList::lines)
        .filter(line -> line.startsWith(option))
        .map(line -> line.substring(option.length()))
        .toList();
  }

  private static Stream<String> lines(String file) {
    try {
      return Files.readAllLines(DIRECTORY.resolve(file)).stream();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
