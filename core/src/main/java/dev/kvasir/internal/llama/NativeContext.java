package dev.kvasir.internal.llama;

import dev.kvasir.Attention;
import dev.kvasir.DecodeException;
import dev.kvasir.DeviceType;
import dev.kvasir.InvalidOptionException;
import dev.kvasir.KvasirException;
import dev.kvasir.Sampling;
import dev.kvasir.SessionOptions;
import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.ggml_abort_callback;
import dev.kvasir.bindings.generated.llama_batch;
import dev.kvasir.bindings.generated.llama_context_params;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.internal.engine.Decoder;
import dev.kvasir.internal.engine.Sampler;
import dev.kvasir.internal.policy.CacheStore;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * A {@code llama_context} with one sequence or several, its batch, and the sequences' stores. Holds
 * its model. Used by one thread at a time; a decode step allocates nothing on the Java heap.
 */
public final class NativeContext implements Decoder {
  /** llama.cpp rounds the cells of a sequence up to this. */
  private static final int CELLS_MULTIPLE = 256;

  /** What {@code llama_decode} returns when the abort callback said so. */
  private static final int ABORTED = 2;

  /** What {@code llama_decode} never returns. */
  private static final int NO_RESULT = Integer.MIN_VALUE;

  private final NativeModel model;
  private final SessionOptions options;
  private final Arena arena;
  private final MemorySegment context;
  private final MemorySegment cache;
  private final MemorySegment answer;
  private final MemorySegment logitsOf;
  private final List<NativeCacheStore> stores;
  private final int sequences;
  private final int cells;
  private final int capacity;
  private final int batchSize;
  private final int microBatchSize;
  private final boolean limited;
  private final boolean asksInBetween; // llama.cpp asks the abort callback on the CPU only

  private final MemorySegment batch;
  private final MemorySegment tokens;
  private final MemorySegment positions;
  private final MemorySegment outputs;
  private final MemorySegment sequenceIds;
  private final MemorySegment sequenceOf;
  private final MemorySegment result;

  private final MemorySegment abortStub;
  private @Nullable BooleanSupplier abort;

  /** Of a recurrent model, by sequence: its state where a prompt began. */
  private final @Nullable Checkpoint[] checkpoints;

  private record Checkpoint(int position, Arena arena, MemorySegment state) {}

  /**
   * Creates the context.
   *
   * @param sequences that it holds, each with the context size of the options and a cache of its
   *     own
   * @param keyType ggml type of the keys
   * @param valueType ggml type of the values
   * @throws InvalidOptionException if llama.cpp refuses the options, or the machine has no memory
   *     for so large a context
   * @throws UnsupportedModelException if the store has no path for the model
   */
  public NativeContext(
      NativeModel model, SessionOptions options, int sequences, int keyType, int valueType) {
    this.model = model;
    this.options = options;
    this.sequences = sequences;
    checkpoints = new Checkpoint[sequences];
    Arena sessionArena = Arena.ofShared();
    model.hold();
    try {
      MemorySegment[] made = create(model, options, sequences, keyType, valueType);
      context = made[0];
      cache = made[1];
    } catch (Throwable e) {
      sessionArena.close();
      model.release();
      throw e;
    }
    arena = sessionArena;
    try {
      answer = arena.allocate(ValueLayout.JAVA_INT);
      logitsOf = arena.allocate(NativeApi.C_POINTER);
      cells = NativeApi.llama_n_ctx_seq(context);
      capacity =
          options.contextSize() == 0
              ? Math.min(cells, model.trainedContext())
              : Math.min(cells, options.contextSize());
      batchSize = NativeApi.llama_n_batch(context);
      microBatchSize = NativeApi.llama_n_ubatch(context);
      asksInBetween =
          IntStream.range(0, model.layers())
              .allMatch(layer -> model.deviceOf(layer).type() == DeviceType.CPU);
      limited = options.cacheMemoryLimit() > 0;
      if (limited) {
        // Fails for no valid option.
        NativeApi.kvasir_cache_limit(cache, options.cacheMemoryLimit());
      }
      stores =
          cache.address() == 0
              ? List.of()
              : IntStream.range(0, sequences)
                  .mapToObj(
                      sequence ->
                          new NativeCacheStore(
                              cache,
                              sequence,
                              model,
                              Math.min(
                                  batchThreads(options),
                                  Runtime.getRuntime().availableProcessors()),
                              arena))
                  .toList();
      tokens = arena.allocate(ValueLayout.JAVA_INT, batchSize);
      positions = arena.allocate(ValueLayout.JAVA_INT, batchSize);
      outputs = arena.allocate(ValueLayout.JAVA_BYTE, batchSize);
      result = arena.allocate(ValueLayout.JAVA_INT);
      batch = llama_batch.allocate(arena);
      llama_batch.token(batch, tokens);
      llama_batch.pos(batch, positions);
      sequenceIds = arena.allocate(ValueLayout.JAVA_INT, sequences);
      sequenceOf = arena.allocate(NativeApi.C_POINTER, batchSize);
      MemorySegment one = arena.allocate(ValueLayout.JAVA_INT, batchSize);
      for (int i = 0; i < sequences; i++) {
        sequenceIds.setAtIndex(ValueLayout.JAVA_INT, i, i);
      }
      for (int i = 0; i < batchSize; i++) {
        one.setAtIndex(ValueLayout.JAVA_INT, i, 1);
        sequenceOf.setAtIndex(NativeApi.C_POINTER, i, sequenceIds);
      }
      llama_batch.n_seq_id(batch, one);
      llama_batch.seq_id(batch, sequenceOf);
      llama_batch.embd(batch, MemorySegment.NULL);
      llama_batch.logits(batch, outputs);
      abortStub = ggml_abort_callback.allocate(this::shallAbort, arena);
      abortWhen(null);
    } catch (Throwable e) {
      close();
      throw e;
    }
  }

