package dev.kvasir.examples.eval;

import java.math.BigDecimal;
import java.util.HashSet;
import java.util.Optional;
import java.util.regex.Pattern;

/**
 * What a model said by itself, beside what it says with the full cache.
 *
 * @param answer the number behind the first "####"; empty: there is none
 * @param fullAnswer that of the full cache's run
 * @param distinct fraction of the runs of three tokens that differ from all before them: low where
 *     the model repeats itself
 * @param fullDistinct that of the full cache's run
 * @param samePrefix leading tokens that both have in common
 */
record FreeRun(
    Optional<String> answer,
    Optional<String> fullAnswer,
    double distinct,
    double fullDistinct,
    int samePrefix) {
  private static final Pattern ANSWER =
      Pattern.compile("####\\s*[$€£]?\\s*(-?\\d[\\d,]*(?:\\.\\d+)?)");

  static FreeRun of(int[] tokens, String text, int[] fullTokens, String fullText) {
    int same = 0;
    while (same < tokens.length && tokens[same] == fullTokens[same]) {
      same++;
    }
    return new FreeRun(
        answer(text), answer(fullText), distinct(tokens), distinct(fullTokens), same);
  }

  /** Whether the full cache's run has an answer. */
  boolean answered() {
    return fullAnswer.isPresent();
  }

  /** Whether both have the same answer. */
  boolean agrees() {
    return answered() && answer.equals(fullAnswer);
  }

  /** The first final answer of a text, without separators of thousands or trailing zeros. */
  static Optional<String> answer(String text) {
    var match = ANSWER.matcher(text);
    if (!match.find()) {
      return Optional.empty();
    }
    var number = new BigDecimal(match.group(1).replace(",", ""));
    return Optional.of(number.stripTrailingZeros().toPlainString());
  }

  /**
   * Different runs of three tokens among all of them; 1 where there are fewer than three tokens.
   */
  static double distinct(int[] tokens) {
    record Run(int first, int second, int third) {}
    var runs = new HashSet<Run>();
    for (int i = 0; i + 2 < tokens.length; i++) {
      runs.add(new Run(tokens[i], tokens[i + 1], tokens[i + 2]));
    }
    return tokens.length < 3 ? 1 : (double) runs.size() / (tokens.length - 2);
  }
}
