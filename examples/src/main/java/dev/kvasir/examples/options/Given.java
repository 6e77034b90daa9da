package dev.kvasir.examples.options;

import java.util.function.BiFunction;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;

/** Puts the options that were given on the command line over the defaults of the library. */
final class Given {
  private Given() {}

  /**
   * {@code options} with the value, or as they are when the option was not given. A value out of
   * range is a usage error.
   */
  static <T, V> T over(
      CommandSpec command, T options, @Nullable V value, BiFunction<T, V, T> with, String option) {
    if (value == null) {
      return options;
    }
    try {
      return with.apply(options, value);
    } catch (IllegalArgumentException e) {
      throw new ParameterException(
          command.commandLine(), "Invalid value for option '" + option + "': " + e.getMessage());
    }
  }
}
