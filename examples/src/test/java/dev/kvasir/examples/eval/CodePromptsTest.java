package dev.kvasir.examples.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.examples.terminal.CommandFailure;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** Prompts with access codes, in tokens of a vocabulary that grows as it is used. */
class CodePromptsTest {
  private static final Pattern LINE =
      Pattern.compile(" The access code for (\\w+) is (\\d{4}) \\.");

  // a word with the space before it, a space before a digit, a digit, or a line break
  private static final Pattern PART = Pattern.compile("\\n| ?[^\\s\\d]+| |\\d");

  private final Map<String, Integer> ids = new HashMap<>();
  private final List<String> vocabulary = new ArrayList<>();

  private int[] tokenize(String text) {
    return PART.matcher(text)
        .results()
        .mapToInt(
            part ->
                ids.computeIfAbsent(
                    part.group(),
                    word -> {
                      vocabulary.add(word);
                      return vocabulary.size() - 1;
                    }))
        .toArray();
  }

  private String text(int... tokens) {
    return Arrays.stream(tokens).mapToObj(vocabulary::get).collect(Collectors.joining());
  }

  private static String filler(int sentences) {
    var text = new StringBuilder();
    for (int i = 0; i < sentences; i++) {
      text.append(i == 0 ? "" : " ").append("Ship ").append(i).append(" came in at dawn .");
    }
    return text.toString();
  }

  private List<Sample> samples(String filler, int texts, int promptTokens) {
    return CodePrompts.of(this::tokenize, this::text, filler, texts, promptTokens);
  }

  @Test
  void linesStandBetweenWholeSentences() {
    for (var sample : samples(filler(400), 5, 600)) {
      assertEquals(600, sample.prompt().length);
      var prompt = text(sample.prompt());
      var codes = codes(prompt);
      assertEquals(CodePrompts.LINES, codes.size(), prompt);
      // without the lines the filler goes on as if there had been none
      var rest = LINE.matcher(prompt).replaceAll("").strip();
      assertTrue(filler(400).contains(rest), rest);
      // between the first tokens and the last ones
      assertTrue(prompt.indexOf(" The access") > 40, prompt);
      assertTrue(text(last(sample.prompt(), 60)).indexOf("access") < 0, prompt);
    }
  }

  private static int[] last(int[] tokens, int count) {
    return Arrays.copyOfRange(tokens, tokens.length - count, tokens.length);
  }

  private static Map<String, String> codes(String text) {
    return LINE.matcher(text)
        .results()
        .collect(Collectors.toMap(line -> line.group(1), line -> line.group(2)));
  }

  @Test
  void whatIsAskedForStandsInThePromptAndNotTheQuestion() {
    for (var sample : samples(filler(400), 5, 600)) {
      assertTrue(text(sample.prompt()).indexOf("Question") < 0);
      var question = text(sample.continuation());
      assertTrue(question.startsWith("\n Question :"), question);
      var asked = codes(question);
      assertEquals(CodePrompts.ASKED, asked.size(), question);
      var known = codes(text(sample.prompt()));
      asked.forEach((name, code) -> assertEquals(known.get(name), code));
      // the digits, and nothing else, are what the model has to find
      var answers =
          sample.answers().stream()
              .map(span -> text(Arrays.copyOfRange(sample.continuation(), span.from(), span.to())))
              .toList();
      assertEquals(
          List.copyOf(asked.values()).stream().sorted().toList(),
          answers.stream().sorted().toList());
    }
  }

  @Test
  void theSameEachTimeAndAnotherForEachText() {
    var once = samples(filler(400), 3, 600);
    var again = samples(filler(400), 3, 600);
    for (int t = 0; t < 3; t++) {
      assertArrayEquals(once.get(t).prompt(), again.get(t).prompt());
      assertArrayEquals(once.get(t).continuation(), again.get(t).continuation());
    }
    assertTrue(!Arrays.equals(once.get(0).prompt(), once.get(1).prompt()));
  }

  @Test
  void theLastTextEndsWithTheFiller() {
    int room = tokenize(filler(100)).length;
    var only = samples(filler(100), 1, room);
    assertEquals(room, only.getFirst().prompt().length);
    var last = samples(filler(100), 4, 400).getLast();
    assertTrue(text(last.prompt()).contains("Ship 95 "), text(last.prompt()));
  }

  @Test
  void tooShortPromptsAndTooShortTexts() {
    var shortPrompt = assertThrows(CommandFailure.class, () -> samples(filler(400), 1, 150));
    assertTrue(shortPrompt.getMessage().contains("-p"), shortPrompt.getMessage());
    var shortText = assertThrows(CommandFailure.class, () -> samples(filler(20), 1, 600));
    assertTrue(shortText.getMessage().contains("more text"), shortText.getMessage());
  }
}
