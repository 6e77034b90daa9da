package dev.kvasir;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Seeds of random tests: another one each time, or that of {@code -Dkvasir.test.seed}; the same one
 * where the environment says that it is continuous integration.
 */
public final class Seeds {
  private static final Map<Class<?>, Long> SEEDS = new ConcurrentHashMap<>();

  private Seeds() {}

  /** The seed of a test class, which is printed. */
  public static long of(Class<?> test) {
    return SEEDS.computeIfAbsent(
        test,
        key -> {
          Long given = Long.getLong("kvasir.test.seed");
          boolean fixed = Boolean.parseBoolean(System.getenv("CI"));
          long seed = given != null ? given : fixed ? 1 : System.nanoTime();
          System.out.println(key.getSimpleName() + ": -Dkvasir.test.seed=" + seed);
          return seed;
        });
  }
}
