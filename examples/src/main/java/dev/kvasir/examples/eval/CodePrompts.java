package dev.kvasir.examples.eval;

import dev.kvasir.Model;
import dev.kvasir.examples.terminal.CommandFailure;
import java.text.BreakIterator;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.function.Function;
import java.util.function.IntFunction;

/**
 * Task codes: prompts of a text with lines like "The access code for Paris is 1234 ." between its
 * sentences. What is asked is said behind the prompt, so that nothing in it tells what will matter.
 */
final class CodePrompts {
  /** Lines of a prompt. */
  static final int LINES = 8;

  /** Lines that are asked for. */
  static final int ASKED = 4;

  private static final long SEED = 7;
  // lines stand neither at the very beginning, which every policy keeps, nor in the newest tokens
  private static final int BEFORE = 40;
  private static final int BEHIND = 80;

  private static final String QUESTION = "\n Question : what are the access codes ? Answer :";
  private static final List<String> NAMES =
      List.of(
          "Paris", "Berlin", "London", "Madrid", "Rome", "Vienna", "Dublin", "Oslo", "Lisbon",
          "Athens", "Prague", "Warsaw", "Moscow", "Cairo", "Tokyo", "Delhi", "Sydney", "Boston",
          "Chicago", "Dallas", "Denver", "Seattle", "Toronto", "Houston");

  private final Function<String, int[]> tokenizer;
  private final IntFunction<String> textOf;
  private final List<int[]> sentences = new ArrayList<>();
  private final int[] begins; // tokens before each sentence, and all of them at the end

  private CodePrompts(
      Function<String, int[]> tokenizer, IntFunction<String> textOf, String filler) {
    this.tokenizer = tokenizer;
    this.textOf = textOf;
    var ends = BreakIterator.getSentenceInstance(Locale.ROOT);
    ends.setText(filler);
    int from = 0;
    for (int to = ends.next(); to != BreakIterator.DONE; to = ends.next()) {
      // tokenizers take the space before a word for a part of it
      int end = from + filler.substring(from, to).stripTrailing().length();
      if (end > from) {
        sentences.add(tokenizer.apply(filler.substring(from, end)));
        from = end;
      }
    }
    begins = new int[sentences.size() + 1];
    for (int s = 0; s < sentences.size(); s++) {
      begins[s + 1] = begins[s] + sentences.get(s).length;
    }
  }

  /** Prompts of so many tokens, whose filler is spread evenly over a text. */
  static List<Sample> of(Model model, String filler, int texts, int promptTokens) {
    return of(
        text -> model.tokenize(text, false, false), model::tokenText, filler, texts, promptTokens);
  }

  static List<Sample> of(
      Function<String, int[]> tokenizer,
      IntFunction<String> textOf,
      String filler,
      int texts,
      int promptTokens) {
    var prompts = new CodePrompts(tokenizer, textOf, filler);
    var samples = new ArrayList<Sample>();
    for (int t = 0; t < texts; t++) {
      samples.add(prompts.sample(new Random(SEED + t), t, texts, promptTokens));
    }
    return samples;
  }

  private Sample sample(Random random, int index, int texts, int promptTokens) {
    var codes = new ArrayList<Code>();
    var names = new ArrayList<>(NAMES);
    Collections.shuffle(names, random);
    for (var name : names.subList(0, LINES)) {
      codes.add(new Code(name, "%04d".formatted(random.nextInt(10_000))));
    }
    var lines = codes.stream().map(code -> tokenizer.apply(" " + code.line())).toList();
    int room = promptTokens - lines.stream().mapToInt(line -> line.length).sum();
    if (room <= BEFORE + BEHIND) {
      throw new CommandFailure(
          "Prompts of %d tokens have no room for %d codes between other text: give a larger -p."
              .formatted(promptTokens, LINES));
    }
    int all = begins[sentences.size()];
    if (all < room) {
      throw new CommandFailure(
          "The text has %d tokens, but prompts of %d are wanted: give more text, or a smaller -p."
              .formatted(all, promptTokens));
    }
    int first = sentenceAt((int) ((long) (all - room) * index / Math.max(1, texts - 1)));
    int[] before = new int[LINES]; // the sentence that each line stands before
    for (int line = 0; line < LINES; line++) {
      int at = begins[first] + BEFORE + random.nextInt(room - BEFORE - BEHIND);
      before[line] = Math.max(first + 1, sentenceAt(at));
    }
    Arrays.sort(before);
    var prompt = new Tokens();
    int line = 0;
    for (int s = first; s < sentences.size() && prompt.size() < promptTokens; s++) {
      while (line < LINES && before[line] == s) {
        prompt.add(lines.get(line++));
      }
      prompt.add(sentences.get(s));
    }
    var asked = new ArrayList<>(codes);
    Collections.shuffle(asked, random);
    return ask(prompt.first(promptTokens), asked.subList(0, ASKED));
  }

  private Sample ask(int[] prompt, List<Code> codes) {
    var question = new Tokens();
    var answers = new ArrayList<Sample.Span>();
    question.add(tokenizer.apply(QUESTION));
    for (var code : codes) {
      question.add(tokenizer.apply(" " + code.introduction()));
      int from = question.size();
      int[] number = tokenizer.apply(" " + code.number());
      question.add(number);
      int blanks = 0; // a space that is a token of its own says nothing
      while (textOf.apply(number[blanks]).isBlank()) {
        blanks++;
      }
      answers.add(new Sample.Span(from + blanks, question.size()));
      question.add(tokenizer.apply(" ."));
    }
    return new Sample(prompt, question.first(question.size()), answers);
  }

  /** The sentence that holds a token. */
  private int sentenceAt(int token) {
    int found = Arrays.binarySearch(begins, token);
    return found >= 0 ? found : -found - 2;
  }

  private record Code(String name, String number) {
    String introduction() {
      return "The access code for " + name + " is";
    }

    String line() {
      return introduction() + " " + number + " .";
    }
  }

  /** Tokens that are put together. */
  private static final class Tokens {
    private int[] tokens = new int[1024];
    private int size;

    void add(int[] more) {
      tokens =
          size + more.length > tokens.length
              ? Arrays.copyOf(tokens, 2 * (size + more.length))
              : tokens;
      System.arraycopy(more, 0, tokens, size, more.length);
      size += more.length;
    }

    int size() {
      return size;
    }

    int[] first(int count) {
      return Arrays.copyOf(tokens, count);
    }
  }
}
