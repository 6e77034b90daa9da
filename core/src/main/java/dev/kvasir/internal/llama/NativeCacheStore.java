package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.kvasir_bytes;
import dev.kvasir.bindings.generated.kvasir_eviction;
import dev.kvasir.bindings.generated.kvasir_fetch;
import dev.kvasir.bindings.generated.kvasir_head_view;
import dev.kvasir.bindings.generated.kvasir_layer_info;
import dev.kvasir.bindings.generated.kvasir_moved_info;
import dev.kvasir.bindings.generated.kvasir_statistic_params;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.internal.policy.CacheStore;
import dev.kvasir.internal.policy.LayerShape;
import dev.kvasir.internal.policy.MovedLayer;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * What the store of one context holds of one sequence, which is a stream of llama.cpp's. The slot
 * tables of every head are read where the native code keeps them: their addresses are asked for
 * once. Evictions are gathered off-heap, and carried out by one call, and so is what is read ahead.
 */
final class NativeCacheStore implements CacheStore {
  private final MemorySegment cache;
  private final int stream;
  private final int threads;
  private final Arena arena;
  private final LayerShape[] shapes;
  private final LayerPlace[] places;
  private final boolean[] scoresAtHand;
  private final HeadView[][] heads;
  private final MemorySegment scratch;
  private final MemorySegment one; // for one integer
  private final MemorySegment headWeights; // of a layer
  private final int mostHeads; // KV heads of a layer
  private final int[] indexAhead; // of an item, by reading, layer and head; -1: there is none
  private MemorySegment kept = MemorySegment.NULL; // slots, and how many of each head
  private MemorySegment keptCounts = MemorySegment.NULL;
  private MemorySegment evictions;
  private int evictionCount;
  private Items announced;
  private Items ahead; // what the last readAhead began to bring
  private boolean waiting; // for what is ahead

  /** An array of {@code kvasir_fetch}. */
  private static final class Items {
    private final Arena arena;
    private MemorySegment all;
    private int count;

    Items(Arena arena) {
      this.arena = arena;
      all = kvasir_fetch.allocateArray(64, arena);
    }

    MemorySegment get(int index) {
      return kvasir_fetch.asSlice(all, index);
    }

    MemorySegment add() {
      long bytes = kvasir_fetch.sizeof();
      if (count * bytes == all.byteSize()) {
        MemorySegment larger = kvasir_fetch.allocateArray(2L * count, arena);
        larger.copyFrom(all);
        all = larger;
      }
      return get(count++);
    }
  }

  private record HeadView(
      MemorySegment slots,
      MemorySegment cell,
      MemorySegment position,
      MemorySegment score,
      MemorySegment slotPlusOne) {}

  /**
   * The store of one sequence.
   *
   * @param threads of what is computed over it
   */
  NativeCacheStore(MemorySegment cache, int stream, NativeModel model, int threads, Arena arena) {
    this.cache = cache;
    this.threads = threads;
    this.stream = stream;
    this.arena = arena;
    int layers = NativeApi.kvasir_cache_n_layers(cache);
    shapes = new LayerShape[layers];
    places = new LayerPlace[layers];
    scoresAtHand = new boolean[layers];
    heads = new HeadView[layers][];
    int mostCells = 1;
    int mostHeads = 1;
    int mostQueryHeads = 1;
    int allHeads = 0;
    try (Arena local = Arena.ofConfined()) {
      MemorySegment info = kvasir_layer_info.allocate(local);
      MemorySegment view = kvasir_head_view.allocate(local);
      for (int layer = 0; layer < layers; layer++) {
        check(NativeApi.kvasir_cache_layer(cache, layer, info), "describe layer " + layer);
        int kvHeads = kvasir_layer_info.n_head_kv(info);
        int cells = kvasir_layer_info.n_cells(info);
        shapes[layer] =
            new LayerShape(
                kvasir_layer_info.layer(info),
                kvHeads,
                kvasir_layer_info.n_head(info) / kvHeads,
                kvasir_layer_info.head_dim_k(info),
                kvasir_layer_info.head_dim_v(info),
                kvasir_layer_info.slot_bytes(info),
                halfBytes(info),
                cells,
                kvasir_layer_info.n_swa(info) != 0);
        places[layer] =
            new LayerPlace(
                shapes[layer].layer(),
                kvasir_layer_info.device(info).getString(0),
                kvasir_layer_info.attention(info) == NativeApi.KVASIR_ATTENTION_PORTABLE()
                    ? DeviceRegistry.PORTABLE
                    : model.deviceOf(shapes[layer].layer()).attentionPath());
        scoresAtHand[layer] = kvasir_layer_info.scores_at_hand(info) != 0;
        mostCells = Math.max(mostCells, cells);
        mostHeads = Math.max(mostHeads, kvHeads);
        mostQueryHeads = Math.max(mostQueryHeads, kvasir_layer_info.n_head(info));
        allHeads += kvHeads;
        heads[layer] = new HeadView[kvHeads];
        for (int head = 0; head < kvHeads; head++) {
          check(
              NativeApi.kvasir_cache_head(cache, layer, stream, head, view),
              "show head " + head + " of layer " + layer);
          heads[layer][head] =
              new HeadView(
                  kvasir_head_view.n_slots(view).reinterpret(Integer.BYTES),
                  kvasir_head_view.cell(view).reinterpret((long) cells * Integer.BYTES),
                  kvasir_head_view.pos(view).reinterpret((long) cells * Integer.BYTES),
                  kvasir_head_view.score(view).reinterpret((long) cells * Float.BYTES),
                  kvasir_head_view.slot_plus_1(view).reinterpret((long) cells * Integer.BYTES));
        }
      }
    }
    scratch = arena.allocate(ValueLayout.JAVA_INT, mostCells);
    one = arena.allocate(ValueLayout.JAVA_INT);
    headWeights = arena.allocate(ValueLayout.JAVA_FLOAT, mostQueryHeads);
    evictions = kvasir_eviction.allocateArray(Math.max(64, 2L * allHeads), arena);
    this.mostHeads = mostHeads;
    announced = new Items(arena);
    ahead = new Items(arena);
    indexAhead = new int[Reading.values().length * layers * mostHeads];
    Arrays.fill(indexAhead, -1);
  }

