package dev.kvasir.internal.policy;

import java.util.Arrays;

/**
 * Where llama.cpp put the token of each position: the layers that share one of its KV caches share
 * the cells. Together with the store's slot-of-cell table it finds the slot of a position in any
 * head in O(1).
 */
final class CellMap {
  private final CacheStore store;
  private final int layer; // one of the layers that share the cells
  private final int cells;
  private final int[] positionOf; // by cell, -1: none yet
  private int[] cellOf; // by position, -1: unknown
  private int newest = -1; // cell of the newest token
  private int overwritten = -1;

  /**
   * The cells of a cache in which nothing is yet.
   *
   * @param layer a layer of that cache
   * @param capacity positions that are expected at most; more may come
   */
  CellMap(CacheStore store, int layer, int capacity) {
    this.store = store;
    this.layer = layer;
    this.cells = store.shape(layer).cells();
    this.positionOf = new int[cells];
    this.cellOf = new int[capacity];
    clear();
  }

  void clear() {
    Arrays.fill(positionOf, -1);
    Arrays.fill(cellOf, -1);
    newest = -1;
    overwritten = -1;
  }

  /** Learns the cells after a prefill, before anything of it is dropped. */
  void readAll(int length) {
    ensure(length);
    int slots = store.slots(layer, 0);
    var position = new int[slots];
    var cell = new int[slots];
    store.readPositions(layer, 0, position, slots);
    store.readCells(layer, 0, cell, slots);
    for (int s = 0; s < slots; s++) {
      cellOf[position[s]] = cell[s];
      positionOf[cell[s]] = position[s];
      if (position[s] == length - 1) {
        newest = cell[s];
      }
    }
    overwritten = -1;
  }

  /** Learns the cell of the token that was just decoded. */
  void append(int position) {
    ensure(position + 1);
    int cell =
        newest + 1 < cells ? newest + 1 : 0; // llama.cpp goes round, where nothing is in its way
    if (!holds(cell, position)) {
      cell = find(position);
    }
    if (cell < 0) {
      overwritten = -1;
      return; // not kept in this cache
    }
    overwritten = positionOf[cell];
    positionOf[cell] = position;
    cellOf[position] = cell;
    newest = cell;
  }

  private boolean holds(int cell, int position) {
    int slot = store.slotOfCell(layer, 0, cell);
    return slot >= 0 && store.position(layer, 0, slot) == position;
  }

  private int find(int position) {
    for (int slot = store.slots(layer, 0) - 1; slot >= 0; slot--) {
      if (store.position(layer, 0, slot) == position) {
        return store.cell(layer, 0, slot);
      }
    }
    return -1;
  }

  /** Position of the token whose cell the newest token took over, or -1. */
  int overwritten() {
    return overwritten;
  }

  /** The slot in which a head holds a position, or -1 when it does not. */
  int slotOf(int layer, int head, int position) {
    int cell = cellOf[position];
    if (cell < 0) {
      return -1;
    }
    int slot = store.slotOfCell(layer, head, cell);
    return slot >= 0 && store.position(layer, head, slot) == position ? slot : -1;
  }

  private void ensure(int length) {
    if (length > cellOf.length) {
      int from = cellOf.length;
      cellOf = Arrays.copyOf(cellOf, Math.max(length + 1024, from + from / 2));
      Arrays.fill(cellOf, from, cellOf.length, -1);
    }
  }
}
