package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
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

  /** The exit does not wait, a hook is told, and closing what computes waits for no one. */
  @Test
  void aHookIsToldThatTheJvmExits(@TempDir Path directory)
      throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 120, Hooked.class);
    assertEquals(7, child.exitValue(), child.output());
    assertTrue(child.output().contains("hook: ExitingException"), child.output());
    assertTrue(child.output().contains("group: ExitingException"), child.output());
    assertTrue(child.output().contains("closed"), child.output());
  }

  /** A server that holds the exit decodes in its hook. */
  @Test
  void aHoldGivesAHookTime(@TempDir Path directory) throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 120, Hooked.class, "hold");
    assertEquals(7, child.exitValue(), child.output());
    assertTrue(child.output().contains("hook: 1 token"), child.output());
  }

  /** The computation is given up in its midst: neither waited for nor cut off. */
  @Test
  @DisabledOnOs(value = OS.WINDOWS, disabledReason = "there is no such signal")
  void aSignalGivesUpALongPrompt(@TempDir Path directory) throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 120, Terminated.class);
    assertEquals(128 + 15, child.exitValue(), child.output());
    assertTrue(child.output().contains("evaluate: ExitingException"), child.output());
    assertFalse(child.output().contains("evaluate: computed"), child.output());
  }

  /**
   * Is sent SIGTERM while its main thread computes thousands of tokens at once. A hook waits for
   * what becomes of them, so that it is printed however long it takes.
   */
  static final class Terminated {
    private static final int PROMPT = 4_000;

    private Terminated() {}

    public static void main(String[] arguments) {
      Model model = Model.load(TestModels.path());
      CountDownLatch ended = new CountDownLatch(1);
      Runtime.getRuntime().addShutdownHook(new Thread(() -> await(ended)));
      Thread signal = new Thread(Terminated::terminate);
      signal.setDaemon(true);
      Session session =
          model.newSession(
              SessionOptions.defaults()
                  .withContextSize(PROMPT + 96)
                  .withBatchSize(PROMPT)
                  .withMicroBatchSize(PROMPT)
                  .withThreads(1)
                  .withPrefillListener(
                      (done, total) -> {
                        if (done == 0) {
                          signal.start();
                        }
                      }));
      int[] tokens = new int[PROMPT];
      Arrays.fill(tokens, model.tokenize("word", false, false)[0]);
      try {
        session.evaluate(tokens);
        System.out.println("evaluate: computed");
      } catch (ExitingException e) {
        System.out.println("evaluate: ExitingException");
      }
      ended.countDown();
    }

    /** Gives the computation, which takes seconds, time to begin. */
    private static void terminate() {
      try {
        Thread.sleep(300);
        new ProcessBuilder("kill", "-TERM", Long.toString(ProcessHandle.current().pid()))
            .inheritIO()
            .start();
      } catch (IOException | InterruptedException e) {
        System.out.println("no signal: " + e);
      }
    }

    private static void await(CountDownLatch ended) {
      try {
        ended.await();
      } catch (InterruptedException e) {
        System.out.println("hook: " + e);
      }
    }
  }

  /** Exits while a group decodes, and decodes in a shutdown hook. */
  static final class Hooked {
    private Hooked() {}

    public static void main(String[] arguments) throws InterruptedException {
      Model model = Model.load(TestModels.path());
      SessionOptions options = SessionOptions.defaults().withContextSize(512).withThreads(1);
      Session session = model.newSession(options);
      SessionGroup group = model.newSessionGroup(2, options);
      int word = model.tokenize("word", false, false)[0];
      CountDownLatch ended = new CountDownLatch(1);
      Thread stepping =
          new Thread(
              () -> {
                try {
                  while (true) {
                    group.clear();
                    group.prefill(0, word, word, word);
                  }
                } catch (ExitingException e) {
                  System.out.println("group: ExitingException");
                  ended.countDown();
                }
              });
      stepping.setDaemon(true);
      stepping.start();
      boolean holds = arguments.length > 0;
      ExitHold hold = holds ? ExitHold.open(Duration.ofSeconds(100)) : null;
      Runtime.getRuntime()
          .addShutdownHook(
              new Thread(
                  () -> {
                    try {
                      if (!holds) {
                        ended.await(); // by then the exit has begun for certain
                      }
                      session.evaluate(word);
                      System.out.println("hook: " + session.position() + " token");
                    } catch (ExitingException e) {
                      System.out.println("hook: ExitingException");
                    } catch (InterruptedException e) {
                      System.out.println("hook: " + e);
                    }
                    if (hold != null) {
                      hold.close();
                    }
                    group.close();
                    session.close();
                    System.out.println("closed");
                  }));
      Thread.sleep(500);
      System.exit(7);
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
