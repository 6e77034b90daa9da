package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeFalse;

import dev.kvasir.bindings.NativeLibraries;
import dev.kvasir.bindings.generated.NativeApi;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What is said of a device that is not there, and that saying it changes nothing. */
class MissingDeviceTest {
  @TempDir private Path directory;

  @BeforeEach
  void start() {
    NativeRuntime.start();
  }

  @Test
  void aLibraryThatCannotBeLoadedIsSaidSo() throws IOException {
    Files.writeString(directory.resolve("libggml-vulkan.so"), "no library");
    String reason = MissingDevice.reason("Vulkan0", List.of(directory)).orElseThrow();
    assumeFalse(reason.contains("libvulkan.so.1 cannot be loaded"), "no Vulkan loader here");
    assertTrue(reason.contains("ggml's library for it cannot be loaded: "), reason);
    assertTrue(reason.contains("libggml-vulkan.so"), reason);
  }

  @Test
  void noDeviceIsRegisteredMeanwhile() throws IOException {
    Path backend;
    try (var files = Files.list(NativeLibraries.load().directory())) {
      backend =
          files
              .filter(file -> file.getFileName().toString().matches("libggml-cpu-(x64|sse42).*"))
              .findFirst()
              .orElseThrow();
    }
    Files.copy(backend, directory.resolve("libggml-vulkan.so"));
    long registered = NativeApi.ggml_backend_reg_count();
    String reason = MissingDevice.reason("Vulkan0", List.of(directory)).orElseThrow();
    assumeFalse(reason.contains("libvulkan.so.1 cannot be loaded"), "no Vulkan loader here");
    assertTrue(reason.contains("no Vulkan driver shows a GPU"), reason);
    assertEquals(registered, NativeApi.ggml_backend_reg_count());
  }
}
