package dev.kvasir.examples.options;

import dev.kvasir.cache.Target;
import java.math.BigDecimal;
import java.util.Locale;
import java.util.regex.Pattern;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * {@code 50%} of the full cache, or bytes: {@code 512M}, {@code 1.5GiB}, {@code 1000000}. Units are
 * binary.
 */
public final class BudgetConverter implements ITypeConverter<Target> {
  private static final Pattern FORM =
      Pattern.compile("(\\d+(?:\\.\\d+)?)\\s*(%|([kmgt]?)(?:i?b)?)", Pattern.CASE_INSENSITIVE);

  @Override
  public Target convert(String value) {
    var form = FORM.matcher(value.strip());
    if (!form.matches()) {
      throw wrong(
          value, "a budget is a percentage of the full cache (50%) or a number of bytes (512M)");
    }
    var number = new BigDecimal(form.group(1));
    if (form.group(2).equals("%")) {
      if (number.compareTo(BigDecimal.valueOf(100)) > 0) {
        throw wrong(value, "more than the full cache");
      }
      return Target.budgetFraction(number.movePointLeft(2).doubleValue());
    }
    if (form.group(2).isEmpty() && number.scale() > 0) {
      throw wrong(
          value,
          "say "
              + number.movePointRight(2).stripTrailingZeros().toPlainString()
              + "% for a fraction of the full cache");
    }
    int exponent =
        form.group(3).isEmpty() ? 0 : 1 + "kmgt".indexOf(form.group(3).toLowerCase(Locale.ROOT));
    var bytes = number.multiply(BigDecimal.valueOf(1L << (10 * exponent)));
    if (bytes.compareTo(BigDecimal.valueOf(Long.MAX_VALUE)) > 0) {
      throw wrong(value, "too large");
    }
    return Target.budgetBytes(bytes.longValue());
  }

  private static TypeConversionException wrong(String value, String why) {
    return new TypeConversionException("'" + value + "': " + why);
  }
}
