package dev.kvasir.examples.options;

import dev.kvasir.cache.Target;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** The fraction of its attention that a head must recover, 0 to 1. */
public final class RecoveryConverter implements ITypeConverter<Target> {
  @Override
  public Target convert(String value) {
    try {
      return Target.recovery(Double.parseDouble(value));
    } catch (IllegalArgumentException e) {
      throw new TypeConversionException("'" + value + "' is no recovery between 0 and 1");
    }
  }
}
