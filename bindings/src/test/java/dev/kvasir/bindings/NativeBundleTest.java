package dev.kvasir.bindings;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class NativeBundleTest {
  private final Map<String, byte[]> jar = new HashMap<>();

  @TempDir private Path cache;

  @BeforeEach
  void fill() throws Exception {
    add("liba.so", "first");
    add("libb.so", "second");
  }

  @Test
  void aJarWithoutAnIndexIsNoBundle() {
    assertTrue(NativeBundle.of(name -> null).isEmpty());
  }

  @Test
  void extractsEveryFile() throws Exception {
    Path directory = bundle().extract(cache);
    assertEquals("first", Files.readString(directory.resolve("liba.so")));
    assertEquals("second", Files.readString(directory.resolve("libb.so")));
    assertEquals(List.of(directory), children());
  }

  @Test
  void anExtractedDirectoryIsUsedAgain() throws Exception {
    Path file = bundle().extract(cache).resolve("liba.so");
    FileTime past = FileTime.fromMillis(1_000_000_000L);
    Files.setLastModifiedTime(file, past);
    jar.keySet().removeIf(name -> name.startsWith("lib"));
    assertEquals(file.getParent(), bundle().extract(cache));
    assertEquals(past, Files.getLastModifiedTime(file));
  }

  @Test
  void otherContentIsAnotherDirectory() throws Exception {
    Path first = bundle().extract(cache);
    add("libc.so", "third");
    assertNotEquals(first, bundle().extract(cache));
    assertEquals(2, children().size());
  }

  @Test
  void whatNobodyHasUsedForLongGoes() throws Exception {
    FileTime past =
        FileTime.from(Instant.now().minus(NativeBundle.KEPT_UNUSED).minus(Duration.ofHours(1)));
    Path unused = bundle().extract(cache);
    Path interrupted = Files.createDirectory(cache.resolve("extracting-1234"));
    Path notOurs = Files.createDirectory(cache.resolve("photographs"));
    add("libc.so", "third");
    Path used = bundle().extract(cache);
    for (Path directory : List.of(unused, interrupted, notOurs, used)) {
      Files.setLastModifiedTime(directory, past);
    }
    bundle().extract(cache); // is there: it is marked as used, and nothing goes
    assertTrue(Files.exists(unused));
    assertTrue(Files.getLastModifiedTime(used).compareTo(past) > 0);

    add("libd.so", "fourth");
    Path extracted = bundle().extract(cache);
    assertEquals(
        Stream.of(extracted, notOurs, used).sorted().toList(),
        children().stream().sorted().toList());
  }

  @Test
  void anIncompleteDirectoryIsReplaced() throws Exception {
    Path directory = bundle().extract(cache);
    Files.writeString(directory.resolve("liba.so"), "fir");
    Files.delete(directory.resolve("libb.so"));
    assertEquals(directory, bundle().extract(cache));
    assertEquals("first", Files.readString(directory.resolve("liba.so")));
    assertEquals("second", Files.readString(directory.resolve("libb.so")));
  }

  @Test
  void aDamagedJarIsRefusedAndLeavesNothing() throws Exception {
    jar.put("libb.so", "sec0nd".getBytes(StandardCharsets.UTF_8));
    String message =
        assertThrows(NativeLoadException.class, () -> bundle().extract(cache)).getMessage();
    assertTrue(message.contains("libb.so"), message);
    assertEquals(List.of(), children());
  }

  @Test
  void aMissingLibraryIsNamed() {
    jar.remove("liba.so");
    String message =
        assertThrows(NativeLoadException.class, () -> bundle().extract(cache)).getMessage();
    assertTrue(message.contains("liba.so"), message);
  }

  @Test
  void aNameThatLeavesTheDirectoryIsRefused() {
    jar.put(NativeBundle.INDEX, "00 1 ../liba.so\n".getBytes(StandardCharsets.UTF_8));
    assertThrows(NativeLoadException.class, this::bundle);
    jar.put(NativeBundle.INDEX, "what is this\n".getBytes(StandardCharsets.UTF_8));
    assertThrows(NativeLoadException.class, this::bundle);
  }

  @Test
  void aCacheThatCannotBeWrittenIsNamed() throws Exception {
    Path file = Files.createFile(cache.resolve("occupied"));
    String message =
        assertThrows(NativeLoadException.class, () -> bundle().extract(file)).getMessage();
    assertTrue(message.contains(file.toString()), message);
    assertTrue(message.contains("XDG_CACHE_HOME"), message);
  }

  @Test
  void manyExtractAtTheSameTime() throws Exception {
    byte[] large = new byte[1 << 20];
    add("liblarge.so", large);
    List<Callable<Path>> tasks = new ArrayList<>();
    for (int i = 0; i < 16; i++) {
      tasks.add(() -> bundle().extract(cache));
    }
    try (var executor = Executors.newFixedThreadPool(8)) {
      for (var directory : executor.invokeAll(tasks)) {
        assertArrayEquals(large, Files.readAllBytes(directory.get().resolve("liblarge.so")));
      }
    }
    assertEquals(1, children().size());
  }

  private NativeBundle bundle() {
    return NativeBundle.of(
            name -> {
              byte[] content = jar.get(name);
              return content == null ? null : new ByteArrayInputStream(content);
            })
        .orElseThrow();
  }

  private void add(String name, String content) throws Exception {
    add(name, content.getBytes(StandardCharsets.UTF_8));
  }

  private void add(String name, byte[] content) throws Exception {
    jar.put(name, content);
    StringBuilder index = new StringBuilder();
    for (String library :
        jar.keySet().stream().filter(key -> key.startsWith("lib")).sorted().toList()) {
      byte[] bytes = jar.get(library);
      String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
      index.append(digest + " " + bytes.length + " " + library + "\n");
    }
    jar.put(NativeBundle.INDEX, index.toString().getBytes(StandardCharsets.UTF_8));
  }

  private List<Path> children() throws Exception {
    try (Stream<Path> files = Files.list(cache)) {
      return files.toList();
    }
  }
}
