package dev.kvasir.bindings;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
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

  @Test
  void jarsOfBackendsGoBesideThePlatformsInAFixedOrder() throws Exception {
    Path jars = directory.resolve("jars");
    Path cache = directory.resolve("cache");
    addJar(jars, "linux-x86_64-vulkan", "libggml-vulkan.so");
    try (URLClassLoader loader = new URLClassLoader(new URL[] {jars.toUri().toURL()}, null)) {
      String message =
          assertThrows(
                  NativeLoadException.class, () -> NativeLibraries.extract(LINUX, loader, cache))
              .getMessage();
      assertTrue(message.contains("classifier linux-x86_64 "), message);
      addJar(jars, "linux-x86_64", "libggml-base.so");
      addJar(jars, "linux-x86_64-cuda", "libggml-cuda.so");
      addJar(jars, "linux-aarch64", "libother.so");
      List<Path> directories = NativeLibraries.extract(LINUX, loader, cache);
      assertEquals(3, directories.size());
      assertTrue(Files.exists(directories.get(0).resolve("libggml-cuda.so")));
      assertTrue(Files.exists(directories.get(1).resolve("libggml-vulkan.so")));
      assertTrue(Files.exists(directories.get(2).resolve("libggml-base.so")));
    }
  }

  private static void addJar(Path jars, String classifier, String library) throws Exception {
    Path content = Files.createDirectories(jars.resolve("dev/kvasir/native/" + classifier));
    byte[] bytes = library.getBytes(StandardCharsets.UTF_8);
    Files.write(content.resolve(library), bytes);
    String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    Files.writeString(
        content.resolve(NativeBundle.INDEX), digest + " " + bytes.length + " " + library + "\n");
  }

  @Test
  void npmsPackagesForDevicesAreUnderstood() throws IOException {
    for (String name :
        List.of(
            "libggml-base.so",
            "libggml-cuda.so",
            "libggml.cuda.v0.5.0.so",
            "libkvasir.so",
            "libllama-common.so",
            "libllama.cuda.v0.5.0.so")) {
      Files.createFile(directory.resolve(name));
    }
    assertEquals(
        List.of(
            "libggml-base.so",
            "libggml.cuda.v0.5.0.so",
            "libllama.cuda.v0.5.0.so",
            "libllama-common.so",
            "libkvasir.so"),
        names());
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
