package dev.kvasir.examples.options;

import dev.kvasir.cache.Target;
import java.math.BigDecimal;
import java.util.regex.Pattern;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** {@code 50%} of the full cache, or bytes as {@link BytesConverter} takes them. */
public final class BudgetConverter implements ITypeConverter<Target> {
  private static final Pattern FORM =
      Pattern.compile("(\\d+(?:\\.\\d+)?)\\s*(%|[kmgt]?(?:i?b)?)", Pattern.CASE_INSENSITIVE);

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
    return Target.budgetBytes(new BytesConverter().convert(value));
  }

  private static TypeConversionException wrong(String value, String why) {
    return BytesConverter.wrong(value, why);
  }
}
