package dev.kvasir.internal.llama;

import dev.kvasir.KvType;
import dev.kvasir.SessionOptions;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.internal.llama.gguf.AttentionShape;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;

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
    NativeModel model = context.model();
    long slotBytes = slotBytes(model, options);
    List<HeadUse> heads = new ArrayList<>();
    List<LayerPlace> layers = new ArrayList<>();
    for (int layer = 0; layer < model.layers(); layer++) {
      layers.add(new LayerPlace(layer, model.deviceOf(layer).name(), "llama.cpp"));
      int kvHeads = kvHeads(model, layer);
      for (int head = 0; head < kvHeads; head++) {
        heads.add(new HeadUse(layer, head, "full", position, position, slotBytes));
      }
    }
    long allocated = heads.size() * slotBytes * context.cells() * context.sequences();
    return new CacheReport(position, true, layers, heads, allocated, allocated);
  }

  /** Bytes of a cell in the chosen layers together. */
  static long cellBytes(NativeModel model, SessionOptions options, IntPredicate layers) {
    long heads =
        IntStream.range(0, model.layers())
            .filter(layers)
            .mapToLong(layer -> kvHeads(model, layer))
            .sum();
    return heads * slotBytes(model, options);
  }

  private static int kvHeads(NativeModel model, int layer) {
    return model.attention().kvHeads(layer, NativeApi.llama_model_n_head_kv(model.handle()));
  }

  /** Bytes of a cell in one KV head. */
  private static long slotBytes(NativeModel model, SessionOptions options) {
    AttentionShape shape = model.attention();
    int queryHeads = NativeApi.llama_model_n_head(model.handle());
    int width = queryHeads == 0 ? 0 : NativeApi.llama_model_n_embd(model.handle()) / queryHeads;
    long keyBytes = rowBytes(options.keyType(), shape.keyLength(width));
    return shape.latent() // then the values are a part of the keys
        ? keyBytes
        : keyBytes + rowBytes(options.valueType(), shape.valueLength(width));
  }

  private static long rowBytes(KvType type, int elements) {
    return (long) elements / type.blockSize() * type.blockBytes();
  }
}
