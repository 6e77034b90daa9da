#include "sampler.h"

#include "../error.h"
#include "assertion.h"

using namespace kvasir;

static llama_sampler * checked(llama_sampler * sampler) {
    if (!sampler) {
        throw error(KVASIR_FAILED, "llama.cpp could not make a sampler");
    }
    return sampler;
}

kvasir_sampler::kvasir_sampler(const kvasir_sampling & sampling, int32_t n_vocab)
    : chain(checked(llama().llama_sampler_chain_init(llama().llama_sampler_chain_default_params()))) {
    try {
        fill(sampling, n_vocab);
    } catch (...) {
        llama().llama_sampler_free(chain);
        throw;
    }
}

kvasir_sampler::~kvasir_sampler() { llama().llama_sampler_free(chain); }

void kvasir_sampler::fill(const kvasir_sampling & s, int32_t n_vocab) {
    const assertions_throw no_abort;
    const api &            a = llama();
    if (s.penalty_window > 0 && (s.repeat_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0)) {
        penalties = add(a.llama_sampler_init_penalties(n_vocab, s.penalty_window, s.repeat_penalty, s.frequency_penalty, s.presence_penalty));
    }
    if (s.temperature <= 0) {
        add(a.llama_sampler_init_greedy());
        return;
    }
    if (s.top_k > 0) {
        add(a.llama_sampler_init_top_k(s.top_k));
    }
    if (s.top_p < 1) {
        add(a.llama_sampler_init_top_p(s.top_p, 1));
    }
    if (s.min_p > 0) {
        add(a.llama_sampler_init_min_p(s.min_p, 1));
    }
    add(a.llama_sampler_init_temp(s.temperature));
    add(a.llama_sampler_init_dist(s.seed));
}

llama_sampler * kvasir_sampler::add(llama_sampler * sampler) {
    llama().llama_sampler_chain_add(chain, checked(sampler));
    return sampler;
}

llama_token kvasir_sampler::sample(llama_context * context, int32_t index) {
    const assertions_throw no_abort;
    return llama().llama_sampler_sample(chain, context, index);
}

void kvasir_sampler::accept(llama_token token) {
    if (penalties) {
        const assertions_throw no_abort;
        llama().llama_sampler_accept(penalties, token);
    }
}

void kvasir_sampler::forget() {
    if (penalties) {
        const assertions_throw no_abort;
        llama().llama_sampler_reset(penalties);
    }
}

void kvasir_sampler::reset() {
    const assertions_throw no_abort;
    llama().llama_sampler_reset(chain);
}
