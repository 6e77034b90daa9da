package dev.kvasir;

import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/** How a model is loaded. Immutable: every {@code with} method makes a copy. */
public final class ModelOptions {
  /** The name that leaves the choice of the device to Kvasir. */
  public static final String AUTO_DEVICE = "auto";

  private static final ModelOptions DEFAULTS = new ModelOptions();

  private List<String> devices = List.of(AUTO_DEVICE);
  private int gpuLayers = -1;
  private List<Double> tensorSplit = List.of();
  private boolean adaptiveCache = true;
  private boolean useMmap = true;
  private @Nullable LoadListener progress = null;

  private ModelOptions() {}

  /** A copy with a change, whose ranges are checked. */
  private ModelOptions(ModelOptions from, Consumer<ModelOptions> change) {
    devices = from.devices;
    gpuLayers = from.gpuLayers;
    tensorSplit = from.tensorSplit;
    adaptiveCache = from.adaptiveCache;
    useMmap = from.useMmap;
    progress = from.progress;
    change.accept(this);
    check();
  }

  private void check() {
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

  /**
   * Where the layers go: {@code auto} (the first GPU with enough free memory for the weights, else
   * the CPU), or one name of {@link Devices#list()}, or several of GPUs, which share the layers in
   * this order.
   */
  public List<String> devices() {
    return devices;
  }

  /**
   * Layers that go to the devices, counted from the end, the output being one; the others stay on
   * the CPU, with their part of the cache. -1: all of them. Without meaning on the CPU.
   */
  public int gpuLayers() {
    return gpuLayers;
  }

  /**
   * Proportions of those layers that go to each of {@link #devices()}; empty: by the devices' free
   * memory.
   */
  public List<Double> tensorSplit() {
    return tensorSplit;
  }

  /**
   * True: the KV cache is Kvasir's and any policy can be used. False: unmodified llama.cpp, where
   * only {@code CachePolicy.full()} is possible; meant for comparison.
   */
  public boolean adaptiveCache() {
    return adaptiveCache;
  }

  /** Maps the file instead of reading it. */
  public boolean useMmap() {
    return useMmap;
  }

  /** Hears how far the loading is and may end it; null: nobody. */
  public @Nullable LoadListener progress() {
    return progress;
  }

  /** A copy with one device, and no proportions. */
  public ModelOptions withDevice(String value) {
    return withDevices(List.of(value));
  }

  /** A copy with other devices, and no proportions. */
  public ModelOptions withDevices(List<String> value) {
    List<String> copy = List.copyOf(value);
    return new ModelOptions(
        this,
        o -> {
          o.devices = copy;
          o.tensorSplit = List.of();
        });
  }

  /** A copy with another number of layers on the devices. */
  public ModelOptions withGpuLayers(int value) {
    return new ModelOptions(this, o -> o.gpuLayers = value);
  }

  /** A copy with other proportions of the devices, one for each. */
  public ModelOptions withTensorSplit(List<Double> value) {
    List<Double> copy = List.copyOf(value);
    return new ModelOptions(this, o -> o.tensorSplit = copy);
  }

  /** A copy with or without the adaptive cache. */
  public ModelOptions withAdaptiveCache(boolean value) {
    return new ModelOptions(this, o -> o.adaptiveCache = value);
  }

  /** A copy that maps the file, or reads it. */
  public ModelOptions withUseMmap(boolean value) {
    return new ModelOptions(this, o -> o.useMmap = value);
  }

  /** A copy with another listener. */
  public ModelOptions withProgress(@Nullable LoadListener value) {
    return new ModelOptions(this, o -> o.progress = value);
  }

  private List<@Nullable Object> values() {
    return Arrays.asList(devices, gpuLayers, tensorSplit, adaptiveCache, useMmap, progress);
  }

  @Override
  public boolean equals(@Nullable Object other) {
    return other instanceof ModelOptions options && values().equals(options.values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  @Override
  public String toString() {
    return "ModelOptions" + values();
  }
}
