package dev.kvasir.examples.options;

import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.StandardStreams;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;

/** A text that an option names. */
public final class TextFile {
  private static final Path STANDARD_INPUT = Path.of("-");

  private TextFile() {}

  /**
   * The text of a UTF-8 file, or of standard input for {@code -}.
   *
   * @throws CommandFailure if it cannot be read, is empty, or is no UTF-8
   */
  public static String read(Path file, StandardStreams streams) {
    boolean piped = file.equals(STANDARD_INPUT);
    var name = piped ? "Standard input" : "The file " + file;
    try {
      var bytes = piped ? streams.in().readAllBytes() : Files.readAllBytes(file);
      var text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
      if (text.isBlank()) {
        throw new CommandFailure(name + " is empty.");
      }
      return text;
    } catch (NoSuchFileException e) {
      throw new CommandFailure(name + " does not exist.", e);
    } catch (CharacterCodingException e) {
      throw new CommandFailure(name + " is no UTF-8 text.", e);
    } catch (IOException e) {
      throw new CommandFailure(name + " cannot be read: " + e.getMessage(), e);
    }
  }
}
