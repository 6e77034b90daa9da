package dev.kvasir.internal.llama;

import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.internal.policy.CacheStore;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * What was summed up of one head's moved queries and is not folded into its scores yet, with its
 * value rows.
 */
public final class MovedSums {
  private final float[][] squares; // of the attention, by query head of the group and slot
  private final float[][] output; // mean, by query head of the group
  private final float[] squaredLength; // of the output, mean, by query head of the group
  private final float[][] values; // by slot

  private MovedSums(float[][] squares, float[][] output, float[] squaredLength, float[][] values) {
    this.squares = squares;
    this.output = output;
    this.squaredLength = squaredLength;
    this.values = values;
  }

  /** Reads those of a head. */
  public static MovedSums read(NativeContext context, int layer, int head) {
    CacheStore store = context.store(0).orElseThrow();
    int group = store.shape(layer).queryGroup();
    int dim = store.shape(layer).valueDim();
    int slots = store.slots(layer, head);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment squares = arena.allocate(ValueLayout.JAVA_FLOAT, (long) group * slots);
      MemorySegment output = arena.allocate(ValueLayout.JAVA_FLOAT, (long) group * dim);
      MemorySegment length2 = arena.allocate(ValueLayout.JAVA_FLOAT, group);
      MemorySegment values = arena.allocate(ValueLayout.JAVA_FLOAT, (long) slots * dim);
      MemorySegment none = MemorySegment.NULL;
      require(
          NativeApi.kvasir_moved_read(
              context.cache(), layer, head, none, squares, output, length2));
      require(NativeApi.kvasir_cache_read(context.cache(), layer, 0, head, none, values));
      return new MovedSums(
          rows(squares, group, slots),
          rows(output, group, dim),
          length2.toArray(ValueLayout.JAVA_FLOAT),
          rows(values, slots, dim));
    }
  }

  private static void require(int status) {
    if (!NativeStatus.ok(status)) {
      throw new IllegalStateException(NativeStatus.reason(status));
    }
  }

  private static float[][] rows(MemorySegment from, int rows, int columns) {
    float[][] copy = new float[rows][columns];
    for (int r = 0; r < rows; r++) {
      MemorySegment.copy(from, ValueLayout.JAVA_FLOAT, 4L * r * columns, copy[r], 0, columns);
    }
    return copy;
  }

  /**
   * Sum over the query heads of the weighted squares times the squared distance of a slot's value
   * from the mean output, by slot, in double precision.
   *
   * @param smooth squares are means over so many neighbouring slots first
   */
  public double[] losses(int smooth) {
    double[] losses = new double[values.length];
    for (int g = 0; g < squares.length; g++) {
      for (int j = 0; j < losses.length; j++) {
        int from = Math.max(0, j - smooth / 2);
        int to = Math.min(losses.length - 1, j + smooth / 2);
        double square = 0;
        for (int k = from; k <= to; k++) {
          square += squares[g][k];
        }
        double distance = 0;
        for (int d = 0; d < output[g].length; d++) {
          double difference = (double) values[j][d] - output[g][d];
          distance += difference * difference;
        }
        losses[j] += square / (to - from + 1) * distance / squaredLength[g];
      }
    }
    return losses;
  }
}
