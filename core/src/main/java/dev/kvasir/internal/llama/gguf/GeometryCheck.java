package dev.kvasir.internal.llama.gguf;

import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * The numbers that shape a model: layers, heads, rotary positions, experts. What is wrong with them
 * llama.cpp finds by an assertion while it loads, while it builds a graph, or in a thread that
 * computes, and each ends the process.
 */
final class GeometryCheck {
  /** As {@code LLAMA_MAX_LAYERS} and {@code LLAMA_MAX_EXPERTS}. */
  private static final int MOST_LAYERS = 512;

  private static final int MOST_EXPERTS = 1024;

  /** Far above any model; products of two fit an int. */
  private static final int MOST_HEADS = 1 << 14;

  private static final int LARGEST_HEAD = 1 << 14;
  private static final int LARGEST_EMBEDDING = 1 << 20;

  /** As many as a session can have. */
  private static final int LONGEST_CONTEXT = 1 << 30;

  /** Of a token in an image: time, height, width. */
  private static final int POSITIONS = 3;

  private static final Set<String> ROPE_SCALINGS = Set.of("none", "linear", "yarn", "longrope");

  /** Where llama.cpp takes a single expert for none. */
  private static final Set<String> SINGLE_EXPERT_IS_NONE = Set.of("hunyuan_vl", "hunyuan-dense");

  private final Header header;
  private final String prefix;

  /** 0 if the header does not say. */
  private final int layers;

  private AttentionShape shape = AttentionShape.UNKNOWN;
  private long sections;
  private long positionSections;

  private GeometryCheck(Header header, String architecture) {
    this.header = header;
    this.prefix = architecture + ".";
    this.layers = (int) range("block_count", 1, MOST_LAYERS, 0);
  }

  /**
   * Checks a header.
   *
   * @throws dev.kvasir.ModelLoadException if a number is wrong
   */
  static AttentionShape check(Header header, String architecture) {
    GeometryCheck check = new GeometryCheck(header, architecture);
    check.numbers();
    check.rotation();
    check.heads();
    check.experts(SINGLE_EXPERT_IS_NONE.contains(architecture));
    return check.shape;
  }

  private void numbers() {
    range("context_length", 1, LONGEST_CONTEXT, 0);
    range("embedding_length", 1, LARGEST_EMBEDDING, 0);
    range("nextn_predict_layers", 0, Math.max(0, layers - 1), 0);
    for (Map.Entry<String, Value> entry : header.values().entrySet()) {
      if (entry.getKey().startsWith(prefix)
          && entry.getValue() instanceof Value.Scalar scalar
          && Double.isNaN(scalar.toDouble())) {
        throw header.refused(entry.getKey(), scalar.describe(), "it must be a number");
      }
    }
    for (String key :
        List.of(
            "attention.layer_norm_rms_epsilon",
            "attention.layer_norm_epsilon",
            "attention.group_norm_epsilon",
            "hyper_connection.epsilon")) {
      if (header.get(prefix + key) instanceof Value.Scalar epsilon
          && !(epsilon.toDouble() >= 0 && epsilon.toDouble() < 1)) {
        // 0 stands where the model has norms of the other kind alone.
        throw header.refused(prefix + key, epsilon.describe(), "it must be at least 0 and below 1");
      }
    }
  }

  private void heads() {
    long[] heads = perLayer("attention.head_count", MOST_HEADS);
    long[] kvHeads = perLayer("attention.head_count_kv", MOST_HEADS);
    if (heads != null && kvHeads != null) {
      for (int layer = 0; layer < layers; layer++) {
        // Layers without attention have no heads, or queries only.
        if (heads[layer] > 0 && kvHeads[layer] > 0 && heads[layer] % kvHeads[layer] != 0) {
          throw header.refused(
              prefix + "attention.head_count_kv",
              kvHeads[layer] + " in layer " + layer,
              "it must divide attention.head_count, which is " + heads[layer] + " there");
        }
      }
    }
    long embedding = range("embedding_length", 1, LARGEST_EMBEDDING, 0);
    long keys = range("attention.key_length", 0, LARGEST_HEAD, -1);
    long values = range("attention.value_length", 0, LARGEST_HEAD, -1);
    if (heads != null && layers > 0 && heads[0] > 0 && embedding > 0) {
      if (keys < 0 && values < 0 && embedding % heads[0] != 0) {
        throw header.refused(
            prefix + "attention.head_count",
            heads[0],
            "without a key_length it must divide embedding_length, which is " + embedding);
      }
      rotated("", keys < 0 ? embedding / heads[0] : keys);
      rotated("_swa", range("attention.key_length_swa", 1, LARGEST_HEAD, -1));
    }
    range("attention.value_length_swa", 1, LARGEST_HEAD, -1);
    shape =
        new AttentionShape(
            layers,
            kvHeads == null ? heads : kvHeads,
            (int) Math.max(0, keys),
            (int) Math.max(0, values),
            latent(keys),
            (int) range("rope.dimension_count", 0, LARGEST_HEAD, 0),
            sections,
            positionSections);
  }

