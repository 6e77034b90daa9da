package dev.kvasir.internal.llama;

import dev.kvasir.Device;
import dev.kvasir.DeviceType;
import dev.kvasir.ExitingException;
import dev.kvasir.LoadCancelledException;
import dev.kvasir.LoadListener;
import dev.kvasir.ModelLoadException;
import dev.kvasir.ModelOptions;
import dev.kvasir.ModelStateException;
import dev.kvasir.NativeLibraryException;
import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.llama_model_params;
import dev.kvasir.bindings.generated.llama_model_tensor_buft_override;
import dev.kvasir.bindings.generated.llama_progress_callback;
import dev.kvasir.internal.llama.gguf.AttentionShape;
import dev.kvasir.internal.llama.gguf.Preflight;
import dev.kvasir.internal.policy.TokenKinds;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * A loaded {@code llama_model}, with what is worth knowing of it read out once. Shared between
 * threads.
 */
public final class NativeModel implements AutoCloseable {
  /** More layers than any model has: all of them. */
  private static final int ALL_LAYERS = 999;

  /** What to do with a model that only the adaptive cache has no path for. */
  static final String WITHOUT_THE_CACHE =
      "It can run without: ModelOptions.withAdaptiveCache(false), on the command line --kv-policy none.";

  private final MemorySegment model;
  private final Path file;
  private final AttentionShape attention;
  private final long positions;
  private final Placement placement;
  private final boolean adaptive;
  private final HandleState state;
  private final Vocabulary vocabulary;
  private final @Nullable ChatTemplate chatTemplate;
  private final String description;
  private final long parameters;
  private final long bytes;
  private final int trainedContext;
  private final int layers;
  private final int window;
  private final boolean recurrent;
  private @Nullable TokenKinds tokenKinds;

  private NativeModel(
      MemorySegment model, Path file, Preflight header, Placement placement, boolean adaptive) {
    this.model = model;
    this.file = file;
    this.attention = header.attention();
    this.positions = header.positions();
    this.placement = placement;
    this.adaptive = adaptive;
    this.state = new HandleState(this::free);
    String template = template(model);
    this.description = describe(model);
    this.parameters = NativeApi.llama_model_n_params(model);
    this.bytes = NativeApi.llama_model_size(model);
    this.trainedContext = NativeApi.llama_model_n_ctx_train(model);
    this.layers = NativeApi.llama_model_n_layer(model);
    this.window = NativeApi.llama_model_n_swa(model);
    this.recurrent =
        NativeApi.llama_model_is_recurrent(model) || NativeApi.llama_model_is_hybrid(model);
    this.vocabulary = new Vocabulary(NativeApi.llama_model_get_vocab(model));
    this.chatTemplate =
        template == null
            ? null
            : new ChatTemplate(
                new Jinja(template, vocabulary.beginText(), vocabulary.endText()), vocabulary);
  }

  private void free() {
    // A process that ends takes its memory with it; what frees it may be gone already.
    if (ExitGuard.tryEnter()) {
      try {
        vocabulary.close();
        NativeApi.llama_model_free(model);
      } finally {
        ExitGuard.leave();
      }
    }
  }

