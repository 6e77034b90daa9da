package dev.kvasir.internal.llama;

import dev.kvasir.TokenizationException;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Optional;
import java.util.Set;

/**
 * Splits text that goes on where other text ended. llama.cpp puts a space before every text that it
 * is given, if the vocabulary says so, and cannot be told not to. So it is given a character more:
 * one that no entry has anywhere but at its end, so that what follows is split as if it were not
 * there; and its tokens are cut off again.
 */
final class Separator {
  private final Vocabulary vocabulary;
  private final Optional<String> character;
  private final int[] tokens;

  Separator(Vocabulary vocabulary) {
    this.vocabulary = vocabulary;
    this.character = find(vocabulary);
    this.tokens = character.map(c -> vocabulary.tokenize(c, false, false)).orElse(new int[0]);
  }

  int[] split(String text, boolean parseSpecial) {
    if (character.isPresent()) {
      int[] all = vocabulary.tokenize(character.get() + text, false, parseSpecial);
      if (all.length >= tokens.length
          && Arrays.equals(all, 0, tokens.length, tokens, 0, tokens.length)) {
        return Arrays.copyOfRange(all, tokens.length, all.length);
      }
    }
    // No such character: at least a space that became a token of its own can be told.
    int[] all = vocabulary.tokenize(text, false, parseSpecial);
    boolean prefixed =
        all.length > 1 && !text.startsWith(" ") && vocabulary.textOf(all[0]).equals(" ");
    return prefixed ? Arrays.copyOfRange(all, 1, all.length) : all;
  }

  private static Optional<String> find(Vocabulary vocabulary) {
    Set<Integer> inner = new HashSet<>();
    Set<Integer> alone = new HashSet<>();
    for (int token = 0; token < vocabulary.size(); token++) {
      if (vocabulary.isHidden(token)) {
        continue;
      }
      int[] characters = vocabulary.textOf(token).codePoints().toArray();
      for (int i = 0; i + 1 < characters.length; i++) {
        inner.add(characters[i]);
      }
      if (characters.length == 1) {
        alone.add(characters[0]);
      }
    }
    return alone.stream()
        .filter(c -> !inner.contains(c) && c > ' ' && c != 0xFFFD)
        .sorted()
        .map(Character::toString)
        .filter(c -> splits(vocabulary, c))
        .findFirst();
  }

  private static boolean splits(Vocabulary vocabulary, String character) {
    try {
      int[] tokens = vocabulary.tokenize(character, false, false);
      return tokens.length > 0 && !vocabulary.isHidden(tokens[tokens.length - 1]);
    } catch (TokenizationException e) {
      return false;
    }
  }
}
