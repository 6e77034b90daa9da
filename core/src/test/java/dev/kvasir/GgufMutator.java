package dev.kvasir;

import dev.kvasir.bindings.generated.NativeApi;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** Makes a model file wrong in one to three ways, most of them ways of its structure. */
final class GgufMutator {
  private static final long[] NUMBERS = {
    0,
    1,
    2,
    3,
    5,
    7,
    31,
    33,
    63,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    1 << 16,
    1 << 20,
    1 << 30,
    Integer.MAX_VALUE,
    1L << 31,
    (1L << 32) - 1,
    1L << 40,
    Long.MAX_VALUE,
    Long.MIN_VALUE,
    -1,
    -2
  };
  private static final double[] REALS = {
    Double.NaN,
    Double.POSITIVE_INFINITY,
    Double.NEGATIVE_INFINITY,
    0,
    -0.0,
    -1,
    1,
    1e-45,
    1e-5,
    1e38,
    0.5,
    1e30,
    -1e-5
  };

  /** Values that mean something somewhere. */
  private static final List<String> TEXTS =
      List.of(
          "",
          " ",
          "llama",
          "gemma3",
          "gemma2",
          "gemma4",
          "qwen2",
          "qwen2moe",
          "qwen3",
          "qwen2vl",
          "phi3",
          "gpt2",
          "gptneox",
          "bloom",
          "mpt",
          "falcon",
          "t5",
          "bert",
          "mamba",
          "rwkv",
          "jamba",
          "deepseek2",
          "gpt-oss",
          "grok",
          "olmo2",
          "command-r",
          "granite",
          "clip",
          "adapter",
          "none",
          "no_vocab",
          "plamo2",
          "test",
          "default",
          "gpt-2",
          "llama-bpe",
          "whitespace",
          "hybriddna",
          "kimi-k2",
          "smollm",
          "tekken",
          "linear",
          "yarn",
          "longrope",
          "<s>",
          "<0x00>",
          "<0xZZ>",
          "<|im_end|>",
          "\u2581",
          "a b",
          "\0",
          "x\0y",
          "%s%n%d",
          "phi-3");

  /** Keys of llama.cpp, those of an architecture behind its name. */
  private static final List<String> KEYS =
      List.of(
          "general.alignment",
          "general.type",
          "general.file_type",
          "general.name",
          "split.count",
          "split.no",
          "split.tensors.count",
          "tokenizer.ggml.model",
          "tokenizer.ggml.pre",
          "tokenizer.ggml.scores",
          "tokenizer.ggml.merges",
          "tokenizer.ggml.token_type",
          "tokenizer.ggml.token_type_count",
          "tokenizer.ggml.bos_token_id",
          "tokenizer.ggml.eos_token_id",
          "tokenizer.ggml.eot_token_id",
          "tokenizer.ggml.padding_token_id",
          "tokenizer.ggml.add_bos_token",
          "tokenizer.ggml.add_eos_token",
          "tokenizer.ggml.add_sep_token",
          "tokenizer.ggml.add_space_prefix",
          "tokenizer.ggml.remove_extra_whitespaces",
          "tokenizer.ggml.precompiled_charsmap",
          "tokenizer.chat_template",
          "*.vocab_size",
          "*.context_length",
          "*.embedding_length",
          "*.embedding_length_out",
          "*.block_count",
          "*.leading_dense_block_count",
          "*.feed_forward_length",
          "*.expert_feed_forward_length",
          "*.expert_shared_feed_forward_length",
          "*.expert_count",
          "*.expert_used_count",
          "*.expert_shared_count",
          "*.expert_group_count",
          "*.expert_group_used_count",
          "*.expert_weights_scale",
          "*.expert_weights_norm",
          "*.expert_gating_func",
          "*.nextn_predict_layers",
          "*.pooling_type",
          "*.use_parallel_residual",
          "*.logit_scale",
          "*.attn_logit_softcapping",
          "*.final_logit_softcapping",
          "*.rope.dimension_count",
          "*.rope.dimension_count_swa",
          "*.rope.dimension_sections",
          "*.rope.freq_base",
          "*.rope.freq_base_swa",
          "*.rope.scale_linear",
          "*.rope.scaling.type",
          "*.rope.scaling.factor",
          "*.rope.scaling.attn_factor",
          "*.rope.scaling.original_context_length",
          "*.rope.scaling.yarn_log_multiplier",
          "*.attention.head_count",
          "*.attention.head_count_kv",
          "*.attention.key_length",
          "*.attention.value_length",
          "*.attention.key_length_swa",
          "*.attention.value_length_swa",
          "*.attention.key_length_mla",
          "*.attention.max_alibi_bias",
          "*.attention.clamp_kqv",
          "*.attention.layer_norm_epsilon",
          "*.attention.layer_norm_rms_epsilon",
          "*.attention.group_norm_groups",
          "*.attention.causal",
          "*.attention.scale",
          "*.attention.sliding_window",
          "*.attention.sliding_window_pattern",
          "*.attention.shared_kv_layers",
          "*.attention.recurrent_layers",
          "*.attention.temperature_length",
          "*.attention.indexer.head_count",
          "*.embedding_scale",
          "*.residual_scale",
          "*.classifier.output_labels");

