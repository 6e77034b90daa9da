package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A JVM that exits while another thread decodes ends with its own status, not in a crash. */
class ExitTest {
  @Test
  void exitsWhileDecoding(@TempDir Path directory) throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 120, Decoding.class);
    assertEquals(7, child.exitValue(), child.output());
    try (var files = Files.list(directory)) {
      assertFalse(
          files.anyMatch(file -> file.getFileName().toString().startsWith("hs_err")),
          child.output());
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
