package dev.kvasir.internal.policy;

/**
 * What the policies need to know of one layer of the store.
 *
 * @param layer the model's layer index
 * @param kvHeads KV heads of the layer
 * @param queryGroup query heads that share one KV head
 * @param keyDim elements of a key row
 * @param valueDim elements of a value row
 * @param slotBytes K and V bytes of one slot of one KV head
 * @param halfBytes what they would be as f16
 * @param cells tokens that the layer's cache can hold
 * @param sliding whether the layer belongs to the smaller cache of a sliding-window model, which
 *     reuses the cells of tokens that no later query can see
 */
public record LayerShape(
    int layer,
    int kvHeads,
    int queryGroup,
    int keyDim,
    int valueDim,
    long slotBytes,
    long halfBytes,
    int cells,
    boolean sliding) {

  /** A layer that holds both keys and values, which latent attention does not. */
  public LayerShape(
      int layer,
      int kvHeads,
      int queryGroup,
      int keyDim,
      int valueDim,
      long slotBytes,
      int cells,
      boolean sliding) {
    this(
        layer,
        kvHeads,
        queryGroup,
        keyDim,
        valueDim,
        slotBytes,
        2L * (keyDim + valueDim),
        cells,
        sliding);
  }
}
