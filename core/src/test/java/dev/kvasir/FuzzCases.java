package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Profile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * Wrong files, one after the other, in a JVM of their own: each must end in an exception of ours or
 * in a model that computes. Every case follows from the seed and its number.
 */
final class FuzzCases {
  enum Kind {
    GGUF,
    PROFILE
  }

  /** A case may take as much more of the process's memory. */
  private static final long MOST_MEMORY = 1L << 30;

  private static final SessionOptions OPTIONS =
      SessionOptions.defaults()
          .withContextSize(48)
          .withBatchSize(32)
          .withMicroBatchSize(16)
          .withThreads(1)
          .withMaxTokens(2);

  private final Kind kind;
  private final long seed;
  private final Path directory;
  private final List<Path> models = new ArrayList<>();
  private String profile = "";
  private @Nullable Model model;

  private FuzzCases(Kind kind, long seed, Path directory) {
    this.kind = kind;
    this.seed = seed;
    this.directory = directory;
  }

  /** Arguments: kind, seed, first case, number of cases, a directory with models. */
  public static void main(String[] arguments) throws IOException {
    Locale.setDefault(Locale.ROOT);
    FuzzCases cases =
        new FuzzCases(Kind.valueOf(arguments[0]), Long.parseLong(arguments[1]), Path.of("."));
    try (Stream<Path> files = Files.list(Path.of(arguments[4]))) {
      files.filter(file -> file.toString().endsWith(".gguf")).sorted().forEach(cases.models::add);
    }
    if (cases.kind == Kind.PROFILE) {
      cases.profile = Files.readString(Path.of(arguments[4], "profile.json"));
    }
    long first = Long.parseLong(arguments[2]);
    long count = Long.parseLong(arguments[3]);
    for (long number = first; number < first + count; number++) {
      System.out.println("begin " + number);
      long before = Memory.resetPeak();
      String end = cases.run(number);
      long grown = Memory.peak() - before;
      System.out.println(
          "end "
              + number
              + " "
              + (grown > MOST_MEMORY ? "WRONG memory: " + (grown >> 20) + " MiB, " : "")
              + end);
    }
    System.out.println("done");
  }

  /** The bytes of a case. */
  private byte[] bytes(Random random) {
    return kind == Kind.GGUF
        ? GgufMutator.mutate(
            random,
            FuzzModels.withVocabulary(GgufImage.read(models.get(random.nextInt(models.size())))))
        : ProfileMutator.mutate(random, profile);
  }

  private String run(long number) throws IOException {
    Random random = new Random(seed * 1_000_003 + number);
    random.nextLong();
    Path file = directory.resolve(kind == Kind.GGUF ? "case.gguf" : "case.json");
    Files.write(file, bytes(random));
    try {
      if (kind == Kind.GGUF) {
        return load(file, number % 2 == 0, number % 4 == 0);
      }
      return use(Profile.load(file));
    } catch (KvasirException e) {
      return named(e);
    } catch (Throwable e) { // which a caller would not expect
      StackTraceElement[] trace = e.getStackTrace();
      return "WRONG "
          + e.toString().replaceAll("\\s+", " ")
          + (trace.length > 0 ? " at " + trace[0] : "");
    }
  }

  private String use(Profile profile) {
    Profile.fromJson(profile.toJson());
    profile.recoveryForBudget(1 << 20);
    if (model == null) {
      model = Model.load(models.getFirst().resolveSibling("llama.gguf"));
    }
    try (Session session =
        model.newSession(
            OPTIONS.withCachePolicy(profile.policy()).withProfile(profile).withContextSize(64))) {
      session.evaluate(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
      session.evaluate(20);
      session.evaluate(21);
      session.cacheReport();
    }
    return "loaded";
  }

  private static String named(KvasirException e) {
    String message = String.valueOf(e.getMessage()).replaceAll("\\s+", " ");
    return e.getClass().getSimpleName()
        + ": "
        + message.substring(0, Math.min(message.length(), 200));
  }

  private static String load(Path file, boolean adaptive, boolean foresight) {
    try (Model model = Model.load(file, ModelOptions.defaults().withAdaptiveCache(adaptive))) {
      int[] tokens = model.tokenize(" w1 w2 \u00e9\n<s>x", true, true);
      model.detokenize(tokens);
      CachePolicy policy =
          foresight
              ? CachePolicy.foresight().withMinimumTokens(8).withBudget(0.7)
              : adaptive ? CachePolicy.fastgen() : CachePolicy.full();
      SessionOptions options = OPTIONS.withCachePolicy(policy);
      try (Session session = model.newSession(options)) {
        int[] some = new int[20];
        for (int i = 0; i < some.length; i++) {
          some[i] = i * 7 % model.vocabularySize();
        }
        session.evaluate(some);
        session.step(some[1]);
        session.cacheReport();
        String text = session.complete("w").text();
        return "loaded, " + text.length() + " characters";
      }
    }
  }

  /** The memory of this process, where the system tells it. */
  private static final class Memory {
    private static final Path STATUS = Path.of("/proc/self/status");

    /** Forgets the highest figure and returns the present one. */
    static long resetPeak() throws IOException {
      Path reset = Path.of("/proc/self/clear_refs");
      if (Files.isWritable(reset)) {
        Files.writeString(reset, "5");
      }
      return read("VmRSS:");
    }

    static long peak() throws IOException {
      return read("VmHWM:");
    }

    private static long read(String name) throws IOException {
      if (!Files.isReadable(STATUS)) {
        return 0;
      }
      return Files.readAllLines(STATUS).stream()
          .filter(line -> line.startsWith(name))
          .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) << 10)
          .findFirst()
          .orElse(0);
    }
  }
}
