// llama.cpp's samplers in a chain, in its default order.
#pragma once

#include "api.h"
#include "kvasir.h"

// Throws kvasir::error, and whatever llama.cpp throws.
struct kvasir_sampler {
    kvasir_sampler(const kvasir_sampling & sampling, int32_t n_vocab);
    ~kvasir_sampler();
    kvasir_sampler(const kvasir_sampler &) = delete;
    kvasir_sampler & operator=(const kvasir_sampler &) = delete;

    llama_token sample(llama_context * context, int32_t index);
    void        accept(llama_token token); // only the penalties look at it
    void        forget();                  // likewise
    void        reset();

private:
    void            fill(const kvasir_sampling & sampling, int32_t n_vocab);
    llama_sampler * add(llama_sampler * sampler);

    llama_sampler * chain;
    llama_sampler * penalties = nullptr; // owned by the chain; nullptr when there are none
};
