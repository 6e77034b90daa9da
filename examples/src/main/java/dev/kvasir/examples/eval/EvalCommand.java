package dev.kvasir.examples.eval;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.Target;
import dev.kvasir.examples.options.BudgetConverter;
import dev.kvasir.examples.options.ForesightArguments;
import dev.kvasir.examples.options.ModelArguments;
import dev.kvasir.examples.options.OutputFormat;
import dev.kvasir.examples.options.RecoveryConverter;
import dev.kvasir.examples.options.SessionArguments;
import dev.kvasir.examples.options.TextFile;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
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
      "The cache is compressed after each prompt, then tokens are fed one by one; the table shows the mean KL divergence from the full f16"
          + " cache of unmodified llama.cpp and how often the most probable token is the same. The row full keeps everything: what the KV"
          + " types cost, or with f16 the noise between two ways to compute the same.",
      "",
      "Task text cuts prompts from a text, which then goes on. Task codes puts lines with access codes between the text's sentences and asks"
          + " for them when the cache has been compressed. Task generate reads GSM8K's JSON lines: after worked examples and a question the"
          + " model goes on by itself, and is compared with the full cache along what it says."
    })
public final class EvalCommand implements Callable<Integer> {
  private final StandardStreams streams;

  @Spec private CommandSpec command;
  @Mixin private ModelArguments model;
  @Mixin private SessionArguments session;
  @Mixin private ForesightArguments foresight;

  @Option(
      names = {"-f", "--file"},
      paramLabel = "TEXT",
      required = true,
      split = ",",
      description = "Text files, separated by commas, to take the texts from.")
  private List<Path> files;

  @Option(
      names = "--task",
      paramLabel = "text|codes|generate",
      defaultValue = "text",
      description = "What the caches are tried at. Default: text.")
  private Task task;

  @Option(
      names = {"-p", "--n-prompt"},
      paramLabel = "N",
      defaultValue = "1536",
      description = "Tokens of a prompt. Default: 1536.")
  private int promptTokens;

  @Option(
      names = {"-n", "--n-suffix"},
      paramLabel = "N",
      description = "Tokens after it. Default: 64, or 160 that the model generates.")
  private @Nullable Integer suffixTokens;

  @Option(
      names = "--texts",
      paramLabel = "N",
      defaultValue = "20",
      description = "Number of texts. Default: 20.")
  private int texts;

  @Option(
      names = "--turns",
      paramLabel = "N",
      defaultValue = "1",
      description =
          "The prompt comes in so many turns, the cache is compressed after each. Default: 1.")
  private int turns;

  @Option(
      names = "--methods",
      paramLabel = "M",
      split = ",",
      converter = Method.Converter.class,
      defaultValue = "full,paper,lattice,h2o,streaming",
      description =
          "What to compare: full, foresight, paper, lattice, h2o, streaming; paper and lattice may be followed by :sum or :mean, :none or"
              + " :value, :min. Default: full,paper,lattice,h2o,streaming.")
  private List<Method> methods;

  @Option(
      names = "--kv-budget",
      paramLabel = "50%",
      split = ",",
      converter = BudgetConverter.class,
      description =
          "Budgets to compare at, in bytes of the full f16 cache. Default: 50%%,25%%, unless recoveries are given.")
  private List<Target> budgets = new ArrayList<>();

  @Option(
      names = "--kv-recovery",
      paramLabel = "T",
      split = ",",
      converter = RecoveryConverter.class,
      description = "Recoveries to compare paper and lattice at.")
  private List<Target> recoveries = new ArrayList<>();

  @Option(
      names = "--kv-types",
      paramLabel = "TYPE",
      split = ",",
      converter = KvTypes.Converter.class,
      description =
          "Types of the cache to compare, for example f16,q8_0,q8_0/q4_0, in place of -ctk and -ctv. Default: what these say.")
  private List<KvTypes> types = new ArrayList<>();

