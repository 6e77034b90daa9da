package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class PlacementTest {
  private static final Device CPU = device("CPU", DeviceType.CPU, 8);
  private static final Device FIRST = device("CUDA0", DeviceType.GPU, 30);
  private static final Device SECOND = device("CUDA1", DeviceType.GPU, 10);

  private static Device device(String name, DeviceType type, long free) {
    return new Device(name, name, type, free, free, "path");
  }

  private static String place(List<Device> devices, int gpuLayers, List<Double> split, int layers) {
    StringBuilder text = new StringBuilder();
    for (Placement.Share share : Placement.of(devices, CPU, gpuLayers, split, layers).shares()) {
      text.append(share.device().name()).append(' ').append(share.layers()).append(' ');
    }
    return text.toString().strip();
  }

  @Test
  void theLastLayersAndTheOutputAreOffloaded() {
    assertEquals("CUDA0 31", place(List.of(FIRST), -1, List.of(), 30));
    assertEquals("CUDA0 31", place(List.of(FIRST), 31, List.of(), 30));
    assertEquals("CUDA0 31", place(List.of(FIRST), 1000, List.of(), 30));
    assertEquals("CPU 1 CUDA0 30", place(List.of(FIRST), 30, List.of(), 30));
    assertEquals("CPU 30 CUDA0 1", place(List.of(FIRST), 1, List.of(), 30));
    assertEquals("CPU 31", place(List.of(FIRST), 0, List.of(), 30));
    assertEquals("CPU 31", place(List.of(CPU), 12, List.of(), 30));
  }

  @Test
  void severalDevicesShareByProportionOrByFreeMemory() {
    List<Device> both = List.of(FIRST, SECOND);
    assertEquals("CUDA0 24 CUDA1 8", place(both, -1, List.of(), 31));
    assertEquals("CUDA0 24 CUDA1 8", place(both, -1, List.of(3.0, 1.0), 31));
    assertEquals("CPU 12 CUDA0 10 CUDA1 10", place(both, 20, List.of(1.0, 1.0), 31));
    assertEquals("CPU 12 CUDA1 20", place(both, 20, List.of(0.0, 1.0), 31));
    Device silent = device("GPU0", DeviceType.GPU, 0);
    assertEquals(
        "GPU0 16 GPU1 16",
        place(List.of(silent, device("GPU1", DeviceType.GPU, 0)), -1, List.of(), 31));
  }

  @Test
  void theDeviceOfALayerIsKnown() {
    Placement placement =
        Placement.of(List.of(FIRST, SECOND), CPU, 6, List.of(1.0, 1.0), 9); // and the output
    assertEquals(
        List.of("CPU", "CPU", "CPU", "CPU", "CUDA0", "CUDA0", "CUDA0", "CUDA1", "CUDA1", "CUDA1"),
        IntStream.range(0, 10).mapToObj(layer -> placement.deviceOf(layer).name()).toList());
    assertEquals(4, placement.onCpu());
    assertEquals(6, placement.offloaded());
  }

  /** llama.cpp is given the counts as proportions, and must come to the counts. */
  @Test
  void countsAsProportionsGiveTheCounts() {
    for (int all = 1; all < 200; all++) {
      for (int first = 0; first <= all; first++) {
        for (int second = 0; second <= all - first; second += 7) {
          int[] counts = {first, second, all - first - second};
          float[] proportions = {counts[0], counts[1], counts[2]};
          assertArrayEquals(counts, Placement.split(proportions, all));
        }
      }
    }
  }
}
