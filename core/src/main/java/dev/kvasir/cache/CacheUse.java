package dev.kvasir.cache;

/**
 * What several KV heads hold together.
 *
 * @param heads number of KV heads
 * @param slots slots held
 * @param fullSlots slots that they would hold if nothing were dropped
 * @param bytes K and V bytes held
 * @param fullBytes K and V bytes that they would hold if nothing were dropped
 */
public record CacheUse(int heads, long slots, long fullSlots, long bytes, long fullBytes) {
  static final CacheUse NOTHING = new CacheUse(0, 0, 0, 0, 0);

  CacheUse plus(HeadUse head) {
    return new CacheUse(
        heads + 1,
        slots + head.slots(),
        fullSlots + head.fullSlots(),
        bytes + head.bytes(),
        fullBytes + head.fullSlots() * head.slotBytes());
  }

  /** Both together. */
  public CacheUse plus(CacheUse other) {
    return new CacheUse(
        heads + other.heads,
        slots + other.slots,
        fullSlots + other.fullSlots,
        bytes + other.bytes,
        fullBytes + other.fullBytes);
  }

  /**
   * Held slots as a fraction of what they would hold if nothing were dropped; 1 when there is
   * nothing yet.
   */
  public double keptFraction() {
    return fullSlots == 0 ? 1 : (double) slots / fullSlots;
  }
}
