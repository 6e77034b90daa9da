package dev.kvasir.examples.chat;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import org.jspecify.annotations.Nullable;

/**
 * Where the messages of a conversation come from. A line that ends with a backslash goes on in the
 * next.
 */
interface Lines extends AutoCloseable {

  /**
   * The next message or command; null at the end.
   *
   * @param interrupted whether Ctrl-C ended the answer before: another one then ends the program
   */
  @Nullable String next(boolean interrupted);

  /** Whether Ctrl-C, not the end of the input, was why there is no next line. */
  default boolean endedByCtrlC() {
    return false;
  }

  /** Columns of the terminal, or of what a pipe is most likely shown in. */
  default int width() {
    return 100;
  }

  @Override
  default void close() {}

  /** The lines of a pipe or file. */
  static Lines of(InputStream in) {
    var reader = new BufferedReader(new InputStreamReader(in, StandardCharsets.UTF_8));
    return interrupted -> {
      try {
        var message = new StringBuilder();
        var line = reader.readLine();
        while (line != null && line.endsWith("\\")) {
          message.append(line, 0, line.length() - 1).append('\n');
          line = reader.readLine();
        }
        return line == null && message.isEmpty()
            ? null
            : message.append(line == null ? "" : line).toString();
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    };
  }
}
