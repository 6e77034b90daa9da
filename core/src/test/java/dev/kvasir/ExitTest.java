package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A JVM that exits while another thread decodes ends with its own status, not in a crash. */
class ExitTest {
  @Test
  void exitsWhileDecoding(@TempDir Path directory) throws IOException, InterruptedException {
    Path output = directory.resolve("output");
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.add("--enable-native-access=ALL-UNNAMED");
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
    command.add(Decoding.class.getName());
    Process process =
        new ProcessBuilder(command)
            .directory(directory.toFile())
            .redirectErrorStream(true)
            .redirectOutput(output.toFile())
            .start();
    try {
      assertTrue(process.waitFor(120, TimeUnit.SECONDS), "the JVM did not end");
    } finally {
      process.destroyForcibly();
    }
    String text = Files.readString(output, StandardCharsets.UTF_8);
    assertEquals(7, process.exitValue(), text);
    try (var files = Files.list(directory)) {
      assertFalse(files.anyMatch(file -> file.getFileName().toString().startsWith("hs_err")), text);
    }
  }

  /** Decodes in a daemon thread and exits in the middle of it. */
  static final class Decoding {
    private Decoding() {}

    public static void main(String[] arguments) throws InterruptedException {
      Model model = Model.load(TestModels.path());
      Session session = model.newSession();
      int[] tokens = new int[256];
      Arrays.fill(tokens, model.tokenize("word", false, false)[0]);
      Thread thread =
          new Thread(
              () -> {
                while (true) {
                  session.clear();
                  session.evaluate(tokens);
                }
              });
      thread.setDaemon(true);
      thread.start();
      Thread.sleep(1500);
      System.exit(7);
    }
  }
}
