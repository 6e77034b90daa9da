package dev.kvasir.examples.options;

import dev.kvasir.SessionOptions;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** The capacity of a session, where the command does not know it by itself. */
public final class ContextArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = {"-c", "--ctx-size"},
      paramLabel = "N",
      description =
          "Capacity in tokens, prompt and answers together. Default: what the model was trained for.")
  private @Nullable Integer contextSize;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public ContextArguments() {}

  /** The options with the capacity. */
  public SessionOptions over(SessionOptions options) {
    return Given.over(command, options, contextSize, SessionOptions::withContextSize, "--ctx-size");
  }
}