  private static MemorySegment[] create(
      NativeModel model, SessionOptions options, int sequences, int keyType, int valueType) {
    NativeLog.clearErrors();
    try (Arena local = Arena.ofConfined()) {
      MemorySegment params = NativeApi.llama_context_default_params(local);
      int threads = threads(options);
      int size = options.contextSize() == 0 ? model.trainedContext() : options.contextSize();
      if (model.positions() > 0 && size > model.positions()) {
        // ggml looks a position up in a table without a question, and asserts while it computes.
        throw new InvalidOptionException(
            "A contextSize of %d is more than the model %s can have: it has learned %d positions, and no other. Use a contextSize up to that."
                .formatted(size, model.file(), model.positions()));
      }
      int cells = sequences == 1 ? size : allCells(size, sequences);
      int batchSize = Math.max(sequences, options.batchSize());
      int microBatchSize = Math.min(batchSize, Math.max(sequences, options.microBatchSize()));
      SessionMemory.require(model, options, cells, sequences, microBatchSize);
      llama_context_params.n_ctx(params, cells);
      llama_context_params.n_batch(params, batchSize);
      llama_context_params.n_ubatch(params, microBatchSize);
      llama_context_params.n_seq_max(params, sequences);
      llama_context_params.n_threads(params, threads);
      llama_context_params.n_threads_batch(params, batchThreads(options));
      llama_context_params.type_k(params, keyType);
      llama_context_params.type_v(params, valueType);
      llama_context_params.swa_full(params, false);
      boolean flash = model.adaptive() || options.flashAttention();
      llama_context_params.flash_attn_type(
          params,
          flash
              ? NativeApi.LLAMA_FLASH_ATTN_TYPE_ENABLED()
              : NativeApi.LLAMA_FLASH_ATTN_TYPE_DISABLED());
      MemorySegment context = local.allocate(NativeApi.C_POINTER);
      MemorySegment cache = local.allocate(NativeApi.C_POINTER);
      int attention =
          options.attention() == Attention.PORTABLE
              ? NativeApi.KVASIR_ATTENTION_PORTABLE()
              : NativeApi.KVASIR_ATTENTION_NATIVE();
      int status;
      ExitGuard.enter();
      try {
        status =
            NativeApi.kvasir_context_new(
                model.handle(),
                params,
                attention,
                context,
                model.adaptive() ? cache : MemorySegment.NULL);
      } finally {
        ExitGuard.leave();
      }
      if (status == NativeApi.KVASIR_UNSUPPORTED()
          || status == NativeApi.KVASIR_NOT_INTERCEPTED()) {
        throw new UnsupportedModelException(
            "The adaptive cache has no path for this session on the model "
                + model.file()
                + ": "
                + NativeStatus.reason(status)
                + ". "
                + NativeModel.WITHOUT_THE_CACHE);
      }
      if (!NativeStatus.ok(status)) {
        throw new InvalidOptionException(
            "llama.cpp cannot open a session with these options on the model "
                + model.file()
                + ": "
                + NativeStatus.reason(status)
                + ".");
      }
      try {
        return new MemorySegment[] {
          context.get(NativeApi.C_POINTER, 0),
          model.adaptive() ? cache.get(NativeApi.C_POINTER, 0) : MemorySegment.NULL
        };
      } catch (Throwable e) {
        NativeApi.kvasir_context_free(
            context.get(NativeApi.C_POINTER, 0), cache.get(NativeApi.C_POINTER, 0));
        throw e;
      }
    }
  }

