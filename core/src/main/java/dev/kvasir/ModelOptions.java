package dev.kvasir;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * How a model is loaded.
 *
 * @param devices where the layers go: {@code auto} (the first GPU with enough free memory for the
 *     weights, else the CPU), or one name of {@link Devices#list()}, or several of GPUs, which
 *     share the layers in this order
 * @param gpuLayers layers that go to the devices, counted from the end, the output being one; the
 *     others stay on the CPU, with their part of the cache. -1: all of them. Without meaning on the
 *     CPU
 * @param tensorSplit proportions of those layers that go to each of {@code devices}; empty: by the
 *     devices' free memory
 * @param adaptiveCache true: the KV cache is Kvasir's and any policy can be used. False: unmodified
 *     llama.cpp, where only {@code CachePolicy.full()} is possible; meant for comparison
 * @param useMmap maps the file instead of reading it
 * @param progress hears how far the loading is and may end it; null: nobody
 */
public record ModelOptions(
    List<String> devices,
    int gpuLayers,
    List<Double> tensorSplit,
    boolean adaptiveCache,
    boolean useMmap,
    @Nullable LoadListener progress) {
  /** The name that leaves the choice of the device to Kvasir. */
  public static final String AUTO_DEVICE = "auto";

  private static final ModelOptions DEFAULTS =
      new ModelOptions(List.of(AUTO_DEVICE), -1, List.of(), true, true, null);

  /** Copies the lists and checks the ranges. */
  public ModelOptions {
    devices = List.copyOf(devices);
    tensorSplit = List.copyOf(tensorSplit);
    if (devices.isEmpty() || devices.stream().anyMatch(String::isBlank)) {
      throw new IllegalArgumentException(
          "ModelOptions.devices has a blank name or none; use \"auto\", \"CPU\" or names of Devices.list()");
    }
    if (devices.size() > 1 && devices.stream().anyMatch(AUTO_DEVICE::equals)) {
      throw new IllegalArgumentException(
          "ModelOptions.devices has \"auto\" beside other names: it stands alone");
    }
    if (gpuLayers < -1) {
      throw new IllegalArgumentException("ModelOptions.gpuLayers is out of range: " + gpuLayers);
    }
    if (!tensorSplit.isEmpty()) {
      if (tensorSplit.size() != devices.size()) {
        throw new IllegalArgumentException(
            "ModelOptions.tensorSplit has %d proportions for %d devices: one is needed for each, and the devices by name"
                .formatted(tensorSplit.size(), devices.size()));
      }
      double sum = 0;
      for (double part : tensorSplit) {
        if (!(part >= 0) || part == Double.POSITIVE_INFINITY) {
          throw new IllegalArgumentException(
              "ModelOptions.tensorSplit is out of range: " + tensorSplit);
        }
        sum += part;
      }
      if (sum == 0) {
        throw new IllegalArgumentException("ModelOptions.tensorSplit gives no device anything");
      }
    }
  }

  /** Device {@code auto}, all layers on it, the adaptive cache, the file mapped. */
  public static ModelOptions defaults() {
    return DEFAULTS;
  }

  /** A copy with one device, and no proportions. */
  public ModelOptions withDevice(String value) {
    return withDevices(List.of(value));
  }

  /** A copy with other devices, and no proportions. */
  public ModelOptions withDevices(List<String> value) {
    return new ModelOptions(value, gpuLayers, List.of(), adaptiveCache, useMmap, progress);
  }

  /** A copy with another number of layers on the devices. */
  public ModelOptions withGpuLayers(int value) {
    return new ModelOptions(devices, value, tensorSplit, adaptiveCache, useMmap, progress);
  }

  /** A copy with other proportions of the devices, one for each. */
  public ModelOptions withTensorSplit(List<Double> value) {
    return new ModelOptions(devices, gpuLayers, value, adaptiveCache, useMmap, progress);
  }

  /** A copy with or without the adaptive cache. */
  public ModelOptions withAdaptiveCache(boolean value) {
    return new ModelOptions(devices, gpuLayers, tensorSplit, value, useMmap, progress);
  }

  /** A copy that maps the file, or reads it. */
  public ModelOptions withUseMmap(boolean value) {
    return new ModelOptions(devices, gpuLayers, tensorSplit, adaptiveCache, value, progress);
  }

  /** A copy with another listener. */
  public ModelOptions withProgress(@Nullable LoadListener value) {
    return new ModelOptions(devices, gpuLayers, tensorSplit, adaptiveCache, useMmap, value);
  }
}
