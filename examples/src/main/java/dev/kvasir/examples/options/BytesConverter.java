package dev.kvasir.examples.options;

import java.math.BigDecimal;
import java.util.Locale;
import java.util.regex.Pattern;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** Bytes: {@code 512M}, {@code 1.5GiB}, {@code 1000000}. Units are binary. */
public final class BytesConverter implements ITypeConverter<Long> {
  private static final Pattern FORM =
      Pattern.compile("(\\d+(?:\\.\\d+)?)\\s*(([kmgt]?)(?:i?b)?)", Pattern.CASE_INSENSITIVE);

  @Override
  public Long convert(String value) {
    var form = FORM.matcher(value.strip());
    if (!form.matches()) {
      throw wrong(value, "a number of bytes is expected (512M, 1.5G)");
    }
    var number = new BigDecimal(form.group(1));
    if (form.group(2).isEmpty() && number.scale() > 0) {
      throw wrong(value, "bytes come whole; units are K, M, G and T");
    }
    int exponent =
        form.group(3).isEmpty() ? 0 : 1 + "kmgt".indexOf(form.group(3).toLowerCase(Locale.ROOT));
    var bytes = number.multiply(BigDecimal.valueOf(1L << (10 * exponent)));
    if (bytes.compareTo(BigDecimal.valueOf(Long.MAX_VALUE)) > 0) {
      throw wrong(value, "too large");
    }
    return bytes.longValue();
  }

  static TypeConversionException wrong(String value, String why) {
    return new TypeConversionException("'" + value + "': " + why);
  }
}