  private static final int[] SIZES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

  private final Random random;
  private final GgufImage image;

  private GgufMutator(Random random, GgufImage image) {
    this.random = random;
    this.image = image;
  }

  /** Changes an image and returns the bytes of the wrong file. */
  static byte[] mutate(Random random, GgufImage right) {
    GgufMutator mutator = new GgufMutator(random, right);
    int changes = random.nextInt(3) == 0 ? 1 + random.nextInt(3) : 1;
    boolean bytesToo = random.nextInt(8) == 0;
    for (int i = 0; i < changes; i++) {
      mutator.change();
    }
    byte[] bytes = mutator.image.bytes();
    return bytesToo ? mutator.bytes(bytes) : bytes;
  }

  private void change() {
    switch (random.nextInt(20)) {
      case 0, 1, 2, 3, 4 -> number();
      case 5, 6 -> text();
      case 7, 8, 9 -> elements();
      case 10, 11, 12 -> add();
      case 13 -> type();
      case 14 -> pairs();
      case 15 -> claims();
      case 16 -> architecture();
      case 17, 18 -> tensor();
      default -> weights();
    }
  }

  private GgufImage.Pair pair() {
    return image.pairs.isEmpty()
        ? new GgufImage.Pair("none", GgufImage.UINT32)
        : image.pairs.get(random.nextInt(image.pairs.size()));
  }

  private GgufImage.Pair pairWith(boolean array, int type) {
    for (int i = 0; i < 50; i++) {
      GgufImage.Pair pair = pair();
      if ((pair.type == GgufImage.ARRAY) == array && (type < 0 || pair.valueType() == type)) {
        return pair;
      }
    }
    return pair();
  }

  private byte[] value(int type) {
    if (type == GgufImage.STRING) {
      return someText();
    }
    if (type == GgufImage.FLOAT32) {
      return GgufImage.little(4, Float.floatToRawIntBits((float) real()));
    }
    if (type == GgufImage.FLOAT64) {
      return GgufImage.little(8, Double.doubleToRawLongBits(real()));
    }
    return GgufImage.little(type >= 0 && type < SIZES.length ? SIZES[type] : 4, integer());
  }

  private double real() {
    return random.nextInt(4) == 0
        ? random.nextGaussian() * 100
        : REALS[random.nextInt(REALS.length)];
  }

  private long integer() {
    return switch (random.nextInt(4)) {
      case 0 -> random.nextInt(16);
      case 1 -> random.nextLong();
      default -> NUMBERS[random.nextInt(NUMBERS.length)];
    };
  }

  private byte[] someText() {
    String text = TEXTS.get(random.nextInt(TEXTS.size()));
    return switch (random.nextInt(8)) {
      case 0 -> text.repeat(1 + random.nextInt(2000)).getBytes(StandardCharsets.UTF_8);
      case 1 -> {
        byte[] noise = new byte[random.nextInt(12)];
        random.nextBytes(noise);
        yield noise;
      }
      default -> text.getBytes(StandardCharsets.UTF_8);
    };
  }

