package dev.kvasir.examples.eval;

import dev.kvasir.KvType;
import dev.kvasir.SessionOptions;
import dev.kvasir.examples.options.KvTypeConverter;
import picocli.CommandLine.ITypeConverter;

/**
 * The types of a cache's rows.
 *
 * @param key of the keys
 * @param value of the values
 */
record KvTypes(KvType key, KvType value) {
  static final KvTypes F16 = new KvTypes(KvType.F16, KvType.F16);

  static KvTypes of(SessionOptions options) {
    return new KvTypes(options.keyType(), options.valueType());
  }

  SessionOptions over(SessionOptions options) {
    return options.withKeyType(key).withValueType(value);
  }

  /** {@code q8_0}, or {@code q8_0/q4_0} for keys of q8_0 and values of q4_0. */
  String label() {
    return key == value ? key.label() : key.label() + "/" + value.label();
  }

  /** From what {@link #label} gives. */
  static final class Converter implements ITypeConverter<KvTypes> {
    @Override
    public KvTypes convert(String value) {
      int slash = value.indexOf('/');
      var type = new KvTypeConverter();
      var key = type.convert(slash < 0 ? value : value.substring(0, slash));
      return new KvTypes(key, slash < 0 ? key : type.convert(value.substring(slash + 1)));
    }
  }
}
