package dev.kvasir.internal.llama;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import dev.kvasir.InvalidOptionException;
import dev.kvasir.ModelOptions;
import dev.kvasir.NativeLibraryException;
import dev.kvasir.UnknownDeviceException;
import dev.kvasir.bindings.NativeLibraries;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;

/** ggml's registered devices. {@link NativeRuntime#start()} comes first. */
public final class DeviceRegistry {
  /** The attention path of a device that Kvasir has no kernels for. */
  static final String PORTABLE = "portable";

  private DeviceRegistry() {}

  /** All devices in ggml's order. */
  public static List<Device> list() {
    NativeRuntime.start();
    List<Device> devices = new ArrayList<>();
    for (long i = 0; i < NativeApi.ggml_backend_dev_count(); i++) {
      devices.add(describe(NativeApi.ggml_backend_dev_get(i)));
    }
    return List.copyOf(devices);
  }

  /** The CPU, which is always there. */
  static Device cpu(List<Device> devices) {
    return devices.stream()
        .filter(device -> device.type() == DeviceType.CPU)
        .findFirst()
        .orElseThrow();
  }

  /**
   * The devices of those names, or for {@code auto} the first GPU that has room for the weights,
   * else the CPU.
   *
   * @param devices of this machine
   * @param weightBytes that will be on the device
   * @throws UnknownDeviceException if there is none of a name
   * @throws InvalidOptionException if the names cannot stand together
   */
  static List<Device> select(List<Device> devices, List<String> names, long weightBytes) {
    if (names.equals(List.of(ModelOptions.AUTO_DEVICE))) {
      return List.of(
          devices.stream()
              .filter(
                  device -> device.type() == DeviceType.GPU && device.freeMemory() > weightBytes)
              .findFirst()
              .orElseGet(() -> cpu(devices)));
    }
    List<Device> selected = names.stream().map(name -> byName(devices, name)).toList();
    if (selected.size() > 1 && selected.stream().anyMatch(d -> d.type() == DeviceType.CPU)) {
      throw new InvalidOptionException(
          "The CPU cannot be one of several devices ("
              + String.join(", ", names)
              + "): name the GPUs, and leave layers to the CPU by a number of GPU layers.");
    }
    if (selected.stream().distinct().count() < selected.size()) {
      throw new InvalidOptionException(
          "A device is named twice: " + String.join(", ", names) + ".");
    }
    return selected;
  }

  private static Device byName(List<Device> devices, String name) {
    return devices.stream()
        .filter(device -> device.name().equalsIgnoreCase(name))
        .findFirst()
        .orElseThrow(() -> new UnknownDeviceException(missing(devices, name)));
  }

  private static String missing(List<Device> devices, String name) {
    String kind = name.replaceAll("[0-9]+$", "");
    boolean others =
        devices.stream().anyMatch(d -> d.name().replaceAll("[0-9]+$", "").equalsIgnoreCase(kind));
    String known = devices.stream().map(Device::name).collect(Collectors.joining(", "));
    return MissingDevice.reason(name, NativeLibraries.load().backendDirectories())
        .filter(reason -> !others)
        .map(
            reason ->
                "There is no device \""
                    + name
                    + "\": "
                    + reason
                    + "; this machine has "
                    + known
                    + ".")
        .orElseGet(
            () ->
                "There is no device \""
                    + name
                    + "\"; this machine has "
                    + known
                    + ". \"auto\" leaves the choice to Kvasir.");
  }

  private static Device describe(MemorySegment device) {
    DeviceType type = typeOf(NativeApi.ggml_backend_dev_type(device));
    long free;
    long total;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment sizes = arena.allocate(ValueLayout.JAVA_LONG, 2);
      int status = NativeApi.kvasir_device_memory(device, sizes, sizes.asSlice(Long.BYTES));
      if (!NativeStatus.ok(status)) {
        throw new NativeLibraryException(
            "The device "
                + NativeApi.ggml_backend_dev_name(device).getString(0)
                + " does not say how much memory it has: "
                + NativeStatus.text(status)
                + ".");
      }
      free = sizes.getAtIndex(ValueLayout.JAVA_LONG, 0);
      total = sizes.getAtIndex(ValueLayout.JAVA_LONG, 1);
    }
    String kernels = NativeApi.kvasir_kernels(NativeApi.ggml_backend_dev_name(device)).getString(0);
    String path = kernels.isEmpty() ? PORTABLE : "native kernels (" + kernels + ")";
    return new Device(
        NativeApi.ggml_backend_dev_name(device).getString(0),
        NativeApi.ggml_backend_dev_description(device).getString(0),
        type,
        total,
        free,
        path);
  }

  private static DeviceType typeOf(int type) {
    if (type == NativeApi.GGML_BACKEND_DEVICE_TYPE_CPU()) {
      return DeviceType.CPU;
    } else if (type == NativeApi.GGML_BACKEND_DEVICE_TYPE_GPU()) {
      return DeviceType.GPU;
    } else if (type == NativeApi.GGML_BACKEND_DEVICE_TYPE_IGPU()) {
      return DeviceType.INTEGRATED_GPU;
    } else if (type == NativeApi.GGML_BACKEND_DEVICE_TYPE_ACCEL()) {
      return DeviceType.ACCELERATOR;
    }
    return DeviceType.OTHER;
  }
}
