package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.MovedQueries;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Uniform;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** A copy with another value of one option has all other options' values. */
class WithersTest {
  /** What is documented to fall with another option's change. */
  private static final Map<String, Set<String>> FORGOTTEN =
      Map.of("cachePolicy", Set.of("profile"), "devices", Set.of("tensorSplit"));

  /** Equal to no other. */
  private static final class Listener implements PrefillListener, LoadListener {
    @Override
    public void prefilled(int done, int total) {}

    @Override
    public boolean loaded(double fraction) {
      return true;
    }
  }

  static Stream<Object> defaults() {
    return Stream.of(
        SessionOptions.defaults(),
        ModelOptions.defaults(),
        Sampling.defaults(),
        FastGen.defaults(),
        Foresight.defaults(),
        Uniform.of(0.5, 0.4));
  }

  @ParameterizedTest
  @MethodSource("defaults")
  void copyEverythingElse(Object defaults) throws ReflectiveOperationException {
    Map<String, Method> withers = withers(defaults.getClass());
    Object full = defaults;
    // In the order of their names, which sets what is forgotten after what makes it forgotten.
    for (var wither : withers.entrySet()) {
      full = wither.getValue().invoke(full, another(wither.getKey(), values(full)));
    }
    Map<String, Object> before = values(full);
    assertEquals(before.keySet(), withers.keySet());
    for (var value : values(defaults).entrySet()) {
      assertNotEquals(value.getValue(), before.get(value.getKey()), value.getKey());
    }
    for (var wither : withers.entrySet()) {
      String changed = wither.getKey();
      Object value = another(changed, before);
      Map<String, Object> expected = new TreeMap<>(before);
      expected.put(changed, value);
      Map<String, Object> unchanged = values(defaults);
      for (String forgotten : FORGOTTEN.getOrDefault(changed, Set.of())) {
        expected.put(forgotten, unchanged.get(forgotten));
      }
      assertEquals(expected, values(wither.getValue().invoke(full, value)), changed);
      assertEquals(before, values(full), changed);
    }
  }

  /** The withers by the option that they set; those with another signature too are left out. */
  private static Map<String, Method> withers(Class<?> type) {
    Map<String, Method> withers = new TreeMap<>();
    Set<String> options = accessors(type).keySet();
    for (Method method : type.getDeclaredMethods()) {
      String name = method.getName();
      if (name.startsWith("with")
          && Modifier.isPublic(method.getModifiers())
          && !method.isVarArgs()) {
        String option = Character.toLowerCase(name.charAt(4)) + name.substring(5);
        if (options.contains(option)) {
          withers.put(option, method);
        }
      }
    }
    return withers;
  }

  private static Map<String, Method> accessors(Class<?> type) {
    Map<String, Method> accessors = new TreeMap<>();
    for (Method method : type.getDeclaredMethods()) {
      if (Modifier.isPublic(method.getModifiers())
          && !Modifier.isStatic(method.getModifiers())
          && method.getParameterCount() == 0
          && !Set.of("hashCode", "toString").contains(method.getName())) {
        accessors.put(method.getName(), method);
      }
    }
    return accessors;
  }

  private static Map<String, Object> values(Object options) throws ReflectiveOperationException {
    Map<String, Object> values = new TreeMap<>();
    for (var accessor : accessors(options.getClass()).entrySet()) {
      values.put(accessor.getKey(), accessor.getValue().invoke(options));
    }
    return values;
  }

  /** A value in the option's range that is not the one it has. */
  private static Object another(String option, Map<String, Object> values) {
    Object value = values.get(option);
    return switch (option) {
      case "systemPrompt" -> Objects.equals(value, "a") ? "b" : "a";
      case "stopSequences" -> value.equals(List.of("a")) ? List.of("b") : List.of("a");
      case "devices" -> value.equals(List.of("CPU")) ? List.of("GPU") : List.of("CPU");
      case "tensorSplit" -> value.equals(List.of(1.0)) ? List.of(2.0) : List.of(1.0);
      case "order" -> ((List<?>) value).reversed();
      case "profile" -> value == null ? profile(1) : profile(2);
      case "cachePolicy" -> value instanceof Uniform ? CachePolicy.fastgen() : CachePolicy.h2o(0.5);
      case "target" ->
          value.equals(Target.budgetBytes(5)) ? Target.recovery(1) : Target.budgetBytes(5);
      case "statistic" ->
          value.equals(MovedQueries.parse("c/4"))
              ? MovedQueries.whileReading()
              : MovedQueries.parse("c/4");
      case "headWeights" ->
          value == null ? weights(1) : weights(((HeadWeights) value).layers() + 1);
      case "sampling" -> ((Sampling) value).withTopK(((Sampling) value).topK() + 1);
      case "prefillListener", "progress" -> new Listener();
      default -> another(value);
    };
  }

  private static Object another(Object value) {
    return switch (value) {
      case Integer i -> i + 1;
      case Long i -> i + 1;
      case Float f -> f / 2 + 0.125f;
      case Double d -> d / 2 + 0.125;
      case Boolean b -> !b;
      case Enum<?> e -> next(e);
      default -> throw new AssertionError("no other value for " + value);
    };
  }

  private static HeadWeights weights(int layers) {
    float[][] table = new float[layers][1];
    Arrays.stream(table).forEach(layer -> layer[0] = 1);
    return HeadWeights.of(table);
  }

  private static Profile profile(int tokens) {
    List<Candidate> candidates = List.of(Candidate.everything());
    return new Profile(FastGen.defaults(), tokens, List.of(), candidates, List.of());
  }

  private static Object next(Enum<?> value) {
    return Stream.of(value.getDeclaringClass().getEnumConstants())
        .filter(other -> other != value)
        .findFirst()
        .orElseThrow();
  }
}
