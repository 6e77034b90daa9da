package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Ranges and defaults of the option records. */
class OptionsTest {

  @Test
  void defaultsAreThePapersWhereItNamesThem() {
    var policy = FastGen.asPublished();
    assertEquals(Candidates.PAPER, policy.candidates());
    assertEquals(Target.recovery(0.95), policy.target());
    assertEquals(0.3, policy.local());
    assertEquals(0.3, policy.frequent());
    assertEquals(Score.SUM, policy.score());
    assertEquals(List.of(Kind.values()), policy.order());
    assertEquals(Candidates.LATTICE, CachePolicy.fastgen().candidates());
    assertEquals(new Full(), CachePolicy.full());
    assertEquals(0.125, CachePolicy.h2o(0.25).frequent());
    assertEquals(0.125, CachePolicy.h2o(0.25).local());
    assertEquals(0, CachePolicy.streaming(0.25).frequent());
    assertEquals(0.35, CachePolicy.foresight().budget());
  }

  @Test
  void withersChangeOneThing() {
    var policy =
        FastGen.defaults()
            .withCandidates(Candidates.PAPER)
            .withTarget(Target.budgetBytes(5))
            .withLocal(0.1)
            .withFrequent(0.2)
            .withPooling(Pooling.MIN)
            .withScore(Score.SUM)
            .withWeight(Weight.NONE)
            .withSinks(7)
            .withGrace(8)
            .withOrder(Kind.SPECIAL, Kind.FREQUENT)
            .withMinimumTokens(9);
    assertEquals(
        new FastGen(
            Candidates.PAPER,
            Target.budgetBytes(5),
            0.1,
            0.2,
            Pooling.MIN,
            Score.SUM,
            Weight.NONE,
            7,
            8,
            List.of(Kind.SPECIAL, Kind.FREQUENT),
            9),
        policy);
    assertEquals(
        new Uniform(0.3, 0.4, Score.MEAN, Weight.VALUE, 1, 2, 3),
        CachePolicy.uniform(0, 0)
            .withFrequent(0.3)
            .withLocal(0.4)
            .withScore(Score.MEAN)
            .withWeight(Weight.VALUE)
            .withSinks(1)
            .withGrace(2)
            .withMinimumTokens(3));
  }

  @Test
  void whatIsOutOfRangeIsRefusedByName() {
    var policy = FastGen.defaults();
    refused("Target.recovery", () -> Target.recovery(1.01));
    refused("Target.recovery", () -> Target.recovery(Double.NaN));
    refused("Target.budgetFraction", () -> Target.budgetFraction(-0.1));
    refused("Target.budgetBytes", () -> Target.budgetBytes(-1));
    refused("FastGen.local", () -> policy.withLocal(2));
    refused("FastGen.frequent", () -> policy.withFrequent(-1));
    refused("FastGen.sinks", () -> policy.withSinks(-1));
    refused("FastGen.grace", () -> policy.withGrace(-1));
    refused("FastGen.minimumTokens", () -> policy.withMinimumTokens(0));
    refused("FastGen.order", () -> policy.withOrder(List.of()));
    refused("FastGen.order", () -> policy.withOrder(Kind.LOCAL, Kind.LOCAL));
    refused("Foresight.budget", () -> CachePolicy.foresight().withBudget(1.1));
    refused("Foresight.budget", () -> CachePolicy.foresight().withBudget(Double.NaN));
    refused("Foresight.sinks", () -> CachePolicy.foresight().withSinks(-1));
    refused("Foresight.minimumTokens", () -> CachePolicy.foresight().withMinimumTokens(0));
    refused("MovedQueries.stride", () -> MovedQueries.afterPrompt(3));
    refused("MovedQueries.stride", () -> new MovedQueries(true, 2));
    refused("Uniform.frequent", () -> CachePolicy.uniform(1.5, 0));
    refused("Uniform.local", () -> CachePolicy.uniform(0, -1));
    refused("Window", () -> new Window(3, 0.5));
  }

  @Test
  void theQueriesThatAreMovedHaveNames() {
    for (String name : List.of("u", "c", "c/2", "c/4", "c/8")) {
      assertEquals(name, MovedQueries.parse(name).toString());
    }
    assertEquals(MovedQueries.whileReading(), MovedQueries.parse("u"));
    assertEquals(MovedQueries.afterPrompt(8), MovedQueries.parse("c/8"));
    for (String name : List.of("", "U", "u/2", "c/1", "c/16", "c/")) {
      refused("MovedQueries", () -> MovedQueries.parse(name));
    }
  }

  private static void refused(String name, Executable call) {
    var e = assertThrows(IllegalArgumentException.class, call);
    assertTrue(e.getMessage().startsWith(name), e.getMessage());
  }

  @Test
  void fractionsOfLengthsRoundDownAsDecimals() {
    assertEquals(29, Window.ofPrompt(0.29).in(100)); // 28.999999999999996 in binary
    assertEquals(70, Window.ofPrompt(0.7).in(100));
    assertEquals(2, Window.ofPrompt(0.3).in(9));
    assertEquals(16, Window.ofTokens(16).in(9));
    assertEquals(0, Window.NONE.in(1000));
    assertEquals(0, new Candidate("c", false, true, false, 0.01, Window.NONE).frequentIn(99));
    assertEquals(1, new Candidate("c", false, true, false, 0.01, Window.NONE).frequentIn(100));
  }
}
