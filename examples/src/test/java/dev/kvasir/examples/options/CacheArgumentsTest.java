package dev.kvasir.examples.options;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.KvType;
import dev.kvasir.Sampling;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.HeadWeights;
import dev.kvasir.cache.MovedQueries;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.TypeConversionException;

/** From the command line to the library's options. */
class CacheArgumentsTest {
  @Command(name = "probe")
  static final class Probe {
    @Mixin private CacheArguments cache;
    @Mixin private SessionArguments session;
    @Mixin private SamplingArguments sampling;
    @Mixin private ContextArguments context;
  }

  private static Probe parse(String... arguments) {
    var probe = new Probe();
    new CommandLine(probe)
        .setPosixClusteredShortOptionsAllowed(false)
        .setCaseInsensitiveEnumValuesAllowed(true)
        .parseArgs(arguments);
    return probe;
  }

  private static CachePolicy policy(String... arguments) {
    return parse(arguments).cache.over(SessionOptions.defaults()).cachePolicy();
  }

  @Test
  void defaults() {
    assertEquals(FastGen.defaults(), policy());
    assertEquals(CachePolicy.full(), policy("--kv-policy", "full"));
    assertEquals(CachePolicy.full(), policy("--kv-policy", "none"));
    assertTrue(parse().cache.adaptive() && parse("--kv-policy", "full").cache.adaptive());
    assertFalse(parse("--kv-policy", "none").cache.adaptive());
    assertEquals(SessionOptions.defaults(), parse().context.over(parse().session.options()));
    assertEquals(Sampling.defaults(), parse().sampling.sampling());
  }

  @Test
  void thePapersCandidatesBringThePapersFigures() {
    assertEquals(FastGen.asPublished(), policy("--kv-candidates", "paper"));
    assertEquals(
        FastGen.asPublished().withScore(Score.MEAN),
        policy("--kv-candidates", "paper", "--kv-score", "mean"));
  }

  @Test
  void everyOptionOfThePolicy() {
    assertEquals(
        FastGen.defaults()
            .withTarget(Target.recovery(0.9))
            .withScore(Score.SUM)
            .withWeight(Weight.NONE)
            .withPooling(Pooling.MIN)
            .withLocal(0.2)
            .withFrequent(0.1)
            .withSinks(8)
            .withGrace(32),
        policy(
            ("--kv-recovery .9 --kv-score sum --kv-weight none --kv-pool min --kv-local .2 --kv-frequent .1"
                    + " --kv-sinks 8 --kv-grace 32")
                .split(" ", -1)));
  }

  @Test
  void foresight() {
    assertEquals(Foresight.defaults(), policy("--kv-policy", "foresight"));
    assertEquals(
        Foresight.defaults().withBudget(0.125).withStatistic(MovedQueries.afterPrompt(4)),
        policy("--kv-policy foresight --kv-budget 12.5% --kv-statistic c/4".split(" ", -1)));
    var options =
        parse("--kv-policy", "foresight", "--kv-limit", "1M").cache.over(SessionOptions.defaults());
    assertEquals(1L << 20, options.cacheMemoryLimit());
  }

  @Test
  void headWeightsOfAFile(@TempDir Path directory) throws IOException {
    var file = Files.writeString(directory.resolve("w.json"), "{\"trace\": [[1, 2], [3, 4]]}");
    var policy = policy("--kv-policy", "foresight", "--kv-head-weights", file.toString());
    assertEquals(
        Foresight.defaults().withHeadWeights(HeadWeights.of(new float[][] {{1, 2}, {3, 4}})),
        policy);
  }

  @Test
  void budgets() {
    var budget = new BudgetConverter();
    assertEquals(Target.budgetFraction(0.5), budget.convert("50%"));
    assertEquals(Target.budgetFraction(0.125), budget.convert("12.5 %"));
    assertEquals(Target.budgetBytes(512L << 20), budget.convert("512M"));
    assertEquals(Target.budgetBytes(3L << 29), budget.convert("1.5GiB"));
    assertEquals(Target.budgetBytes(65_536), budget.convert("64kb"));
    assertEquals(Target.budgetBytes(1000), budget.convert("1000"));
    for (var wrong : new String[] {"", "half", "-5%", "101%", "0.5", "5X", "99999999999T"}) {
      assertThrows(TypeConversionException.class, () -> budget.convert(wrong), wrong);
    }
  }

  @Test
  void limits() {
    assertEquals(0, parse().cache.over(SessionOptions.defaults()).cacheMemoryLimit());
    for (var policy : new String[] {"full", "fastgen"}) {
      var options =
          parse("--kv-policy", policy, "--kv-limit", "1.5M").cache.over(SessionOptions.defaults());
      assertEquals(3L << 19, options.cacheMemoryLimit());
    }
  }

  @Test
  void llamaCppsNames() {
    var probe =
        parse(
            "-c 4096 -t 2 -tb 3 -b 1024 -ub 256 -ctk q8_0 -ctv BF16 --temp 0 --top-k 1 --top-p .5 --min-p .1 --repeat-penalty 1.1 -s 7"
                .split(" ", -1));
    assertEquals(
        SessionOptions.defaults()
            .withContextSize(4096)
            .withThreads(2)
            .withBatchThreads(3)
            .withBatchSize(1024)
            .withMicroBatchSize(256)
            .withKeyType(KvType.Q8_0)
            .withValueType(KvType.BF16),
        probe.context.over(probe.session.options()));
    assertEquals(
        Sampling.defaults()
            .withTemperature(0)
            .withTopK(1)
            .withTopP(.5f)
            .withMinP(.1f)
            .withRepeatPenalty(1.1f)
            .withSeed(7),
        probe.sampling.sampling());
  }

  @Test
  void layersAsLlamaCppNamesThem() {
    var converter = new ModelArguments.LayersConverter();
    assertEquals(-1, converter.convert("all"));
    assertEquals(99, converter.convert("99"));
    assertThrows(TypeConversionException.class, () -> converter.convert("few"));
  }
}
