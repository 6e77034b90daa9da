package dev.kvasir.internal.policy;

import dev.kvasir.cache.LayerPlace;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * A store in plain arrays that computes attention itself: every appended token attends to the
 * tokens that its head holds, with weights from {@link #attention}, and feeds scores and statistic
 * as the native store does. It fails on misuse.
 */
public class FakeStore implements CacheStore {

  /** One slot. */
  private static final class Slot {
    int cell;
    int position;
    double score;
    double[][] buckets = {};
    double[] squares = {}; // by query head of the group, of the moved queries

    Slot copy() {
      var copy = new Slot();
      copy.cell = cell;
      copy.position = position;
      copy.score = score;
      copy.buckets = Arrays.stream(buckets).map(double[]::clone).toArray(double[][]::new);
      copy.squares = squares.clone();
      return copy;
    }
  }

  /** One KV head. */
  private static final class Head {
    final ArrayList<Slot> slots = new ArrayList<>();
    final int[] slotOfCell;
    boolean tracked;

    Head(int cells) {
      slotOfCell = new int[cells];
      Arrays.fill(slotOfCell, -1);
    }
  }

  private final LayerShape[] shapes;
  private final Head[][] heads;
  private final int slidingWindow;
  private final long seed;
  private final List<int[]> evictions = new ArrayList<>();
  private final List<List<Integer>> recorded = new ArrayList<>(); // positions, by layer
  private final int[] base; // of blocks, by layer
  private int stride;
  private int[] bounds;
  private int rows;
  private int length;
  int flushes;

  FakeStore(long seed, int slidingWindow, LayerShape... shapes) {
    this.seed = seed;
    this.slidingWindow = slidingWindow;
    this.shapes = shapes;
    this.heads = new Head[shapes.length][];
    this.base = new int[shapes.length];
    for (int l = 0; l < shapes.length; l++) {
      recorded.add(new ArrayList<>());
    }
    empty();
  }

  /** Layers of the same shape, none of them sliding. */
  public static FakeStore of(long seed, int layers, int kvHeads, int queryGroup, int cells) {
    var shapes = new LayerShape[layers];
    for (int l = 0; l < layers; l++) {
      shapes[l] = new LayerShape(l, kvHeads, queryGroup, 8, 8, 32, cells, false);
    }
    return new FakeStore(seed, 0, shapes);
  }

  /** Drops every token from a position on, as cutting the sequence there does. */
  public final void truncate(int position) {
    for (int l = 0; l < shapes.length; l++) {
      for (int h = 0; h < heads[l].length; h++) {
        var slots = heads[l][h].slots;
        int[] kept =
            IntStream.range(0, slots.size())
                .filter(s -> slots.get(s).position < position)
                .toArray();
        keep(l, h, kept, kept.length);
      }
    }
    for (int l = 0; l < shapes.length; l++) {
      recorded.get(l).removeIf(p -> p >= position);
      base[l] = Math.min(base[l], position);
    }
    length = position;
  }

  /** Drops everything, as removing the sequence does. */
  final void empty() {
    for (int l = 0; l < shapes.length; l++) {
      heads[l] = new Head[shapes[l].kvHeads()];
      for (int h = 0; h < heads[l].length; h++) {
        heads[l][h] = new Head(shapes[l].cells());
      }
    }
    recorded.forEach(List::clear);
    Arrays.fill(base, -1);
    length = 0;
  }

  /**
   * The attention logit of a query head for a key: noise, a few heavy hitters, and more or less
   * locality; the same for the same seed.
   */
  double logit(int layer, int queryHead, int query, int key) {
    double of = uniform(layer * 1009L + queryHead * 17L + key * 7919L);
    double heavy = of < 0.1 ? 40 * of : 0;
    double noise = uniform(query * 104729L + key * 1299709L + queryHead);
    double locality = 0.02 * ((layer + queryHead) % 4) * (query - key);
    return 2 * noise + heavy - locality;
  }

  /** Attention of a query over the given positions. */
  double[] attention(int layer, int queryHead, int query, int[] positions) {
    var weights = new double[positions.length];
    double sum = 0;
    for (int j = 0; j < positions.length; j++) {
      boolean seen = !shapes[layer].sliding() || query - positions[j] < slidingWindow;
      weights[j] = seen ? Math.exp(logit(layer, queryHead, query, positions[j])) : 0;
      sum += weights[j];
    }
    for (int j = 0; j < weights.length; j++) {
      weights[j] /= sum;
    }
    return weights;
  }

  /** Value norm of a token in a head. */
  float norm(int layer, int head, int position) {
    return 0.5f + (float) uniform(position * 613L + layer * 31L + head);
  }

  /**
   * A number between 0 and 1, the same for the same argument and seed (the finaliser of
   * MurmurHash3).
   */
  private double uniform(long of) {
    long x = seed * 31 + of * 0x9E3779B97F4A7C15L;
    x = (x ^ x >>> 33) * 0xFF51AFD7ED558CCDL;
    x = (x ^ x >>> 33) * 0xC4CEB9FE1A85EC53L;
    return ((x ^ x >>> 33) >>> 11) * 0x1.0p-53;
  }

  /** Evaluates so many tokens. */
  public void evaluate(int tokens) {
    for (int t = 0; t < tokens; t++) {
      for (int l = 0; l < shapes.length; l++) {
        base[l] = base[l] < 0 && stride > 0 ? length : base[l];
        if (stride > 0 && (length - base[l]) % 64 % stride == stride / 2) {
          recorded.get(l).add(length);
        }
        int cell = (length + (shapes[l].sliding() ? 0 : skipped())) % shapes[l].cells();
        for (int h = 0; h < heads[l].length; h++) {
          append(heads[l][h], cell);
          attend(l, h);
        }
      }
      length++;
    }
  }

  /** Cells that were passed over so far: llama.cpp need not take them one after the other. */
  private int skipped() {
    return (length + 3) / 10;
  }

  private void append(Head head, int cell) {
    Slot slot;
    if (head.slotOfCell[cell] >= 0) {
      slot = head.slots.get(head.slotOfCell[cell]);
      slot.score = 0;
      slot.squares = new double[0];
    } else {
      slot = new Slot();
      head.slotOfCell[cell] = head.slots.size();
      head.slots.add(slot);
    }
    slot.cell = cell;
    slot.position = length;
    slot.buckets = bounds == null ? new double[0][] : new double[rows][bounds.length + 1];
  }

  private void attend(int layer, int h) {
    var head = heads[layer][h];
    if (bounds == null && !head.tracked) {
      return;
    }
    int group = shapes[layer].queryGroup();
    var positions = head.slots.stream().mapToInt(s -> s.position).toArray();
    for (int q = 0; q < group; q++) {
      var weights = attention(layer, h * group + q, length, positions);
      for (int j = 0; j < weights.length; j++) {
        var slot = head.slots.get(j);
        if (head.tracked) {
          slot.score += weights[j] / group;
        }
        if (bounds != null) {
          int bucket = 0;
          while (bucket < bounds.length && length - positions[j] >= bounds[bucket]) {
            bucket++;
          }
          slot.buckets[rows > 1 ? q : 0][bucket] += rows > 1 ? weights[j] : weights[j] / group;
        }
      }
    }
  }

  /** Positions that a head holds, ascending. */
  public int[] held(int layer, int head) {
    return heads[layer][head].slots.stream().mapToInt(s -> s.position).sorted().toArray();
  }

  boolean tracked(int layer, int head) {
    return heads[layer][head].tracked;
  }

  /** Of the statistic that runs; null: none does. */
  public int[] bounds() {
    return bounds;
  }

  @Override
  public int layers() {
    return shapes.length;
  }

  @Override
  public LayerShape shape(int layer) {
    return shapes[layer];
  }

  @Override
  public LayerPlace place(int layer) {
    return new LayerPlace(shapes[layer].layer(), "CPU", "test");
  }

  @Override
  public int slots(int layer, int head) {
    return heads[layer][head].slots.size();
  }

  @Override
  public int position(int layer, int head, int slot) {
    return heads[layer][head].slots.get(slot).position;
  }

  @Override
  public int cell(int layer, int head, int slot) {
    return heads[layer][head].slots.get(slot).cell;
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

  final float score(int layer, int head, int slot) {
    return (float) heads[layer][head].slots.get(slot).score;
  }

  @Override
  public int slotOfCell(int layer, int head, int cell) {
    return heads[layer][head].slotOfCell[cell];
  }

  @Override
  public void readPositions(int layer, int head, int[] into, int count) {
    for (int s = 0; s < count; s++) {
      into[s] = position(layer, head, s);
    }
  }

  @Override
  public void readCells(int layer, int head, int[] into, int count) {
    for (int s = 0; s < count; s++) {
      into[s] = cell(layer, head, s);
    }
  }

  @Override
  public void readScores(int layer, int head, int first, int count, float[] into) {
    for (int s = 0; s < count; s++) {
      into[s] = score(layer, head, first + s);
    }
  }

  @Override
  public void valueNorms(int layer, int head, int first, int count, float[] into) {
    for (int s = 0; s < count; s++) {
      into[s] = norm(layer, head, position(layer, head, first + s));
    }
  }

  @Override
  public void keep(int layer, int head, int[] slots, int count) {
    var h = heads[layer][head];
    var kept = new ArrayList<Slot>();
    for (int i = 0; i < count; i++) {
      if (i > 0 && slots[i] <= slots[i - 1]) {
        throw new AssertionError("slots to keep must ascend");
      }
      kept.add(h.slots.get(slots[i]));
    }
    boolean firstOnes = count == 0 || slots[count - 1] == count - 1;
    if (!firstOnes) { // sums are by slot
      h.slots.forEach(s -> s.squares = new double[0]);
    }
    h.slots.clear();
    h.slots.addAll(kept);
    Arrays.fill(h.slotOfCell, -1);
    for (int s = 0; s < count; s++) {
      h.slotOfCell[kept.get(s).cell] = s;
    }
  }

  @Override
  public void addEviction(int layer, int head, int slot) {
    for (var e : evictions) {
      if (e[0] == layer && e[1] == head && e[2] <= slot) {
        throw new AssertionError("evictions of one head must name the higher slot first");
      }
    }
    evictions.add(new int[] {layer, head, slot});
  }

  @Override
  public void flushEvictions() {
    if (evictions.isEmpty()) {
      return;
    }
    flushes++;
    for (var e : evictions) {
      var head = heads[e[0]][e[1]];
      var gone = head.slots.get(e[2]);
      var last = head.slots.removeLast();
      head.slotOfCell[gone.cell] = -1;
      if (last != gone) {
        head.slots.set(e[2], last);
        head.slotOfCell[last.cell] = e[2];
      }
    }
    evictions.clear();
  }

  @Override
  public void forgetQueued() {
    evictions.clear();
  }

  @Override
  public void track(int layer, int head, boolean on) {
    heads[layer][head].tracked = on;
  }

  @Override
  public void startStatistic(int[] bounds, boolean perQueryHead) {
    for (int b = 0; b < bounds.length; b++) {
      if (bounds[b] <= (b == 0 ? 0 : bounds[b - 1])) {
        throw new AssertionError("bounds must ascend: " + Arrays.toString(bounds));
      }
    }
    this.bounds = bounds.clone();
    rows = perQueryHead ? shapes[0].queryGroup() : 1;
    for (var layer : heads) {
      for (var head : layer) {
        for (var slot : head.slots) {
          slot.buckets = new double[rows][bounds.length + 1];
        }
      }
    }
  }

  @Override
  public void stopStatistic() {
    for (var layer : heads) {
      for (var head : layer) {
        for (var slot : head.slots) {
          slot.score =
              Arrays.stream(slot.buckets).flatMapToDouble(Arrays::stream).sum()
                  / slot.buckets.length;
        }
      }
    }
    bounds = null;
  }

  private record Mark(
      List<List<List<Slot>>> counted,
      int[] bounds,
      int rows,
      List<List<Integer>> recorded,
      List<Integer> base,
      int stride) {}

  private Mark mark;

  @Override
  public void mark() {
    mark =
        new Mark(
            Arrays.stream(heads)
                .map(
                    layer ->
                        Arrays.stream(layer)
                            .map(head -> head.slots.stream().map(Slot::copy).toList())
                            .toList())
                .toList(),
            bounds,
            rows,
            recorded.stream().map(List::copyOf).toList(),
            Arrays.stream(base).boxed().toList(),
            stride);
  }

  @Override
  public void endMark() {
    mark = null;
  }

  @Override
  public void takeBack() {
    if (mark == null) {
      return;
    }
    bounds = mark.bounds;
    rows = mark.rows;
    for (int l = 0; l < heads.length; l++) {
      recorded.set(l, new ArrayList<>(mark.recorded.get(l)));
      base[l] = mark.base.get(l);
    }
    stride = mark.stride;
    for (int l = 0; l < heads.length; l++) {
      for (int h = 0; h < heads[l].length; h++) {
        var counted = mark.counted.get(l).get(h);
        var slots = heads[l][h].slots;
        for (int s = 0; s < slots.size(); s++) {
          boolean later = s >= counted.size();
          slots.get(s).score = later ? 0 : counted.get(s).score;
          slots.get(s).squares = later ? new double[0] : counted.get(s).copy().squares;
          slots.get(s).buckets =
              later
                  ? new double[bounds == null ? 0 : rows][bounds == null ? 0 : bounds.length + 1]
                  : counted.get(s).copy().buckets;
        }
      }
    }
    mark = null;
  }

  @Override
  public void readStatistic(int layer, int head, float[] into, int count) {
    int slots = slots(layer, head);
    for (int row = 0; row < rows; row++) {
      for (int b = 0; b <= bounds.length; b++) {
        for (int s = 0; s < slots; s++) {
          into[(row * (bounds.length + 1) + b) * slots + s] =
              (float) heads[layer][head].slots.get(s).buckets[row][b];
        }
      }
    }
  }

  /** Squared distance of a token's value row from a query head's mean output. */
  double distance(int layer, int queryHead, int position) {
    return 0.1 + uniform(position * 389L + layer * 57L + queryHead * 7L + 3);
  }

  /** One over a query head's mean squared output. */
  double outputWeight(int layer, int queryHead) {
    return 0.5 + uniform(layer * 71L + queryHead + 11);
  }

  /** Every so-manieth query is recorded; 0: none is. */
  public int stride() {
    return stride;
  }

  boolean noRoomToRecord;

  @Override
  public void recordQueries(int stride) {
    if (stride != 0 && stride != 1 && stride != 2 && stride != 4 && stride != 8) {
      throw new AssertionError("stride " + stride);
    }
    if (stride != 0 && noRoomToRecord) {
      throw new IllegalStateException("no room to record queries");
    }
    this.stride = stride;
    if (stride == 0) {
      recorded.forEach(List::clear);
      Arrays.fill(base, -1);
      forgetSums();
    }
  }

  private void forgetSums() {
    for (var layer : heads) {
      for (var head : layer) {
        head.slots.forEach(s -> s.squares = new double[0]);
      }
    }
  }

  private void requireRecording() {
    if (stride == 0) {
      throw new AssertionError("no queries are recorded");
    }
  }

  @Override
  public int sumMoved(int layer, int end) {
    requireRecording();
    var queries = recorded.get(layer).stream().filter(p -> p < end).toList();
    for (int at : queries) {
      int begin = base[layer] + (at - base[layer]) / 64 * 64;
      for (int h = 0; h < heads[layer].length; h++) {
        moved(layer, h, at, at - begin + end, begin, end);
      }
    }
    recorded.get(layer).removeAll(queries);
    base[layer] = Math.max(base[layer], end);
    return queries.size();
  }

  private void moved(int layer, int h, int at, int movedTo, int begin, int end) {
    int group = shapes[layer].queryGroup();
    var seen = heads[layer][h].slots.stream().filter(s -> s.position < end).toList();
    for (int q = 0; q < group; q++) {
      double[] p =
          movedAttention(
              layer,
              h * group + q,
              at,
              movedTo,
              begin,
              seen.stream().mapToInt(s -> s.position).toArray());
      for (int j = 0; j < p.length; j++) {
        var slot = seen.get(j);
        slot.squares = slot.squares.length == 0 ? new double[group] : slot.squares;
        slot.squares[q] += p[j] * p[j];
      }
    }
  }

  /** What the query of a token takes of some positions when it is moved, with its block's copy. */
  double[] movedAttention(
      int layer, int queryHead, int at, int movedTo, int begin, int[] positions) {
    double sum = 0;
    for (int key = begin; key <= at; key++) {
      sum += Math.exp(logit(layer, queryHead, at, key));
    }
    var weights = new double[positions.length];
    for (int j = 0; j < weights.length; j++) {
      boolean inWindow = !shapes[layer].sliding() || movedTo - positions[j] < slidingWindow;
      weights[j] = inWindow ? Math.exp(logit(layer, queryHead, movedTo, positions[j])) : 0;
      sum += weights[j];
    }
    for (int j = 0; j < weights.length; j++) {
      weights[j] /= sum;
    }
    return weights;
  }

  @Override
  public void foldMoved(int layer, float[] weights, int smooth) {
    requireRecording();
    if (mark != null || smooth < 1 || smooth % 2 == 0) {
      throw new AssertionError(mark != null ? "marked" : "smooth " + smooth);
    }
    int group = shapes[layer].queryGroup();
    for (int h = 0; h < heads[layer].length; h++) {
      var head = heads[layer][h];
      if (head.tracked) {
        throw new AssertionError("tracked");
      }
      for (int q = 0; q < group; q++) {
        int of = h * group + q;
        double weight = weights == null ? outputWeight(layer, of) : weights[of];
        double[] squares = new double[head.slots.size()];
        for (int j = 0; j < squares.length; j++) {
          double[] own = head.slots.get(j).squares;
          squares[j] = own.length == 0 ? 0 : own[q];
        }
        for (int j = 0; j < squares.length; j++) {
          int from = Math.max(0, j - smooth / 2);
          int to = Math.min(squares.length, j + smooth / 2 + 1);
          double mean = Arrays.stream(squares, from, to).average().orElseThrow();
          var slot = head.slots.get(j);
          slot.score += weight * mean * distance(layer, of, slot.position);
        }
      }
    }
    Arrays.stream(heads[layer]).forEach(h -> h.slots.forEach(s -> s.squares = new double[0]));
  }

  @Override
  public MovedLayer movedLayer(int layer) {
    return new MovedLayer(layer != 1, shapes[layer].sliding() ? slidingWindow : 0);
  }

  @Override
  public void keepAll(int[] counts, int[] slots) {
    int head = 0;
    int from = 0;
    for (int l = 0; l < shapes.length; l++) {
      for (int h = 0; h < heads[l].length; h++) {
        int count = counts[head++];
        keep(l, h, Arrays.copyOfRange(slots, from, from + count), count);
        from += count;
      }
    }
    if (head != counts.length) {
      throw new AssertionError(counts.length + " counts");
    }
  }

  @Override
  public long residentBytes() {
    long bytes = 0;
    for (int l = 0; l < shapes.length; l++) {
      for (var head : heads[l]) {
        bytes += head.slots.size() * shapes[l].slotBytes();
      }
    }
    return bytes;
  }

  @Override
  public long fullBytes() {
    return Arrays.stream(shapes).mapToLong(s -> s.slotBytes() * s.cells() * s.kvHeads()).sum();
  }
}
