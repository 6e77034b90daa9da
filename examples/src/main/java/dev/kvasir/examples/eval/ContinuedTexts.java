package dev.kvasir.examples.eval;

import dev.kvasir.examples.terminal.CommandFailure;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Task text: prompts that the text they were cut from goes on after. */
final class ContinuedTexts {
  private ContinuedTexts() {}

  /** Texts of equal length, spread evenly over the tokens, that do not overlap. */
  static List<Sample> of(int[] tokens, int texts, int promptTokens, int continuationTokens) {
    int length = promptTokens + continuationTokens;
    if ((long) length * texts > tokens.length) {
      throw new CommandFailure(
          "The text has %d tokens, but %d texts of %d are wanted: give more text, or smaller --texts, -p or -n."
              .formatted(tokens.length, texts, length));
    }
    var samples = new ArrayList<Sample>();
    for (int t = 0; t < texts; t++) {
      int from = (int) ((long) (tokens.length - length) * t / Math.max(1, texts - 1));
      samples.add(
          new Sample(
              Arrays.copyOfRange(tokens, from, from + promptTokens),
              Arrays.copyOfRange(tokens, from + promptTokens, from + length)));
    }
    return samples;
  }
}
