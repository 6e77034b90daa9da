package dev.kvasir.examples.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Optional;
import org.junit.jupiter.api.Test;

/** What is made of a text that a model wrote by itself. */
class FreeRunTest {
  @Test
  void theFirstNumberBehindTheMarkIsTheAnswer() {
    assertEquals(Optional.of("18"), FreeRun.answer(" 9 * 2 = $18.\n#### 18\n\nQuestion: #### 7"));
    assertEquals(Optional.of("-3"), FreeRun.answer("####-3"));
    assertEquals(Optional.of("1234.5"), FreeRun.answer("#### $1,234.50 in all"));
    assertEquals(Optional.of("70000"), FreeRun.answer("so\n#### 70,000."));
    assertEquals(Optional.of("0"), FreeRun.answer("#### 0.00"));
    assertEquals(Optional.empty(), FreeRun.answer("The answer is 18."));
    assertEquals(Optional.empty(), FreeRun.answer("#### none, as 3 is too few"));
  }

  @Test
  void anAnswerCountsOnlyBesideOneOfTheFullCache() {
    int[] tokens = {1, 2, 3};
    assertTrue(FreeRun.of(tokens, "#### 5", tokens, "#### 5.0").agrees());
    assertFalse(FreeRun.of(tokens, "#### 5", tokens, "#### 6").agrees());
    assertFalse(FreeRun.of(tokens, "", tokens, "#### 6").agrees());
    var neither = FreeRun.of(tokens, "", tokens, "");
    assertFalse(neither.agrees() || neither.answered());
  }

  @Test
  void repetitionsAreSeenInRunsOfThree() {
    assertEquals(1, FreeRun.distinct(new int[] {1, 2, 3, 4, 5}));
    // 123 231 312 123 231: three of five
    assertEquals(0.6, FreeRun.distinct(new int[] {1, 2, 3, 1, 2, 3, 1}));
    assertEquals(0.25, FreeRun.distinct(new int[] {7, 7, 7, 7, 7, 7}));
    assertEquals(1, FreeRun.distinct(new int[] {7, 7}));
  }

  @Test
  void samePrefix() {
    int[] full = {4, 5, 6, 7};
    assertEquals(2, FreeRun.of(new int[] {4, 5, 7, 7}, "", full, "").samePrefix());
    assertEquals(4, FreeRun.of(full.clone(), "", full, "").samePrefix());
  }
}
