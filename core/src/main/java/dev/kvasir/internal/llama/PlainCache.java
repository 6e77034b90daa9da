package dev.kvasir.internal.llama;

import dev.kvasir.KvType;
import dev.kvasir.SessionOptions;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.internal.llama.gguf.AttentionShape;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/**
 * What llama.cpp's own KV cache holds. It cannot be asked: the figures follow from the model's
 * header, as if no layer had a sliding window.
 */
public final class PlainCache {
  private PlainCache() {}

  /**
   * The report of a sequence without the adaptive cache. Its memory is allocated for the whole
   * context at once, with all sequences.
   */
  public static CacheReport report(NativeContext context, SessionOptions options, int position) {
    MemorySegment model = context.model().handle();
    AttentionShape shape = context.model().attention();
    int queryHeads = NativeApi.llama_model_n_head(model);
    int width = queryHeads == 0 ? 0 : NativeApi.llama_model_n_embd(model) / queryHeads;
    long slotBytes = rowBytes(options.keyType(), shape.keyLength(width));
    if (!shape.latent()) { // else the values are a part of the keys
      slotBytes += rowBytes(options.valueType(), shape.valueLength(width));
    }
    List<HeadUse> heads = new ArrayList<>();
    List<LayerPlace> layers = new ArrayList<>();
    for (int layer = 0; layer < context.model().layers(); layer++) {
      layers.add(new LayerPlace(layer, context.model().deviceOf(layer).name(), "llama.cpp"));
      int kvHeads = shape.kvHeads(layer, NativeApi.llama_model_n_head_kv(model));
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
}
