package dev.kvasir;

/**
 * A device that ggml found on this machine.
 *
 * @param name what {@link ModelOptions#withDevice} takes, for example {@code CPU} or {@code CUDA0}
 * @param description of the hardware
 * @param type kind of hardware
 * @param totalMemory bytes; 0 when the device does not tell
 * @param freeMemory bytes; 0 when the device does not tell
 * @param attentionPath the code that computes attention over the adaptive cache there, for example
 *     {@code native kernels (avx2)} or {@code portable}
 */
public record Device(
    String name,
    String description,
    DeviceType type,
    long totalMemory,
    long freeMemory,
    String attentionPath) {}
