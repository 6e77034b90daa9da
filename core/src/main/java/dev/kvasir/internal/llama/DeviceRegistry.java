package dev.kvasir.internal.llama;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import dev.kvasir.ModelOptions;
import dev.kvasir.UnknownDeviceException;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;

/** ggml's registered devices. {@link NativeRuntime#start()} comes first. */
public final class DeviceRegistry {
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

  /**
   * The device of that name, or for {@code auto} the first GPU that has room for the weights, else
   * the CPU.
   *
   * @param weightBytes size of the model file
   * @throws UnknownDeviceException if there is none of that name
   */
  static Device select(String name, long weightBytes) {
    List<Device> devices = list();
    if (name.equals(ModelOptions.AUTO_DEVICE)) {
      return devices.stream()
          .filter(device -> device.type() == DeviceType.GPU && device.freeMemory() > weightBytes)
          .findFirst()
          .orElseGet(
              () ->
                  devices.stream()
                      .filter(device -> device.type() == DeviceType.CPU)
                      .findFirst()
                      .orElseThrow());
    }
    return devices.stream()
        .filter(device -> device.name().equalsIgnoreCase(name))
        .findFirst()
        .orElseThrow(
            () ->
                new UnknownDeviceException(
                    "There is no device \""
                        + name
                        + "\"; this machine has "
                        + devices.stream().map(Device::name).collect(Collectors.joining(", "))
                        + ". \"auto\" leaves the choice to Kvasir."));
  }

  private static Device describe(MemorySegment device) {
    DeviceType type = typeOf(NativeApi.ggml_backend_dev_type(device));
    long free;
    long total;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment sizes = arena.allocate(ValueLayout.JAVA_LONG, 2);
      NativeApi.ggml_backend_dev_memory(device, sizes, sizes.asSlice(Long.BYTES));
      free = sizes.getAtIndex(ValueLayout.JAVA_LONG, 0);
      total = sizes.getAtIndex(ValueLayout.JAVA_LONG, 1);
    }
    String path =
        type == DeviceType.CPU
            ? "native kernels (" + NativeApi.kvasir_cpu_kernels().getString(0) + ")"
            : "portable";
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
