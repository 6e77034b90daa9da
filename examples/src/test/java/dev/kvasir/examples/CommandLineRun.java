package dev.kvasir.examples;

import dev.kvasir.examples.terminal.StandardStreams;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
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
    return withInput("", arguments);
  }

  /** Runs a command on the default model. */
  static CommandLineRun onModel(String input, String... arguments) {
    String model = System.getProperty("kvasir.test.model");
    if (model == null) {
      throw new IllegalStateException(
          "the system property kvasir.test.model must name the default model");
    }
    var all = new ArrayList<>(List.of(arguments));
    all.addAll(
        List.of("-m", model, "-t", "1")); // one thread never waits for another on a busy machine
    return withInput(input, all.toArray(String[]::new));
  }

  static CommandLineRun withInput(String input, String... arguments) {
    var out = new ByteArrayOutputStream();
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
    return new CommandLineRun(
        exitCode, out.toString(StandardCharsets.UTF_8), err.toString(StandardCharsets.UTF_8));
  }
}
