package dev.kvasir.examples.eval;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.List;
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
    FASTGEN,
    H2O,
    STREAMING
  }

  /** The policies to be compared: one per target that the method can aim at. */
  List<Case> cases(List<Target> targets) {
    if (kind == Kind.FULL) {
      return List.of(new Case(name, "-", CachePolicy.full()));
    }
    var cases = new ArrayList<Case>();
    for (var target : targets) {
      switch (target) {
        case Target.BudgetFraction(double fraction) -> {
          CachePolicy policy =
              switch (kind) {
                case H2O -> CachePolicy.h2o(fraction);
                case STREAMING -> CachePolicy.streaming(fraction);
                case FASTGEN, FULL -> fastgen.withTarget(target);
              };
          cases.add(new Case(name, Math.round(fraction * 1000) / 10.0 + "%", policy));
        }
        case Target.Recovery(double recovery) -> {
          if (kind == Kind.FASTGEN) {
            cases.add(new Case(name, "T=" + recovery, fastgen.withTarget(target)));
          }
        }
        case Target.BudgetBytes bytes ->
            throw new IllegalArgumentException(
                "a budget here is a percentage, not " + bytes.bytes() + " bytes");
      }
    }
    return cases;
  }

  /**
   * A row of the table.
   *
   * @param method its name
   * @param target what is aimed at, in words
   * @param policy what is kept
   */
  record Case(String method, String target, CachePolicy policy) {}

  /**
   * {@code full}, {@code h2o}, {@code streaming}, {@code paper} or {@code lattice}; the last two
   * with {@code :sum}, {@code :mean}, {@code :none}, {@code :value}, {@code :min} behind.
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
        case "paper", "lattice" -> new Method(value, Kind.FASTGEN, fastgen);
        case "h2o" -> new Method(value, Kind.H2O, fastgen);
        case "streaming" -> new Method(value, Kind.STREAMING, fastgen);
        default ->
            throw new TypeConversionException(
                "'" + parts[0] + "' is none of full, paper, lattice, h2o, streaming");
      };
    }
  }
}