  private void number() {
    GgufImage.Pair pair =
        pairWith(false, random.nextInt(3) == 0 ? GgufImage.FLOAT32 : GgufImage.UINT32);
    if (pair.elements.isEmpty() || pair.valueType() == GgufImage.STRING) {
      return;
    }
    byte[] old = pair.elements.getFirst();
    if (pair.type == GgufImage.UINT32 && random.nextBoolean()) {
      int was = ByteBuffer.wrap(old).order(ByteOrder.LITTLE_ENDIAN).getInt();
      int now =
          switch (random.nextInt(5)) {
            case 0 -> was + 1;
            case 1 -> was - 1;
            case 2 -> was * 2;
            case 3 -> was / 2;
            default -> was * 3;
          };
      pair.elements.set(0, GgufImage.little(4, now));
    } else {
      pair.elements.set(0, value(pair.valueType()));
    }
  }

  private void text() {
    GgufImage.Pair pair = pairWith(false, GgufImage.STRING);
    if (pair.elements.isEmpty()) {
      return;
    }
    if (pair.name().equals("tokenizer.chat_template")) {
      pair.elements.set(0, template().getBytes(StandardCharsets.UTF_8));
    } else {
      pair.elements.set(0, someText());
    }
  }

  private String template() {
    int depth = 1 + random.nextInt(60);
    return switch (random.nextInt(6)) {
      case 0 -> "{{ " + "[".repeat(depth) + "]".repeat(depth) + " }}";
      case 1 -> "{% if a %}".repeat(depth) + "x" + "{% endif %}".repeat(depth);
      case 2 -> "{% for m in messages %}{{ m.content[" + depth + "] }}{% endfor %}";
      case 3 -> "{{ messages" + ".x".repeat(depth) + " }}";
      case 4 -> "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(" + "(".repeat(depth) + " }}";
      default -> "{{ '" + "\\x".repeat(depth) + "' | upper | nonesuch }}";
    };
  }

  /** Changes the elements of an array. */
  private void elements() {
    GgufImage.Pair pair = pairWith(true, -1);
    if (pair.elements.isEmpty()) {
      return;
    }
    int at = random.nextInt(pair.elements.size());
    switch (random.nextInt(7)) {
      case 0 -> pair.elements.set(at, value(pair.valueType()));
      case 1 -> pair.elements.set(at, pair.elements.get(random.nextInt(pair.elements.size())));
      case 2 -> pair.elements.remove(at);
      case 3 -> pair.elements.add(at, value(pair.valueType()));
      case 4 -> pair.elements.subList(at, pair.elements.size()).clear();
      case 5 -> pair.elements.addAll(List.copyOf(pair.elements));
      default -> {
        for (int i = 0; i < 20; i++) {
          pair.elements.set(random.nextInt(pair.elements.size()), value(pair.valueType()));
        }
      }
    }
  }

  /** Gives a key of llama.cpp a value of some type. */
  private void add() {
    String key = KEYS.get(random.nextInt(KEYS.size())).replace("*", architectureName());
    image.remove(key);
    int type =
        switch (random.nextInt(8)) {
          case 0, 1, 2 -> GgufImage.UINT32;
          case 3 -> GgufImage.FLOAT32;
          case 4 -> GgufImage.BOOL;
          case 5 -> GgufImage.STRING;
          case 6 -> GgufImage.ARRAY;
          default -> random.nextInt(13);
        };
    GgufImage.Pair pair = new GgufImage.Pair(key, type);
    int count = 1;
    if (type == GgufImage.ARRAY) {
      pair.elementType = random.nextBoolean() ? GgufImage.INT32 : random.nextInt(9);
      count = random.nextBoolean() ? 4 : random.nextInt(6);
    }
    for (int i = 0; i < count; i++) {
      pair.elements.add(value(pair.valueType()));
    }
    image.pairs.add(random.nextInt(image.pairs.size() + 1), pair);
  }

  private String architectureName() {
    return image.pairs.stream()
        .filter(pair -> pair.name().equals("general.architecture") && !pair.elements.isEmpty())
        .map(pair -> new String(pair.elements.getFirst(), StandardCharsets.UTF_8))
        .findFirst()
        .orElse("llama");
  }

