package dev.kvasir.internal.llama;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Collects the token sequences in texts, each from one control token up to the next. */
final class Markers {
  private final Vocabulary vocabulary;
  private final List<int[]> markers = new ArrayList<>();

  Markers(Vocabulary vocabulary) {
    this.vocabulary = vocabulary;
  }

  void add(String text) {
    int[] tokens = vocabulary.tokenize(text, false, true);
    int start = 0;
    for (int i = 1; i <= tokens.length; i++) {
      if (i == tokens.length || vocabulary.isControl(tokens[i])) {
        add(Arrays.copyOfRange(tokens, start, i));
        start = i;
      }
    }
  }

  private void add(int[] tokens) {
    boolean blank = true;
    for (int token : tokens) {
      blank &= vocabulary.textOf(token).isBlank();
    }
    if (tokens.length > 1
        && !blank
        && markers.stream().noneMatch(known -> Arrays.equals(known, tokens))) {
      markers.add(tokens);
    }
  }

  int[][] toArray() {
    return markers.toArray(int[][]::new);
  }
}
