package dev.kvasir.examples.eval;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.examples.terminal.CommandFailure;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.jspecify.annotations.Nullable;

/**
 * A file of JSON lines, one per text and row, appended as soon as it is measured: an evaluation
 * that was cut short has what was done, and several can be put together.
 */
final class ResultLines implements AutoCloseable {
  private final @Nullable Path file;
  private final @Nullable BufferedWriter writer;

  /** Opens the file; null: nothing is written. */
  ResultLines(@Nullable Path file) {
    this.file = file;
    try {
      writer =
          file == null
              ? null
              : Files.newBufferedWriter(file, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    } catch (IOException e) {
      throw cannotWrite(e);
    }
  }

  /**
   * Appends a result.
   *
   * @param settings what all results of the evaluation have in common; is left as it is
   */
  void add(ObjectNode settings, int text, Method.Case what, TextResult result) {
    if (writer == null) {
      return;
    }
    var line = settings.deepCopy();
    line.put("text", text);
    line.put("method", what.method());
    line.put("types", what.types().label());
    line.put("target", what.target());
    line.setAll(json(result));
    try {
      writer.write(line.toString());
      writer.newLine();
      writer.flush();
    } catch (IOException e) {
      throw cannotWrite(e);
    }
  }

  private static ObjectNode json(TextResult result) {
    var node = JsonNodeFactory.instance.objectNode();
    node.put("bytes", result.bytes());
    node.put("keptAfterPrompt", result.keptAfterPrompt());
    node.put("keptAtEnd", result.keptAtEnd());
    node.put("meanKl", result.meanDivergence());
    node.put("sameTop1", result.sameTop());
    node.put("answered", result.answered());
    node.put("found", result.found());
    result
        .freeRun()
        .ifPresent(
            run -> {
              node.put("answer", run.answer().orElse(null));
              node.put("fullAnswer", run.fullAnswer().orElse(null));
              node.put("distinct", run.distinct());
              node.put("fullDistinct", run.fullDistinct());
              node.put("samePrefix", run.samePrefix());
            });
    var divergences = node.putArray("kl");
    for (double divergence : result.divergences()) {
      divergences.add((float) divergence);
    }
    return node;
  }

  private CommandFailure cannotWrite(IOException e) {
    return new CommandFailure("The results cannot be written to " + file + ": " + e, e);
  }

  @Override
  public void close() {
    try {
      if (writer != null) {
        writer.close();
      }
    } catch (IOException e) {
      throw cannotWrite(e);
    }
  }
}
