package dev.kvasir;

import dev.kvasir.internal.llama.DeviceRegistry;
import java.util.List;

/** The devices of this machine. */
public final class Devices {
  private Devices() {}

  /**
   * The devices that ggml found, the CPU among them, in ggml's order. Any thread may call it; the
   * first call of the JVM loads the native libraries.
   *
   * @throws NativeLibraryException if the native libraries cannot be loaded
   */
  public static List<Device> list() {
    return DeviceRegistry.list();
  }
}
