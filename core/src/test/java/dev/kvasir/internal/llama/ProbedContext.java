package dev.kvasir.internal.llama;

import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.ggml_backend_sched_eval_callback;
import dev.kvasir.bindings.generated.ggml_tensor;
import dev.kvasir.bindings.generated.llama_batch;
import dev.kvasir.bindings.generated.llama_context_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * A context whose tensors a test looks at, and changes, while a graph is computed: with Kvasir's
 * cache if the model was loaded for it, otherwise of unmodified llama.cpp.
 */
public final class ProbedContext implements AutoCloseable {
  /** What is done with the tensors. */
  public interface Probe {
    /** Whether the tensor is to be shown when it has been computed. */
    boolean wants(Tensor tensor);

    /** Called with a tensor that was asked for. */
    void computed(Tensor tensor);
  }

  /** A {@code ggml_tensor} in host memory. */
  public record Tensor(MemorySegment struct) {
    public String name() {
      return ggml_tensor.name(struct).getString(0);
    }

    public int op() {
      return ggml_tensor.op(struct);
    }

    public int extent(int dimension) {
      return (int) ggml_tensor.ne(struct, dimension);
    }

    public long stride(int dimension) {
      return ggml_tensor.nb(struct, dimension);
    }

    public Tensor source(int index) {
      return new Tensor(ggml_tensor.src(struct, index).reinterpret(ggml_tensor.sizeof()));
    }

    /** The tensor that this one is a view of, in the end. */
    public Tensor root() {
      MemorySegment of = ggml_tensor.view_src(struct);
      return of.address() == 0 ? this : new Tensor(of.reinterpret(ggml_tensor.sizeof())).root();
    }

    public float parameter(int index) {
      return Float.intBitsToFloat(ggml_tensor.op_params(struct, index));
    }

    private MemorySegment data() {
      return ggml_tensor.data(struct).reinterpret(Long.MAX_VALUE);
    }

    private long offset(long i0, long i1, long i2) {
      return i0 * stride(0) + i1 * stride(1) + i2 * stride(2);
    }

    /** Copies a row of F32 elements. */
    public void row(long i1, long i2, float[] into) {
      MemorySegment.copy(
          data(), ValueLayout.JAVA_FLOAT_UNALIGNED, offset(0, i1, i2), into, 0, into.length);
    }

    /** Copies a row of F16 elements. */
    public void halfRow(long i1, long i2, float[] into) {
      MemorySegment from = data();
      long at = offset(0, i1, i2);
      for (int i = 0; i < into.length; i++) {
        into[i] = Float.float16ToFloat(from.get(ValueLayout.JAVA_SHORT_UNALIGNED, at + 2L * i));
      }
    }

    public void setRow(long i1, long i2, float[] values) {
      MemorySegment.copy(
          values, 0, data(), ValueLayout.JAVA_FLOAT_UNALIGNED, offset(0, i1, i2), values.length);
    }
  }

  private final Arena arena = Arena.ofShared();
  private final MemorySegment context;
  private final MemorySegment cache;
  private final int vocabulary;
  private @Nullable Throwable failure;

  /** Opens the context. */
  public ProbedContext(
      NativeModel model, int contextSize, int threads, boolean flashAttention, Probe probe) {
    vocabulary = model.vocabulary().size();
    MemorySegment params = NativeApi.llama_context_default_params(arena);
    llama_context_params.n_ctx(params, contextSize);
    llama_context_params.n_threads(params, threads);
    llama_context_params.n_threads_batch(params, threads);
    llama_context_params.flash_attn_type(
        params,
        flashAttention
            ? NativeApi.LLAMA_FLASH_ATTN_TYPE_ENABLED()
            : NativeApi.LLAMA_FLASH_ATTN_TYPE_DISABLED());
    llama_context_params.cb_eval(
        params,
        ggml_backend_sched_eval_callback.allocate(
            (struct, ask, data) -> {
              try {
                Tensor tensor = new Tensor(struct.reinterpret(ggml_tensor.sizeof()));
                if (ask) {
                  return probe.wants(tensor);
                }
                probe.computed(tensor);
                return true;
              } catch (Throwable e) {
                failure = e;
                return !ask;
              }
            },
            arena));
    MemorySegment result = arena.allocate(NativeApi.C_POINTER);
    MemorySegment store =
        model.adaptive() ? arena.allocate(NativeApi.C_POINTER) : MemorySegment.NULL;
    int status =
        NativeApi.kvasir_context_new(
            model.handle(), params, NativeApi.KVASIR_ATTENTION_NATIVE(), result, store);
    if (!NativeStatus.ok(status)) {
      throw new IllegalStateException(NativeStatus.reason(status));
    }
    context = result.get(NativeApi.C_POINTER, 0);
    cache = model.adaptive() ? store.get(NativeApi.C_POINTER, 0) : MemorySegment.NULL;
  }

  /** Decodes tokens in one batch, and returns the logits of the last one. */
  public float[] decode(int[] tokens, int position) {
    try (Arena local = Arena.ofConfined()) {
      MemorySegment batch = llama_batch.allocate(local);
      int[] positions = new int[tokens.length];
      byte[] outputs = new byte[tokens.length];
      for (int i = 0; i < tokens.length; i++) {
        positions[i] = position + i;
      }
      outputs[tokens.length - 1] = 1;
      llama_batch.n_tokens(batch, tokens.length);
      llama_batch.token(batch, local.allocateFrom(ValueLayout.JAVA_INT, tokens));
      llama_batch.pos(batch, local.allocateFrom(ValueLayout.JAVA_INT, positions));
      llama_batch.logits(batch, local.allocateFrom(ValueLayout.JAVA_BYTE, outputs));
      MemorySegment code = local.allocate(ValueLayout.JAVA_INT);
      int status = NativeApi.kvasir_decode(context, batch, code);
      if (failure != null) {
        throw new IllegalStateException("a probe failed", failure);
      }
      if (!NativeStatus.ok(status) || code.get(ValueLayout.JAVA_INT, 0) != 0) {
        throw new IllegalStateException(NativeStatus.reason(status));
      }
      return NativeApi.llama_get_logits_ith(context, -1)
          .reinterpret(4L * vocabulary)
          .toArray(ValueLayout.JAVA_FLOAT);
    }
  }

  @Override
  public void close() {
    NativeApi.kvasir_context_free(context, cache);
    arena.close();
  }
}