  /** Loads a model; see {@link dev.kvasir.Model#load(Path, ModelOptions)}. */
  public static NativeModel load(Path file, ModelOptions options) {
    NativeRuntime.start();
    Preflight header = Preflight.of(file);
    Placement placement = place(header, options);
    NativeLog.clearErrors();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment params = NativeApi.llama_model_default_params(arena);
      apply(placement, options.adaptiveCache(), params, arena);
      llama_model_params.load_mode(
          params,
          options.useMmap() ? NativeApi.LLAMA_LOAD_MODE_AUTO() : NativeApi.LLAMA_LOAD_MODE_NONE());
      Progress progress = new Progress(options.progress());
      llama_model_params.progress_callback(
          params, llama_progress_callback.allocate(progress::loaded, arena));
      MemorySegment result = arena.allocate(NativeApi.C_POINTER);
      MemorySegment path = arena.allocateFrom(file.toString());
      int status;
      ExitGuard.enter();
      try {
        status = NativeApi.kvasir_model_load(path, params, result);
      } finally {
        ExitGuard.leave();
      }
      progress.rethrow(file);
      MemorySegment model = result.get(NativeApi.C_POINTER, 0);
      if (!NativeStatus.ok(status) || model.address() == 0) {
        throw new ModelLoadException(
            "llama.cpp cannot load the model " + file + ": " + NativeStatus.reason(status) + ".");
      }
      try {
        requireMemory(model, file, options.adaptiveCache());
        SpecialTokens.require(NativeApi.llama_model_get_vocab(model), file);
        RotaryPositions.require(model, header.attention(), file);
        return new NativeModel(model, file, header, placement, options.adaptiveCache());
      } catch (Throwable e) {
        NativeApi.llama_model_free(model);
        throw e;
      }
    }
  }

  private static Placement place(Preflight file, ModelOptions options) {
    List<Device> devices = DeviceRegistry.list();
    int all = file.layers() + 1;
    int offloaded = options.gpuLayers() < 0 ? all : Math.min(all, options.gpuLayers());
    List<Device> selected =
        DeviceRegistry.select(devices, options.devices(), file.bytes() / all * offloaded);
    return Placement.of(
        selected,
        DeviceRegistry.cpu(devices),
        options.gpuLayers(),
        options.tensorSplit(),
        file.layers());
  }

  private static void apply(
      Placement placement, boolean adaptive, MemorySegment params, Arena arena) {
    // llama.cpp's own CPU device is not listed: it takes what is not offloaded. A proxy is, the
    // CPU's too: llama.cpp takes it for a GPU, to which all layers are offloaded.
    List<Placement.Share> shares =
        adaptive
            ? placement.shares()
            : placement.shares().stream()
                .filter(share -> share.device().type() != DeviceType.CPU)
                .toList();
    MemorySegment devices = arena.allocate(NativeApi.C_POINTER, shares.size() + 1L);
    MemorySegment split =
        arena.allocate(
            ValueLayout.JAVA_FLOAT, Math.max(shares.size(), NativeApi.llama_max_devices()));
    for (int i = 0; i < shares.size(); i++) {
      Device device = shares.get(i).device();
      devices.setAtIndex(
          NativeApi.C_POINTER, i, adaptive ? proxy(device, arena) : handle(device, arena));
      split.setAtIndex(ValueLayout.JAVA_FLOAT, i, shares.get(i).layers());
    }
    llama_model_params.devices(params, devices);
    llama_model_params.tensor_split(params, split);
    llama_model_params.n_gpu_layers(params, adaptive ? ALL_LAYERS : placement.offloaded());
    if (adaptive && placement.onCpu() > 0) {
      keepOnCpu(placement, params, arena);
    }
  }

  private static MemorySegment handle(Device device, Arena arena) {
    return NativeApi.ggml_backend_dev_by_name(arena.allocateFrom(device.name()));
  }

  private static MemorySegment proxy(Device device, Arena arena) {
    MemorySegment proxy = arena.allocate(NativeApi.C_POINTER);
    int status = NativeApi.kvasir_device(arena.allocateFrom(device.name()), proxy);
    if (!NativeStatus.ok(status)) {
      throw new NativeLibraryException(
          "The adaptive cache cannot use the device "
              + device.name()
              + ": "
              + NativeStatus.reason(status)
              + ".");
    }
    return proxy.get(NativeApi.C_POINTER, 0);
  }

  /**
   * llama.cpp takes the CPU's proxy for a GPU and would put its weights into its buffer type, where
   * the CPU backend's repacked layouts are not offered. Nor are they in the pinned memory of a GPU
   * beside it, which is there for computing the CPU's layers on that GPU.
   */
  private static void keepOnCpu(Placement placement, MemorySegment params, Arena arena) {
    String pattern =
        placement.offloaded() == 0
            ? ".*"
            : IntStream.range(0, placement.onCpu())
                .mapToObj(Integer::toString)
                .collect(Collectors.joining("|", "^blk\\.(", ")\\."));
    MemorySegment overrides = llama_model_tensor_buft_override.allocateArray(2, arena);
    llama_model_tensor_buft_override.pattern(overrides, arena.allocateFrom(pattern));
    llama_model_tensor_buft_override.buft(overrides, NativeApi.ggml_backend_cpu_buffer_type());
    llama_model_params.tensor_buft_overrides(params, overrides);
    llama_model_params.no_host(params, true);
  }

  /** What a model is refused for at once. What an operation lacks, a session's context shows. */
  private static void requireMemory(MemorySegment model, Path file, boolean adaptive) {
    String why = null;
    int plain = NativeApi.kvasir_model_check(model, 0);
    if (!NativeStatus.ok(plain)) {
      why = NativeStatus.text(plain) + ". Kvasir runs models that continue a text.";
    } else if (NativeApi.llama_vocab_type(NativeApi.llama_model_get_vocab(model))
        == NativeApi.LLAMA_VOCAB_TYPE_NONE()) {
      why = "a model without a vocabulary. Kvasir runs models that continue a text.";
    } else if (adaptive) {
      int status = NativeApi.kvasir_model_check(model, 1);
      if (!NativeStatus.ok(status)) {
        why =
            NativeStatus.text(status)
                + ". The adaptive cache has no path for it. "
                + WITHOUT_THE_CACHE;
      }
    }
    if (why != null) {
      throw new UnsupportedModelException(
          "The model " + file + " (" + describe(model) + ") is " + why);
    }
  }

  private static String describe(MemorySegment model) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment text = arena.allocate(256);
      int status = NativeApi.kvasir_model_description(model, text, text.byteSize());
      return NativeStatus.ok(status) ? text.getString(0) : NativeStatus.text(status);
    }
  }

  private static @Nullable String template(MemorySegment model) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment result = arena.allocate(NativeApi.C_POINTER);
      int status = NativeApi.kvasir_model_chat_template(model, result);
      if (!NativeStatus.ok(status)) {
        throw new ModelLoadException(
            "The model's chat template cannot be read: " + NativeStatus.text(status) + ".");
      }
      MemorySegment source = result.get(NativeApi.C_POINTER, 0);
      return source.address() == 0 ? null : source.getString(0);
    }
  }

  /**
   * Hands llama.cpp's progress on. An exception must not leave the upcall: it ends the loading, and
   * is thrown afterwards.
   */
  private static final class Progress {
    private final @Nullable LoadListener listener;
    private boolean cancelled;
    private @Nullable Throwable thrown;

    Progress(@Nullable LoadListener listener) {
      this.listener = listener;
    }

    boolean loaded(float fraction, MemorySegment userData) {
      if (ExitGuard.exiting()) {
        return false;
      }
      if (listener == null) {
        return true;
      }
      try {
        cancelled |= !listener.loaded(fraction);
      } catch (Throwable e) {
        cancelled = true;
        thrown = e;
      }
      return !cancelled;
    }

    void rethrow(Path file) {
      switch (thrown) {
        case null -> {}
        case RuntimeException e -> throw e;
        case Error e -> throw e;
        case Throwable e -> throw new IllegalStateException("the progress listener failed", e);
      }
      if (ExitGuard.exiting()) {
        throw new ExitingException();
      }
      if (cancelled) {
        throw new LoadCancelledException(
            "Loading " + file + " was cancelled by its progress listener.");
      }
    }
  }

  /**
   * Holds the model for a call or a session.
   *
   * @throws ModelStateException if it is closed
   */
  void hold() {
    if (!state.hold()) {
      throw new ModelStateException("The model " + file + " is closed.");
    }
  }

  void release() {
    state.release();
  }

  MemorySegment handle() {
    return model;
  }

  /** The vocabulary. Splitting text needs a live model: see {@link #tokenize}. */
  public Vocabulary vocabulary() {
    return vocabulary;
  }

  /** As {@link Vocabulary#tokenize}, while the model is held. */
  public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
    hold();
    try {
      return vocabulary.tokenize(text, addSpecial, parseSpecial);
    } finally {
      release();
    }
  }

  /** As {@link Vocabulary#detokenize}, while the model is held. */
  public String detokenize(int[] tokens) {
    hold();
    try {
      return vocabulary.detokenize(tokens);
    } finally {
      release();
    }
  }

  /** What the policies want to know of tokens; while the model is held. */
  public synchronized TokenKinds tokenKinds() {
    if (tokenKinds == null) {
      tokenKinds = new ModelTokenKinds(vocabulary, chatTemplate);
    }
    return tokenKinds;
  }

  /** The template is rendered when its markers are asked for, and not before. */
  private static final class ModelTokenKinds implements TokenKinds {
    private final Vocabulary vocabulary;
    private final @Nullable ChatTemplate template;
    private int @Nullable [][] markers;

    ModelTokenKinds(Vocabulary vocabulary, @Nullable ChatTemplate template) {
      this.vocabulary = vocabulary;
      this.template = template;
    }

    @Override
    public byte kindOf(int token) {
      return vocabulary.kindOf(token);
    }

    @Override
    public synchronized int[][] markers() {
      if (markers == null) {
        markers = template == null ? new int[0][] : template.markers();
      }
      return markers;
    }
  }

  /** The chat template, if the model has one. */
  public Optional<ChatTemplate> chatTemplate() {
    return Optional.ofNullable(chatTemplate);
  }

  public Path file() {
    return file;
  }

  /** The devices that hold the model's layers, by name, in the order of the layers. */
  public List<String> devices() {
    return placement.shares().stream().map(share -> share.device().name()).toList();
  }

  /** The device of a layer, by the model's layer index. */
  Device deviceOf(int layer) {
    return placement.deviceOf(layer);
  }

  /** Whether the model's KV caches are Kvasir's. */
  public boolean adaptive() {
    return adaptive;
  }

  public String description() {
    return description;
  }

  public long parameters() {
    return parameters;
  }

  public long bytes() {
    return bytes;
  }

  public int trainedContext() {
    return trainedContext;
  }

  public int layers() {
    return layers;
  }

  /** Positions that the model has learned one by one; 0 if it has a rule for any position. */
  long positions() {
    return positions;
  }

  /** What the model's header says of its KV heads. */
  AttentionShape attention() {
    return attention;
  }

  /** Tokens that a layer with a sliding window sees; 0 when there is no such layer. */
  int window() {
    return window;
  }

  /** Whether some layers have a recurrent state, which cannot be cut at a position. */
  boolean recurrent() {
    return recurrent;
  }

  @Override
  public void close() {
    state.close();
  }
}
