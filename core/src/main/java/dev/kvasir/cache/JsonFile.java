package dev.kvasir.cache;

import dev.kvasir.ProfileException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;

/** Reads text files that somebody else may have written, of a bounded size. */
final class JsonFile {
  private JsonFile() {}

  /**
   * The text of a file.
   *
   * @param what names the content in messages, in the singular
   * @throws ProfileException if it cannot be read, or is larger than {@code mebibytes}
   */
  static String read(Path file, String what, int mebibytes) {
    int largest = mebibytes << 20;
    byte[] bytes;
    try (InputStream in = Files.newInputStream(file)) {
      bytes = in.readNBytes(largest + 1);
    } catch (NoSuchFileException e) {
      throw new ProfileException("the %s %s does not exist".formatted(what, file), e);
    } catch (IOException e) {
      throw new ProfileException("the %s %s cannot be read: %s".formatted(what, file, e), e);
    }
    if (bytes.length > largest) {
      throw new ProfileException(
          "%s is larger than %d MiB, and no %s is".formatted(file, mebibytes, what));
    }
    return new String(bytes, StandardCharsets.UTF_8);
  }
}