  @Option(
      names = "--lines",
      paramLabel = "FILE",
      description = "Append each result to this file too, a JSON line per text and row.")
  private @Nullable Path lines;

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
    check();
    var options = session.options();
    var rows = cases(options).stream().map(EvalRow::new).toList();
    var text = new StringBuilder();
    files.forEach(file -> text.append(TextFile.read(file, streams)).append('\n'));
    try (var results = new ResultLines(lines);
        var stock = model.load(streams, false);
        var adaptive = model.load(streams, true);
        var bar = new ProgressBar(streams, "Comparing")) {
      var samples = samples(adaptive, text.toString());
      var comparison =
          new Comparison(stock, adaptive, options, samples, turns, suffixTokens(samples));
      var settings = settings(adaptive, comparison.tokens());
      int runs = 0;
      for (int t = 0; t < texts; t++) {
        bar.update(runs, (double) texts * rows.size(), "text " + (t + 1) + " of " + texts);
        var reference = comparison.reference(t);
        for (var row : rows) {
          var result = comparison.result(row.what(), t, reference);
          row.add(result);
          results.add(settings, t, row.what(), result);
          bar.update(++runs, (double) texts * rows.size(), "text " + (t + 1) + " of " + texts);
        }
      }
      bar.clear();
      var out = streams.out();
      if (output == OutputFormat.JSON) {
        out.println(EvalReport.json(settings, rows));
      } else {
        out.println(
            "%s on %s: task %s, %d texts, prompts of %d tokens%s, then %d one by one%n"
                .formatted(
                    adaptive.description(),
                    String.join(" + ", adaptive.devices()),
                    name(task),
                    texts,
                    promptTokens,
                    turns == 1 ? "" : " in " + turns + " turns",
                    comparison.tokens()));
        out.print(EvalReport.markdown(task, rows));
      }
      return 0;
    }
  }

  private void check() {
    if (promptTokens < 1 || texts < 1 || (suffixTokens != null && suffixTokens < 1)) {
      throw wrong("-p, -n and --texts must be at least 1");
    }
    if (turns < 1 || turns > promptTokens) {
      throw wrong("--turns must be at least 1, and each turn needs a token of the prompt");
    }
    if (task == Task.CODES && suffixTokens != null) {
      throw wrong(
          "-n has no meaning for --task codes: a question and its answers follow the prompt");
    }
    if (!types.isEmpty() && session.typesGiven()) {
      throw wrong("--kv-types takes the place of -ctk and -ctv: give the one or the others");
    }
    boolean foresightCompared =
        methods.stream().anyMatch(method -> method.kind() == Method.Kind.FORESIGHT);
    if (foresight.given() && !foresightCompared) {
      throw wrong("--kv-statistic and --kv-head-weights need --methods foresight");
    }
  }

  private List<Method.Case> cases(SessionOptions options) {
    var targets = new ArrayList<>(budgets);
    targets.addAll(recoveries);
    if (targets.isEmpty()) {
      targets.addAll(List.of(Target.budgetFraction(0.5), Target.budgetFraction(0.25)));
    }
    var compared = types.isEmpty() ? List.of(KvTypes.of(options)) : types;
    var policies = foresight.policies();
    try {
      return compared.stream()
          .flatMap(
              type -> methods.stream().flatMap(method -> method.cases(type, targets, policies)))
          .toList();
    } catch (IllegalArgumentException e) {
      throw wrong("Invalid value for option '--kv-budget': " + e.getMessage());
    }
  }

  private List<Sample> samples(Model tokenizer, String text) {
    return switch (task) {
      case TEXT ->
          ContinuedTexts.of(
              tokenizer.tokenize(text, false, false), texts, promptTokens, suffixTokens(List.of()));
      case CODES -> CodePrompts.of(tokenizer, text, texts, promptTokens);
      case GENERATE -> WorkedExamples.of(tokenizer, text, texts, promptTokens);
    };
  }

  /** Tokens after a prompt; at most so many where the task has its own. */
  private int suffixTokens(List<Sample> samples) {
    int longest = samples.stream().mapToInt(sample -> sample.continuation().length).max().orElse(0);
    return longest > 0 ? longest : suffixTokens != null ? suffixTokens : task.tokens();
  }

  private ObjectNode settings(Model loaded, int tokens) {
    return JsonNodeFactory.instance
        .objectNode()
        .put("task", name(task))
        .put("model", loaded.description())
        .put("file", String.valueOf(loaded.file().getFileName()))
        .put("texts", texts)
        .put("promptTokens", promptTokens)
        .put("turns", turns)
        .put("suffixTokens", tokens);
  }

  private static String name(Task task) {
    return task.name().toLowerCase(Locale.ROOT);
  }

  private ParameterException wrong(String message) {
    return new ParameterException(command.commandLine(), message);
  }
}
