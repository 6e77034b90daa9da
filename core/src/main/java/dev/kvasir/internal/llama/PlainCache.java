package dev.kvasir.internal.llama;

import dev.kvasir.KvType;
import dev.kvasir.SessionOptions;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.LayerPlace;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/**
 * What llama.cpp's own KV cache holds. It cannot be asked: the figures follow from the model's
 * header, as if all layers were alike and none had a sliding window.
 */
public final class PlainCache {
  private PlainCache() {}

  /**
   * The report of a sequence without the adaptive cache. Its memory is allocated for the whole
   * context at once, with all sequences.
   */
  public static CacheReport report(NativeContext context, SessionOptions options, int position) {
    MemorySegment model = context.model().handle();
    int kvHeads = NativeApi.llama_model_n_head_kv(model);
    int width = NativeApi.llama_model_n_embd(model) / NativeApi.llama_model_n_head(model);
    long slotBytes =
        rowBytes(options.keyType(), headDimension(model, "key_length", width))
            + rowBytes(options.valueType(), headDimension(model, "value_length", width));
    List<HeadUse> heads = new ArrayList<>();
    List<LayerPlace> layers = new ArrayList<>();
    for (int layer = 0; layer < context.model().layers(); layer++) {
      layers.add(new LayerPlace(layer, context.model().deviceOf(layer).name(), "llama.cpp"));
      for (int head = 0; head < kvHeads; head++) {
        heads.add(new HeadUse(layer, head, "full", position, position, slotBytes));
      }
    }
    long allocated = heads.size() * slotBytes * context.cells() * context.sequences();
    return new CacheReport(position, true, layers, heads, allocated, allocated);
  }

  private static long rowBytes(KvType type, int elements) {
    return (long) elements / type.blockSize() * type.blockBytes();
  }

  private static int headDimension(MemorySegment model, String key, int otherwise) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment value = arena.allocate(128);
      if (NativeApi.llama_model_meta_val_str(
              model, arena.allocateFrom("general.architecture"), value, value.byteSize())
          < 0) {
        return otherwise;
      }
      String name = value.getString(0) + ".attention." + key;
      int length =
          NativeApi.llama_model_meta_val_str(
              model, arena.allocateFrom(name), value, value.byteSize());
      return length < 0 ? otherwise : Integer.parseInt(value.getString(0));
    }
  }
}
