package dev.kvasir.examples.eval;

import dev.kvasir.KvType;
import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.Target;
import dev.kvasir.examples.options.BudgetConverter;
import dev.kvasir.examples.options.ModelArguments;
import dev.kvasir.examples.options.OutputFormat;
import dev.kvasir.examples.options.RecoveryConverter;
import dev.kvasir.examples.options.SessionArguments;
import dev.kvasir.examples.options.TextFile;
import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/**
 * What compression costs in quality: the divergence of what the model expects from what it expects
 * with the full cache.
 */
@Command(
    name = "eval",
    description = {
      "Compares what the model expects with compressed caches to what it expects with the full one.",
      "",
      "Texts are cut from the file. After each prompt the cache is compressed, then the following tokens are fed one by one; the table shows"
          + " the mean KL divergence from the full f16 cache of unmodified llama.cpp and how often the most probable token is the same. The row full"
          + " keeps everything: what the KV types cost, or with f16 the noise between two ways to compute the same."
    })
public final class EvalCommand implements Callable<Integer> {
  private final StandardStreams streams;

  @Spec private CommandSpec command;
  @Mixin private ModelArguments model;
  @Mixin private SessionArguments session;

  @Option(
      names = {"-f", "--file"},
      paramLabel = "TEXT",
      required = true,
      split = ",",
      description = "Text files, separated by commas, to cut the texts from.")
  private List<Path> files;

  @Option(
      names = {"-p", "--n-prompt"},
      paramLabel = "N",
      defaultValue = "1536",
      description = "Tokens of a prompt. Default: 1536.")
  private int promptTokens;

  @Option(
      names = {"-n", "--n-suffix"},
      paramLabel = "N",
      defaultValue = "64",
      description = "Tokens that are fed after it. Default: 64.")
  private int suffixTokens;

  @Option(
      names = "--texts",
      paramLabel = "N",
      defaultValue = "20",
      description = "Number of texts. Default: 20.")
  private int texts;

  @Option(
      names = "--methods",
      paramLabel = "M",
      split = ",",
      converter = Method.Converter.class,
      defaultValue = "full,paper,lattice,h2o,streaming",
      description =
          "What to compare: full, paper, lattice, h2o, streaming; paper and lattice may be followed by :sum or :mean, :none or :value, :min."
              + " Default: full,paper,lattice,h2o,streaming.")
  private List<Method> methods;

  @Option(
      names = "--kv-budget",
      paramLabel = "50%",
      split = ",",
      converter = BudgetConverter.class,
      description = "Budgets to compare at. Default: 50%%,25%%, unless recoveries are given.")
  private List<Target> budgets = new ArrayList<>();

  @Option(
      names = "--kv-recovery",
      paramLabel = "T",
      split = ",",
      converter = RecoveryConverter.class,
      description = "Recoveries to compare paper and lattice at.")
  private List<Target> recoveries = new ArrayList<>();

  @Option(
      names = {"-o", "--output"},
      paramLabel = "md|json",
      defaultValue = "md",
      description = "A Markdown table or JSON. Default: md.")
  private OutputFormat output;

  /** A command on these streams; picocli sets the rest. */
  @SuppressWarnings("NullAway.Init")
  public EvalCommand(StandardStreams streams) {
    this.streams = streams;
  }

  @Override
  public Integer call() {
    if (promptTokens < 1 || suffixTokens < 1 || texts < 1) {
      throw new ParameterException(command.commandLine(), "-p, -n and --texts must be at least 1");
    }
    var cases = cases();
    var options = session.options().withContextSize(promptTokens + suffixTokens);
    var whole = options.withKeyType(KvType.F16).withValueType(KvType.F16);
    var text = new StringBuilder();
    files.forEach(file -> text.append(TextFile.read(file, streams)).append('\n'));
    try (var stock = model.load(streams, false);
        var adaptive = model.load(streams, true);
        var bar = new ProgressBar(streams, "Comparing")) {
      var samples = cut(adaptive.tokenize(text.toString(), false, false));
      var rows = cases.stream().map(what -> new EvalRow(what, texts)).toList();
      int runs = 0;
      for (int t = 0; t < texts; t++) {
        var reference = run(stock, whole, samples.get(t));
        for (var row : rows) {
          bar.update(++runs, (double) texts * rows.size(), "text " + (t + 1) + " of " + texts);
          var result = run(adaptive, options.withCachePolicy(row.what().policy()), samples.get(t));
          row.put(
              t,
              result.divergenceFrom(reference),
              result.sameTopAs(reference),
              result.keptAfterPrompt,
              result.keptAtEnd);
        }
      }
      bar.clear();
      var out = streams.out();
      if (output == OutputFormat.JSON) {
        out.println(EvalReport.json(rows, texts, promptTokens, suffixTokens));
      } else {
        out.println(
            "%s on %s: %d texts, prompts of %d tokens, then %d one by one%n"
                .formatted(
                    adaptive.description(),
                    String.join(" + ", adaptive.devices()),
                    texts,
                    promptTokens,
                    suffixTokens));
        out.print(EvalReport.markdown(rows));
      }
      return 0;
    }
  }

  private List<Method.Case> cases() {
    var targets = new ArrayList<>(budgets);
    targets.addAll(recoveries);
    if (targets.isEmpty()) {
      targets.addAll(List.of(Target.budgetFraction(0.5), Target.budgetFraction(0.25)));
    }
    try {
      return methods.stream().flatMap(method -> method.cases(targets).stream()).toList();
    } catch (IllegalArgumentException e) {
      throw new ParameterException(
          command.commandLine(), "Invalid value for option '--kv-budget': " + e.getMessage());
    }
  }

  /** Texts of equal length, spread evenly over the file, that do not overlap. */
  private List<int[]> cut(int[] tokens) {
    int length = promptTokens + suffixTokens;
    if ((long) length * texts > tokens.length) {
      throw new CommandFailure(
          "The text has %d tokens, but %d texts of %d are wanted: give more text, or smaller --texts, -p or -n."
              .formatted(tokens.length, texts, length));
    }
    var samples = new ArrayList<int[]>();
    for (int t = 0; t < texts; t++) {
      int from = (int) ((long) (tokens.length - length) * t / Math.max(1, texts - 1));
      samples.add(Arrays.copyOfRange(tokens, from, from + length));
    }
    return samples;
  }

  private Result run(Model on, SessionOptions options, int[] sample) {
    try (var opened = on.newSession(options)) {
      opened.evaluate(Arrays.copyOf(sample, promptTokens));
      double keptAfterPrompt = opened.cacheReport().keptFraction();
      var expectations = new ArrayList<Distribution>();
      var logits = new float[on.vocabularySize()];
      for (int i = promptTokens; i < sample.length; i++) {
        opened.step(sample[i]);
        opened.logits(logits);
        expectations.add(new Distribution(logits));
      }
      return new Result(expectations, keptAfterPrompt, opened.cacheReport().keptFraction());
    }
  }

  /** What one run expected after every token of the suffix. */
  private record Result(List<Distribution> expectations, double keptAfterPrompt, double keptAtEnd) {
    double divergenceFrom(Result reference) {
      double sum = 0;
      for (int i = 0; i < expectations.size(); i++) {
        sum += reference.expectations.get(i).divergenceTo(expectations.get(i));
      }
      return sum / expectations.size();
    }

    double sameTopAs(Result reference) {
      int same = 0;
      for (int i = 0; i < expectations.size(); i++) {
        same += reference.expectations.get(i).top() == expectations.get(i).top() ? 1 : 0;
      }
      return (double) same / expectations.size();
    }
  }
}
