package dev.kvasir.examples.options;

import dev.kvasir.Sampling;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** How tokens are drawn, by llama.cpp's names. */
public final class SamplingArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = "--temp",
      paramLabel = "X",
      description = "Temperature; 0 takes the most probable token. Default: 0.8.")
  private @Nullable Float temperature;

  @Option(
      names = "--top-k",
      paramLabel = "N",
      description = "Draw from the N most probable tokens; 0: off. Default: 40.")
  private @Nullable Integer topK;

  @Option(
      names = "--top-p",
      paramLabel = "X",
      description = "Draw from the most probable tokens that make up X; 1: off. Default: 0.95.")
  private @Nullable Float topP;

  @Option(
      names = "--min-p",
      paramLabel = "X",
      description = "Drop tokens less probable than X of the most probable; 0: off. Default: 0.05.")
  private @Nullable Float minP;

  @Option(
      names = "--repeat-penalty",
      paramLabel = "X",
      description = "Penalty of the last 64 tokens; 1: off. Default: 1.")
  private @Nullable Float repeatPenalty;

  @Option(
      names = {"-s", "--seed"},
      paramLabel = "N",
      description = "Seed of the random numbers; -1: a random one. Default: -1.")
  private @Nullable Long seed;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public SamplingArguments() {}

  /** The library's defaults with what was given. */
  public Sampling sampling() {
    var sampling = Sampling.defaults();
    sampling = Given.over(command, sampling, temperature, Sampling::withTemperature, "--temp");
    sampling = Given.over(command, sampling, topK, Sampling::withTopK, "--top-k");
    sampling = Given.over(command, sampling, topP, Sampling::withTopP, "--top-p");
    sampling = Given.over(command, sampling, minP, Sampling::withMinP, "--min-p");
    sampling =
        Given.over(
            command, sampling, repeatPenalty, Sampling::withRepeatPenalty, "--repeat-penalty");
    return Given.over(command, sampling, seed, Sampling::withSeed, "--seed");
  }
}
