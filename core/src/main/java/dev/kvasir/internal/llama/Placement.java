package dev.kvasir.internal.llama;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Which layers of a model go where: the first ones stay on the CPU, the rest goes to the devices
 * one after another. The output counts as the last layer.
 *
 * @param shares devices with the number of their layers, in the order of the layers; none without
 *     layers
 */
record Placement(List<Share> shares) {

  /** Consecutive layers on one device. */
  record Share(Device device, int layers) {}

  /**
   * Places a model.
   *
   * @param devices the CPU alone, or GPUs
   * @param cpu takes the layers that are not offloaded
   * @param gpuLayers layers to offload, counted from the end; -1: all
   * @param proportions of the devices; empty: their free memory
   * @param layers of the model, without the output
   */
  static Placement of(
      List<Device> devices, Device cpu, int gpuLayers, List<Double> proportions, int layers) {
    int all = layers + 1;
    int offloaded =
        devices.getFirst().type() == DeviceType.CPU
            ? 0
            : gpuLayers < 0 ? all : Math.min(gpuLayers, all);
    List<Share> shares = new ArrayList<>();
    if (offloaded < all) {
      shares.add(new Share(cpu, all - offloaded));
    }
    int[] counts = split(weights(devices, proportions), offloaded);
    for (int i = 0; i < counts.length; i++) {
      if (counts[i] > 0) {
        shares.add(new Share(devices.get(i), counts[i]));
      }
    }
    return new Placement(List.copyOf(shares));
  }

  /** The device of a layer; of the last one, for the output. */
  Device deviceOf(int layer) {
    int end = 0;
    for (Share share : shares) {
      end += share.layers;
      if (layer < end) {
        return share.device;
      }
    }
    return shares.getLast().device;
  }

  /** Layers on the CPU. */
  int onCpu() {
    Share first = shares.getFirst();
    return first.device.type() == DeviceType.CPU ? first.layers : 0;
  }

  /** Layers on other devices. */
  int offloaded() {
    return shares.stream().mapToInt(Share::layers).sum() - onCpu();
  }

  private static float[] weights(List<Device> devices, List<Double> proportions) {
    float[] weights = new float[devices.size()];
    for (int i = 0; i < weights.length; i++) {
      weights[i] =
          proportions.isEmpty() ? devices.get(i).freeMemory() : proportions.get(i).floatValue();
    }
    boolean none = true;
    for (float weight : weights) {
      none &= weight == 0;
    }
    if (none) { // no device tells how much memory it has
      Arrays.fill(weights, 1);
    }
    return weights;
  }

  /**
   * llama.cpp's own rule for a layer split, in its float arithmetic: the device of layer k of n is
   * the first whose part of the running sum exceeds k / n. So its result for these counts in place
   * of proportions is these counts again, also when the layers on the CPU come before them.
   */
  static int[] split(float[] weights, int layers) {
    float[] ends = new float[weights.length];
    float sum = 0;
    for (int i = 0; i < weights.length; i++) {
      sum += weights[i];
      ends[i] = sum;
    }
    int[] counts = new int[weights.length];
    for (int k = 0; k < layers; k++) {
      int device = 0;
      while (device < weights.length - 1 && ends[device] / sum <= (float) k / layers) {
        device++;
      }
      counts[device]++;
    }
    return counts;
  }
}
