package dev.kvasir;

/** Which code computes attention over the adaptive cache. */
public enum Attention {
  /** Kvasir's own kernels where the device has them. */
  NATIVE,
  /**
   * ggml's flash attention, called once per KV head; runs on every device and is the yardstick for
   * {@link #NATIVE}.
   */
  PORTABLE
}
