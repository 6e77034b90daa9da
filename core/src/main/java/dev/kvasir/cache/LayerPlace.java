package dev.kvasir.cache;

/**
 * Where the cache of one layer is.
 *
 * @param layer the model's layer index
 * @param device that holds it and computes attention over it, by its name in {@link
 *     dev.kvasir.Devices#list()}
 * @param attentionPath the code that does so, for example {@code native kernels (avx2)}, {@code
 *     portable}, or {@code llama.cpp} without the adaptive cache
 */
public record LayerPlace(int layer, String device, String attentionPath) {}