  /** Whether attention is latent: over rows of a compressed part and a rotated one. */
  private boolean latent(long rowLength) {
    long keys = range("attention.key_length_mla", 0, LARGEST_HEAD, 0);
    long values = range("attention.value_length_mla", 0, LARGEST_HEAD, 0);
    boolean latent = keys > 0 && values > 0;
    if (latent && (prefix.equals("deepseek2.") || prefix.equals("mistral4."))) {
      long rank = range("attention.kv_lora_rank", 1, LARGEST_HEAD, 0);
      long rotated = range("rope.dimension_count", 0, LARGEST_HEAD, 0);
      if (keys <= rotated) {
        throw header.refused(
            prefix + "attention.key_length_mla",
            keys,
            "it must be above rope.dimension_count, which is " + rotated);
      }
      if (rowLength != rank + rotated) {
        throw header.refused(
            prefix + "attention.key_length",
            rowLength,
            "of latent attention it must be the sum of kv_lora_rank and rope.dimension_count, "
                + (rank + rotated));
      }
      long[] kvHeads = perLayer("attention.head_count_kv", MOST_HEADS);
      for (int layer = 0; kvHeads != null && layer < layers; layer++) {
        if (kvHeads[layer] != 1) {
          throw header.refused(
              prefix + "attention.head_count_kv",
              kvHeads[layer] + " in layer " + layer,
              "of latent attention it must be 1");
        }
      }
    }
    return latent;
  }

  /** ggml's rotation takes pairs of elements, and no more than a head has. */
  private void rotated(String suffix, long headSize) {
    String key = "rope.dimension_count" + suffix;
    long rotated = range(key, 0, LARGEST_HEAD, -1);
    if (rotated < 0) {
      return;
    }
    if (rotated % 2 != 0) {
      throw header.refused(prefix + key, rotated, "it must be even");
    }
    if (headSize > 0 && rotated > headSize) {
      throw header.refused(
          prefix + key, rotated, "it must not be above the size of a head, which is " + headSize);
    }
  }

  private void rotation() {
    String key = prefix + "rope.scaling.type";
    String scaling = header.text(key);
    if (scaling != null && !ROPE_SCALINGS.contains(scaling)) {
      throw header.refused(
          key, "\"" + scaling + "\"", "llama.cpp knows none, linear, yarn and longrope");
    }
    for (String base : List.of("rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor")) {
      if (header.get(prefix + base) instanceof Value.Scalar value && value.toDouble() < 0) {
        throw header.refused(prefix + base, value.describe(), "it must not be negative");
      }
    }
    Value value = header.get(prefix + "rope.dimension_sections");
    if (value instanceof Value.Numbers array && array.kept()) {
      for (int i = 0; i < array.length(); i++) {
        section(i, array.get(i));
      }
    } else if (value instanceof Value.Scalar one) { // llama.cpp takes it for all of them
      for (int i = 0; i <= POSITIONS; i++) {
        section(i, one.bits());
      }
    }
  }

  private void section(int index, long section) {
    if (section < 0 || section > LARGEST_HEAD) {
      throw header.refused(
          prefix + "rope.dimension_sections", section, "0 to " + LARGEST_HEAD + " are possible");
    }
    sections += section;
    positionSections += index < POSITIONS ? section : 0;
  }

  private void experts(boolean singleIsNone) {
    long experts = range("expert_count", 0, MOST_EXPERTS, 0);
    long[] used = perLayer("expert_used_count", Integer.MAX_VALUE);
    long groups = range("expert_group_count", 0, Integer.MAX_VALUE, 0);
    if (singleIsNone && experts <= 1) {
      return;
    }
    long mostUsed = used == null ? 0 : Arrays.stream(used).max().orElse(0);
    if (mostUsed > experts) {
      throw header.refused(
          prefix + "expert_used_count",
          mostUsed,
          "it must not be above expert_count, which is " + experts);
    }
    if (experts > 0 && mostUsed == 0 && layers > 0) {
      throw header.refused(
          prefix + "expert_used_count",
          used == null ? "missing" : "0",
          "of the " + experts + " experts at least one is used");
    }
    if (groups > 0 && groups >= experts) {
      throw header.refused(
          prefix + "expert_group_count",
          groups,
          "it must be below expert_count, which is " + experts);
    }
    if (groups > 1) {
      long usedGroups = range("expert_group_used_count", 0, Integer.MAX_VALUE, 0);
      if (experts % groups != 0) {
        throw header.refused(
            prefix + "expert_group_count",
            groups,
            "it must divide expert_count, which is " + experts);
      }
      if (usedGroups == 0 || usedGroups >= groups) {
        throw header.refused(
            prefix + "expert_group_used_count",
            usedGroups,
            "it must be at least 1 and below expert_group_count, which is " + groups);
      }
    }
  }

  /** The value of an unsigned key; {@code otherwise} if it is missing. */
  private long range(String key, long least, long most, long otherwise) {
    Long value = header.unsigned(prefix + key);
    if (value == null) {
      return otherwise;
    }
    if (value < least || value > most) {
      throw header.refused(prefix + key, value, least + " to " + most + " are possible");
    }
    return value;
  }

  /** A value for each layer, of a key that is a number or an array. */
  private long @Nullable [] perLayer(String key, long most) {
    Value value = header.get(prefix + key);
    if (value == null || layers == 0) {
      return null;
    }
    if (!(value instanceof Value.Numbers array)) {
      long[] all = new long[layers];
      Arrays.fill(all, range(key, 0, most, 0));
      return all;
    }
    boolean integers =
        array.type() == ValueType.UINT32
            || array.type() == ValueType.INT32
            || array.type() == ValueType.BOOL;
    if (array.length() != layers || !integers) {
      throw header.refused(
          prefix + key,
          array.describe(),
          "for the " + layers + " layers it must be a number or an array of as many int32");
    }
    long[] all = new long[layers];
    for (int layer = 0; layer < layers; layer++) {
      all[layer] = array.get(layer);
      if (all[layer] < 0 || all[layer] > most) {
        throw header.refused(
            prefix + key, all[layer] + " in layer " + layer, "0 to " + most + " are possible");
      }
    }
    return all;
  }
}
