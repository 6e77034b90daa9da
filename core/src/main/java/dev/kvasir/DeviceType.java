package dev.kvasir;

/** What kind of hardware a device is, as ggml sees it. */
public enum DeviceType {
  CPU,
  /** A GPU with memory of its own. */
  GPU,
  /** A GPU that shares the host's memory. */
  INTEGRATED_GPU,
  /** Hardware that speeds up a CPU backend (BLAS, AMX and the like). */
  ACCELERATOR,
  /** Anything that ggml has no name for here. */
  OTHER
}
