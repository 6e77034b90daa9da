package dev.kvasir.cache;

import java.util.Arrays;
import java.util.Objects;

/**
 * How the losses of one KV head's slots are distributed: the loss of dropping a slot, for each byte
 * that it takes, counted by bins of an eighth of an octave. A bin is named by the upper 11 bits of
 * a non-negative float: exponent and three bits of the mantissa.
 */
public final class HeadLosses {
  /** Bins that there are; the largest losses are infinite. */
  public static final int BINS = 1 << 11;

  private static final int SHIFT = 20;

  private final int layer;
  private final int kvHead;
  private final int staying;
  private final int firstBin;
  private final int[] slots;

  /**
   * A head's figures, which are copied.
   *
   * @param layer the model's layer index
   * @param kvHead the KV head within the layer
   * @param staying slots that stay whatever the budget is
   * @param firstBin bin of the first entry of {@code slots}
   * @param slots how many there are in that bin and in those that follow
   */
  public HeadLosses(int layer, int kvHead, int staying, int firstBin, int[] slots) {
    Ranges.atLeast("HeadLosses.staying", staying, 0);
    Objects.checkFromIndexSize(firstBin, slots.length, BINS);
    long all = staying;
    for (int count : slots) {
      Ranges.atLeast("HeadLosses.slots", count, 0);
      all += count;
    }
    if (all > Integer.MAX_VALUE) {
      throw new IllegalArgumentException("HeadLosses.slots are more than a head can have: " + all);
    }
    this.layer = layer;
    this.kvHead = kvHead;
    this.staying = staying;
    this.firstBin = firstBin;
    this.slots = slots.clone();
  }

  /** The bin of a loss per byte; of a negative one that of 0, of no number that of infinity. */
  public static int binOf(float lossPerByte) {
    return lossPerByte > 0
        ? Float.floatToIntBits(lossPerByte) >>> SHIFT
        : lossPerByte <= 0 ? 0 : binOf(Float.POSITIVE_INFINITY);
  }

  /** The least loss per byte of a bin. */
  public static float leastOf(int bin) {
    return Float.intBitsToFloat(Math.min(bin, binOf(Float.POSITIVE_INFINITY)) << SHIFT);
  }

  /** The model's layer index. */
  public int layer() {
    return layer;
  }

  /** The KV head within the layer. */
  public int kvHead() {
    return kvHead;
  }

  /** Slots that stay whatever the budget is. */
  public int staying() {
    return staying;
  }

  /** The first bin that may have slots. */
  public int firstBin() {
    return firstBin;
  }

  /** Behind the last bin that may have slots. */
  public int endBin() {
    return firstBin + slots.length;
  }

  /** Slots in a bin. */
  public int slots(int bin) {
    return bin < firstBin || bin >= endBin() ? 0 : slots[bin - firstBin];
  }

  /** All slots, with those that stay. */
  public int slots() {
    return staying + Arrays.stream(slots).sum();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof HeadLosses that
        && layer == that.layer
        && kvHead == that.kvHead
        && staying == that.staying
        && firstBin == that.firstBin
        && Arrays.equals(slots, that.slots);
  }

  @Override
  public int hashCode() {
    return Objects.hash(layer, kvHead, staying, firstBin, Arrays.hashCode(slots));
  }

  @Override
  public String toString() {
    return "HeadLosses[layer=%d, kvHead=%d, slots=%d]".formatted(layer, kvHead, slots());
  }
}
