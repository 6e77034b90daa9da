package dev.kvasir.examples.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.examples.terminal.CommandFailure;
import org.junit.jupiter.api.Test;

/** Problems from JSON lines. */
class WorkedExamplesTest {
  @Test
  void calculationsAreLeftOut() {
    var problems =
        WorkedExamples.parse(
            """
            {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5, and\\n5 * 2 = <<5*2=10>>10.\\n#### 10"}

            {"question": "And now?", "answer": "#### 1", "source": "made up"}
            """);
    assertEquals(2, problems.size());
    assertEquals("Question: How many?\nAnswer:", problems.getFirst().asked());
    assertEquals(
        "Question: How many?\nAnswer: 2 + 3 = 5, and\n5 * 2 = 10.\n#### 10\n\n",
        problems.getFirst().worked());
  }

  @Test
  void aLineThatIsNoProblemIsNamed() {
    for (var line :
        new String[] {
          "How many?",
          "{\"question\": \"How many?\"}",
          "[1]",
          "{\"question\": 1, \"answer\": \"2\"}"
        }) {
      var failure =
          assertThrows(
              CommandFailure.class,
              () -> WorkedExamples.parse("{\"question\": \"a\", \"answer\": \"b\"}\n" + line));
      assertTrue(failure.getMessage().contains("Line 2"), failure.getMessage());
    }
  }
}
