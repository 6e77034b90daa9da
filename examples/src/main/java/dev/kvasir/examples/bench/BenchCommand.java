package dev.kvasir.examples.bench;

import dev.kvasir.Model;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.Target;
import dev.kvasir.examples.options.BudgetConverter;
import dev.kvasir.examples.options.FastGenArguments;
import dev.kvasir.examples.options.ForesightArguments;
import dev.kvasir.examples.options.ModelArguments;
import dev.kvasir.examples.options.OutputFormat;
import dev.kvasir.examples.options.RecoveryConverter;
import dev.kvasir.examples.options.SessionArguments;
import dev.kvasir.examples.options.TextFile;
import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.function.Function;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/**
 * Speed and memory of unmodified llama.cpp, of Kvasir keeping everything, and of Kvasir at some
 * targets.
 */
@Command(
    name = "bench",
    description = {
      "Measures unmodified llama.cpp, Kvasir keeping everything, and Kvasir at some targets, interleaved in one run.",
      "",
      "pp rows read a prompt into an empty cache, tg rows decode at a depth. The cache is filled once per depth and engine;"
          + " the repeats go on from there, one engine after the other. pp+tg rows read a prompt into an empty cache and decode after it,"
          + " timed together. RSS is what the process grew by while the engine's session was opened and filled: cache and compute"
          + " buffers, not the weights. GPU is the same of the devices' memory, as their driver counts it."
    })
public final class BenchCommand implements Callable<Integer> {
  // more than any tokenizer packs into one token of plain English on average
  private static final int CHARACTERS_PER_TOKEN = 6;

  /** The policies that can be measured. */
  private enum Policy {
    FASTGEN,
    FORESIGHT
  }

  private final StandardStreams streams;

  @Spec private CommandSpec command;
  @Mixin private ModelArguments model;
  @Mixin private SessionArguments session;
  @Mixin private FastGenArguments fastgen;
  @Mixin private ForesightArguments foresight;

  @Option(
      names = "--kv-policy",
      paramLabel = "fastgen|foresight",
      split = ",",
      defaultValue = "fastgen",
      description =
          "Policies to measure at the targets, separated by commas; foresight takes budgets only, as a part of the full f16 cache."
              + " Default: fastgen.")
  private List<Policy> policies;

  @Option(
      names = {"-p", "--n-prompt"},
      paramLabel = "N",
      split = ",",
      defaultValue = "512",
      description = "Prompt lengths, separated by commas; 0: none. Default: 512.")
  private List<Integer> prompts;

  @Option(
      names = {"-n", "--n-gen"},
      paramLabel = "N",
      split = ",",
      defaultValue = "32",
      description = "Numbers of tokens to decode; 0: none. Default: 32.")
  private List<Integer> generated;

  @Option(
      names = "-pg",
      paramLabel = "P,G",
      converter = PromptAndDecode.Converter.class,
      description =
          "A prompt of P tokens and G tokens decoded after it, timed together: the rate counts both. May be given several times."
              + " Default: none.")
  private List<PromptAndDecode> together = new ArrayList<>();

  @Option(
      names = {"-d", "--n-depth"},
      paramLabel = "N",
      split = ",",
      defaultValue = "4096",
      description = "Tokens in the cache before the decode. Default: 4096.")
  private List<Integer> depths;

  @Option(
      names = {"-np", "--parallel"},
      paramLabel = "N",
      split = ",",
      defaultValue = "1",
      description =
          "Sequences that are decoded together, each with the whole depth, or a prompt of its own; rates are of all together."
              + " Default: 1.")
  private List<Integer> parallel;

