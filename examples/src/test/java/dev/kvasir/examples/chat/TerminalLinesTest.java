package dev.kvasir.examples.chat;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PipedInputStream;
import java.io.PipedOutputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.locks.LockSupport;
import org.jline.terminal.impl.ExternalTerminal;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Keys that are pressed in a terminal, and the lines that come of them. */
@Timeout(60)
class TerminalLinesTest {
  private static final String CTRL_C = "\u0003";
  private static final String CTRL_D = "\u0004";
  private static final String CTRL_P = "\u0010"; // the line before
  private static final String PROMPT = "> ";
  private static final String HINT = "Ctrl-C again, Ctrl-D or /exit";

  @TempDir private Path directory;
  private final ByteArrayOutputStream screen = new ByteArrayOutputStream();
  private final ExecutorService hands = Executors.newSingleThreadExecutor();
  private int seen;
  private PipedOutputStream keyboard;
  private TerminalLines lines;

  @BeforeEach
  void open() throws IOException {
    keyboard = new PipedOutputStream();
    var terminal =
        new ExternalTerminal(
            "test", "xterm", new PipedInputStream(keyboard), screen, StandardCharsets.UTF_8);
    lines = new TerminalLines(terminal, directory.resolve("history"));
  }

  @AfterEach
  void close() {
    lines.close();
    hands.shutdownNow();
  }

  /** Presses keys once a text was shown after the one that was waited for before. */
  private void press(String text, String keys) {
    hands.execute(
        () -> {
          int at = shown().indexOf(text, seen);
          while (at < 0 && !hands.isShutdown()) {
            LockSupport.parkNanos(5_000_000);
            at = shown().indexOf(text, seen);
          }
          seen = at + text.length();
          try {
            keyboard.write(keys.getBytes(StandardCharsets.UTF_8));
            keyboard.flush();
          } catch (IOException e) {
            throw new UncheckedIOException(e);
          }
        });
  }

  private String shown() {
    return screen.toString(StandardCharsets.UTF_8);
  }

  @Test
  void aBackslashAsksForAnotherLine() {
    press(PROMPT, "one \\\rtwo 'not a \\quote\r");
    assertEquals("one \ntwo 'not a \\quote", lines.next(false));
  }

  @Test
  void aTabCompletesACommand() {
    press(PROMPT, "/hel\t\r");
    assertEquals("/help", lines.next(false).strip());
  }

  @Test
  void ctrlCTwiceEndsTheProgram() {
    press(PROMPT, CTRL_C);
    press(HINT, "");
    press(PROMPT, CTRL_C);
    assertNull(lines.next(false));
    assertTrue(lines.endedByCtrlC());
  }

  @Test
  void ctrlCAfterAnInterruptedAnswerEndsTheProgram() {
    press(PROMPT, CTRL_C);
    assertNull(lines.next(true));
    assertTrue(lines.endedByCtrlC());
    assertFalse(shown().contains(HINT), shown());
  }

  @Test
  void ctrlCDropsTheLineThatWasBegun() {
    press(PROMPT, "never mind");
    press("never mind", CTRL_C);
    press(PROMPT, "Hello\r");
    assertEquals("Hello", lines.next(true));
    assertFalse(lines.endedByCtrlC());
  }

  @Test
  void ctrlDIsTheEnd() {
    press(PROMPT, CTRL_D);
    assertNull(lines.next(false));
    assertFalse(lines.endedByCtrlC());
  }

  @Test
  void linesAreKeptForTheNextTime() throws IOException {
    press(PROMPT, "first\r");
    assertEquals("first", lines.next(false));
    press(PROMPT, "second\r");
    assertEquals("second", lines.next(false));
    lines.close();
    open();
    press(PROMPT, CTRL_P + CTRL_P + "\r");
    assertEquals("first", lines.next(false));
  }
}
