package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Files with one thing wrong, which llama.cpp would not survive or would not name, are refused by a
 * sentence with the file, the key and its value; files that are only odd are loaded. All are loaded
 * in one JVM of their own.
 */
class OddModelsTest {
  private static final Map<String, Odd> REFUSED = new LinkedHashMap<>();
  private static final Map<String, Odd> LOADED = new LinkedHashMap<>();

  /** What the child JVM said of each file. */
  private static final Map<String, String> OUTCOMES = new HashMap<>();

  /** How a right model is made odd, and what the message must hold. */
  private record Odd(Supplier<GgufImage> model, Consumer<GgufImage> change, List<String> words) {}

  private static void refused(
      String name, Supplier<GgufImage> model, Consumer<GgufImage> change, String... words) {
    REFUSED.put(name, new Odd(model, change, List.of(words)));
  }

  private static void loaded(String name, Supplier<GgufImage> model, Consumer<GgufImage> change) {
    LOADED.put(name, new Odd(model, change, List.of()));
  }

  private static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }

  static {
    Supplier<GgufImage> llama = FuzzModels::llama;
    Supplier<GgufImage> experts = FuzzModels::experts;
    Supplier<GgufImage> biased = FuzzModels::biased;
    Supplier<GgufImage> window = FuzzModels::window;

    // Vocabulary
    refused(
        "a token text twice",
        llama,
        m -> m.pair("tokenizer.ggml.tokens").elements.set(270, utf8("\u2581w3")),
        "tokenizer.ggml.tokens",
        "\u2581w3",
        "262",
        "270");
    refused(
        "two tokens that differ behind a NUL",
        llama,
        m -> {
          m.pair("tokenizer.ggml.tokens").elements.set(270, utf8("x\0y"));
          m.pair("tokenizer.ggml.tokens").elements.set(271, utf8("x\0z"));
        },
        "tokenizer.ggml.tokens",
        "270",
        "271");
    refused(
        "a token with the text of an empty one",
        llama,
        m -> {
          m.pair("tokenizer.ggml.tokens").elements.set(270, utf8(""));
          m.pair("tokenizer.ggml.tokens").elements.set(271, utf8("[EMPTY_270]"));
        },
        "tokenizer.ggml.tokens",
        "twice");
    loaded(
        "empty tokens",
        llama,
        m -> {
          m.pair("tokenizer.ggml.tokens").elements.set(270, utf8(""));
          m.pair("tokenizer.ggml.tokens").elements.set(271, utf8(""));
        });
    refused(
        "fewer scores than tokens",
        llama,
        m -> m.pair("tokenizer.ggml.scores").elements.removeLast(),
        "tokenizer.ggml.scores",
        "298",
        "299");
    refused(
        "fewer token types than tokens",
        llama,
        m -> m.pair("tokenizer.ggml.token_type").elements.removeLast(),
        "tokenizer.ggml.token_type",
        "298",
        "299");
    refused("no tokens", llama, m -> m.remove("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens");
    refused(
        "tokens that are numbers",
        llama,
        m -> m.put("tokenizer.ggml.tokens", new int[] {1, 2}),
        "tokenizer.ggml.tokens",
        "int32");
    refused(
        "a byte that is not one",
        llama,
        m -> m.pair("tokenizer.ggml.tokens").elements.set(20, utf8("<0")),
        "token 20",
        "<0x00>");
    refused(
        "bytes among words",
        llama,
        m -> m.put("tokenizer.ggml.model", "bert"),
        "tokenizer.ggml.token_type");
    refused(
        "a merge of one text",
        experts,
        m -> m.pair("tokenizer.ggml.merges").elements.set(2, utf8("ab")),
        "tokenizer.ggml.merges",
        "merge 2",
        "\"ab\"");
    refused(
        "a token of 100,000 bytes",
        llama,
        m -> m.pair("tokenizer.ggml.tokens").elements.set(270, utf8("x".repeat(100_000))),
        "token 270",
        "100000");
    loaded(
        "a special token outside the vocabulary",
        llama,
        m -> m.put("tokenizer.ggml.eot_token_id", 5000).put("tokenizer.ggml.eos_token_id", 300));
    refused(
        "a beginning that is added and is not there",
        experts,
        m ->
            m.put("tokenizer.ggml.pre", "glm4")
                .remove("tokenizer.ggml.bos_token_id")
                .put("tokenizer.ggml.add_bos_token", true),
        "tokenizer.ggml.bos_token_id");
    refused(
        "an end that is added and is not there",
        llama,
        m ->
            m.put("tokenizer.ggml.model", "plamo2")
                .remove("tokenizer.ggml.eos_token_id")
                .put("tokenizer.ggml.pre", "x")
                .put("tokenizer.ggml.tokens", new String[] {"a"})
                .put("tokenizer.ggml.token_type", new int[] {1})
                .put("tokenizer.ggml.add_eos_token", true),
        "llama.cpp cannot load");
    refused(
        "a reservation for four thousand million tokens",
        llama,
        m -> m.put("tokenizer.ggml.model", "none").put("llama.vocab_size", -1),
        "llama.vocab_size",
        "4294967295");

    // Shape
    refused("no layers", llama, m -> m.put("llama.block_count", 0), "llama.block_count", "is 0");
    refused("513 layers", llama, m -> m.put("llama.block_count", 513), "llama.block_count", "513");
    refused(
        "KV heads that do not divide the heads",
        llama,
        m -> m.put("llama.attention.head_count_kv", 3),
        "llama.attention.head_count_kv",
        "3",
        "4");
    refused(
        "KV heads per layer that do not divide the heads",
        llama,
        m -> m.put("llama.attention.head_count_kv", new int[] {2, 3}),
        "llama.attention.head_count_kv",
        "layer 1");
    refused(
        "an array for another number of layers",
        llama,
        m -> m.put("llama.attention.head_count_kv", new int[] {2, 2, 2}),
        "llama.attention.head_count_kv",
        "2 layers");
    refused(
        "a head that does not divide the embedding",
        llama,
        m ->
            m.remove("llama.attention.key_length")
                .remove("llama.attention.value_length")
                .put("llama.attention.head_count", 6)
                .put("llama.attention.head_count_kv", 6),
        "llama.attention.head_count",
        "32");
    refused(
        "rotation of more than a head",
        biased,
        m -> m.put("qwen2vl.rope.dimension_count", 32),
        "qwen2vl.rope.dimension_count",
        "32",
        "8");
    refused(
        "rotation of half a pair",
        biased,
        m -> m.put("qwen2vl.rope.dimension_count", 7),
        "qwen2vl.rope.dimension_count",
        "even");
    refused(
        "rotation of another size than a llama's head",
        llama,
        m -> m.put("llama.rope.dimension_count", 8),
        "8",
        "16");
    refused(
        "no section of rotary positions",
        biased,
        m -> m.put("qwen2vl.rope.dimension_sections", new int[] {0, 0, 0, 3}),
        "rope.dimension_sections");
    refused(
        "sections of rotary positions that are larger than a head",
        biased,
        m -> m.put("qwen2vl.rope.dimension_sections", new int[] {9, 9, 0, 0}),
        "rope.dimension_sections",
        "18",
        "8");
    loaded(
        "no section where none is used",
        llama,
        m -> m.put("llama.rope.dimension_sections", new int[] {0, 0, 0, 0}));
    refused(
        "a negative section of rotary positions",
        biased,
        m -> m.put("qwen2vl.rope.dimension_sections", new int[] {2, -3, 3, 0}),
        "qwen2vl.rope.dimension_sections",
        "-3");
    for (float epsilon : new float[] {Float.NaN, -1e-5f, Float.POSITIVE_INFINITY}) {
      refused(
          "an epsilon of " + epsilon,
          llama,
          m -> m.put("llama.attention.layer_norm_rms_epsilon", epsilon),
          "llama.attention.layer_norm_rms_epsilon");
    }
    refused(
        "rotary positions scaled in an unknown way",
        llama,
        m -> m.put("llama.rope.scaling.type", "nonesuch"),
        "llama.rope.scaling.type",
        "nonesuch",
        "yarn");
    refused(
        "more experts used than there are",
        experts,
        m -> m.put("llama.expert_used_count", 5),
        "llama.expert_used_count",
        "5",
        "4");
    refused(
        "experts of which none is used",
        experts,
        m -> m.put("llama.expert_used_count", 0),
        "llama.expert_used_count");
    refused(
        "experts used where there are none",
        llama,
        m -> m.put("llama.expert_used_count", 2),
        "llama.expert_used_count");
    refused(
        "groups that do not divide the experts",
        experts,
        m -> m.put("llama.expert_group_count", 3).put("llama.expert_group_used_count", 1),
        "llama.expert_group_count",
        "3");
    refused(
        "as many predicted layers as layers",
        llama,
        m -> m.put("llama.nextn_predict_layers", 3),
        "llama.nextn_predict_layers");
    refused(
        "a context of no token",
        llama,
        m -> m.put("llama.context_length", 0),
        "llama.context_length");
    refused(
        "a number where llama.cpp wants another type",
        llama,
        m -> m.put("llama.block_count", 2f),
        "llama.block_count",
        "uint32");
    loaded(
        "KV heads per layer", llama, m -> m.put("llama.attention.head_count_kv", new int[] {2, 2}));

    // Tensors
    refused(
        "a norm in half precision",
        llama,
        m -> retype(m.tensor("blk.1.attn_norm.weight"), 1, 2),
        "blk.1.attn_norm.weight",
        "f16");
    refused(
        "a bias in half precision",
        biased,
        m -> retype(m.tensor("blk.0.attn_k.bias"), 1, 2),
        "blk.0.attn_k.bias",
        "f16");
    refused(
        "a short convolution in half precision",
        llama,
        m ->
            m.tensors.add(
                new GgufImage.Tensor(
                    utf8("blk.0.ssm_conv1d.weight"), new long[] {4, 8}, 1, new byte[64])),
        "blk.0.ssm_conv1d.weight",
        "f16");
    refused(
        "weights that are integers",
        llama,
        m -> retype(m.tensor("blk.0.ffn_up.weight"), 26, 4),
        "blk.0.ffn_up.weight",
        "i32");
    refused(
        "a type that does not exist",
        llama,
        m -> m.tensor("blk.0.ffn_up.weight").type = 4,
        "blk.0.ffn_up.weight",
        "type 4");
    refused(
        "a tensor over another",
        llama,
        m -> m.tensor("blk.0.ffn_up.weight").claimedOffset = 64,
        "blk.0.ffn_up.weight",
        "64");
    refused("a tensor twice", llama, m -> m.tensors.add(m.tensors.getFirst()), "token_embd.weight");
    refused(
        "a shape whose product overflows",
        llama,
        m -> m.tensors.getLast().shape = new long[] {1L << 32, 1L << 32, 16, 1},
        "blk.1.ffn_down.weight");
    refused(
        "five dimensions",
        llama,
        m -> m.tensors.getLast().shape = new long[] {64, 32, 1, 1, 1},
        "blk.1.ffn_down.weight",
        "5");
    refused(
        "an extent of nothing",
        llama,
        m -> m.tensors.getLast().shape = new long[] {64, 0},
        "blk.1.ffn_down.weight");
    refused("no tensors", llama, m -> m.tensors.clear(), "no tensors");

    // The file
    refused(
        "an alignment that is no power of two",
        llama,
        m -> m.put("general.alignment", 48),
        "general.alignment",
        "48");
    refused(
        "tensors where no buffer can begin",
        llama,
        m -> {
          m.put("general.alignment", 8);
          m.alignment = 8;
          long data = m.tensors.stream().mapToLong(tensor -> tensor.data.length).sum();
          for (String more = ""; (m.bytes().length - data) % 32 == 0; more += "x") {
            m.put("more", more);
          }
        },
        "multiple of 32");
    refused("the other byte order", llama, m -> m.version = 3 << 24, "byte order");
    refused("an old version", llama, m -> m.version = 1, "version 1");
    refused("a version to come", llama, m -> m.version = 4, "version 4");
    refused("a key twice", llama, m -> m.pairs.add(m.pairs.getLast()), "twice");
    refused("an empty key", llama, m -> m.put("", 1), "empty");
    refused("a key with a NUL", llama, m -> m.put("a\0b", 1), "NUL");
    refused("an adapter", llama, m -> m.put("general.type", "adapter"), "adapter", "not a model");
    refused(
        "no architecture", llama, m -> m.remove("general.architecture"), "general.architecture");
    refused(
        "a part of a split model",
        llama,
        m -> m.putShort("split.no", 1).putShort("split.count", 2),
        "first part");
    refused(
        "a split model of one file",
        llama,
        m -> m.putShort("split.no", 0).putShort("split.count", 3),
        "split.count",
        "-00001-of-00003.gguf");
    refused(
        "arrays of arrays",
        llama,
        m -> m.pair("tokenizer.ggml.token_type").elementType = GgufImage.ARRAY,
        "tokenizer.ggml.token_type");
    for (long claimed : new long[] {Long.MIN_VALUE, 1L << 61, 1L << 32, 1 << 20}) {
      refused(
          "an array that claims " + claimed + " elements",
          llama,
          m -> m.pair("tokenizer.ggml.token_type").claimed = claimed,
          "tokenizer.ggml.token_type");
      refused(
          "a text that claims " + claimed + " bytes",
          llama,
          m -> m.pair("general.name").claimed = claimed,
          "general.name");
    }
    refused("a million tensors", llama, m -> m.claimedTensors = 1 << 20, "1048576 tensors");
    refused("2^61 tensors", llama, m -> m.claimedTensors = 1L << 61, "tensors");
    refused("2^62 pairs", llama, m -> m.claimedPairs = 1L << 62, "key-value pairs");
    loaded(
        "an epsilon of the other kind of norms that is 0",
        llama,
        m -> m.put("llama.attention.layer_norm_epsilon", 0f));
    loaded("sections of rotary positions", biased, m -> {});
    loaded(
        "one number for all sections of rotary positions",
        biased,
        m -> {
          GgufImage.Pair one =
              new GgufImage.Pair("qwen2vl.rope.dimension_sections", GgufImage.INT32);
          one.elements.add(GgufImage.little(4, 1));
          m.remove("qwen2vl.rope.dimension_sections").pairs.add(one);
        });
    loaded("experts", experts, m -> {});
    loaded("a sliding window", window, m -> {});
    loaded("unknown keys", llama, m -> m.put("x.y", 1).put("a", new String[] {"b"}));
  }

  private static void retype(GgufImage.Tensor tensor, int type, int bytes) {
    tensor.type = type;
    tensor.data = new byte[(int) (Arrays.stream(tensor.shape).reduce(1, (a, b) -> a * b) * bytes)];
  }

  @BeforeAll
  static void loadAll(@TempDir Path directory) throws IOException, InterruptedException {
    Map<String, Odd> all = new LinkedHashMap<>(REFUSED);
    all.putAll(LOADED);
    int number = 0;
    for (Odd odd : all.values()) {
      GgufImage image = odd.model().get();
      odd.change().accept(image);
      image.write(directory.resolve(number++ + ".gguf"));
    }
    ChildJvm child =
        ChildJvm.run(
            directory,
            Map.of("GGML_NO_BACKTRACE", "1"),
            300,
            Loading.class,
            directory.toString(),
            "" + all.size());
    List<String> names = List.copyOf(all.keySet());
    for (String line : child.output().lines().toList()) {
      if (line.matches("\\d+ .*")) {
        int space = line.indexOf(' ');
        OUTCOMES.put(
            names.get(Integer.parseInt(line.substring(0, space))), line.substring(space + 1));
      }
    }
    OUTCOMES.put("", child.output());
  }

  static Stream<String> refused() {
    return REFUSED.keySet().stream();
  }

  static Stream<String> loaded() {
    return LOADED.keySet().stream();
  }

  @ParameterizedTest
  @MethodSource("refused")
  void isRefusedByName(String name) {
    String outcome = OUTCOMES.get(name);
    assertNotNull(outcome, () -> "the JVM ended: " + OUTCOMES.get(""));
    assertTrue(outcome.startsWith("ModelLoadException: "), outcome);
    assertTrue(outcome.contains(".gguf"), outcome);
    for (String word : REFUSED.get(name).words()) {
      assertTrue(outcome.contains(word), outcome);
    }
  }

  @ParameterizedTest
  @MethodSource("loaded")
  void isLoaded(String name) {
    assertEquals("loaded", OUTCOMES.get(name));
  }

  /** Loads the files one after the other, and computes. */
  static final class Loading {
    private Loading() {}

    public static void main(String[] arguments) {
      System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
      for (int number = 0; number < Integer.parseInt(arguments[1]); number++) {
        Path file = Path.of(arguments[0], number + ".gguf");
        String outcome = "loaded";
        for (boolean adaptive : new boolean[] {true, false}) {
          try (Model model = Model.load(file, ModelOptions.defaults().withAdaptiveCache(adaptive));
              Session session =
                  model.newSession(SessionOptions.defaults().withContextSize(64).withThreads(1))) {
            session.evaluate(model.tokenize("w1 w2", true, true));
            session.cacheReport();
          } catch (KvasirException e) {
            outcome = e.getClass().getSimpleName() + ": " + e.getMessage();
          }
        }
        System.out.println("\n" + number + " " + outcome.replace("\n", " "));
      }
    }
  }
}
