package dev.kvasir.examples;

import static org.junit.jupiter.api.Assumptions.assumeFalse;

import dev.kvasir.examples.terminal.StandardStreams;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * What a command did over pipes.
 *
 * @param exitCode of the process, had it been one
 * @param out standard output
 * @param err standard error
 */
record CommandLineRun(int exitCode, String out, String err) {

  /** Runs a command with nothing to read. */
  static CommandLineRun of(String... arguments) {
    return withInput(new ByteArrayOutputStream(), "", arguments);
  }

  /** Runs a command on the default model. */
  static CommandLineRun onModel(String input, String... arguments) {
    return withInput(new ByteArrayOutputStream(), input, withModel(arguments));
  }

  /**
   * Runs a command on the default model, and presses Ctrl-C when it has written something. What was
   * started with SIGINT ignored, as a shell does with its background jobs, cannot be interrupted:
   * the test is skipped then.
   */
  static CommandLineRun interrupted(String input, String... arguments) {
    assumeFalse(interruptsAreIgnored(), "SIGINT is ignored");
    var out =
        new ByteArrayOutputStream() {
          private boolean pressed;

          @Override
          public synchronized void write(byte[] bytes, int offset, int length) {
            super.write(bytes, offset, length);
            if (!pressed) {
              pressed = true;
              pressCtrlC();
            }
          }
        };
    return withInput(out, input, withModel(arguments));
  }

  /** Runs a command on the default model whose standard output nobody reads. */
  static CommandLineRun unread(String input, String... arguments) {
    var out =
        new OutputStream() {
          @Override
          public void write(int b) throws IOException {
            throw new IOException("Broken pipe");
          }

          @Override
          public String toString() {
            return "";
          }
        };
    return withInput(out, input, withModel(arguments));
  }

  private static boolean interruptsAreIgnored() {
    try (var lines = Files.lines(Path.of("/proc/self/status"))) {
      return lines
          .filter(line -> line.startsWith("SigIgn:"))
          .anyMatch(line -> (Long.parseUnsignedLong(line.substring(7).strip(), 16) & 2) != 0);
    } catch (IOException e) {
      return false; // another system
    }
  }

  private static void pressCtrlC() {
    try {
      new ProcessBuilder("kill", "-INT", Long.toString(ProcessHandle.current().pid()))
          .start()
          .waitFor();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private static String[] withModel(String... arguments) {
    String model = System.getProperty("kvasir.test.model");
    if (model == null) {
      throw new IllegalStateException(
          "the system property kvasir.test.model must name the default model");
    }
    var all = new ArrayList<>(List.of(arguments));
    all.addAll(
        List.of("-m", model, "-t", "1")); // one thread never waits for another on a busy machine
    return all.toArray(String[]::new);
  }

  private static CommandLineRun withInput(OutputStream out, String input, String... arguments) {
    var err = new ByteArrayOutputStream();
    var streams =
        new StandardStreams(
            new ByteArrayInputStream(input.getBytes(StandardCharsets.UTF_8)),
            new PrintStream(out, false, StandardCharsets.UTF_8),
            new PrintStream(err, true, StandardCharsets.UTF_8),
            false,
            false,
            false);
    int exitCode = Kvasir.run(streams, arguments);
    streams.out().flush();
    return new CommandLineRun(exitCode, out.toString(), err.toString(StandardCharsets.UTF_8));
  }
}
