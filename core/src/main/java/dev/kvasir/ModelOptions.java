package dev.kvasir;

import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * How a model is loaded.
 *
 * @param device {@code auto} (the first GPU with enough free memory for the weights, else the CPU)
 *     or the name of one of {@link Devices#list()}
 * @param gpuLayers layers whose weights go to the device, counted from the end; -1: all of them,
 *     which the adaptive cache needs. Without meaning on the CPU
 * @param adaptiveCache true: the KV cache is Kvasir's and any policy can be used. False: unmodified
 *     llama.cpp, where only {@code CachePolicy.full()} is possible; meant for comparison
 * @param useMmap maps the file instead of reading it
 * @param progress hears how far the loading is and may end it; null: nobody
 */
public record ModelOptions(
    String device,
    int gpuLayers,
    boolean adaptiveCache,
    boolean useMmap,
    @Nullable LoadListener progress) {
  /** The name that leaves the choice of the device to Kvasir. */
  public static final String AUTO_DEVICE = "auto";

  private static final ModelOptions DEFAULTS = new ModelOptions(AUTO_DEVICE, -1, true, true, null);

  /** Checks the ranges. */
  public ModelOptions {
    Objects.requireNonNull(device, "device");
    if (device.isBlank()) {
      throw new IllegalArgumentException(
          "ModelOptions.device is blank; use \"auto\", \"CPU\" or a name of Devices.list()");
    }
    if (gpuLayers < -1) {
      throw new IllegalArgumentException("ModelOptions.gpuLayers is out of range: " + gpuLayers);
    }
  }

  /** Device {@code auto}, all layers on it, the adaptive cache, the file mapped. */
  public static ModelOptions defaults() {
    return DEFAULTS;
  }

  /** A copy with another device. */
  public ModelOptions withDevice(String value) {
    return new ModelOptions(value, gpuLayers, adaptiveCache, useMmap, progress);
  }

  /** A copy with another number of layers on the device. */
  public ModelOptions withGpuLayers(int value) {
    return new ModelOptions(device, value, adaptiveCache, useMmap, progress);
  }

  /** A copy with or without the adaptive cache. */
  public ModelOptions withAdaptiveCache(boolean value) {
    return new ModelOptions(device, gpuLayers, value, useMmap, progress);
  }

  /** A copy that maps the file, or reads it. */
  public ModelOptions withUseMmap(boolean value) {
    return new ModelOptions(device, gpuLayers, adaptiveCache, value, progress);
  }

  /** A copy with another listener. */
  public ModelOptions withProgress(@Nullable LoadListener value) {
    return new ModelOptions(device, gpuLayers, adaptiveCache, useMmap, value);
  }
}
