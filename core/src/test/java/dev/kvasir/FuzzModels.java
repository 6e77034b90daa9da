package dev.kvasir;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** Small models of several kinds, right in everything: what wrong files are made of. */
final class FuzzModels {
  private static final int EMBEDDING = 32;
  private static final int HEADS = 4;
  private static final int KV_HEADS = 2;
  private static final int HEAD = 16;
  private static final int FEED_FORWARD = 64;
  private static final int LAYERS = 2;
  private static final int CONTEXT = 256;
  private static final String[] CONTROL = {"<unk>", "<s>", "</s>"};

  private final String architecture;
  private final int head;
  private final GgufImage image = new GgufImage();
  private final Random random = new Random(11);

  private FuzzModels(String architecture, int head) {
    this.architecture = architecture;
    this.head = head;
    image.put("general.architecture", architecture);
    image.put("general.name", "small");
    put("block_count", LAYERS);
    put("context_length", CONTEXT);
    put("embedding_length", EMBEDDING);
    put("feed_forward_length", FEED_FORWARD);
    put("attention.head_count", HEADS);
    put("attention.head_count_kv", KV_HEADS);
    put("attention.key_length", head);
    put("attention.value_length", head);
    put("rope.dimension_count", head);
    image.put(architecture + ".rope.freq_base", 10_000f);
    image.put(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
  }

  /** Writes them all. */
  static void write(Path directory) {
    llama().write(directory.resolve("llama.gguf"));
    experts().write(directory.resolve("experts.gguf"));
    window().write(directory.resolve("window.gguf"));
    biased().write(directory.resolve("biased.gguf"));
    learnedPositions().write(directory.resolve("positions.gguf"));
  }

  /** A llama with a SentencePiece vocabulary and a chat template. */
  static GgufImage llama() {
    FuzzModels llama = new FuzzModels("llama", HEAD);
    llama.sentencePiece();
    llama.layers(true);
    llama.image.put(
        "tokenizer.chat_template",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}");
    return llama.image;
  }

  /** A llama with two of four experts, and a byte-pair vocabulary. */
  static GgufImage experts() {
    FuzzModels experts = new FuzzModels("llama", HEAD);
    experts.bytePairs();
    experts.put("expert_count", 4);
    experts.put("expert_used_count", 2);
    experts.layers(false);
    for (int layer = 0; layer < LAYERS; layer++) {
      String prefix = "blk." + layer + ".";
      experts.tensor(prefix + "ffn_gate_inp.weight", EMBEDDING, 4);
      experts.tensor(prefix + "ffn_gate_exps.weight", EMBEDDING, FEED_FORWARD, 4);
      experts.tensor(prefix + "ffn_up_exps.weight", EMBEDDING, FEED_FORWARD, 4);
      experts.tensor(prefix + "ffn_down_exps.weight", FEED_FORWARD, EMBEDDING, 4);
    }
    return experts.image;
  }

  /** A gemma3, whose layers have a sliding window. */
  static GgufImage window() {
    FuzzModels window = new FuzzModels("gemma3", HEAD);
    window.sentencePiece();
    window.put("attention.sliding_window", 16);
    window.layers(true);
    for (int layer = 0; layer < LAYERS; layer++) {
      String prefix = "blk." + layer + ".";
      window.ones(prefix + "post_attention_norm.weight", EMBEDDING);
      window.ones(prefix + "post_ffw_norm.weight", EMBEDDING);
      window.ones(prefix + "attn_q_norm.weight", HEAD);
      window.ones(prefix + "attn_k_norm.weight", HEAD);
    }
    return window.image;
  }

  /** A qwen2vl, with rotary positions in sections and biases. */
  static GgufImage biased() {
    FuzzModels biased = new FuzzModels("qwen2vl", EMBEDDING / HEADS);
    biased.bytePairs();
    biased.image.put("qwen2vl.rope.dimension_sections", new int[] {1, 1, 2, 0});
    biased.layers(true);
    for (int layer = 0; layer < LAYERS; layer++) {
      String prefix = "blk." + layer + ".";
      biased.tensor(prefix + "attn_q.bias", HEADS * biased.head);
      biased.tensor(prefix + "attn_k.bias", KV_HEADS * biased.head);
      biased.tensor(prefix + "attn_v.bias", KV_HEADS * biased.head);
    }
    return biased.image;
  }

  /** A gpt2, which has learned a vector for each of 256 positions. */
  static GgufImage learnedPositions() {
    FuzzModels learned = new FuzzModels("gpt2", EMBEDDING / HEADS);
    learned.bytePairs();
    learned.image.put("gpt2.attention.layer_norm_epsilon", 1e-5f);
    learned.put("attention.head_count_kv", HEADS);
    int vocabulary = learned.image.pair("tokenizer.ggml.tokens").elements.size();
    learned.tensor("token_embd.weight", EMBEDDING, vocabulary);
    learned.tensor("position_embd.weight", EMBEDDING, CONTEXT);
    learned.biased("output_norm", true, EMBEDDING);
    for (int layer = 0; layer < LAYERS; layer++) {
      String prefix = "blk." + layer + ".";
      learned.biased(prefix + "attn_norm", true, EMBEDDING);
      learned.biased(prefix + "attn_qkv", false, EMBEDDING, 3 * EMBEDDING);
      learned.biased(prefix + "attn_output", false, EMBEDDING, EMBEDDING);
      learned.biased(prefix + "ffn_norm", true, EMBEDDING);
      learned.biased(prefix + "ffn_up", false, EMBEDDING, FEED_FORWARD);
      learned.biased(prefix + "ffn_down", false, FEED_FORWARD, EMBEDDING);
    }
    return learned.image;
  }

  /** A deci with two KV heads in its first layer and four in its second. */
  static GgufImage headsByLayer() {
    FuzzModels deci = new FuzzModels("deci", HEAD);
    deci.sentencePiece();
    deci.image.put("deci.attention.head_count_kv", new int[] {KV_HEADS, HEADS});
    deci.layers(true);
    for (String name : new String[] {"blk.1.attn_k.weight", "blk.1.attn_v.weight"}) {
      deci.image.tensors.removeIf(tensor -> tensor.text().equals(name));
      deci.tensor(name, EMBEDDING, HEADS * HEAD);
    }
    return deci.image;
  }

  /** Gives a model without a vocabulary one of as many tokens as it says. */
  static GgufImage withVocabulary(GgufImage image) {
    if (image.pairs.stream().anyMatch(pair -> pair.name().equals("tokenizer.ggml.tokens"))) {
      return image;
    }
    int size =
        image.pairs.stream()
            .filter(pair -> pair.name().endsWith(".vocab_size"))
            .mapToInt(
                pair ->
                    ByteBuffer.wrap(pair.elements.getFirst())
                        .order(ByteOrder.LITTLE_ENDIAN)
                        .getInt())
            .findFirst()
            .orElse(0);
    String[] tokens = new String[size];
    int[] types = new int[size];
    for (int i = 0; i < size; i++) {
      tokens[i] = i < 3 ? CONTROL[i] : "\u2581w" + i;
      types[i] = i == 0 ? 2 : i < 3 ? 3 : 1;
    }
    image.put("tokenizer.ggml.model", "llama");
    image.put("tokenizer.ggml.tokens", tokens);
    image.put("tokenizer.ggml.token_type", types);
    for (String id : new String[] {"bos", "eos", "unknown"}) {
      image.put(
          "tokenizer.ggml." + id + "_token_id",
          id.equals("unknown") ? 0 : id.equals("bos") ? 1 : 2);
    }
    return image;
  }

  private void layers(boolean dense) {
    int vocabulary = image.pair("tokenizer.ggml.tokens").elements.size();
    tensor("token_embd.weight", EMBEDDING, vocabulary);
    tensor("output.weight", EMBEDDING, vocabulary);
    ones("output_norm.weight", EMBEDDING);
    for (int layer = 0; layer < LAYERS; layer++) {
      String prefix = "blk." + layer + ".";
      ones(prefix + "attn_norm.weight", EMBEDDING);
      ones(prefix + "ffn_norm.weight", EMBEDDING);
      tensor(prefix + "attn_q.weight", EMBEDDING, HEADS * head);
      tensor(prefix + "attn_k.weight", EMBEDDING, KV_HEADS * head);
      tensor(prefix + "attn_v.weight", EMBEDDING, KV_HEADS * head);
      tensor(prefix + "attn_output.weight", HEADS * head, EMBEDDING);
      if (dense) {
        tensor(prefix + "ffn_gate.weight", EMBEDDING, FEED_FORWARD);
        tensor(prefix + "ffn_up.weight", EMBEDDING, FEED_FORWARD);
        tensor(prefix + "ffn_down.weight", FEED_FORWARD, EMBEDDING);
      }
    }
  }

  private void sentencePiece() {
    int size = 3 + 256 + 40;
    String[] tokens = new String[size];
    int[] types = new int[size];
    GgufImage.Pair scores = new GgufImage.Pair("tokenizer.ggml.scores", GgufImage.ARRAY);
    scores.elementType = GgufImage.FLOAT32;
    for (int i = 0; i < size; i++) {
      tokens[i] =
          i < 3 ? CONTROL[i] : i < 259 ? "<0x%02X>".formatted(i - 3) : "\u2581w" + (i - 259);
      types[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
      scores.elements.add(GgufImage.little(4, Float.floatToRawIntBits(-i)));
    }
    image.put("tokenizer.ggml.model", "llama");
    image.put("tokenizer.ggml.tokens", tokens);
    image.pairs.add(scores);
    image.put("tokenizer.ggml.token_type", types);
    image.put("tokenizer.ggml.bos_token_id", 1);
    image.put("tokenizer.ggml.eos_token_id", 2);
    image.put("tokenizer.ggml.unknown_token_id", 0);
    image.put("tokenizer.ggml.add_bos_token", true);
  }

  private void bytePairs() {
    List<String> tokens = new ArrayList<>(List.of("<|endoftext|>", "<|im_start|>", "<|im_end|>"));
    // The printable characters that GPT-2's tokenizer has for bytes.
    for (int b = 0, next = 256; b < 256; b++) {
      boolean printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      tokens.add(Character.toString(printable ? b : next++));
    }
    List<String> merges = new ArrayList<>();
    for (String second : List.of("w", "a", "b", "1", "2", "3")) {
      merges.add("\u0120 " + second);
      tokens.add("\u0120" + second);
    }
    for (String second : List.of("1", "2", "3")) {
      merges.add("\u0120w " + second);
      tokens.add("\u0120w" + second);
    }
    int[] types = new int[tokens.size()];
    for (int i = 0; i < types.length; i++) {
      types[i] = i < 3 ? 3 : 1;
    }
    image.put("tokenizer.ggml.model", "gpt2");
    image.put("tokenizer.ggml.pre", "gpt-2");
    image.put("tokenizer.ggml.tokens", tokens.toArray(String[]::new));
    image.put("tokenizer.ggml.token_type", types);
    image.put("tokenizer.ggml.merges", merges.toArray(String[]::new));
    image.put("tokenizer.ggml.bos_token_id", 1);
    image.put("tokenizer.ggml.eos_token_id", 2);
  }

  private void put(String key, int value) {
    image.put(architecture + "." + key, value);
  }

  private void biased(String name, boolean norm, int... shape) {
    add(name + ".weight", shape, norm);
    add(name + ".bias", new int[] {shape[shape.length - 1]}, false);
  }

  private void ones(String name, int size) {
    add(name, new int[] {size}, true);
  }

  private void tensor(String name, int... shape) {
    add(name, shape, false);
  }

  private void add(String name, int[] shape, boolean ones) {
    int size = 1;
    for (int extent : shape) {
      size *= extent;
    }
    ByteBuffer data = ByteBuffer.allocate(4 * size).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < size; i++) {
      data.putFloat(ones ? 1 : (float) (0.2 * random.nextGaussian()));
    }
    image.tensors.add(
        new GgufImage.Tensor(
            name.getBytes(StandardCharsets.UTF_8),
            Arrays.stream(shape).asLongStream().toArray(),
            0,
            data.array()));
  }
}
