package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.kvasir_bytes;
import dev.kvasir.bindings.generated.kvasir_eviction;
import dev.kvasir.bindings.generated.kvasir_head_view;
import dev.kvasir.bindings.generated.kvasir_layer_info;
import dev.kvasir.bindings.generated.kvasir_statistic_params;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.internal.policy.CacheStore;
import dev.kvasir.internal.policy.LayerShape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * What the store of one context holds of one sequence, which is a stream of llama.cpp's. The slot
 * tables of every head are read where the native code keeps them: their addresses are asked for
 * once. Evictions are gathered off-heap, and carried out by one call.
 */
final class NativeCacheStore implements CacheStore {
  private final MemorySegment cache;
  private final int stream;
  private final Arena arena;
  private final LayerShape[] shapes;
  private final LayerPlace[] places;
  private final boolean[] scoresAtHand;
  private final HeadView[][] heads;
  private final MemorySegment scratch;
  private MemorySegment evictions;
  private int evictionCount;

  private record HeadView(
      MemorySegment slots,
      MemorySegment cell,
      MemorySegment position,
      MemorySegment score,
      MemorySegment slotPlusOne) {}

  NativeCacheStore(MemorySegment cache, int stream, NativeModel model, Arena arena) {
    this.cache = cache;
    this.stream = stream;
    this.arena = arena;
    int layers = NativeApi.kvasir_cache_n_layers(cache);
    shapes = new LayerShape[layers];
    places = new LayerPlace[layers];
    scoresAtHand = new boolean[layers];
    heads = new HeadView[layers][];
    int mostCells = 1;
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
    evictions = kvasir_eviction.allocateArray(Math.max(64, 2L * allHeads), arena);
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
  public float score(int layer, int head, int slot) {
    return heads[layer][head].score.getAtIndex(ValueLayout.JAVA_FLOAT, slot);
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

  @Override
  public void readScores(int layer, int head, float[] into, int count) {
    if (!scoresAtHand[layer]) {
      check(NativeApi.kvasir_cache_scores(cache, layer, stream, head), "read a head's scores");
    }
    MemorySegment.copy(heads[layer][head].score, ValueLayout.JAVA_FLOAT, 0, into, 0, count);
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
  public void readStatistic(int layer, int head, float[] into) {
    try (Arena local = Arena.ofConfined()) {
      MemorySegment buckets = local.allocate(ValueLayout.JAVA_FLOAT, Math.max(1, into.length));
      MemorySegment queries = local.allocate(ValueLayout.JAVA_LONG);
      check(
          NativeApi.kvasir_statistic_read(
              cache, layer, stream, head, buckets, MemorySegment.NULL, queries),
          "read the statistic of a head");
      MemorySegment.copy(buckets, ValueLayout.JAVA_FLOAT, 0, into, 0, into.length);
    }
  }

  @Override
  public void valueNorms(int layer, int head, int first, int count, float[] into) {
    check(
        NativeApi.kvasir_cache_value_norms(cache, layer, stream, head, first, count, scratch),
        "measure value rows");
    MemorySegment.copy(scratch, ValueLayout.JAVA_FLOAT, 0, into, 0, count);
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
