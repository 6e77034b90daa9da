package dev.kvasir.bindings;

import dev.kvasir.bindings.generated.NativeApi;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * The native libraries of this process: ggml, llama.cpp and Kvasir's own. They are taken from the
 * directory that the system property {@value #PATH_PROPERTY} or the environment variable {@value
 * #PATH_VARIABLE} names, otherwise from the native jar on the class path or module path, which is
 * extracted once into the per-user cache. Jars with ggml's backends for further devices may be
 * beside it; a directory holds those backends itself, and then no jar is looked at.
 *
 * <p>{@link #load()} must return before anything of {@link NativeApi} is called: the generated code
 * looks its symbols up among the libraries that its class loader has loaded. ggml's backends are
 * not loaded here, since that writes to ggml's log: {@code ggml_backend_load_all_from_path} does
 * it, for each of {@link #backendDirectories()}.
 */
public final class NativeLibraries {
  /** The system property that names a directory with all libraries. */
  public static final String PATH_PROPERTY = "kvasir.library.path";

  /** The environment variable that names it where the system property is not set. */
  public static final String PATH_VARIABLE = "KVASIR_LIBRARY_PATH";

  // Dependencies first: then every one is found, whatever its run path says.
  private static final List<String> LOAD_ORDER =
      List.of("ggml-base", "ggml", "llama", "llama-common", "kvasir");

  // Nothing here calls it. But with a build of llama.cpp that exports a libstdc++ of its own, the
  // JVM ended while
  // a model was loaded when this library was not; a build may come without it.
  private static final String OPTIONAL = "llama-common";

  // What there are jars of, in the order in which ggml itself would look for them: the devices of
  // the first come first wherever devices are listed.
  private static final List<String> BACKENDS = List.of("cuda", "vulkan");

  /** The module that the generated bindings are exported to, and that reads native memory too. */
  private static final String CALLER = "dev.kvasir";

  private static @Nullable NativeLibraries loaded;

  private final List<Path> directories;

  private NativeLibraries(List<Path> directories) {
    this.directories = directories;
  }

  /**
   * Loads the libraries, or returns those that are loaded already. May be called by any thread.
   *
   * @throws NativeLoadException if they cannot be found or loaded, or are not the version that
   *     these bindings are for; another call tries again
   */
  public static synchronized NativeLibraries load() {
    if (loaded == null) {
      Platform platform = Platform.current();
      List<Path> directories = locate(platform);
      Path directory = directories.getLast();
      for (Path library : find(platform, directory)) {
        load(library);
      }
      checkAbi(directory, NativeApi.kvasir_abi_version(), NativeApi.KVASIR_ABI_VERSION());
      loaded = new NativeLibraries(directories);
    }
    return loaded;
  }

  /** The directory that the libraries were loaded from, ggml's CPU backend among them. */
  public Path directory() {
    return directories.getLast();
  }

  /**
   * The directories that hold ggml's backends: of every jar for further devices one, in a fixed
   * order, and last {@link #directory()}.
   */
  public List<Path> backendDirectories() {
    return directories;
  }

  /** The classifier of the jar that holds a backend of ggml for this machine. */
  public static String classifier(String backend) {
    return Platform.current().classifier() + "-" + backend;
  }

  private static List<Path> locate(Platform platform) {
    String given = System.getProperty(PATH_PROPERTY, System.getenv(PATH_VARIABLE));
    if (given != null && !given.isBlank()) {
      return List.of(Path.of(given).toAbsolutePath().normalize());
    }
    return extract(
        platform, NativeLibraries.class.getClassLoader(), CacheDirectory.path().resolve("native"));
  }

  /** Extracts the jars that a class loader sees; the platform's own comes last. */
  static List<Path> extract(Platform platform, ClassLoader loader, Path cache) {
    NativeBundle base = base(platform, loader);
    List<Path> directories = new ArrayList<>();
    for (String backend : BACKENDS) {
      NativeBundle.find(platform.classifier() + "-" + backend, loader)
          .ifPresent(bundle -> directories.add(bundle.extract(cache)));
    }
    directories.add(base.extract(cache));
    return List.copyOf(directories);
  }

  private static NativeBundle base(Platform platform, ClassLoader loader) {
    return NativeBundle.find(platform.classifier(), loader)
        .orElseThrow(
            () ->
                new NativeLoadException(
                    "No native libraries for "
                        + platform.classifier()
                        + " on the class path or module path. Add the artifact dev.kvasir:kvasir-native with the"
                        + " classifier "
                        + platform.classifier()
                        + " (on the module path also --add-modules dev.kvasir.natives), or name a directory that holds"
                        + " the libraries by -D"
                        + PATH_PROPERTY
                        + "=DIR."));
  }

  /** The libraries of a directory in the order in which they are to be loaded. */
  static List<Path> find(Platform platform, Path directory) {
    List<Path> files;
    try (Stream<Path> list = Files.list(directory)) {
      files = list.sorted().toList();
    } catch (IOException e) {
      throw new NativeLoadException(
          "The library directory "
              + directory
              + " cannot be read ("
              + e
              + "). Check -D"
              + PATH_PROPERTY
              + ".",
          e);
    }
    List<Path> libraries = new ArrayList<>();
    for (String name : LOAD_ORDER) {
      Pattern pattern = Pattern.compile(platform.libraryPattern(name));
      Optional<Path> library =
          files.stream()
              .filter(file -> pattern.matcher(file.getFileName().toString()).matches())
              .findFirst();
      if (library.isEmpty() && !name.equals(OPTIONAL)) {
        throw new NativeLoadException(
            "The library directory "
                + directory
                + " holds no "
                + name
                + " library (a file whose name matches "
                + pattern
                + "). Check -D"
                + PATH_PROPERTY
                + ".");
      }
      library.ifPresent(libraries::add);
    }
    return libraries;
  }

  private static void load(Path library) {
    try {
      System.load(library.toString());
    } catch (IllegalCallerException e) {
      Module module = NativeLibraries.class.getModule();
      throw new NativeLoadException(
          "Java denies native access to Kvasir. Start it with --enable-native-access="
              + (module.isNamed() ? CALLER + "," + module.getName() : "ALL-UNNAMED")
              + ".",
          e);
    } catch (UnsatisfiedLinkError e) {
      throw new NativeLoadException(
          "The library "
              + library
              + " cannot be loaded: "
              + e.getMessage()
              + ". All libraries must be for this machine ("
              + Platform.current().classifier()
              + ") and of one build; another class loader of this process must not have loaded them.",
          e);
    }
  }

  static void checkAbi(Path directory, int found, int expected) {
    if (found != expected) {
      throw new NativeLoadException(
          "The kvasir library in "
              + directory
              + " has ABI version "
              + found
              + ", these bindings are for version "
              + expected
              + ". Use the kvasir-native and kvasir-bindings artifacts of one version.");
    }
  }
}