  /** K and V bytes of a slot as f16; latent attention has no rows of V. */
  private static long halfBytes(MemorySegment info) {
    int keyDim = kvasir_layer_info.head_dim_k(info);
    int type = kvasir_layer_info.type_k(info); // one that the store takes
    long keyBytes = keyDim / NativeApi.ggml_blck_size(type) * NativeApi.ggml_type_size(type);
    boolean keysOnly = kvasir_layer_info.slot_bytes(info) == keyBytes;
    return Short.BYTES * (long) (keyDim + (keysOnly ? 0 : kvasir_layer_info.head_dim_v(info)));
  }

  private static void check(int status, String what) {
    if (!NativeStatus.ok(status)) {
      throw new KvasirException("The cache could not " + what + ": " + NativeStatus.reason(status));
    }
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
    return places[layer];
  }

  @Override
  public int slots(int layer, int head) {
    return heads[layer][head].slots.get(ValueLayout.JAVA_INT, 0);
  }

  @Override
  public int position(int layer, int head, int slot) {
    return heads[layer][head].position.getAtIndex(ValueLayout.JAVA_INT, slot);
  }

  @Override
  public int cell(int layer, int head, int slot) {
    return heads[layer][head].cell.getAtIndex(ValueLayout.JAVA_INT, slot);
  }

  @Override
  public boolean scoresAtHand(int layer) {
    return scoresAtHand[layer];
  }

  @Override
  public int slotOfCell(int layer, int head, int cell) {
    return heads[layer][head].slotPlusOne.getAtIndex(ValueLayout.JAVA_INT, cell) - 1;
  }

  @Override
  public void readPositions(int layer, int head, int[] into, int count) {
    MemorySegment.copy(heads[layer][head].position, ValueLayout.JAVA_INT, 0, into, 0, count);
  }

  @Override
  public void readCells(int layer, int head, int[] into, int count) {
    MemorySegment.copy(heads[layer][head].cell, ValueLayout.JAVA_INT, 0, into, 0, count);
  }

  private static int whatOf(Reading reading) {
    return switch (reading) {
      case SCORES -> NativeApi.KVASIR_READ_SCORES();
      case VALUE_NORMS -> NativeApi.KVASIR_READ_VALUE_NORMS();
      case STATISTIC -> NativeApi.KVASIR_READ_STATISTIC();
    };
  }

  private int placeOf(int what, int layer, int head) {
    return (what * shapes.length + layer) * mostHeads + head;
  }

  private void setIndexAhead(int item, int index) {
    MemorySegment of = ahead.get(item);
    indexAhead[placeOf(kvasir_fetch.what(of), kvasir_fetch.layer(of), kvasir_fetch.head(of))] =
        index;
  }

  @Override
  public void announce(int layer, int head, Reading reading, int first, int count) {
    MemorySegment item = announced.add();
    kvasir_fetch.layer(item, layer);
    kvasir_fetch.head(item, head);
    kvasir_fetch.what(item, whatOf(reading));
    kvasir_fetch.first_slot(item, first);
    kvasir_fetch.n_slots(item, count);
  }

