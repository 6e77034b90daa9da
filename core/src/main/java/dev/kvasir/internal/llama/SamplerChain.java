package dev.kvasir.internal.llama;

import dev.kvasir.KvasirException;
import dev.kvasir.Sampling;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** llama.cpp's samplers in a chain, made from {@link Sampling}. Used by one thread at a time. */
public final class SamplerChain implements AutoCloseable {
  private final MemorySegment chain;
  private final MemorySegment penalties;

  /** Makes the chain. */
  public SamplerChain(Sampling sampling, int vocabularySize) {
    try (Arena arena = Arena.ofConfined()) {
      chain =
          NativeApi.llama_sampler_chain_init(NativeApi.llama_sampler_chain_default_params(arena));
    }
    boolean penalised =
        sampling.penaltyWindow() > 0
            && (sampling.repeatPenalty() != 1
                || sampling.frequencyPenalty() != 0
                || sampling.presencePenalty() != 0);
    penalties =
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
      return;
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
  }

  private MemorySegment add(MemorySegment sampler) {
    if (sampler.address() == 0) {
      throw new KvasirException("llama.cpp could not make a sampler.");
    }
    NativeApi.llama_sampler_chain_add(chain, sampler);
    return sampler;
  }

  /** Shows the penalties a token of the prompt. */
  public void acceptPrompt(int token) {
    if (penalties.address() != 0) {
      NativeApi.llama_sampler_accept(penalties, token);
    }
  }

  int sample(MemorySegment context) {
    return NativeApi.llama_sampler_sample(chain, context, -1);
  }

  /** Forgets the tokens seen, and starts the random numbers again from the seed. */
  public void reset() {
    NativeApi.llama_sampler_reset(chain);
  }

  @Override
  public void close() {
    NativeApi.llama_sampler_free(chain);
  }
}
