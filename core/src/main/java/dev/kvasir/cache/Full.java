package dev.kvasir.cache;

/** Every head keeps every token: {@link CachePolicy#full()}. */
public record Full() implements CachePolicy {
  static final Full INSTANCE = new Full();
}
