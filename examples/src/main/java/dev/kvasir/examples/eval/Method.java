package dev.kvasir.examples.eval;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.util.List;
import java.util.function.DoubleFunction;
import java.util.stream.Stream;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * A way to choose what a cache keeps.
 *
 * @param name as given on the command line
 * @param kind which of the known ways it is
 * @param fastgen the policy, of which the target is replaced; without meaning for the other kinds
 */
record Method(String name, Kind kind, FastGen fastgen) {
  /** The known ways. */
  enum Kind {
    FULL,
    FORESIGHT,
    FASTGEN,
    H2O,
    STREAMING
  }

  /**
   * What is to be compared with caches of these types: a case per target that the method can aim
   * at.
   *
   * @param foresights one per statistic
   */
  Stream<Case> cases(KvTypes types, List<Target> targets, List<Foresight> foresights) {
    return switch (kind) {
      case FULL -> Stream.of(new Case(name, types, "-", 1, tokens -> CachePolicy.full()));
      case FORESIGHT ->
          foresights.stream()
              .flatMap(
                  policy -> targets.stream().flatMap(target -> foresight(types, target, policy)));
      case FASTGEN, H2O, STREAMING -> targets.stream().flatMap(target -> tokens(types, target));
    };
  }

  private Stream<Case> foresight(KvTypes types, Target target, Foresight policy) {
    return switch (target) {
      case Target.BudgetFraction(double fraction) ->
          Stream.of(
              new Case(
                  name + " " + policy.statistic(),
                  types,
                  percent(fraction),
                  1,
                  tokens -> policy.withBudget(fraction)));
      case Target.Recovery recovery -> Stream.empty();
      case Target.BudgetBytes bytes -> throw noBytes(bytes);
    };
  }

  private Stream<Case> tokens(KvTypes types, Target target) {
    return switch (target) {
      case Target.BudgetFraction(double fraction) ->
          Stream.of(new Case(name, types, percent(fraction), fraction, this::ofTokens));
      case Target.Recovery(double recovery) ->
          kind == Kind.FASTGEN
              ? Stream.of(
                  new Case(name, types, "T=" + recovery, 1, tokens -> fastgen.withTarget(target)))
              : Stream.empty();
      case Target.BudgetBytes bytes -> throw noBytes(bytes);
    };
  }

  private CachePolicy ofTokens(double fraction) {
    return switch (kind) {
      case H2O -> CachePolicy.h2o(fraction);
      case STREAMING -> CachePolicy.streaming(fraction);
      case FASTGEN -> fastgen.withTarget(Target.budgetFraction(fraction));
      case FULL, FORESIGHT -> throw new IllegalStateException(kind + " has no budget of tokens");
    };
  }

  private static String percent(double fraction) {
    return Math.round(fraction * 1000) / 10.0 + "%";
  }

  private static IllegalArgumentException noBytes(Target.BudgetBytes bytes) {
    return new IllegalArgumentException(
        "a budget here is a percentage, not " + bytes.bytes() + " bytes");
  }

  /**
   * A row of the table.
   *
   * @param method its name
   * @param types of the cache's rows
   * @param target what is aimed at, in words
   * @param budget the fraction of the f16 cache's bytes for which a fraction of the tokens is to be
   *     found; 1: the policy does not take a fraction of the tokens
   * @param ofTokens the policy that keeps a fraction of the tokens
   */
  record Case(
      String method,
      KvTypes types,
      String target,
      double budget,
      DoubleFunction<CachePolicy> ofTokens) {

    /** Whether the policy keeps a fraction of the tokens. */
    boolean ofTokensAlone() {
      return budget < 1;
    }
  }

  /**
   * {@code full}, {@code foresight}, {@code h2o}, {@code streaming}, {@code paper} or {@code
   * lattice}; the last two with {@code :sum}, {@code :mean}, {@code :none}, {@code :value}, {@code
   * :min} behind.
   */
  static final class Converter implements ITypeConverter<Method> {
    @Override
    public Method convert(String value) {
      var parts = value.split(":", -1);
      var fastgen = parts[0].equals("paper") ? FastGen.asPublished() : FastGen.defaults();
      for (int i = 1; i < parts.length; i++) {
        fastgen =
            switch (parts[i]) {
              case "sum" -> fastgen.withScore(Score.SUM);
              case "mean" -> fastgen.withScore(Score.MEAN);
              case "none" -> fastgen.withWeight(Weight.NONE);
              case "value" -> fastgen.withWeight(Weight.VALUE);
              case "min" -> fastgen.withPooling(Pooling.MIN);
              default ->
                  throw new TypeConversionException(
                      "'" + parts[i] + "' is none of sum, mean, none, value, min");
            };
      }
      return switch (parts[0]) {
        case "full" -> new Method(value, Kind.FULL, fastgen);
        case "foresight" -> new Method(value, Kind.FORESIGHT, fastgen);
        case "paper", "lattice" -> new Method(value, Kind.FASTGEN, fastgen);
        case "h2o" -> new Method(value, Kind.H2O, fastgen);
        case "streaming" -> new Method(value, Kind.STREAMING, fastgen);
        default ->
            throw new TypeConversionException(
                "'" + parts[0] + "' is none of full, foresight, paper, lattice, h2o, streaming");
      };
    }
  }
}
