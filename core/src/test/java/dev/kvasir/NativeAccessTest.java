package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * A JVM that denies native access says which option is missing, whichever module it is denied to.
 */
class NativeAccessTest {
  private static final String PROGRAM =
      """
      class Program {
        public static void main(String[] arguments) {
          try {
            System.out.println(dev.kvasir.Devices.list());
          } catch (dev.kvasir.NativeLibraryException e) {
            System.out.println(e.getMessage());
          }
        }
      }
      """;

  @ParameterizedTest
  @ValueSource(strings = {"dev.kvasir", "dev.kvasir.bindings", "java.logging"})
  void namesTheOption(String allowed, @TempDir Path directory)
      throws IOException, InterruptedException {
    String modules = System.getProperty("jdk.module.path", "");
    assumeTrue(modules.contains("kvasir"), "the tests run on the class path");
    Path program = Files.writeString(directory.resolve("Program.java"), PROGRAM);
    Path output = directory.resolve("output");
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--illegal-native-access=deny",
                "--enable-native-access=" + allowed,
                "--module-path",
                Stream.of(modules.split(File.pathSeparator))
                    .map(path -> Path.of(path).toAbsolutePath().toString())
                    .collect(Collectors.joining(File.pathSeparator)),
                "--class-path", // where the native jar is
                System.getProperty("java.class.path"),
                "--add-modules",
                "dev.kvasir",
                program.toString())
            .redirectErrorStream(true)
            .redirectOutput(output.toFile())
            .start();
    assertTrue(process.waitFor(120, TimeUnit.SECONDS));
    String said = Files.readString(output, StandardCharsets.UTF_8);
    assertEquals(0, process.exitValue(), said);
    assertTrue(
        said.contains("Start it with --enable-native-access=dev.kvasir,dev.kvasir.bindings."),
        said);
  }
}
