package dev.kvasir.internal.policy;

import dev.kvasir.cache.LayerPlace;
import java.util.Arrays;
import java.util.Random;

/**
 * A store in preallocated arrays, without attention: scores and statistics are random. For
 * benchmarks.
 */
class ArrayStore implements CacheStore {
  private final LayerShape shape;
  private final int layers;
  private final int heads; // KV heads of a layer
  private final int[] slots;
  private final int[] summed; // queries of the tokens before, by layer
  private final int[][] position;
  private final int[][] cell;
  private final float[][] score;
  private final int[][] slotOfCell;
  private final int[] evictions;
  private final Random random;
  private float[] statistic = {};
  private int evictionCount;
  private int length;
  private int draw;

  ArrayStore(long seed, int layers, int heads, int queryGroup, int cells) {
    this.layers = layers;
    this.heads = heads;
    this.shape = new LayerShape(0, heads, queryGroup, 64, 64, 256, cells, false);
    this.random = new Random(seed);
    int all = layers * heads;
    summed = new int[layers];
    slots = new int[all];
    position = new int[all][cells];
    cell = new int[all][cells];
    score = new float[all][cells];
    slotOfCell = new int[all][cells];
    evictions = new int[4 * all];
    for (var of : slotOfCell) {
      Arrays.fill(of, -1);
    }
  }

  int length() {
    return length;
  }

  /** Appends a token to every head, and a little score to a few slots of each. */
  void append() {
    for (int i = 0; i < slots.length; i++) {
      int slot = slots[i]++;
      position[i][slot] = length;
      cell[i][slot] = length;
      score[i][slot] = 0;
      slotOfCell[i][length] = slot;
      for (int k = 0; k < 8; k++) {
        draw = draw * 1664525 + 1013904223;
        score[i][(draw >>> 1) % slots[i]] += (draw >>> 8) * 0x1.0p-24f;
      }
    }
    length++;
  }

  @Override
  public int layers() {
    return layers;
  }

  @Override
  public LayerShape shape(int layer) {
    return shape;
  }

  @Override
  public LayerPlace place(int layer) {
    return new LayerPlace(shape.layer(), "CPU", "test");
  }

  @Override
  public int slots(int layer, int head) {
    return slots[layer * heads + head];
  }

  @Override
  public int position(int layer, int head, int slot) {
    return position[layer * heads + head][slot];
  }

  @Override
  public int cell(int layer, int head, int slot) {
    return cell[layer * heads + head][slot];
  }

  @Override
  public boolean scoresAtHand(int layer) {
    return true;
  }

  @Override
  public void announce(int layer, int head, Reading reading, int first, int count) {}

  @Override
  public void readAhead() {}

  @Override
  public void awaitAhead() {}

  @Override
  public int slotOfCell(int layer, int head, int cell) {
    return slotOfCell[layer * heads + head][cell];
  }

  @Override
  public void readPositions(int layer, int head, int[] into, int count) {
    System.arraycopy(position[layer * heads + head], 0, into, 0, count);
  }

  @Override
  public void readCells(int layer, int head, int[] into, int count) {
    System.arraycopy(cell[layer * heads + head], 0, into, 0, count);
  }

  @Override
  public void readScores(int layer, int head, int first, int count, float[] into) {
    System.arraycopy(score[layer * heads + head], first, into, 0, count);
  }

  @Override
  public void valueNorms(int layer, int head, int first, int count, float[] into) {
    for (int s = 0; s < count; s++) {
      into[s] = 1 + (position(layer, head, first + s) & 15) / 16f;
    }
  }

  @Override
  public void keep(int layer, int head, int[] kept, int count) {
    int i = layer * heads + head;
    for (int s = 0; s < slots[i]; s++) {
      slotOfCell[i][cell[i][s]] = -1;
    }
    for (int s = 0; s < count; s++) {
      move(i, kept[s], s);
    }
    slots[i] = count;
  }

  private void move(int i, int from, int to) {
    position[i][to] = position[i][from];
    cell[i][to] = cell[i][from];
    score[i][to] = score[i][from];
    slotOfCell[i][cell[i][to]] = to;
  }

  @Override
  public void addEviction(int layer, int head, int slot) {
    evictions[evictionCount++] = layer * heads + head;
    evictions[evictionCount++] = slot;
  }

  @Override
  public void flushEvictions() {
    for (int e = 0; e < evictionCount; e += 2) {
      int i = evictions[e];
      slotOfCell[i][cell[i][evictions[e + 1]]] = -1;
      int last = --slots[i];
      if (last != evictions[e + 1]) {
        move(i, last, evictions[e + 1]);
      }
    }
    evictionCount = 0;
  }

  @Override
  public void forgetQueued() {
    evictionCount = 0;
  }

  @Override
  public void track(int layer, int head, boolean on) {}

  @Override
  public void startStatistic(int[] bounds, boolean perQueryHead) {
    int rows = perQueryHead ? shape.queryGroup() : 1;
    statistic = new float[rows * (bounds.length + 1) * shape.cells()];
    for (int i = 0; i < statistic.length; i++) {
      statistic[i] = (float) Math.exp(3 * random.nextGaussian());
    }
  }

  @Override
  public void stopStatistic() {
    statistic = new float[0];
  }

  @Override
  public void mark() {}

  @Override
  public void endMark() {}

  @Override
  public void takeBack() {}

  @Override
  public void readStatistic(int layer, int head, float[] into, int count) {
    System.arraycopy(statistic, 0, into, 0, count);
  }

  @Override
  public void recordQueries(int stride) {}

  @Override
  public int sumMoved(int layer, int end) {
    int queries = end - summed[layer];
    summed[layer] = end;
    return queries;
  }

  @Override
  public void foldMoved(int layer, float[] weights, int smooth) {}

  @Override
  public MovedLayer movedLayer(int layer) {
    return new MovedLayer(true, 0);
  }

  @Override
  public void keepAll(int[] counts, int[] slots) {
    int from = 0;
    for (int i = 0; i < counts.length; i++) {
      keep(i / heads, i % heads, Arrays.copyOfRange(slots, from, from + counts[i]), counts[i]);
      from += counts[i];
    }
  }

  @Override
  public long residentBytes() {
    return 0;
  }

  @Override
  public long fullBytes() {
    return 0;
  }
}
