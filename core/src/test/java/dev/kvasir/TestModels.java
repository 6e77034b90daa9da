package dev.kvasir;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;

/** The real model that the build provides, loaded once per engine, and the tests' own text. */
public final class TestModels {
  private TestModels() {}

  private static final class Adaptive {
    static final Model MODEL = Model.load(path(), ModelOptions.defaults().withDevice("CPU"));
  }

  private static final class Plain {
    static final Model MODEL =
        Model.load(path(), ModelOptions.defaults().withDevice("CPU").withAdaptiveCache(false));
  }

  private static final class Prose {
    static final int[] TOKENS = adaptive().tokenize(prose(), false, false);
  }

  /** The default model's file. */
  public static Path path() {
    String path = System.getProperty("kvasir.test.model");
    if (path == null) {
      throw new IllegalStateException(
          "the system property kvasir.test.model must name the default model");
    }
    return Path.of(path);
  }

  /** The model with Kvasir's cache; never closed. */
  public static Model adaptive() {
    return Adaptive.MODEL;
  }

  /** The model on unmodified llama.cpp; never closed. */
  public static Model plain() {
    return Plain.MODEL;
  }

  /** A text of about four thousand words. */
  public static String prose() {
    try (InputStream in = TestModels.class.getResourceAsStream("prose.txt")) {
      return new String(in.readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** The first tokens of the text. */
  public static int[] proseTokens(int count) {
    if (count > Prose.TOKENS.length) {
      throw new IllegalArgumentException("the text has only " + Prose.TOKENS.length + " tokens");
    }
    return Arrays.copyOf(Prose.TOKENS, count);
  }

  /**
   * Threads that the tests decode with; more than there are idle cores make llama.cpp's barriers
   * very slow.
   */
  public static int threads() {
    return Integer.getInteger(
        "kvasir.test.threads", Math.min(2, Runtime.getRuntime().availableProcessors()));
  }

  /** Greedy, small and deterministic. */
  public static SessionOptions options() {
    return SessionOptions.defaults()
        .withContextSize(1024)
        .withSampling(Sampling.greedy())
        .withThreads(threads());
  }
}