  private static int allCells(int size, int sequences) {
    long cells = Math.ceilDiv(size, CELLS_MULTIPLE) * (long) CELLS_MULTIPLE * sequences;
    if (cells > Integer.MAX_VALUE) {
      throw new InvalidOptionException(
          "%d sequences of %d tokens are more than llama.cpp can number. Use a smaller contextSize or fewer sequences."
              .formatted(sequences, size));
    }
    return (int) cells;
  }

  private static int threads(SessionOptions options) {
    return options.threads() > 0 ? options.threads() : defaultThreads();
  }

  private static int batchThreads(SessionOptions options) {
    return options.batchThreads() > 0 ? options.batchThreads() : threads(options);
  }

  /**
   * All processors of a small machine; half of those of a larger one, where they are likely to be
   * two threads of one core.
   */
  private static int defaultThreads() {
    int processors = Runtime.getRuntime().availableProcessors();
    return processors <= 4 ? processors : processors / 2;
  }

  public NativeModel model() {
    return model;
  }

  @Override
  public int capacity() {
    return capacity;
  }

  /** Sequences that a context can have. */
  public static int mostSequences() {
    return Math.toIntExact(NativeApi.llama_max_parallel_sequences());
  }

  /** The native cache, for tests that look at its sums. */
  MemorySegment cache() {
    return cache;
  }

  /** Sequences of the context. */
  int sequences() {
    return sequences;
  }

  /** Cells of llama.cpp's cache for a sequence, which are {@link #capacity()} rounded up. */
  int cells() {
    return cells;
  }

  @Override
  public int batchSize() {
    return batchSize;
  }

  @Override
  public int microBatchSize() {
    return microBatchSize;
  }

  @Override
  public int promptSize() {
    return asksInBetween ? batchSize : microBatchSize;
  }

  @Override
  public Optional<CacheStore> store(int sequence) {
    return stores.isEmpty() ? Optional.empty() : Optional.of(stores.get(sequence));
  }

  @Override
  public void abortWhen(@Nullable BooleanSupplier condition) {
    abort = condition;
    // An upcall for each operation of a graph would cost a decode step more than it may.
    NativeApi.llama_set_abort_callback(
        context,
        condition == null ? NativeApi.kvasir_abandoned$address() : abortStub,
        MemorySegment.NULL);
  }

  private boolean shallAbort(MemorySegment data) {
    try {
      BooleanSupplier condition = abort;
      boolean abortNow = ExitGuard.exiting() || (condition != null && condition.getAsBoolean());
      if (abortNow) {
        NativeLog.aborting(true);
      }
      return abortNow;
    } catch (Throwable e) {
      // Nothing may leave an upcall. A condition that fails is taken for a wish to end.
      return true;
    }
  }

  @Override
  public Outcome decode(
      int sequence, int[] source, int from, int count, int position, boolean allLogits) {
    MemorySegment.copy(source, from, tokens, ValueLayout.JAVA_INT, 0, count);
    for (int i = 0; i < count; i++) {
      positions.setAtIndex(ValueLayout.JAVA_INT, i, position + i);
      outputs.set(ValueLayout.JAVA_BYTE, i, (byte) (allLogits || i == count - 1 ? 1 : 0));
      sequenceOf.setAtIndex(NativeApi.C_POINTER, i, idOf(sequence));
    }
    return decodeBatch(count, position);
  }

  @Override
  public void requireRoomForStep(int position) {
    if (limited && model.recurrent()) {
      int status = NativeApi.kvasir_cache_room(cache, -1, 1);
      if (!NativeStatus.ok(status)) {
        throw noMemory(sequences, position, status);
      }
    }
  }

  private static DecodeException noMemory(int count, int position, int status) {
    return new DecodeException(
        "There is no memory for "
            + count
            + " tokens from position "
            + position
            + " on: "
            + NativeStatus.text(status)
            + ".");
  }

  @Override
  public Outcome decode(int token, int position) {
    tokens.set(ValueLayout.JAVA_INT, 0, token);
    positions.set(ValueLayout.JAVA_INT, 0, position);
    outputs.set(ValueLayout.JAVA_BYTE, 0, (byte) 1);
    return decodeBatch(1, position);
  }

