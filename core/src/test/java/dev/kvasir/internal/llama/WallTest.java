package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.Model;
import dev.kvasir.bindings.NativeLibraries;
import dev.kvasir.bindings.generated.NativeApi;
import java.io.IOException;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassModel;
import java.lang.classfile.constantpool.MemberRefEntry;
import java.lang.classfile.constantpool.PoolEntry;
import java.net.URI;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/**
 * A C++ exception, or a failed assertion of ggml, that reaches Java ends the process. So llama.cpp
 * and ggml are called through functions of libkvasir, which catch both, but for those that cannot
 * fail. The compiled classes are read, of this module and of the bindings; the examples do not read
 * the bindings' module at all.
 */
class WallTest {
  private static final String GENERATED = "dev/kvasir/bindings/generated/";
  private static final Pattern FUNCTION =
      Pattern.compile("((?:llama|ggml|gguf)_[a-z0-9_]+)(\\$.*)?");

  private static final String FIELD = "returns a field";
  private static final String CONSTANT = "returns a constant";
  private static final String DEFAULTS = "returns a struct of constants";
  private static final String ID = "looks an id up, which is one of the vocabulary here";
  private static final String REGISTRY =
      "reads the list of devices, which loading the backends has made; an index is below the count";
  private static final String SETTER = "keeps two pointers";

  /** What may be called without libkvasir, and why it cannot throw or assert. */
  private static final Map<String, String> ALLOWED = new TreeMap<>();

  static {
    allow(FIELD, "llama_n_batch", "llama_n_ctx_seq", "llama_n_ubatch");
    allow(FIELD, "llama_model_get_vocab", "llama_model_is_hybrid", "llama_model_is_recurrent");
    allow(FIELD, "llama_model_n_ctx_train", "llama_model_n_embd", "llama_model_n_layer");
    allow(FIELD, "llama_model_n_params", "llama_model_n_swa", "llama_model_size");
    allow(FIELD, "llama_vocab_bos", "llama_vocab_eos", "llama_vocab_sep", "llama_vocab_type");
    allow(FIELD, "llama_vocab_get_add_bos", "llama_vocab_get_add_eos", "llama_vocab_n_tokens");
    allow(
        "returns an element of layer 0; a header without layers is refused before",
        "llama_model_n_head",
        "llama_model_n_head_kv");
    allow("goes by the architecture, which a loaded model has", "llama_model_rope_type");
    allow(ID, "llama_vocab_get_attr", "llama_vocab_get_text", "llama_vocab_is_eog");
    allow(CONSTANT, "llama_max_devices", "llama_max_parallel_sequences", "llama_version");
    allow(DEFAULTS, "llama_context_default_params", "llama_model_default_params");
    allow("returns the address of a static struct", "ggml_backend_cpu_buffer_type");
    allow(REGISTRY, "ggml_backend_dev_by_name", "ggml_backend_dev_by_type");
    allow(REGISTRY, "ggml_backend_dev_count", "ggml_backend_dev_description");
    allow(REGISTRY, "ggml_backend_dev_get", "ggml_backend_dev_name", "ggml_backend_dev_type");
    allow(REGISTRY, "ggml_backend_reg_count", "ggml_backend_reg_get", "ggml_backend_reg_name");
    allow(
        "indexes a table by a type that was compared with its size before",
        "ggml_blck_size",
        "ggml_type_name",
        "ggml_type_size");
    allow(SETTER, "ggml_log_set", "llama_log_set");
    allow(SETTER + ", in each backend too", "llama_set_abort_callback");
    allow("runs destructors, which are noexcept", "llama_model_free");
  }

  private static void allow(String reason, String... functions) {
    for (String function : functions) {
      ALLOWED.put(function, reason);
    }
  }

  @Test
  void llamaCppIsCalledThroughTheWall() throws Exception {
    Map<String, TreeSet<String>> callers = new TreeMap<>();
    int classes = 0;
    for (Class<?> anchor : List.of(Model.class, NativeLibraries.class)) {
      classes += read(anchor, model -> note(model, callers));
    }
    assertTrue(classes > 50, "only " + classes + " classes were read");
    Map<String, TreeSet<String>> forbidden = new TreeMap<>(callers);
    forbidden.keySet().removeAll(ALLOWED.keySet());
    assertEquals(Map.of(), forbidden, "called without libkvasir's wall");
    TreeSet<String> unused = new TreeSet<>(ALLOWED.keySet());
    unused.removeAll(callers.keySet());
    assertEquals(List.of(), List.copyOf(unused), "allowed, and called by nobody");
  }

  @Test
  void whatIsAllowedIsBound() {
    for (String function : ALLOWED.keySet()) {
      assertTrue(
          Stream.of(NativeApi.class.getMethods()).anyMatch(m -> m.getName().equals(function)),
          function);
    }
  }

  /** Every reference to a function of the bindings, calls and method handles alike. */
  private static void note(ClassModel model, Map<String, TreeSet<String>> callers) {
    for (PoolEntry entry : model.constantPool()) {
      if (entry instanceof MemberRefEntry member
          && member.owner().asInternalName().startsWith(GENERATED)) {
        Matcher name = FUNCTION.matcher(member.name().stringValue());
        if (name.matches()) {
          callers
              .computeIfAbsent(name.group(1), any -> new TreeSet<>())
              .add(model.thisClass().asInternalName());
        }
      }
    }
  }

  /**
   * Reads the compiled classes beside one, but for the generated ones, and returns their number.
   */
  private static int read(Class<?> anchor, Consumer<ClassModel> each) throws Exception {
    URI location = anchor.getProtectionDomain().getCodeSource().getLocation().toURI();
    Path path = Path.of(location);
    if (Files.isDirectory(path)) {
      return readAll(path, each);
    }
    try (FileSystem jar = FileSystems.newFileSystem(path)) {
      return readAll(jar.getPath("/"), each);
    }
  }

  private static int readAll(Path root, Consumer<ClassModel> each) throws IOException {
    try (Stream<Path> files = Files.walk(root)) {
      List<Path> classes =
          files
              .filter(file -> file.toString().endsWith(".class"))
              .filter(file -> !file.toString().replace('\\', '/').contains(GENERATED))
              .toList();
      for (Path file : classes) {
        each.accept(ClassFile.of().parse(Files.readAllBytes(file)));
      }
      return classes.size();
    }
  }
}
