package dev.kvasir.cache;

/**
 * What one KV head holds.
 *
 * @param layer the model's layer index
 * @param kvHead the KV head within the layer
 * @param policy the name of its policy: "full", a candidate's name, or "undecided" while everything
 *     is kept because there is too little to choose by
 * @param slots slots held
 * @param fullSlots slots that the head would hold if nothing were dropped
 * @param slotBytes K and V bytes of one slot
 */
public record HeadUse(
    int layer, int kvHead, String policy, int slots, int fullSlots, long slotBytes) {

  /** K and V bytes held. */
  public long bytes() {
    return slots * slotBytes;
  }

  /**
   * Held slots as a fraction of what the head would hold if nothing were dropped; 1 when there is
   * nothing yet.
   */
  public double keptFraction() {
    return fullSlots == 0 ? 1 : (double) slots / fullSlots;
  }
}
