package dev.kvasir.examples.options;

import dev.kvasir.InvalidOptionException;
import dev.kvasir.KvType;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** A KV type by llama.cpp's name. */
public final class KvTypeConverter implements ITypeConverter<KvType> {
  @Override
  public KvType convert(String value) {
    try {
      return KvType.of(value);
    } catch (InvalidOptionException e) {
      throw new TypeConversionException(e.getMessage());
    }
  }
}
