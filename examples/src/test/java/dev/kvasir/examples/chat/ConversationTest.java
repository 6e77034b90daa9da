package dev.kvasir.examples.chat;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ReplyStatistics;
import dev.kvasir.StopReason;
import java.util.Optional;
import org.junit.jupiter.api.Test;

/** What is said of an answer besides the answer. */
class ConversationTest {
  private static Optional<String> notice(StopReason reason, boolean emptied) {
    var statistics = new ReplyStatistics(300, 0, 1, 0, Optional.of(reason), emptied);
    return Conversation.notice(statistics, reason, 4096);
  }

  @Test
  void aConversationThatCtrlCEmptiedBeginsAnew() {
    assertTrue(
        notice(StopReason.CANCELLED, true)
            .orElseThrow()
            .startsWith("The conversation begins anew"));
    assertEquals(Optional.empty(), notice(StopReason.CANCELLED, false));
  }

  @Test
  void aFullContextIsNamed() {
    assertTrue(notice(StopReason.CONTEXT_FULL, false).orElseThrow().contains("4096"));
    assertEquals(Optional.empty(), notice(StopReason.END_OF_GENERATION, false));
  }
}
