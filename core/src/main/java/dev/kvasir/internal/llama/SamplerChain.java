package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.Sampling;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.internal.engine.Sampler;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/** llama.cpp's samplers in a chain, made from {@link Sampling}. */
final class SamplerChain implements Sampler {
  private final MemorySegment context;
  private final MemorySegment chain;
  private final MemorySegment penalties;
  private final int window;
  private int[] seen = new int[0]; // by the penalties, if there are some; the newest last
  private int seenCount;

  /** Makes the chain; it draws from the logits of the context. */
  SamplerChain(Sampling sampling, int vocabularySize, MemorySegment context) {
    this.context = context;
    window = sampling.penaltyWindow();
    try (Arena arena = Arena.ofConfined()) {
      chain =
          NativeApi.llama_sampler_chain_init(NativeApi.llama_sampler_chain_default_params(arena));
    }
    try {
      penalties = fill(sampling, vocabularySize);
    } catch (Throwable e) {
      NativeApi.llama_sampler_free(chain);
      throw e;
    }
  }

  /** Adds the samplers, and returns that of the penalties. */
  private MemorySegment fill(Sampling sampling, int vocabularySize) {
    boolean penalised =
        sampling.penaltyWindow() > 0
            && (sampling.repeatPenalty() != 1
                || sampling.frequencyPenalty() != 0
                || sampling.presencePenalty() != 0);
    MemorySegment first =
        penalised
            ? add(
                NativeApi.llama_sampler_init_penalties(
                    vocabularySize,
                    sampling.penaltyWindow(),
                    sampling.repeatPenalty(),
                    sampling.frequencyPenalty(),
                    sampling.presencePenalty()))
            : MemorySegment.NULL;
    if (sampling.temperature() <= 0) {
      add(NativeApi.llama_sampler_init_greedy());
      return first;
    }
    if (sampling.topK() > 0) {
      add(NativeApi.llama_sampler_init_top_k(sampling.topK()));
    }
    if (sampling.topP() < 1) {
      add(NativeApi.llama_sampler_init_top_p(sampling.topP(), 1));
    }
    if (sampling.minP() > 0) {
      add(NativeApi.llama_sampler_init_min_p(sampling.minP(), 1));
    }
    add(NativeApi.llama_sampler_init_temp(sampling.temperature()));
    add(NativeApi.llama_sampler_init_dist((int) sampling.seed()));
    return first;
  }

  private MemorySegment add(MemorySegment sampler) {
    if (sampler.address() == 0) {
      throw new KvasirException("llama.cpp could not make a sampler.");
    }
    NativeApi.llama_sampler_chain_add(chain, sampler);
    return sampler;
  }

  @Override
  public int draw() {
    int token = NativeApi.llama_sampler_sample(chain, context, -1);
    remember(token);
    return token;
  }

  @Override
  public void accept(int token) {
    if (penalties.address() != 0) {
      NativeApi.llama_sampler_accept(penalties, token);
      remember(token);
    }
  }

  private void remember(int token) {
    if (penalties.address() == 0) {
      return;
    }
    if (seenCount == seen.length) {
      seen = Arrays.copyOf(seen, seenCount + seenCount / 2 + 1024);
    }
    seen[seenCount++] = token;
  }

  @Override
  public void takeBack(int count) {
    if (penalties.address() != 0 && count > 0) {
      seenCount = Math.max(0, seenCount - count);
      NativeApi.llama_sampler_reset(penalties);
      for (int i = Math.max(0, seenCount - window); i < seenCount; i++) {
        NativeApi.llama_sampler_accept(penalties, seen[i]);
      }
    }
  }

  @Override
  public void reset() {
    NativeApi.llama_sampler_reset(chain);
    seenCount = 0;
  }

  @Override
  public void close() {
    NativeApi.llama_sampler_free(chain);
  }
}
