package dev.kvasir.internal.policy;

/**
 * How a layer's queries are moved behind what was read.
 *
 * @param turned by the layer's rotary positions; else it has none, and a moved query is the same
 * @param window positions that a query of the layer sees; 0: all
 */
public record MovedLayer(boolean turned, int window) {}
