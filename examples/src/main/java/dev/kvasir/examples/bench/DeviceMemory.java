package dev.kvasir.examples.bench;

import dev.kvasir.DeviceType;
import dev.kvasir.Devices;
import java.util.List;
import java.util.OptionalLong;

/** Memory of GPUs, as their driver counts it, for all processes together. */
final class DeviceMemory {
  private DeviceMemory() {}

  /**
   * Free bytes of those of the named devices that have memory of their own; empty when there is
   * none, or the driver does not tell.
   */
  static OptionalLong free(List<String> names) {
    var devices =
        Devices.list().stream()
            .filter(device -> device.type() == DeviceType.GPU && names.contains(device.name()))
            .toList();
    return devices.isEmpty() || devices.stream().anyMatch(device -> device.totalMemory() == 0)
        ? OptionalLong.empty()
        : OptionalLong.of(devices.stream().mapToLong(device -> device.freeMemory()).sum());
  }
}