  @Override
  public Outcome decodeStep(int[] source, int[] position) {
    for (int i = 0; i < sequences; i++) {
      tokens.setAtIndex(ValueLayout.JAVA_INT, i, source[i]);
      positions.setAtIndex(ValueLayout.JAVA_INT, i, position[i]);
      outputs.set(ValueLayout.JAVA_BYTE, i, (byte) 1);
      sequenceOf.setAtIndex(NativeApi.C_POINTER, i, idOf(i));
    }
    return decodeBatch(sequences, position[0]);
  }

  private MemorySegment idOf(int sequence) {
    return sequenceIds.asSlice((long) sequence * Integer.BYTES);
  }

  private Outcome decodeBatch(int count, int position) {
    llama_batch.n_tokens(batch, count);
    // Where llama.cpp throws, that of the batch before would stay.
    result.set(ValueLayout.JAVA_INT, 0, NO_RESULT);
    int status;
    ExitGuard.enter();
    if (limited) {
      NativeLog.trying(true);
    }
    try {
      status = NativeApi.kvasir_decode(context, batch, result);
    } finally {
      if (limited) {
        NativeLog.trying(false);
      }
      ExitGuard.leave();
    }
    int code = result.get(ValueLayout.JAVA_INT, 0);
    if (abort != null) {
      NativeLog.aborting(false);
    }
    if (NativeStatus.ok(status) && code == 0) {
      return Outcome.DONE;
    }
    if (NativeStatus.ok(status) && code == ABORTED) {
      return Outcome.ABORTED;
    }
    if (status == NativeApi.KVASIR_OUT_OF_MEMORY()) {
      // What llama.cpp logged meanwhile says no more than that its graph failed.
      NativeLog.clearErrors();
      throw noMemory(count, position, status);
    }
    throw new DecodeException(
        "llama.cpp failed to decode "
            + count
            + " tokens from position "
            + position
            + " on"
            + (code == NO_RESULT ? ": " : " (code " + code + "): ")
            + NativeStatus.reason(status)
            + ".");
  }

  @Override
  public void saveCheckpoint(int sequence, int position) {
    // llama.cpp saves the cells of a sliding window with the state; what the store knows of them
    // beyond their rows would be lost.
    if (!model.recurrent() || model.window() > 0 || position == 0) {
      return;
    }
    Arena saved = Arena.ofShared();
    boolean done = false;
    try {
      MemorySegment size = saved.allocate(NativeApi.C_LONG);
      check(NativeApi.kvasir_recurrent_size(context, sequence, size));
      MemorySegment state = saved.allocate(size.get(NativeApi.C_LONG, 0));
      check(NativeApi.kvasir_recurrent_save(context, sequence, state, state.byteSize()));
      dropCheckpoint(sequence);
      checkpoints[sequence] = new Checkpoint(position, saved, state);
      done = true;
    } finally {
      if (!done) {
        saved.close();
      }
    }
  }

  private static void check(int status) {
    if (!NativeStatus.ok(status)) {
      throw new KvasirException(
          "The recurrent state of the model could not be saved before a prompt: "
              + NativeStatus.reason(status)
              + ".");
    }
  }

  @Override
  public void dropCheckpoint(int sequence) {
    Checkpoint checkpoint = checkpoints[sequence];
    if (checkpoint != null) {
      checkpoint.arena().close();
      checkpoints[sequence] = null;
    }
  }

  /** Takes the sequence out of llama.cpp's memory from a position on; false when it cannot. */
  private boolean remove(int sequence, int position) {
    if (!model.recurrent() || position == 0) {
      return NativeStatus.ok(NativeApi.kvasir_memory_remove(context, sequence, position, answer));
    }
    Checkpoint checkpoint = checkpoints[sequence];
    return checkpoint != null
        && checkpoint.position() == position
        && NativeStatus.ok(
            NativeApi.kvasir_recurrent_restore(
                context, sequence, checkpoint.state(), checkpoint.state().byteSize()));
  }

  @Override
  public boolean truncate(int sequence, int position) {
    if (!ExitGuard.tryEnter()) {
      return true; // nothing is decoded any more
    }
    try {
      return truncateNow(sequence, position);
    } finally {
      ExitGuard.leave();
    }
  }

