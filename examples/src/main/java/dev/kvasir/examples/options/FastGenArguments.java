package dev.kvasir.examples.options;

import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** What FastGen chooses from and by which figures. */
public final class FastGenArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = "--kv-candidates",
      paramLabel = "paper|lattice",
      description =
          "Policies to choose from: the paper's five, or all pairs of a frequent fraction and a local window. Default: lattice.")
  private @Nullable Candidates candidates;

  @Option(
      names = "--kv-score",
      paramLabel = "sum|mean",
      description =
          "Attention that ranks frequent tokens: all of it, or per query that saw the token. Default: mean; sum with the paper's candidates.")
  private @Nullable Score score;

  @Option(
      names = "--kv-weight",
      paramLabel = "none|value",
      description =
          "Attention counts as it is, or weighted by the norm of the token's value vector. Default: value; none with the paper's candidates.")
  private @Nullable Weight weight;

  @Option(
      names = "--kv-pool",
      paramLabel = "mean|min",
      description = "A KV head's recovery from those of its query heads. Default: mean.")
  private @Nullable Pooling pooling;

  @Option(
      names = "--kv-local",
      paramLabel = "R",
      description =
          "Local tokens of the paper's candidates, as a fraction of the prompt. Default: 0.3.")
  private @Nullable Double local;

  @Option(
      names = "--kv-frequent",
      paramLabel = "R",
      description =
          "Frequent tokens of the paper's candidates, as a fraction of the current length. Default: 0.3.")
  private @Nullable Double frequent;

  @Option(
      names = "--kv-sinks",
      paramLabel = "N",
      description = "First positions that every head keeps. Default: 4.")
  private @Nullable Integer sinks;

  @Option(
      names = "--kv-grace",
      paramLabel = "N",
      description = "Decode steps for which a new token is safe. Default: 16.")
  private @Nullable Integer grace;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public FastGenArguments() {}

  /**
   * The policy as published or the library's default, whichever the candidates suggest, with what
   * was given.
   */
  public FastGen policy() {
    return over(candidates == Candidates.PAPER ? FastGen.asPublished() : FastGen.defaults());
  }

  /** A policy with what was given. */
  public FastGen over(FastGen base) {
    var policy = base;
    policy = Given.over(command, policy, candidates, FastGen::withCandidates, "--kv-candidates");
    policy = Given.over(command, policy, score, FastGen::withScore, "--kv-score");
    policy = Given.over(command, policy, weight, FastGen::withWeight, "--kv-weight");
    policy = Given.over(command, policy, pooling, FastGen::withPooling, "--kv-pool");
    policy = Given.over(command, policy, local, FastGen::withLocal, "--kv-local");
    policy = Given.over(command, policy, frequent, FastGen::withFrequent, "--kv-frequent");
    policy = Given.over(command, policy, sinks, FastGen::withSinks, "--kv-sinks");
    return Given.over(command, policy, grace, FastGen::withGrace, "--kv-grace");
  }

  /** Whether any of these options was given. */
  public boolean given() {
    return candidates != null
        || score != null
        || weight != null
        || pooling != null
        || local != null
        || frequent != null
        || sinks != null
        || grace != null;
  }
}
