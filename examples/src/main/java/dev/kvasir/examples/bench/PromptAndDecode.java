package dev.kvasir.examples.bench;

import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * What llama-bench calls pg: a prompt, and a decode after it.
 *
 * @param prompt tokens, at least one
 * @param decoded tokens, at least one
 */
record PromptAndDecode(int prompt, int decoded) {

  /** Reads {@code 512,128}. */
  static final class Converter implements ITypeConverter<PromptAndDecode> {
    @Override
    public PromptAndDecode convert(String value) {
      var parts = value.split(",", -1);
      try {
        if (parts.length == 2) {
          var read =
              new PromptAndDecode(
                  Integer.parseInt(parts[0].strip()), Integer.parseInt(parts[1].strip()));
          if (read.prompt > 0 && read.decoded > 0) {
            return read;
          }
        }
      } catch (NumberFormatException e) {
        throw wrong(value);
      }
      throw wrong(value);
    }

    private static TypeConversionException wrong(String value) {
      return new TypeConversionException(
          "'" + value + "' is no length of a prompt and of what is decoded after it, like 512,128");
    }
  }
}
