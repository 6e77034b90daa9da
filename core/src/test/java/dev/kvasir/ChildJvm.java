package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** A JVM of its own for what would end this one, or needs another environment. */
record ChildJvm(int exitValue, String output) {

  /**
   * Runs a class of the tests to its end.
   *
   * @param directory its working directory, where its output is collected too
   * @param environment what is added to that of this process
   */
  static ChildJvm run(
      Path directory, Map<String, String> environment, int seconds, Class<?> main, String... more)
      throws IOException, InterruptedException {
    return run(directory, List.of(), environment, seconds, main, more);
  }

  /**
   * Runs a class of the tests to its end in a JVM with more options.
   *
   * @param options of the JVM
   */
  static ChildJvm run(
      Path directory,
      List<String> options,
      Map<String, String> environment,
      int seconds,
      Class<?> main,
      String... more)
      throws IOException, InterruptedException {
    Path output = directory.resolve(main.getSimpleName() + ".output");
    List<String> command = command(main, options, List.of(more));
    ProcessBuilder builder =
        new ProcessBuilder(command)
            .directory(directory.toFile())
            .redirectErrorStream(true)
            .redirectOutput(output.toFile());
    builder.environment().putAll(environment);
    Process process = builder.start();
    try {
      assertTrue(process.waitFor(seconds, TimeUnit.SECONDS), "the JVM did not end");
    } finally {
      process.destroyForcibly();
    }
    return new ChildJvm(process.exitValue(), Files.readString(output, StandardCharsets.UTF_8));
  }

  /** The command that runs a class of the tests in a JVM with more options. */
  static List<String> command(Class<?> main, List<String> options, List<String> more) {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.add("--enable-native-access=ALL-UNNAMED");
    command.addAll(options);
    for (String property : List.of("kvasir.library.path", "kvasir.test.model")) {
      if (System.getProperty(property) != null) {
        command.add("-D" + property + "=" + System.getProperty(property));
      }
    }
    command.add("-cp");
    command.add(
        String.join(
            File.pathSeparator,
            Path.of("target", "test-classes").toAbsolutePath().toString(),
            System.getProperty("jdk.module.path", ""),
            System.getProperty("java.class.path")));
    command.add(main.getName());
    command.addAll(more);
    return command;
  }
}
