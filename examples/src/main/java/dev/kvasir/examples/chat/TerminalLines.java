package dev.kvasir.examples.chat;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.jline.reader.Candidate;
import org.jline.reader.EOFError;
import org.jline.reader.EndOfFileException;
import org.jline.reader.LineReader;
import org.jline.reader.LineReaderBuilder;
import org.jline.reader.ParsedLine;
import org.jline.reader.UserInterruptException;
import org.jline.reader.impl.DefaultParser;
import org.jline.terminal.Terminal;
import org.jline.terminal.TerminalBuilder;
import org.jspecify.annotations.Nullable;

/** Lines that are edited in a terminal, with a history that outlives the program. */
final class TerminalLines implements Lines {
  private static final String PROMPT = "> ";

  private final Terminal terminal;
  private final LineReader reader;
  private boolean endedByCtrlC;

  /** The lines of the process's own terminal. */
  static TerminalLines ofProcess() {
    try {
      return new TerminalLines(
          TerminalBuilder.builder()
              .system(true)
              .dumb(true)
              .encoding(StandardCharsets.UTF_8)
              .build(),
          historyFile());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Lines of a terminal, which is closed with them. */
  TerminalLines(Terminal terminal, @Nullable Path history) {
    this.terminal = terminal;
    reader =
        LineReaderBuilder.builder()
            .terminal(terminal)
            .appName("kvasir")
            .parser(new MessageParser())
            .completer(TerminalLines::complete)
            .variable(LineReader.SECONDARY_PROMPT_PATTERN, "  ")
            .option(LineReader.Option.DISABLE_EVENT_EXPANSION, true)
            .option(LineReader.Option.HISTORY_IGNORE_SPACE, false)
            .build();
    if (history != null) {
      reader.setVariable(LineReader.HISTORY_FILE, history);
    }
  }

  @Override
  public @Nullable String next(boolean interrupted) {
    boolean last = interrupted;
    while (true) {
      try {
        return reader.readLine(PROMPT).replace("\\\n", "\n");
      } catch (UserInterruptException e) {
        if (e.getPartialLine().isEmpty()) {
          if (last) {
            endedByCtrlC = true;
            return null;
          }
          terminal.writer().println("Ctrl-C again, Ctrl-D or /exit ends the program.");
          last = true;
        }
      } catch (EndOfFileException e) {
        return null;
      }
    }
  }

  @Override
  public boolean endedByCtrlC() {
    return endedByCtrlC;
  }

  @Override
  public int width() {
    return terminal.getWidth() > 0 ? terminal.getWidth() : Lines.super.width();
  }

  @Override
  public void close() {
    try {
      terminal.close();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static void complete(LineReader reader, ParsedLine line, List<Candidate> candidates) {
    if (line.wordIndex() == 0 && line.line().startsWith("/")) {
      Commands.NAMES.forEach(name -> candidates.add(new Candidate(name)));
    }
  }

  /**
   * In the directory for state that the XDG base directory specification names; null where that
   * cannot be written.
   */
  private static @Nullable Path historyFile() {
    var given = System.getenv("XDG_STATE_HOME");
    var base =
        given != null && Path.of(given).isAbsolute()
            ? Path.of(given)
            : Path.of(System.getProperty("user.home"), ".local", "state");
    try {
      return Files.createDirectories(base.resolve("kvasir")).resolve("history");
    } catch (IOException e) {
      return null;
    }
  }

  /**
   * Messages are plain text: no quoting, no escapes, but a backslash at the end asks for another
   * line.
   */
  private static final class MessageParser extends DefaultParser {
    MessageParser() {
      setEscapeChars(new char[0]);
      setQuoteChars(new char[0]);
    }

    @Override
    public ParsedLine parse(String line, int cursor, ParseContext context) {
      if (context == ParseContext.ACCEPT_LINE && line.endsWith("\\")) {
        throw new EOFError(-1, -1, "the message goes on");
      }
      return super.parse(line, cursor, context);
    }
  }
}
