package dev.kvasir.internal.llama;

import dev.kvasir.bindings.NativeLibraries;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * Finds out what is missing for a kind of device that ggml shows none of: the driver, ggml's
 * library for it, what that library needs, or the hardware.
 */
enum MissingDevice {
  CUDA(
      "cuda",
      "libcuda.so.1",
      "NVIDIA's driver is not installed",
      "NVIDIA's driver shows no GPU (nvidia-smi lists them, CUDA_VISIBLE_DEVICES hides them)"),
  VULKAN(
      "vulkan",
      "libvulkan.so.1",
      "the Vulkan loader is not installed",
      "no Vulkan driver shows a GPU (vulkaninfo lists them; one that renders on the CPU is taken only with"
          + " GGML_VK_VISIBLE_DEVICES=0)");

  private final String backend;
  private final String driver;
  private final String withoutDriver;
  private final String withoutDevice;

  MissingDevice(String backend, String driver, String withoutDriver, String withoutDevice) {
    this.backend = backend;
    this.driver = driver;
    this.withoutDriver = withoutDriver;
    this.withoutDevice = withoutDevice;
  }

  /** Why there is no device of that name; empty for a name of another kind. */
  static Optional<String> reason(String name, List<Path> directories) {
    String kind = name.toLowerCase(Locale.ROOT).replaceAll("[0-9]+$", "");
    for (MissingDevice missing : values()) {
      if (missing.backend.equals(kind)) {
        return Optional.of(missing.reason(directories));
      }
    }
    return Optional.empty();
  }

  private String reason(List<Path> directories) {
    if (registered()) {
      return withoutDevice;
    }
    List<String> parts = new ArrayList<>();
    if (!loadable(driver)) {
      parts.add(withoutDriver + " (" + driver + " cannot be loaded)");
    }
    Optional<Path> library =
        directories.stream()
            .map(directory -> directory.resolve("libggml-" + backend + ".so"))
            .filter(Files::exists)
            .findFirst();
    if (library.isEmpty()) {
      parts.add(
          "ggml's "
              + backend
              + " library is not there: add the artifact dev.kvasir:kvasir-native with the classifier "
              + NativeLibraries.classifier(backend)
              + " (a build from source makes it with -Dkvasir."
              + backend
              + ", examples/kvasir with KVASIR_BACKENDS="
              + backend
              + ")");
    } else if (parts.isEmpty()) {
      parts.add(
          problem(library.get())
              .map(error -> "ggml's library for it cannot be loaded: " + error)
              .orElse(withoutDevice));
    }
    return String.join(", and ", parts);
  }

  private boolean registered() {
    for (long i = 0; i < NativeApi.ggml_backend_reg_count(); i++) {
      if (NativeApi.ggml_backend_reg_name(NativeApi.ggml_backend_reg_get(i))
          .getString(0)
          .equalsIgnoreCase(backend)) {
        return true;
      }
    }
    return false;
  }

  private static boolean loadable(String library) {
    try (Arena arena = Arena.ofConfined()) {
      SymbolLookup.libraryLookup(library, arena);
      return true;
    } catch (IllegalArgumentException e) {
      return false;
    }
  }

  // Not ggml_backend_load: that would register a device while a message is written.
  private static Optional<String> problem(Path library) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment problem =
          NativeApi.kvasir_library_problem(arena.allocateFrom(library.toString()));
      return problem.address() == 0 ? Optional.empty() : Optional.of(problem.getString(0));
    }
  }
}
