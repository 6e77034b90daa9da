package dev.kvasir.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.kvasir.ProfileException;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileStore;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.PosixFileAttributeView;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What saving a profile does to what is there. */
class ProfileFileTest {
  private final Profile profile =
      ChoiceTest.randomProfile(new Random(3), Candidates.LATTICE, 2, 2, 5);

  @TempDir Path directory;

  @BeforeEach
  void needsPermissions() throws IOException {
    FileStore store = Files.getFileStore(directory);
    assumeTrue(store.supportsFileAttributeView(PosixFileAttributeView.class));
  }

  @Test
  void aNewFileHasThePermissionsOfAnyOther() throws IOException {
    Path file = directory.resolve("profile.json");
    profile.save(file);
    Path other = Files.createFile(directory.resolve("other"));
    assertEquals(Files.getPosixFilePermissions(other), Files.getPosixFilePermissions(file));
    assertEquals(profile, Profile.load(file));
    try (var files = Files.list(directory)) {
      assertEquals(2, files.count(), "nothing else is left");
    }
  }

  @Test
  void aFileKeepsItsPermissions() throws IOException {
    Path file = Files.createFile(directory.resolve("profile.json"));
    for (String permissions : new String[] {"rw-------", "rw-rw-rw-"}) {
      Files.setPosixFilePermissions(file, PosixFilePermissions.fromString(permissions));
      profile.save(file);
      assertEquals(permissions, PosixFilePermissions.toString(Files.getPosixFilePermissions(file)));
      assertEquals(profile, Profile.load(file));
    }
  }

  @Test
  void aFileThatNoProfileFillsIsNotRead() throws IOException {
    Path file = directory.resolve("large.json");
    try (var access = new RandomAccessFile(file.toFile(), "rw")) {
      access.setLength(1L << 40);
    }
    String message = assertThrows(ProfileException.class, () -> Profile.load(file)).getMessage();
    assertTrue(message.contains("MiB"), message);
    Path endless = Path.of("/dev/zero");
    assumeTrue(Files.isReadable(endless));
    assertThrows(ProfileException.class, () -> Profile.load(endless));
  }

  @Test
  void aLinkStaysOne() throws IOException {
    Path file = directory.resolve("kept.json");
    Path link = Files.createSymbolicLink(directory.resolve("link.json"), Path.of("kept.json"));
    for (int i = 0; i < 2; i++) { // to nothing, then to a file
      profile.save(link);
      assertTrue(Files.isSymbolicLink(link));
      assertTrue(Files.isRegularFile(file, LinkOption.NOFOLLOW_LINKS));
      assertEquals(profile, Profile.load(file));
      Files.writeString(file, "x".repeat(1_000_000));
    }
  }

  @Test
  void aPipeIsWrittenThrough() throws IOException, InterruptedException {
    Path pipe = directory.resolve("pipe");
    assumeTrue(new ProcessBuilder("mkfifo", pipe.toString()).start().waitFor() == 0);
    Path read = directory.resolve("read");
    Process reader =
        new ProcessBuilder("cat", pipe.toString()).redirectOutput(read.toFile()).start();
    try {
      profile.save(pipe);
      assertFalse(Files.isRegularFile(pipe, LinkOption.NOFOLLOW_LINKS));
      assertTrue(Files.readAttributes(pipe, BasicFileAttributes.class).isOther());
      assertTrue(reader.waitFor(60, TimeUnit.SECONDS));
    } finally {
      reader.destroyForcibly();
    }
    assertEquals(profile.toJson(), Files.readString(read, StandardCharsets.UTF_8));
  }
}
