package dev.kvasir.examples.options;

import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.MovedQueries;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;

/** Which queries Foresight asks, and how it weighs heads. */
public final class ForesightArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = "--kv-statistic",
      paramLabel = "u|c|c/4",
      split = ",",
      converter = StatisticConverter.class,
      description =
          "Foresight asks the prompt's queries while reading (u), or all of them after the prompt (c), or every second, fourth or eighth"
              + " then (c/2, c/4, c/8). Default: u.")
  private List<MovedQueries> statistics = new ArrayList<>();

  @Option(
      names = "--kv-head-weights",
      paramLabel = "FILE",
      description =
          "Foresight's table of how much the model's answer changes with each query head. Default: one over a head's mean squared output.")
  private @Nullable Path headWeights;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public ForesightArguments() {}

  /**
   * The policy with what was given.
   *
   * @throws ParameterException if several statistics were given
   * @throws dev.kvasir.ProfileException if the weights' file is no table of weights
   */
  public Foresight policy() {
    if (statistics.size() > 1) {
      throw new ParameterException(
          command.commandLine(), "--kv-statistic takes one statistic here, and not several");
    }
    return policies().getFirst();
  }

  /**
   * One policy per statistic that was given.
   *
   * @throws dev.kvasir.ProfileException if the weights' file is no table of weights
   */
  public List<Foresight> policies() {
    var policy = Foresight.defaults();
    if (headWeights != null) {
      policy = policy.withHeadWeights(HeadWeights.load(headWeights));
    }
    var base = policy;
    return statistics.isEmpty()
        ? List.of(base)
        : statistics.stream().map(base::withStatistic).toList();
  }

  /** Whether any of these options was given. */
  public boolean given() {
    return !statistics.isEmpty() || headWeights != null;
  }

  static final class StatisticConverter implements ITypeConverter<MovedQueries> {
    @Override
    public MovedQueries convert(String value) {
      try {
        return MovedQueries.parse(value);
      } catch (IllegalArgumentException e) {
        throw new TypeConversionException("'" + value + "' is none of u, c, c/2, c/4, c/8");
      }
    }
  }
}