  @Option(
      names = {"-r", "--repetitions"},
      paramLabel = "N",
      defaultValue = "5",
      description = "Repeats. Default: 5.")
  private int repeats;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "md|json",
      defaultValue = "md",
      description = "A Markdown table or JSON. Default: md.")
  private OutputFormat output;

  @Option(
      names = {"-f", "--file"},
      paramLabel = "TEXT",
      description = "Text to fill the cache with. Default: one that is made up.")
  private @Nullable Path file;

  @Option(
      names = "--kv-budget",
      paramLabel = "50%|512M",
      split = ",",
      converter = BudgetConverter.class,
      description = "Budgets to measure. Default: 50%%,25%%, unless recoveries are given.")
  private List<Target> budgets = new ArrayList<>();

  @Option(
      names = "--kv-recovery",
      paramLabel = "T",
      split = ",",
      converter = RecoveryConverter.class,
      description = "Recoveries to measure.")
  private List<Target> recoveries = new ArrayList<>();

  /** A command on these streams; picocli sets the rest. */
  @SuppressWarnings("NullAway.Init")
  public BenchCommand(StandardStreams streams) {
    this.streams = streams;
  }

  @Override
  public Integer call() {
    atLeast(0, prompts, "-p");
    atLeast(0, generated, "-n");
    atLeast(0, depths, "-d");
    atLeast(1, parallel, "-np");
    atLeast(1, List.of(repeats), "-r");
    if (foresight.given() && !policies.contains(Policy.FORESIGHT)) {
      throw wrong("--kv-statistic and --kv-head-weights need --kv-policy foresight");
    }
    if (fastgen.given() && !policies.contains(Policy.FASTGEN)) {
      throw wrong("FastGen's options need --kv-policy fastgen");
    }
    var options = session.options();
    var compared = policies.stream().flatMap(this::engines).toList();
    var given = file == null ? null : TextFile.read(file, streams);
    try (var stock = model.load(streams, false);
        var adaptive = model.load(streams, true)) {
      var engines = new ArrayList<>(List.of(Engine.llamaCpp(stock), Engine.full(adaptive)));
      compared.forEach(engine -> engines.add(engine.apply(adaptive)));
      var rows = measure(engines, options, text(adaptive, given));
      var out = streams.out();
      if (output == OutputFormat.JSON) {
        out.println(BenchReport.json(rows));
      } else {
        out.println(
            "%s on %s, %s, keys %s, values %s, text: %s%n"
                .formatted(
                    adaptive.description(),
                    String.join(" + ", adaptive.devices()),
                    options.threads() == 0 ? "default threads" : options.threads() + " threads",
                    options.keyType().label(),
                    options.valueType().label(),
                    file == null ? "made up" : file.getFileName()));
        out.print(BenchReport.markdown(rows));
      }
      return 0;
    }
  }

  private List<BenchRow> measure(List<Engine> engines, SessionOptions options, int[] text) {
    var bench = new Bench(engines, options, repeats, text, streams);
    var rows = new ArrayList<BenchRow>();
    bench.warmUp();
    for (int prompt : prompts) {
      if (prompt > 0) {
        rows.addAll(bench.prompt(prompt));
      }
    }
    for (var test : together) {
      for (int sequences : parallel) {
        rows.addAll(bench.promptAndDecode(test.prompt(), test.decoded(), sequences));
      }
    }
    for (int depth : depths) {
      for (int tokens : generated) {
        for (int sequences : parallel) {
          if (tokens > 0) {
            rows.addAll(bench.decode(depth, tokens, sequences));
          }
        }
      }
    }
    return rows;
  }

  private Stream<Function<Model, Engine>> engines(Policy policy) {
    return switch (policy) {
      case FASTGEN -> {
        var base = fastgen.policy();
        yield targets().stream()
            .map(target -> model -> Engine.fastgen(model, base.withTarget(target)));
      }
      case FORESIGHT -> {
        var budgets = targets().stream().mapToDouble(this::fraction).boxed().toList();
        yield foresight.policies().stream()
            .flatMap(base -> budgets.stream().map(base::withBudget))
            .map(each -> model -> Engine.foresight(model, each));
      }
    };
  }

  private double fraction(Target target) {
    if (target instanceof Target.BudgetFraction(double fraction)) {
      return fraction;
    }
    throw wrong("--kv-policy foresight takes --kv-budget as a part of the full f16 cache (35%)");
  }

  private List<Target> targets() {
    var targets = new ArrayList<>(budgets);
    targets.addAll(recoveries);
    return targets.isEmpty()
        ? List.of(Target.budgetFraction(0.5), Target.budgetFraction(0.25))
        : targets;
  }

  private int[] text(Model tokenizer, @Nullable String given) {
    int needed = Bench.tokensForDecode(Bench.WARM_UP_PROMPT, 0, 0);
    for (int prompt : prompts) {
      needed = Math.max(needed, prompt);
    }
    for (var test : together) {
      needed = Math.max(needed, Bench.tokensForDecode(test.prompt(), test.decoded(), 1));
    }
    for (int depth : depths) {
      for (int tokens : generated) {
        needed = Math.max(needed, tokens == 0 ? 0 : Bench.tokensForDecode(depth, tokens, repeats));
      }
    }
    int[] text =
        tokenizer.tokenize(
            given == null ? HarbourLog.ofLength(needed * CHARACTERS_PER_TOKEN) : given,
            true,
            false);
    if (text.length < needed) {
      throw new CommandFailure(
          "The text has %d tokens, but %d are needed: give a longer one with -f, or smaller -p, -pg, -d, -n, -r."
              .formatted(text.length, needed));
    }
    return text;
  }

  private void atLeast(int least, List<Integer> values, String option) {
    for (int value : values) {
      if (value < least) {
        throw wrong("Invalid value for option '" + option + "': " + value);
      }
    }
  }

  private ParameterException wrong(String message) {
    return new ParameterException(command.commandLine(), message);
  }
}