  @Override
  public void readAhead() {
    for (int i = 0; i < ahead.count; i++) {
      setIndexAhead(i, -1);
    }
    boolean anything = ahead.count > 0 || announced.count > 0;
    Items begun = announced;
    announced = ahead;
    announced.count = 0;
    ahead = begun;
    waiting = false;
    if (anything) { // when nothing was announced, memory is returned
      check(NativeApi.kvasir_cache_fetch(cache, stream, ahead.all, ahead.count), "read many heads");
    }
    waiting = ahead.count > 0;
    for (int i = 0; i < ahead.count; i++) {
      setIndexAhead(i, i);
    }
  }

  @Override
  public void awaitAhead() {
    if (waiting) {
      check(NativeApi.kvasir_cache_fetched(cache, stream), "read many heads");
      waiting = false;
    }
  }

  /** Copies what was read ahead of a head; false when these slots were not. */
  private boolean copyAhead(
      Reading reading, int layer, int head, int first, int count, float[] into) {
    int index = indexAhead[placeOf(whatOf(reading), layer, head)];
    if (index < 0) {
      return false;
    }
    MemorySegment item = ahead.get(index);
    int skipped = first - kvasir_fetch.first_slot(item);
    if (skipped < 0 || skipped + count > kvasir_fetch.n_slots(item)) {
      return false;
    }
    copyAhead(item, skipped, into, count);
    return true;
  }

  private void copyAhead(MemorySegment item, int from, float[] into, int count) {
    awaitAhead();
    MemorySegment data = kvasir_fetch.data(item).reinterpret((long) (from + count) * Float.BYTES);
    MemorySegment.copy(data, ValueLayout.JAVA_FLOAT, (long) from * Float.BYTES, into, 0, count);
  }

  @Override
  public void readScores(int layer, int head, int first, int count, float[] into) {
    if (copyAhead(Reading.SCORES, layer, head, first, count, into)) {
      return;
    }
    if (!scoresAtHand[layer]) {
      check(NativeApi.kvasir_cache_scores(cache, layer, stream, head), "read a head's scores");
    }
    MemorySegment.copy(
        heads[layer][head].score,
        ValueLayout.JAVA_FLOAT,
        (long) first * Float.BYTES,
        into,
        0,
        count);
  }

  @Override
  public void keep(int layer, int head, int[] slots, int count) {
    MemorySegment.copy(slots, 0, scratch, ValueLayout.JAVA_INT, 0, count);
    check(
        NativeApi.kvasir_cache_keep(cache, layer, stream, head, scratch, count), "compact a head");
  }

  @Override
  public void addEviction(int layer, int head, int slot) {
    long bytes = kvasir_eviction.sizeof();
    if (evictionCount * bytes == evictions.byteSize()) {
      MemorySegment larger = kvasir_eviction.allocateArray(2L * evictionCount, arena);
      larger.copyFrom(evictions);
      evictions = larger;
    }
    long at = evictionCount++ * (bytes / Integer.BYTES);
    evictions.setAtIndex(ValueLayout.JAVA_INT, at, layer);
    evictions.setAtIndex(ValueLayout.JAVA_INT, at + 1, stream);
    evictions.setAtIndex(ValueLayout.JAVA_INT, at + 2, head);
    evictions.setAtIndex(ValueLayout.JAVA_INT, at + 3, slot);
  }

  @Override
  public void flushEvictions() {
    if (evictionCount > 0) {
      int count = evictionCount;
      evictionCount = 0;
      check(NativeApi.kvasir_cache_evict(cache, evictions, count), "evict");
    }
  }

  @Override
  public void forgetQueued() {
    evictionCount = 0;
    announced.count = 0;
    waiting = false;
    Arrays.fill(indexAhead, -1); // and the next readAhead returns the memory
  }

  @Override
  public void track(int layer, int head, boolean on) {
    check(
        NativeApi.kvasir_cache_track(cache, layer, stream, head, on ? 1 : 0),
        "track a head's scores");
  }

  @Override
  public void startStatistic(int[] bounds, boolean perQueryHead) {
    try (Arena local = Arena.ofConfined()) {
      MemorySegment params = kvasir_statistic_params.allocate(local);
      kvasir_statistic_params.bounds(params, local.allocateFrom(ValueLayout.JAVA_INT, bounds));
      kvasir_statistic_params.n_bounds(params, bounds.length);
      kvasir_statistic_params.recent_from(params, -1);
      kvasir_statistic_params.per_query_head(params, perQueryHead ? 1 : 0);
      check(NativeApi.kvasir_statistic_start(cache, params), "start profiling");
    }
  }

