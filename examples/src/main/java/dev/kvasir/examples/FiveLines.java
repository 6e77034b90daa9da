package dev.kvasir.examples;

import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import java.nio.file.Path;

/**
 * The library in five lines: a model, a session whose heads keep what they need, an answer as it is
 * generated.
 */
public final class FiveLines {
  private FiveLines() {}

  /**
   * Answers a question.
   *
   * @param arguments a GGUF file and the question
   */
  public static void main(String[] arguments) {
    try (var model = Model.load(Path.of(arguments[0]));
        var session =
            model.newSession(SessionOptions.defaults().withCachePolicy(CachePolicy.fastgen()));
        var reply = session.chat(arguments[1])) {
      reply.forEach(System.out::print);
    }
  }
}
