package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.Sampling;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.kvasir_sampling;
import dev.kvasir.internal.engine.Sampler;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/** llama.cpp's samplers in a chain, made from {@link Sampling}. */
final class SamplerChain implements Sampler {
  private final MemorySegment context;
  private final Arena arena = Arena.ofShared();
  private final MemorySegment chain;
  private final MemorySegment drawn;
  private final boolean penalties;
  private final int window;
  private int[] seen = new int[0]; // by the penalties, if there are some; the newest last
  private int seenCount;

  /** Makes the chain; it draws from the logits of the context. */
  SamplerChain(Sampling sampling, int vocabularySize, MemorySegment context) {
    this.context = context;
    window = sampling.penaltyWindow();
    penalties =
        window > 0
            && (sampling.repeatPenalty() != 1
                || sampling.frequencyPenalty() != 0
                || sampling.presencePenalty() != 0);
    try {
      drawn = arena.allocate(ValueLayout.JAVA_INT);
      chain = create(sampling, vocabularySize);
    } catch (Throwable e) {
      arena.close();
      throw e;
    }
  }

  private static MemorySegment create(Sampling sampling, int vocabularySize) {
    try (Arena local = Arena.ofConfined()) {
      MemorySegment wanted = kvasir_sampling.allocate(local);
      kvasir_sampling.temperature(wanted, sampling.temperature());
      kvasir_sampling.top_k(wanted, sampling.topK());
      kvasir_sampling.top_p(wanted, sampling.topP());
      kvasir_sampling.min_p(wanted, sampling.minP());
      kvasir_sampling.repeat_penalty(wanted, sampling.repeatPenalty());
      kvasir_sampling.frequency_penalty(wanted, sampling.frequencyPenalty());
      kvasir_sampling.presence_penalty(wanted, sampling.presencePenalty());
      kvasir_sampling.penalty_window(wanted, sampling.penaltyWindow());
      kvasir_sampling.seed(wanted, (int) sampling.seed());
      MemorySegment result = local.allocate(NativeApi.C_POINTER);
      require(NativeApi.kvasir_sampler_new(wanted, vocabularySize, result));
      return result.get(NativeApi.C_POINTER, 0);
    }
  }

  private static void require(int status) {
    if (!NativeStatus.ok(status)) {
      throw new KvasirException("llama.cpp's samplers failed: " + NativeStatus.text(status) + ".");
    }
  }

  @Override
  public int draw() {
    require(NativeApi.kvasir_sampler_sample(chain, context, -1, drawn));
    int token = drawn.get(ValueLayout.JAVA_INT, 0);
    remember(token);
    return token;
  }

  @Override
  public void accept(int token) {
    if (penalties) {
      require(NativeApi.kvasir_sampler_accept(chain, token));
      remember(token);
    }
  }

  private void remember(int token) {
    if (!penalties) {
      return;
    }
    if (seenCount == seen.length) {
      seen = Arrays.copyOf(seen, seenCount + seenCount / 2 + 1024);
    }
    seen[seenCount++] = token;
  }

  @Override
  public void takeBack(int count) {
    if (penalties && count > 0) {
      seenCount = Math.max(0, seenCount - count);
      require(NativeApi.kvasir_sampler_forget(chain));
      for (int i = Math.max(0, seenCount - window); i < seenCount; i++) {
        require(NativeApi.kvasir_sampler_accept(chain, seen[i]));
      }
    }
  }

  @Override
  public void reset() {
    require(NativeApi.kvasir_sampler_reset(chain));
    seenCount = 0;
  }

  @Override
  public void close() {
    NativeApi.kvasir_sampler_free(chain);
    arena.close();
  }
}