  @Override
  public void stopStatistic() {
    check(NativeApi.kvasir_statistic_stop(cache), "end profiling");
  }

  @Override
  public void mark() {
    check(NativeApi.kvasir_cache_mark(cache, 1), "mark what it has counted");
  }

  @Override
  public void endMark() {
    check(NativeApi.kvasir_cache_mark(cache, 0), "keep what it has counted");
  }

  @Override
  public void takeBack() {
    check(NativeApi.kvasir_cache_take_back(cache), "take back what it has counted");
  }

  @Override
  public void readStatistic(int layer, int head, float[] into, int count) {
    int index = indexAhead[placeOf(whatOf(Reading.STATISTIC), layer, head)];
    if (index < 0) {
      throw new IllegalStateException("The statistic of the head was not read ahead");
    }
    copyAhead(ahead.get(index), 0, into, count);
  }

  @Override
  public void valueNorms(int layer, int head, int first, int count, float[] into) {
    if (copyAhead(Reading.VALUE_NORMS, layer, head, first, count, into)) {
      return;
    }
    check(
        NativeApi.kvasir_cache_value_norms(cache, layer, stream, head, first, count, scratch),
        "measure value rows");
    MemorySegment.copy(scratch, ValueLayout.JAVA_FLOAT, 0, into, 0, count);
  }

  @Override
  public void recordQueries(int stride) {
    int status = NativeApi.kvasir_moved_record(cache, stride);
    if (status == NativeApi.KVASIR_UNSUPPORTED()) {
      throw new UnsupportedModelException(
          "CachePolicy.foresight() has no path for this session: "
              + NativeStatus.reason(status)
              + ". Take another policy, or other devices.");
    }
    check(status, "record queries");
  }

  @Override
  public int sumMoved(int layer, int end) {
    int status;
    ExitGuard.enter();
    try {
      status = NativeApi.kvasir_moved_sum(cache, layer, end, threads, one);
    } finally {
      ExitGuard.leave();
    }
    check(status, "sum up what moved queries would take");
    return one.get(ValueLayout.JAVA_INT, 0);
  }

  @Override
  public void foldMoved(int layer, float @Nullable [] weights, int smooth) {
    MemorySegment given = MemorySegment.NULL;
    if (weights != null) {
      MemorySegment.copy(weights, 0, headWeights, ValueLayout.JAVA_FLOAT, 0, weights.length);
      given = headWeights;
    }
    int status;
    ExitGuard.enter();
    try {
      status = NativeApi.kvasir_moved_fold(cache, layer, given, smooth, threads);
    } finally {
      ExitGuard.leave();
    }
    check(status, "fold what moved queries would take into the scores");
  }

  @Override
  public MovedLayer movedLayer(int layer) {
    try (Arena local = Arena.ofConfined()) {
      MemorySegment info = kvasir_moved_info.allocate(local);
      check(NativeApi.kvasir_moved_layer(cache, layer, info), "say how queries are moved");
      return new MovedLayer(kvasir_moved_info.turned(info) != 0, kvasir_moved_info.window(info));
    }
  }

  @Override
  public void keepAll(int[] counts, int[] slots) {
    int all = 0;
    for (int count : counts) {
      all += count;
    }
    kept = ensure(kept, all);
    keptCounts = ensure(keptCounts, counts.length);
    MemorySegment.copy(slots, 0, kept, ValueLayout.JAVA_INT, 0, all);
    MemorySegment.copy(counts, 0, keptCounts, ValueLayout.JAVA_INT, 0, counts.length);
    check(NativeApi.kvasir_cache_keep_all(cache, stream, kept, keptCounts), "compact all heads");
  }

  /** Room for so many integers; what was too small goes with the garbage. */
  private static MemorySegment ensure(MemorySegment room, int integers) {
    return room.byteSize() >= (long) integers * Integer.BYTES
        ? room
        : Arena.ofAuto().allocate(ValueLayout.JAVA_INT, integers + integers / 4L);
  }

  @Override
  public long residentBytes() {
    try (Arena local = Arena.ofConfined()) {
      return kvasir_bytes.resident_bytes(bytes(local));
    }
  }

  @Override
  public long fullBytes() {
    try (Arena local = Arena.ofConfined()) {
      return kvasir_bytes.full_bytes(bytes(local));
    }
  }

  private MemorySegment bytes(Arena local) {
    MemorySegment bytes = kvasir_bytes.allocate(local);
    check(NativeApi.kvasir_cache_bytes(cache, bytes), "count its bytes");
    return bytes;
  }
}