  private void type() {
    GgufImage.Pair pair = pair();
    int type = random.nextInt(15);
    if (pair.type == GgufImage.ARRAY && random.nextBoolean()) {
      pair.elementType = type;
    } else {
      pair.type = type;
    }
    if (random.nextInt(4) != 0) { // with values of that type
      for (int i = 0; i < pair.elements.size(); i++) {
        pair.elements.set(i, value(pair.valueType()));
      }
    }
  }

  private void pairs() {
    GgufImage.Pair pair = pair();
    switch (random.nextInt(4)) {
      case 0, 1 -> image.pairs.remove(pair);
      case 2 -> image.pairs.add(pair);
      default -> pair.key = someText();
    }
  }

  private void claims() {
    switch (random.nextInt(6)) {
      case 0 -> image.claimedPairs = integer();
      case 1 -> image.claimedTensors = integer();
      case 2 -> image.version = (int) integer();
      case 3 -> image.alignment = Math.max(1, 1 << random.nextInt(12));
      default -> pair().claimed = integer();
    }
  }

  /** Another architecture, its keys renamed so that they are found. */
  private void architecture() {
    String old = architectureName();
    String other = TEXTS.get(2 + random.nextInt(26));
    image.put("general.architecture", other);
    for (GgufImage.Pair pair : image.pairs) {
      if (pair.name().startsWith(old + ".")) {
        pair.key = (other + pair.name().substring(old.length())).getBytes(StandardCharsets.UTF_8);
      }
    }
  }

  private void tensor() {
    if (image.tensors.isEmpty()) {
      return;
    }
    GgufImage.Tensor tensor = image.tensors.get(random.nextInt(image.tensors.size()));
    switch (random.nextInt(9)) {
      case 0 -> image.tensors.remove(tensor);
      case 1 -> image.tensors.add(tensor);
      case 2 -> tensor.name = someText();
      case 3 -> tensor.claimedOffset = integer();
      case 4 -> tensor.type = random.nextInt(48);
      case 5, 6 -> retype(tensor);
      case 7 -> {
        long[] shape = Arrays.copyOf(tensor.shape, random.nextInt(6));
        for (int d = tensor.shape.length; d < shape.length; d++) {
          shape[d] = random.nextBoolean() ? 1 : integer();
        }
        tensor.shape = shape;
      }
      default -> {
        if (tensor.shape.length > 0) {
          tensor.shape[random.nextInt(tensor.shape.length)] = integer();
        }
      }
    }
  }

  /** Another type, with as many bytes as it takes. */
  private void retype(GgufImage.Tensor tensor) {
    int type = random.nextInt(NativeApi.GGML_TYPE_COUNT());
    long block = NativeApi.ggml_blck_size(type);
    if (block == 0 || tensor.shape.length == 0 || tensor.shape[0] % block != 0) {
      return;
    }
    long elements = Arrays.stream(tensor.shape).reduce(1, (a, b) -> a * b);
    long bytes = elements / block * NativeApi.ggml_type_size(type);
    if (bytes < 0 || bytes > 1 << 24) {
      return;
    }
    tensor.type = type;
    tensor.data = new byte[(int) bytes];
    random.nextBytes(tensor.data);
  }

  private void weights() {
    if (image.tensors.isEmpty()) {
      return;
    }
    GgufImage.Tensor tensor = image.tensors.get(random.nextInt(image.tensors.size()));
    byte[] real = GgufImage.little(4, Float.floatToRawIntBits((float) real()));
    int count = 1 + random.nextInt(64);
    for (int i = 0; i < count && tensor.data.length >= 4; i++) {
      System.arraycopy(real, 0, tensor.data, 4 * random.nextInt(tensor.data.length / 4), 4);
    }
  }

  /** Changes bytes, most of them in the header, without a look at what they are. */
  private byte[] bytes(byte[] bytes) {
    if (bytes.length == 0) {
      return bytes;
    }
    if (random.nextInt(3) == 0) {
      return Arrays.copyOf(bytes, random.nextInt(bytes.length));
    }
    int changes = 1 + random.nextInt(16);
    for (int i = 0; i < changes; i++) {
      int at = random.nextInt(random.nextBoolean() ? Math.min(bytes.length, 4096) : bytes.length);
      bytes[at] = (byte) random.nextInt(256);
    }
    return bytes;
  }
}
