package dev.kvasir.examples;

import dev.kvasir.examples.bench.BenchCommand;
import dev.kvasir.examples.chat.ChatCommand;
import dev.kvasir.examples.devices.DevicesCommand;
import dev.kvasir.examples.eval.EvalCommand;
import dev.kvasir.examples.profile.ProfileCommand;
import dev.kvasir.examples.terminal.StandardStreams;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.logging.Level;
import java.util.logging.Logger;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.IVersionProvider;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;

/**
 * The kvasir command line. Exit codes: 0, 1 after a failure, 2 after wrong usage, 130 when Ctrl-C
 * ended it; a failure is one line on standard error.
 */
@Command(
    name = "kvasir",
    description = "Runs llama.cpp models with a KV cache in which every head keeps what it needs.",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    scope = ScopeType.INHERIT,
    versionProvider = Kvasir.Version.class,
    synopsisSubcommandLabel = "COMMAND")
public final class Kvasir implements Runnable {
  private static final Logger LOG = Logger.getLogger("");

  /** What Java puts for bytes of an argument that are no text in the process's locale. */
  private static final char REPLACEMENT = '\uFFFD';

  private static final boolean UNICODE =
      "UTF-8".equalsIgnoreCase(System.getProperty("sun.jnu.encoding"));

  @Spec private CommandSpec command;

  private boolean verbose;

  @SuppressWarnings("NullAway.Init")
  private Kvasir() {}

  @Option(
      names = {"-v", "--verbose"},
      scope = ScopeType.INHERIT,
      description = "Show llama.cpp's log and, after a failure, the stack trace.")
  void setVerbose(boolean value) {
    verbose = value;
    if (value) {
      LOG.setLevel(Level.INFO);
    }
  }

  /** Runs a command and ends the process. */
  public static void main(String[] arguments) {
    // one line per record; must be set before the first record is written
    System.setProperty("java.util.logging.SimpleFormatter.format", "%4$s %3$s: %5$s%n");
    LOG.setLevel(Level.SEVERE);
    var streams = StandardStreams.ofProcess();
    int exitCode = run(streams, arguments);
    streams.out().flush();
    System.exit(exitCode);
  }

  /**
   * Runs a command.
   *
   * @return the exit code
   */
  static int run(StandardStreams streams, String... arguments) {
    for (var argument : arguments) {
      if (argument.indexOf(REPLACEMENT) >= 0 && !UNICODE) {
        streams
            .err()
            .println(
                "kvasir: an argument has characters that the locale ("
                    + System.getProperty("sun.jnu.encoding")
                    + ") has not: set LC_ALL=C.UTF-8");
        return CommandLine.ExitCode.USAGE;
      }
    }
    var kvasir = new Kvasir();
    var commandLine =
        new CommandLine(kvasir)
            .addSubcommand(new ChatCommand(streams))
            .addSubcommand(new ProfileCommand(streams))
            .addSubcommand(new BenchCommand(streams))
            .addSubcommand(new EvalCommand(streams))
            .addSubcommand(new DevicesCommand(streams))
            .setPosixClusteredShortOptionsAllowed(false) // -ngl is one option
            .setCaseInsensitiveEnumValuesAllowed(true)
            .setAbbreviatedOptionsAllowed(false)
            .setExpandAtFiles(false) // a prompt may begin with @
            .setUsageHelpAutoWidth(true)
            .setOut(new PrintWriter(streams.out(), true, StandardCharsets.UTF_8))
            .setErr(new PrintWriter(streams.err(), true, StandardCharsets.UTF_8))
            .setParameterExceptionHandler((e, given) -> wrongUsage(streams, e))
            .setExecutionExceptionHandler(
                (e, failed, given) -> failure(streams, e, kvasir.verbose));
    try {
      return commandLine.execute(arguments);
    } catch (Error e) {
      return failure(streams, e, kvasir.verbose);
    }
  }

  @Override
  public void run() {
    throw new ParameterException(command.commandLine(), "A command is missing");
  }

  private static int wrongUsage(StandardStreams streams, ParameterException e) {
    var name = e.getCommandLine().getCommandSpec().qualifiedName();
    streams
        .err()
        .println("kvasir: " + oneLine(e.getMessage()) + " ('" + name + " --help' shows the usage)");
    return CommandLine.ExitCode.USAGE;
  }

  private static int failure(StandardStreams streams, Throwable e, boolean verbose) {
    streams.out().flush();
    var message = e.getMessage();
    boolean telling = message != null && !message.isBlank() && (e instanceof RuntimeException);
    streams.err().println("kvasir: " + oneLine(telling ? message : e.toString()));
    if (verbose) {
      e.printStackTrace(streams.err());
    }
    return CommandLine.ExitCode.SOFTWARE;
  }

  private static String oneLine(String message) {
    return message.strip().replaceAll("\\s*\\R\\s*", "; ");
  }

  /** The version that the build wrote down. */
  static final class Version implements IVersionProvider {
    @Override
    public String[] getVersion() throws IOException {
      var properties = new Properties();
      try (var in = Kvasir.class.getResourceAsStream("version.properties")) {
        if (in != null) {
          properties.load(in);
        }
      }
      return new String[] {"kvasir " + properties.getProperty("version", "(unknown version)")};
    }
  }
}
