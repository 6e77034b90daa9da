package dev.kvasir.examples.eval;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvasir.Model;
import dev.kvasir.examples.terminal.CommandFailure;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.jspecify.annotations.Nullable;

/**
 * Task generate: prompts of questions with their answers, and a question at the end that the model
 * is to answer in the same way. The problems come as JSON lines with "question" and "answer", as
 * GSM8K's do.
 */
final class WorkedExamples {
  private static final long SEED = 7;
  private static final ObjectMapper JSON = new ObjectMapper();

  private WorkedExamples() {}

  /**
   * So many prompts of so many tokens. The one of index i asks the i-th problem; examples are those
   * of the others in random order, the first of which may be cut.
   */
  static List<Sample> of(Model model, String lines, int texts, int promptTokens) {
    var problems = parse(lines);
    if (problems.size() <= texts) {
      throw new CommandFailure(
          "The file has %d problems, too few for %d prompts with examples of others: give a smaller --texts."
              .formatted(problems.size(), texts));
    }
    var samples = new ArrayList<Sample>();
    for (int t = 0; t < texts; t++) {
      samples.add(new Sample(prompt(model, problems, t, promptTokens), new int[0]));
    }
    return samples;
  }

  private static int[] prompt(Model model, List<Problem> problems, int asked, int promptTokens) {
    var others = new ArrayList<>(problems);
    others.remove(asked);
    Collections.shuffle(others, new Random(SEED + asked));
    var parts = new ArrayDeque<int[]>();
    parts.add(model.tokenize(problems.get(asked).asked(), false, false));
    int size = parts.getFirst().length;
    for (var example : others) {
      if (size >= promptTokens) {
        break;
      }
      parts.addFirst(model.tokenize(example.worked(), false, false));
      size += parts.getFirst().length;
    }
    if (size < promptTokens) {
      throw new CommandFailure(
          "The file's problems have %d tokens together, but prompts of %d are wanted: give a smaller -p."
              .formatted(size, promptTokens));
    }
    int[] all = parts.stream().flatMapToInt(Arrays::stream).toArray();
    return Arrays.copyOfRange(all, all.length - promptTokens, all.length);
  }

  static List<Problem> parse(String lines) {
    var problems = new ArrayList<Problem>();
    int number = 0;
    for (var line : lines.lines().toList()) {
      number++;
      if (!line.isBlank()) {
        problems.add(problem(line, number));
      }
    }
    return problems;
  }

  private static Problem problem(String line, int number) {
    try {
      var node = JSON.readTree(line);
      var question = node.path("question");
      var answer = node.path("answer");
      if (question.isTextual() && answer.isTextual()) {
        return new Problem(question.asText(), answer.asText());
      }
    } catch (JsonProcessingException e) {
      throw noProblem(number, e);
    }
    throw noProblem(number, null);
  }

  private static CommandFailure noProblem(int number, @Nullable Throwable cause) {
    var message =
        "Line %d of the file is no problem: task generate reads JSON lines with the fields question and answer."
            .formatted(number);
    return cause == null ? new CommandFailure(message) : new CommandFailure(message, cause);
  }

  /**
   * A question and its worked answer.
   *
   * @param question as it is asked
   * @param answer may have calculations in doubled angle brackets, which are left out
   */
  record Problem(String question, String answer) {
    String asked() {
      return "Question: " + question + "\nAnswer:";
    }

    String worked() {
      return asked() + " " + answer.replaceAll("<<.*?>>", "") + "\n\n";
    }
  }
}
