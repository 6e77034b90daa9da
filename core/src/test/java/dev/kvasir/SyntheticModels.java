package dev.kvasir;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;

/**
 * Small models with random weights: for architectures that the default model has not, and for
 * comparisons that quantised weights would blur.
 */
public final class SyntheticModels {
  private static final int EMBEDDING = 128;
  private static final int HEADS = 4;
  private static final int KV_HEADS = 2;
  static final int HEAD_DIMENSION = 64;
  private static final int FEED_FORWARD = 256;

  private final GgufWriter file = new GgufWriter();
  private final Random random = new Random(7);
  private final String architecture;

  private SyntheticModels(String architecture, int layers) {
    this(architecture, layers, SyntheticVocabulary.sentencePiece());
  }

  private SyntheticModels(String architecture, int layers, SyntheticVocabulary vocabulary) {
    this.architecture = architecture;
    file.put("general.architecture", architecture);
    file.put("general.name", "synthetic");
    put("block_count", layers);
    put("context_length", 2048);
    put("embedding_length", EMBEDDING);
    file.put(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
    vocabulary.write(file);
    tensor("token_embd.weight", 1, EMBEDDING, vocabulary.size());
    tensor("output.weight", 0.3, EMBEDDING, vocabulary.size());
    ones("output_norm.weight", EMBEDDING);
  }

  /** A llama with grouped queries; its attention is peaked enough to be worth profiling. */
  public static Path llama(Path file, int layers) {
    return llama(file, layers, SyntheticVocabulary.sentencePiece());
  }

  /**
   * A model with the layers of a llama and another name, whose attention looks at what comes after
   * a token too.
   */
  public static Path notCausal(Path file, String architecture) {
    SyntheticModels model = new SyntheticModels(architecture, 1);
    model.attentionHeader();
    model.attentionLayer(0);
    model.file.put(architecture + ".attention.causal", false);
    model.file.write(file);
    return file;
  }

  /** The same with another vocabulary. */
  public static Path llama(Path file, int layers, SyntheticVocabulary vocabulary) {
    SyntheticModels model = new SyntheticModels("llama", layers, vocabulary);
    model.attentionHeader();
    for (int layer = 0; layer < layers; layer++) {
      model.attentionLayer(layer);
    }
    model.file.write(file);
    return file;
  }

  /** A gemma3: five layers with a sliding window to each one without. */
  public static Path slidingWindow(Path file, int window) {
    return slidingWindow(file, "gemma3", window);
  }

  /** An EmbeddingGemma, whose header does not say that its attention is not causal. */
  public static Path embedding(Path file) {
    return slidingWindow(file, "gemma-embedding", 128);
  }

  private static Path slidingWindow(Path file, String architecture, int window) {
    int layers = 6;
    SyntheticModels model = new SyntheticModels(architecture, layers);
    model.attentionHeader();
    model.put("attention.sliding_window", window);
    for (int layer = 0; layer < layers; layer++) {
      model.attentionLayer(layer);
      for (String norm : new String[] {"post_attention_norm", "post_ffw_norm"}) {
        model.ones("blk." + layer + "." + norm + ".weight", EMBEDDING);
      }
      model.ones("blk." + layer + ".attn_q_norm.weight", HEAD_DIMENSION);
      model.ones("blk." + layer + ".attn_k_norm.weight", HEAD_DIMENSION);
    }
    model.file.write(file);
    return file;
  }

  static final int LATENT = 64;
  static final int LATENT_ROTARY = 32;

  /**
   * A deepseek2: multi-head latent attention, whose cache has one row of {@link #LATENT} + {@link
   * #LATENT_ROTARY} elements for each token and layer.
   */
  public static Path latent(Path file, int layers) {
    return latent(file, layers, Map.of());
  }

  /** The same with other numbers in its header. */
  static Path latent(Path file, int layers, Map<String, Integer> header) {
    int queryRank = 48;
    int plain = 32;
    int value = 32;
    SyntheticModels model = new SyntheticModels("deepseek2", layers);
    Map<String, Integer> numbers = new HashMap<>();
    numbers.put("leading_dense_block_count", layers);
    numbers.put("feed_forward_length", FEED_FORWARD);
    numbers.put("attention.head_count", HEADS);
    numbers.put("attention.head_count_kv", 1);
    numbers.put("attention.q_lora_rank", queryRank);
    numbers.put("attention.kv_lora_rank", LATENT);
    numbers.put("attention.key_length", LATENT + LATENT_ROTARY);
    numbers.put("attention.value_length", LATENT);
    numbers.put("attention.key_length_mla", plain + LATENT_ROTARY);
    numbers.put("attention.value_length_mla", value);
    numbers.put("rope.dimension_count", LATENT_ROTARY);
    numbers.put("expert_count", 2);
    numbers.put("expert_used_count", 1);
    numbers.put("expert_shared_count", 1);
    numbers.put("expert_feed_forward_length", 32);
    numbers.putAll(header);
    numbers.forEach(model::put);
    for (int layer = 0; layer < layers; layer++) {
      String prefix = "blk." + layer + ".";
      model.ones(prefix + "attn_norm.weight", EMBEDDING);
      model.ones(prefix + "attn_q_a_norm.weight", queryRank);
      model.ones(prefix + "attn_kv_a_norm.weight", LATENT);
      model.ones(prefix + "ffn_norm.weight", EMBEDDING);
      model.tensor(prefix + "attn_q_a.weight", 0.1, EMBEDDING, queryRank);
      int query = HEADS * (plain + LATENT_ROTARY);
      model.tensor(prefix + "attn_q_b.weight", 0.3, queryRank, query);
      model.tensor(prefix + "attn_kv_a_mqa.weight", 0.1, EMBEDDING, LATENT + LATENT_ROTARY);
      model.tensor(prefix + "attn_k_b.weight", 0.1, plain, LATENT, HEADS);
      model.tensor(prefix + "attn_v_b.weight", 0.1, LATENT, value, HEADS);
      model.tensor(prefix + "attn_output.weight", 0.1, HEADS * value, EMBEDDING);
      model.tensor(prefix + "ffn_gate.weight", 0.05, EMBEDDING, FEED_FORWARD);
      model.tensor(prefix + "ffn_up.weight", 0.05, EMBEDDING, FEED_FORWARD);
      model.tensor(prefix + "ffn_down.weight", 0.05, FEED_FORWARD, EMBEDDING);
    }
    model.file.write(file);
    return file;
  }

  /** A mamba, which has a state and no KV cache. */
  public static Path recurrent(Path file) {
    SyntheticModels model = new SyntheticModels("mamba", 1);
    int inner = 2 * EMBEDDING;
    int state = 16;
    int rank = 8;
    model.put("ssm.conv_kernel", 4);
    model.put("ssm.inner_size", inner);
    model.put("ssm.state_size", state);
    model.put("ssm.time_step_rank", rank);
    model.ones("blk.0.attn_norm.weight", EMBEDDING);
    model.tensor("blk.0.ssm_in.weight", 0.1, EMBEDDING, 2 * inner);
    model.tensor("blk.0.ssm_conv1d.weight", 0.1, 4, inner);
    model.tensor("blk.0.ssm_conv1d.bias", 0.1, inner);
    model.tensor("blk.0.ssm_x.weight", 0.1, inner, rank + 2 * state);
    model.tensor("blk.0.ssm_dt.weight", 0.1, rank, inner);
    model.tensor("blk.0.ssm_dt.bias", 0.1, inner);
    model.tensor("blk.0.ssm_a", 0.1, state, inner);
    model.tensor("blk.0.ssm_d", 0.1, inner);
    model.tensor("blk.0.ssm_out.weight", 0.1, inner, EMBEDDING);
    model.file.write(file);
    return file;
  }

  /** A granitehybrid: every second layer has attention, the others have a state (Mamba 2). */
  public static Path hybrid(Path file) {
    int layers = 4;
    int[] kvHeads = {0, KV_HEADS, 0, KV_HEADS};
    SyntheticModels model = new SyntheticModels("granitehybrid", layers);
    model.put("attention.head_count", HEADS);
    model.file.put("granitehybrid.attention.head_count_kv", kvHeads);
    model.put("attention.key_length", HEAD_DIMENSION);
    model.put("attention.value_length", HEAD_DIMENSION);
    model.put("feed_forward_length", FEED_FORWARD);
    model.put("rope.dimension_count", HEAD_DIMENSION);
    int inner = 2 * EMBEDDING;
    int state = 16;
    int heads = 4;
    int convolved = inner + 2 * state;
    model.put("ssm.conv_kernel", 4);
    model.put("ssm.inner_size", inner);
    model.put("ssm.state_size", state);
    model.put("ssm.time_step_rank", heads);
    model.put("ssm.group_count", 1);
    for (int layer = 0; layer < layers; layer++) {
      if (kvHeads[layer] > 0) {
        model.attentionLayer(layer);
        continue;
      }
      String prefix = "blk." + layer + ".";
      model.ones(prefix + "attn_norm.weight", EMBEDDING);
      model.tensor(prefix + "ssm_in.weight", 0.1, EMBEDDING, inner + convolved + heads);
      model.tensor(prefix + "ssm_conv1d.weight", 0.3, 4, convolved);
      model.tensor(prefix + "ssm_conv1d.bias", 0.1, convolved);
      model.tensor(prefix + "ssm_dt.bias", 0.1, heads);
      model.decay(prefix + "ssm_a", heads);
      model.tensor(prefix + "ssm_d", 0.5, 1, heads);
      model.ones(prefix + "ssm_norm.weight", inner);
      model.tensor(prefix + "ssm_out.weight", 0.1, inner, EMBEDDING);
      model.feedForward(prefix);
    }
    model.file.write(file);
    return file;
  }

  /** How fast a state forgets: negative. */
  private void decay(String name, int heads) {
    float[] data = new float[heads];
    for (int i = 0; i < heads; i++) {
      data[i] = -0.05f * (i + 1);
    }
    file.tensor(name, data, 1, heads);
  }

  private void attentionHeader() {
    put("attention.head_count", HEADS);
    put("attention.head_count_kv", KV_HEADS);
    put("attention.key_length", HEAD_DIMENSION);
    put("attention.value_length", HEAD_DIMENSION);
    put("feed_forward_length", FEED_FORWARD);
    put("rope.dimension_count", HEAD_DIMENSION);
  }

  private void attentionLayer(int layer) {
    String prefix = "blk." + layer + ".";
    ones(prefix + "attn_norm.weight", EMBEDDING);
    tensor(prefix + "attn_q.weight", 0.15, EMBEDDING, HEADS * HEAD_DIMENSION);
    tensor(prefix + "attn_k.weight", 0.15, EMBEDDING, KV_HEADS * HEAD_DIMENSION);
    tensor(prefix + "attn_v.weight", 0.1, EMBEDDING, KV_HEADS * HEAD_DIMENSION);
    tensor(prefix + "attn_output.weight", 0.1, HEADS * HEAD_DIMENSION, EMBEDDING);
    feedForward(prefix);
  }

  private void feedForward(String prefix) {
    ones(prefix + "ffn_norm.weight", EMBEDDING);
    tensor(prefix + "ffn_gate.weight", 0.05, EMBEDDING, FEED_FORWARD);
    tensor(prefix + "ffn_up.weight", 0.05, EMBEDDING, FEED_FORWARD);
    tensor(prefix + "ffn_down.weight", 0.05, FEED_FORWARD, EMBEDDING);
  }

  private void put(String key, int value) {
    file.put(architecture + "." + key, value);
  }

  private void ones(String name, int size) {
    float[] data = new float[size];
    Arrays.fill(data, 1f);
    file.tensor(name, data, size);
  }

  private void tensor(String name, double deviation, int... shape) {
    int size = 1;
    long[] extents = new long[shape.length];
    for (int i = 0; i < shape.length; i++) {
      extents[i] = shape[i];
      size *= shape[i];
    }
    float[] data = new float[size];
    for (int i = 0; i < size; i++) {
      data[i] = (float) (deviation * random.nextGaussian());
    }
    file.tensor(name, data, extents);
  }
}
