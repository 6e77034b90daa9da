package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import dev.kvasir.InvalidOptionException;
import dev.kvasir.UnknownDeviceException;
import java.util.List;
import java.util.Locale;
import org.junit.jupiter.api.Test;

class DeviceSelectionTest {
  private static final Device SMALL = device("CUDA0", DeviceType.GPU, 100);
  private static final Device LARGE = device("CUDA1", DeviceType.GPU, 1000);
  private static final Device CPU = device("CPU", DeviceType.CPU, 5000);
  private static final List<Device> ALL = List.of(SMALL, LARGE, CPU);

  private static Device device(String name, DeviceType type, long free) {
    return new Device(name, name, type, free, free, "path");
  }

  private static List<Device> select(long bytes, String... names) {
    return DeviceRegistry.select(ALL, List.of(names), bytes);
  }

  @Test
  void autoIsTheFirstGpuWithRoomElseTheCpu() {
    assertEquals(List.of(SMALL), select(50, "auto"));
    assertEquals(List.of(LARGE), select(500, "auto"));
    assertEquals(List.of(CPU), select(2000, "auto"));
    assertEquals(List.of(CPU), DeviceRegistry.select(List.of(CPU), List.of("auto"), 50));
  }

  @Test
  void namedDevicesComeInTheirOrder() {
    assertEquals(List.of(LARGE, SMALL), select(1, "cuda1", "CUDA0"));
    assertEquals(List.of(CPU), select(1, "cpu"));
  }

  @Test
  void whatCannotStandTogetherIsRefused() {
    assertThrows(InvalidOptionException.class, () -> select(1, "CPU", "CUDA0"));
    assertThrows(InvalidOptionException.class, () -> select(1, "CUDA0", "cuda0"));
  }

  @Test
  void anUnknownDeviceIsNamedWithThoseThatExist() {
    String message =
        assertThrows(UnknownDeviceException.class, () -> select(1, "CUDA7")).getMessage();
    assertEquals(
        "There is no device \"CUDA7\"; this machine has CUDA0, CUDA1, CPU. \"auto\" leaves the choice to Kvasir.",
        message);
  }

  @Test
  void withoutAnyDeviceOfTheKindTheMessageSaysWhatIsMissing() {
    List<Device> real = DeviceRegistry.list();
    for (String kind : new String[] {"CUDA", "Vulkan"}) {
      if (real.stream().noneMatch(device -> device.name().startsWith(kind))) {
        String message =
            assertThrows(
                    UnknownDeviceException.class,
                    () -> DeviceRegistry.select(real, List.of(kind + "0"), 1))
                .getMessage();
        assertTrue(
            message.contains("cannot be loaded")
                || message.contains("-" + kind.toLowerCase(Locale.ROOT))
                || message.contains("_VISIBLE_DEVICES"),
            message);
      }
    }
  }
}
