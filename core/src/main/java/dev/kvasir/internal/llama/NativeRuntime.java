package dev.kvasir.internal.llama;

import dev.kvasir.NativeLibraryException;
import dev.kvasir.bindings.NativeLibraries;
import dev.kvasir.bindings.NativeLoadException;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;

/**
 * The native libraries of this JVM: loaded, connected to the loggers and initialised once, by the
 * first that asks.
 */
public final class NativeRuntime {
  private static boolean started;
  private static @Nullable String failure;

  private NativeRuntime() {}

  /**
   * Starts the libraries, or does nothing when they run. Any thread may call it.
   *
   * @throws NativeLibraryException if they cannot be found or loaded, or do not fit together
   */
  public static synchronized void start() {
    if (started) {
      return;
    }
    if (failure != null) {
      throw new NativeLibraryException(failure);
    }
    requireNativeAccess();
    NativeLibraries libraries;
    try {
      libraries = NativeLibraries.load();
    } catch (NativeLoadException e) {
      throw new NativeLibraryException(e.getMessage(), e);
    }
    // From here on the process has changed, and a second attempt could not do better than the
    // first.
    try {
      initialise(libraries);
      started = true;
    } catch (NativeLibraryException e) {
      failure = e.getMessage();
      throw e;
    }
  }

  // This module reads native memory itself, and may be denied what the bindings' is granted.
  private static void requireNativeAccess() {
    try {
      MemorySegment.NULL.reinterpret(0);
    } catch (IllegalCallerException e) {
      Module module = NativeRuntime.class.getModule();
      throw new NativeLibraryException(
          "Java denies native access to Kvasir. Start it with --enable-native-access="
              + (module.isNamed()
                  ? module.getName() + "," + NativeLibraries.class.getModule().getName()
                  : "ALL-UNNAMED")
              + ".",
          e);
    }
  }

  private static void initialise(NativeLibraries libraries) {
    ExitGuard.install();
    NativeLog.install();
    NativeLog.clearErrors();
    try (Arena arena = Arena.ofConfined()) {
      for (Path directory : libraries.backendDirectories()) {
        int status = NativeApi.kvasir_backends_load(arena.allocateFrom(directory.toString()));
        if (!NativeStatus.ok(status)) {
          throw new NativeLibraryException(
              "ggml's backends in "
                  + directory
                  + " cannot be loaded: "
                  + NativeStatus.reason(status)
                  + ".");
        }
      }
    }
    if (NativeApi.ggml_backend_dev_by_type(NativeApi.GGML_BACKEND_DEVICE_TYPE_CPU()).address()
        == 0) {
      throw new NativeLibraryException(
          "No CPU backend of ggml can run on this machine from "
              + libraries.directory()
              + ": "
              + String.join("; ", NativeLog.errors()));
    }
    int status = NativeApi.kvasir_init();
    if (!NativeStatus.ok(status)) {
      throw new NativeLibraryException(
          "The libraries in "
              + libraries.directory()
              + " do not fit together: "
              + NativeStatus.reason(status)
              + ". The kvasir library was built for llama.cpp "
              + NativeApi.kvasir_llama_version().getString(0)
              + ", found is "
              + NativeApi.llama_version().getString(0)
              + ".");
    }
  }
}
