package dev.kvasir.internal.llama.gguf;

import org.jspecify.annotations.Nullable;

/** What a header says of the KV heads: 0 wherever it does not. */
public final class AttentionShape {
  static final AttentionShape UNKNOWN = new AttentionShape(0, null, 0, 0, false, 0, 0, 0);

  private final int layers;
  private final long @Nullable [] kvHeads;
  private final int keyLength;
  private final int valueLength;
  private final boolean latent;
  private final int rotated;
  private final long sections;
  private final long positionSections;

  AttentionShape(
      int layers,
      long @Nullable [] kvHeads,
      int keyLength,
      int valueLength,
      boolean latent,
      int rotated,
      long sections,
      long positionSections) {
    this.layers = layers;
    this.kvHeads = kvHeads;
    this.keyLength = keyLength;
    this.valueLength = valueLength;
    this.latent = latent;
    this.rotated = rotated;
    this.sections = sections;
    this.positionSections = positionSections;
  }

  /** Number of layers. */
  public int layers() {
    return layers;
  }

  /** KV heads of a layer, which may differ from layer to layer; {@code otherwise} if unknown. */
  public int kvHeads(int layer, int otherwise) {
    return kvHeads == null || layer >= kvHeads.length ? otherwise : (int) kvHeads[layer];
  }

  /** Elements of a head's key; {@code otherwise} if unknown. */
  public int keyLength(int otherwise) {
    return keyLength == 0 ? otherwise : keyLength;
  }

  /** Elements of a head's value; {@code otherwise} if unknown. */
  public int valueLength(int otherwise) {
    return valueLength == 0 ? otherwise : valueLength;
  }

  /** Whether the cache has one latent row for key and value, of a key's length. */
  public boolean latent() {
    return latent;
  }

  /** Elements of a key that are rotated; {@code otherwise} if unknown. */
  public int rotated(int otherwise) {
    return rotated == 0 ? otherwise : rotated;
  }

  /** Sum of the sections of rotary positions. */
  public long sections() {
    return sections;
  }

  /** Sum of those sections that belong to positions in time and space. */
  public long positionSections() {
    return positionSections;
  }
}
