package dev.kvasir.bindings;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class NativeLibrariesTest {
  private static final Platform LINUX = Platform.of("Linux", "amd64");

  @TempDir private Path directory;

  @Test
  void platformsAreNamedAsTheNativeJars() {
    assertEquals("linux-x86_64", LINUX.classifier());
    assertEquals("linux-aarch64", Platform.of("Linux", "aarch64").classifier());
    assertEquals("macos-aarch64", Platform.of("Mac OS X", "aarch64").classifier());
    assertEquals("windows-x86_64", Platform.of("Windows 11", "amd64").classifier());
  }

  @Test
  void theCacheIsWhereThePlatformWantsIt() {
    assertEquals(Path.of("/u/a/.cache/kvasir"), CacheDirectory.path(LINUX, Map.of(), "/u/a"));
    assertEquals(
        Path.of("/var/b/kvasir"),
        CacheDirectory.path(LINUX, Map.of("XDG_CACHE_HOME", "/var/b"), "/u/a"));
    assertEquals(
        Path.of("/u/a/.cache/kvasir"),
        CacheDirectory.path(LINUX, Map.of("XDG_CACHE_HOME", "relative"), "/u/a"));
    assertEquals(
        Path.of("/u/a/Library/Caches/kvasir"),
        CacheDirectory.path(Platform.of("Mac OS X", "aarch64"), Map.of(), "/u/a"));
  }

  @Test
  void dependenciesComeFirstWhateverTheVersionedNames() throws IOException {
    for (String name :
        List.of(
            "libllama.so.0",
            "libllama-common.so.0",
            "libggml.so",
            "libggml-base.so.0",
            "libkvasir.so",
            "libggml-cpu-x64.so")) {
      Files.createFile(directory.resolve(name));
    }
    assertEquals(
        List.of(
            "libggml-base.so.0",
            "libggml.so",
            "libllama.so.0",
            "libllama-common.so.0",
            "libkvasir.so"),
        names());
    Files.delete(directory.resolve("libllama-common.so.0"));
    assertEquals(
        List.of("libggml-base.so.0", "libggml.so", "libllama.so.0", "libkvasir.so"), names());
  }

  private List<String> names() {
    return NativeLibraries.find(LINUX, directory).stream()
        .map(path -> path.getFileName().toString())
        .toList();
  }

  @Test
  void aMissingLibraryIsNamed() throws IOException {
    for (String name : List.of("libllama.v0.5.0.so", "libggml.v0.5.0.so", "libggml-base.so")) {
      Files.createFile(directory.resolve(name));
    }
    String message =
        assertThrows(NativeLoadException.class, () -> NativeLibraries.find(LINUX, directory))
            .getMessage();
    assertTrue(message.contains("no kvasir library"), message);
    assertTrue(message.contains(directory.toString()), message);
  }

  @Test
  void anotherAbiVersionIsRefused() {
    assertDoesNotThrow(() -> NativeLibraries.checkAbi(directory, 7, 7));
    String message =
        assertThrows(NativeLoadException.class, () -> NativeLibraries.checkAbi(directory, 8, 7))
            .getMessage();
    assertTrue(message.contains("ABI version 8") && message.contains("version 7"), message);
  }
}
