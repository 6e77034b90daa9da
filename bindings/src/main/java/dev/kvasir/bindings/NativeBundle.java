package dev.kvasir.bindings;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * The libraries inside a native jar. Its index has one line per file, {@code <sha256> <bytes>
 * <name>}; the digest of the index names the directory that the files are extracted to, so that a
 * directory of that name never needs to change and several versions and processes can share the
 * cache.
 */
final class NativeBundle {
  static final String INDEX = "index";

  /** How long a directory stays that nobody uses. */
  static final Duration KEPT_UNUSED = Duration.ofDays(60);

  private static final Pattern OURS = Pattern.compile("[0-9a-f]{32}|extracting-[0-9]+");

  private final Function<String, @Nullable InputStream> resources;
  private final byte[] index;
  private final List<Entry> entries;

  private record Entry(String sha256, long size, String name) {}

  private NativeBundle(Function<String, @Nullable InputStream> resources, byte[] index) {
    this.resources = resources;
    this.index = index;
    this.entries = parse(new String(index, StandardCharsets.UTF_8));
  }

  /**
   * The bundle of a classifier that a class loader sees, on the class path or in a module.
   *
   * @param classifier of a native jar, for example {@code linux-x86_64-cuda}
   */
  static Optional<NativeBundle> find(String classifier, ClassLoader loader) {
    String prefix = "dev/kvasir/native/" + classifier + "/";
    return of(name -> loader.getResourceAsStream(prefix + name));
  }

  static Optional<NativeBundle> of(Function<String, @Nullable InputStream> resources) {
    try (InputStream in = resources.apply(INDEX)) {
      return in == null
          ? Optional.empty()
          : Optional.of(new NativeBundle(resources, in.readAllBytes()));
    } catch (IOException e) {
      throw new NativeLoadException(
          "The index of the native jar cannot be read: " + e.getMessage(), e);
    }
  }

  /**
   * Extracts the libraries below {@code parent} unless they are there already.
   *
   * @return the directory that holds them
   */
  Path extract(Path parent) {
    Path directory = parent.resolve(HexFormat.of().formatHex(sha256().digest(index), 0, 16));
    if (isComplete(directory)) {
      touch(directory);
      return directory;
    }
    try {
      Files.createDirectories(parent);
      Path scratch = Files.createTempDirectory(parent, "extracting-");
      try {
        for (Entry entry : entries) {
          extract(entry, scratch.resolve(entry.name));
        }
        publish(scratch, directory);
      } finally {
        delete(scratch);
      }
      touch(directory);
      deleteUnused(parent);
    } catch (IOException | UncheckedIOException e) {
      throw new NativeLoadException(
          "The native libraries cannot be extracted to "
              + directory
              + " ("
              + e
              + "). Make that directory writable, set XDG_CACHE_HOME to one that is, or name a directory that holds the"
              + " libraries by -D"
              + NativeLibraries.PATH_PROPERTY
              + "=DIR.",
          e);
    }
    return directory;
  }

  // The time of a directory is that of its last use. It may belong to another user: then it stays.
  private static void touch(Path directory) {
    try {
      Files.setLastModifiedTime(directory, FileTime.from(Instant.now()));
    } catch (IOException e) {
      // no more than a hint
    }
  }

  /** Takes away what earlier versions extracted, once nobody has used it for long. */
  private static void deleteUnused(Path parent) {
    Instant before = Instant.now().minus(KEPT_UNUSED);
    try (Stream<Path> children = Files.list(parent)) {
      for (Path child : children.toList()) {
        if (OURS.matcher(child.getFileName().toString()).matches()
            && Files.getLastModifiedTime(child).toInstant().isBefore(before)) {
          delete(child);
        }
      }
    } catch (IOException | UncheckedIOException e) {
      // another process takes them away too, or may not: what is left costs room and nothing else
    }
  }

  private boolean isComplete(Path directory) {
    for (Entry entry : entries) {
      Path file = directory.resolve(entry.name);
      try {
        if (Files.size(file) != entry.size) {
          return false;
        }
      } catch (IOException e) {
        return false;
      }
    }
    return true;
  }

  private void extract(Entry entry, Path file) throws IOException {
    MessageDigest digest = sha256();
    try (InputStream in = resources.apply(entry.name)) {
      if (in == null) {
        throw new NativeLoadException(
            "The native jar lists " + entry.name + " but does not hold it. Build it again.");
      }
      try (OutputStream out = Files.newOutputStream(file);
          DigestInputStream digesting = new DigestInputStream(in, digest)) {
        digesting.transferTo(out);
      }
    }
    if (!HexFormat.of().formatHex(digest.digest()).equals(entry.sha256)) {
      throw new NativeLoadException(
          "The native jar's " + entry.name + " is damaged: its SHA-256 differs from the index.");
    }
  }

  // A rename is atomic: another process sees all files or none. Whoever comes second finds the
  // directory there.
  private void publish(Path scratch, Path directory) throws IOException {
    if (Files.exists(directory) && !isComplete(directory)) {
      delete(directory);
    }
    try {
      try {
        Files.move(scratch, directory, StandardCopyOption.ATOMIC_MOVE);
      } catch (AtomicMoveNotSupportedException e) {
        Files.move(scratch, directory);
      }
    } catch (IOException e) {
      if (!isComplete(directory)) {
        throw e;
      }
    }
  }

  private static void delete(Path directory) throws IOException {
    if (!Files.exists(directory)) {
      return;
    }
    try (Stream<Path> files = Files.walk(directory)) {
      for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
        Files.delete(file);
      }
    }
  }

  private static List<Entry> parse(String index) {
    List<Entry> entries = new ArrayList<>();
    for (String line : index.lines().toList()) {
      String[] fields = line.split(" ", 3);
      if (fields.length != 3
          || fields[2].isEmpty()
          || fields[2].contains("/")
          || fields[2].contains("\\")) {
        throw new NativeLoadException(
            "The index of the native jar has a line that is not understood: " + line);
      }
      try {
        entries.add(new Entry(fields[0], Long.parseLong(fields[1]), fields[2]));
      } catch (NumberFormatException e) {
        throw new NativeLoadException(
            "The index of the native jar has a line that is not understood: " + line, e);
      }
    }
    return List.copyOf(entries);
  }

  private static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError("every Java platform has SHA-256", e);
    }
  }
}