  private boolean truncateNow(int sequence, int position) {
    if (!remove(sequence, position)) {
      return false;
    }
    boolean whole = model.window() == 0 || position == 0 || windowIsWhole(sequence, position);
    if (cache.address() != 0) {
      if (model.window() == 0) {
        // With one sequence a stream and nothing reused, cells are positions.
        int status = NativeApi.kvasir_cache_truncate(cache, sequence, position);
        if (!NativeStatus.ok(status)) {
          throw new KvasirException(
              "The cache could not be cut at position "
                  + position
                  + ": "
                  + NativeStatus.reason(status));
        }
      } else {
        dropFrom(sequence, position);
      }
    }
    return whole;
  }

  @Override
  public boolean canTruncate(int sequence, int position) {
    if (position == 0) {
      return true;
    }
    if (model.recurrent()) {
      Checkpoint checkpoint = checkpoints[sequence];
      return checkpoint != null && checkpoint.position() == position;
    }
    return model.window() == 0 || windowIsWhole(sequence, position);
  }

  /**
   * Whether everything is left that the token of a position would see: itself is one of the window.
   */
  private boolean windowIsWhole(int sequence, int position) {
    if (!NativeStatus.ok(NativeApi.kvasir_memory_first(context, sequence, answer))) {
      return false;
    }
    int first = answer.get(ValueLayout.JAVA_INT, 0); // -1 when nothing is left
    return first >= 0 && first <= Math.max(0, position - model.window() + 1);
  }

  /** The cells of a sliding-window cache are a ring: what to drop is found by position. */
  private void dropFrom(int sequence, int position) {
    NativeCacheStore slots = stores.get(sequence);
    for (int layer = 0; layer < slots.layers(); layer++) {
      for (int head = 0; head < slots.shape(layer).kvHeads(); head++) {
        for (int slot = slots.slots(layer, head) - 1; slot >= 0; slot--) {
          if (slots.position(layer, head, slot) >= position) {
            slots.addEviction(layer, head, slot);
          }
        }
      }
    }
    slots.flushEvictions();
  }

  @Override
  public void clear() {
    if (!ExitGuard.tryEnter()) {
      return; // nothing is decoded any more
    }
    try {
      clearNow();
    } finally {
      ExitGuard.leave();
    }
  }

  private void clearNow() {
    int cleared = NativeApi.kvasir_memory_clear(context);
    if (!NativeStatus.ok(cleared)) {
      throw new KvasirException(
          "The context could not be cleared: " + NativeStatus.text(cleared) + ".");
    }
    if (cache.address() != 0) {
      for (int sequence = 0; sequence < sequences; sequence++) {
        int status = NativeApi.kvasir_cache_truncate(cache, sequence, 0);
        if (!NativeStatus.ok(status)) {
          throw new KvasirException(
              "The cache could not be cleared: " + NativeStatus.reason(status));
        }
      }
    }
  }

  private MemorySegment logits(int index) {
    int status = NativeApi.kvasir_logits(context, index, logitsOf);
    if (!NativeStatus.ok(status)) {
      throw new KvasirException("The logits cannot be read: " + NativeStatus.text(status) + ".");
    }
    return logitsOf.get(NativeApi.C_POINTER, 0);
  }

  private long logitsBytes() {
    return (long) model.vocabulary().size() * Float.BYTES;
  }

  @Override
  public void copyLogits(int index, float[] target) {
    MemorySegment.copy(
        logits(index).reinterpret(logitsBytes()),
        ValueLayout.JAVA_FLOAT,
        0,
        target,
        0,
        target.length);
  }

  @Override
  public void restoreLogits(float[] logits) {
    MemorySegment.copy(
        logits, 0, logits(-1).reinterpret(logitsBytes()), ValueLayout.JAVA_FLOAT, 0, logits.length);
  }

  @Override
  public void showLogits(int index, Consumer<FloatBuffer> to) {
    try (Arena shown = Arena.ofConfined()) {
      to.accept(
          logits(index)
              .reinterpret(logitsBytes(), shown, null)
              .asByteBuffer()
              .order(ByteOrder.nativeOrder())
              .asFloatBuffer()
              .asReadOnlyBuffer());
    }
  }

  @Override
  public Sampler sampler(Sampling sampling) {
    return new SamplerChain(sampling, model.vocabulary().size(), context);
  }

  @Override
  public CacheReport plainReport(int position) {
    return PlainCache.report(this, options, position);
  }

  @Override
  public void close() {
    // A process that ends takes its memory with it; what frees it may be gone already.
    if (ExitGuard.tryEnter()) {
      try {
        for (int sequence = 0; sequence < sequences; sequence++) {
          dropCheckpoint(sequence);
        }
        NativeApi.kvasir_context_free(context, cache);
        arena.close();
        model.release();
      } finally {
        ExitGuard.leave();
      }
    }
  }
}
