package dev.kvasir.bindings;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.bindings.generated.NativeApi;
import java.io.File;
import java.lang.foreign.Arena;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** The libraries of the native jar, loaded as an application loads them. */
class LibrariesTest {
  private static NativeLibraries libraries;

  @BeforeAll
  static void load() {
    libraries = NativeLibraries.load();
  }

  @Test
  void everyBoundFunctionIsInTheLibraries() throws Exception {
    List<String> missing = new ArrayList<>();
    List<String> functions = IncludeList.names("function");
    for (String function : functions) {
      // The holder class of a function looks its symbol up when it is initialised.
      try {
        MemorySegment address =
            (MemorySegment) NativeApi.class.getMethod(function + "$address").invoke(null);
        assertNotEquals(0, address.address(), function);
      } catch (InvocationTargetException e) {
        missing.add(function);
      }
    }
    assertEquals(List.of(), missing);
    assertTrue(functions.contains("llama_decode") && functions.contains("kvasir_decode"));
  }

  @Test
  void kvasirWasCompiledWithTheStructsOfTheBindings() throws Exception {
    try (Arena arena = Arena.ofConfined()) {
      for (String struct : IncludeList.names("struct")) {
        if (struct.startsWith("kvasir_")) {
          MemoryLayout layout =
              (MemoryLayout)
                  Class.forName(NativeApi.class.getPackageName() + "." + struct)
                      .getMethod("layout")
                      .invoke(null);
          assertEquals(
              layout.byteSize(), NativeApi.kvasir_sizeof(arena.allocateFrom(struct)), struct);
        }
      }
      assertEquals(0, NativeApi.kvasir_sizeof(arena.allocateFrom("no such struct")));
    }
  }

  @Test
  void theLibrariesAreOfThePinnedVersion() {
    // llama.cpp says "0.5.0-dev" of its release v0.5.0.
    String loaded = "v" + NativeApi.llama_version().getString(0);
    assertEquals(NativeApi.kvasir_llama_version().getString(0), loaded.split("-", 2)[0]);
  }

  @Test
  void loadingAgainReturnsTheSame() {
    assertSame(libraries, NativeLibraries.load());
    assertTrue(Files.isDirectory(libraries.directory()));
  }

  @Test
  void withoutNativeAccessTheMessageNamesTheOption() throws Exception {
    assertTrue(
        loadInAnotherJvm("--illegal-native-access=deny")
            .contains("--enable-native-access=ALL-UNNAMED"));
  }

  @Test
  void aDirectoryWithoutLibrariesIsNamed() throws Exception {
    String message = loadInAnotherJvm("-D" + NativeLibraries.PATH_PROPERTY + "=src");
    assertTrue(message.contains(Path.of("src").toAbsolutePath().toString()), message);
    assertTrue(message.contains("ggml-base"), message);
  }

  @Test
  void aDirectoryThatIsNotThereIsNamed() throws Exception {
    String message = loadInAnotherJvm("-D" + NativeLibraries.PATH_PROPERTY + "=no-such-directory");
    assertTrue(message.contains(Path.of("no-such-directory").toAbsolutePath().toString()), message);
  }

  @Test
  void aGivenDirectoryIsLoaded() throws Exception {
    String directory = libraries.directory().toString();
    assertEquals(
        "loaded " + directory,
        loadInAnotherJvm(
                "--enable-native-access=ALL-UNNAMED",
                "-D" + NativeLibraries.PATH_PROPERTY + "=" + directory)
            .strip());
  }

  /** Prints where the libraries were loaded from, or why not. */
  static final class Load {
    public static void main(String[] args) {
      try {
        System.out.println("loaded " + NativeLibraries.load().directory());
      } catch (NativeLoadException e) {
        System.out.println(e.getMessage());
      }
    }
  }

  private static String loadInAnotherJvm(String... options) throws Exception {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of(options));
    command.add("-cp");
    command.add("target/classes" + File.pathSeparator + "target/test-classes");
    command.add(Load.class.getName());
    ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
    builder.environment().put(NativeLibraries.PATH_VARIABLE, libraries.directory().toString());
    Process process = builder.start();
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertEquals(0, process.waitFor(), output);
    return output;
  }
}
