package dev.kvasir.internal.file;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.AccessDeniedException;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.OpenOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFileAttributeView;
import java.util.HexFormat;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;

/** Writes a file that is there whole, or as it was before. */
public final class WholeFile {
  private WholeFile() {}

  /**
   * Writes a file. A new one gets the permissions that any program's would, one that is there keeps
   * its own. A link, a device or a pipe is not replaced: it is written through.
   *
   * @throws IOException if it cannot be written
   */
  public static void write(Path file, byte[] bytes) throws IOException {
    Path target = file.toAbsolutePath();
    if (Files.exists(target, LinkOption.NOFOLLOW_LINKS)
        && !Files.isRegularFile(target, LinkOption.NOFOLLOW_LINKS)) {
      writeThrough(target, bytes);
      return;
    }
    try {
      replace(target, bytes);
    } catch (AccessDeniedException e) {
      if (!Files.isWritable(target)) {
        throw e;
      }
      writeThrough(target, bytes); // its directory takes no other file
    }
  }

  private static void writeThrough(Path target, byte[] bytes) throws IOException {
    // What is no file must not be made one, nor be cut to a length.
    OpenOption[] options =
        Files.exists(target) && !Files.isRegularFile(target)
            ? new OpenOption[] {StandardOpenOption.WRITE}
            : new OpenOption[] {
              StandardOpenOption.WRITE,
              StandardOpenOption.CREATE,
              StandardOpenOption.TRUNCATE_EXISTING
            };
    Files.write(target, bytes, options);
  }

  private static void replace(Path target, byte[] bytes) throws IOException {
    Path part =
        target.resolveSibling(
            "."
                + target.getFileName()
                + "."
                + HexFormat.of().toHexDigits(ThreadLocalRandom.current().nextLong()));
    try {
      try (FileChannel channel =
          FileChannel.open(part, Set.of(StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW))) {
        keepPermissions(target, part);
        ByteBuffer source = ByteBuffer.wrap(bytes);
        while (source.hasRemaining()) {
          channel.write(source);
        }
        channel.force(true); // before the name says that it is there
      }
      try {
        Files.move(part, target, StandardCopyOption.ATOMIC_MOVE);
      } catch (AtomicMoveNotSupportedException e) {
        Files.move(part, target, StandardCopyOption.REPLACE_EXISTING);
      }
    } finally {
      Files.deleteIfExists(part);
    }
  }

  private static void keepPermissions(Path from, Path to) throws IOException {
    PosixFileAttributeView view = Files.getFileAttributeView(to, PosixFileAttributeView.class);
    if (view != null && Files.exists(from)) {
      view.setPermissions(Files.getPosixFilePermissions(from));
    }
  }
}
