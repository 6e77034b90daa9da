// Small models with random weights, written as GGUF files: every shape of attention that llama.cpp's architectures offer.
#pragma once

#include <cstdint>
#include <string>

struct synthetic_model {
    const char * arch = "llama"; // llama; gemma2: soft-capped, sliding window; mpt: ALiBi; gpt-oss: sinks, sliding window; deepseek2: latent attention; grok: soft-capped, llama.cpp's plain attention only; mamba: no attention;
    // stablelm: rotary positions of a part of each head; hunyuan-dense: norms behind RoPE;
    // gemma4: two head dims; smollm3: every fourth layer without rotary positions;
    // hybrids of attention and a recurrent state: granitehybrid, nemotron_h, falcon-h1, qwen3next, qwen35
    int32_t n_layer = 3, n_embd = 128, n_ff = 192, n_vocab = 300;
    int32_t n_head = 6, n_head_kv = 2, head_dim = 64;
    int32_t n_swa = 0;
    int32_t head_dim_swa = 0; // gemma4: of its layers with a sliding window, every other one from the first on
    int32_t latent = 64, rope_dim = 32; // deepseek2: a latent row is both together, V its first part
    int32_t n_shared_kv = 0;                 // gemma4: of the last layers, that attend over rows of others
    int32_t rotary_dim = 0;                  // stablelm: elements of a head that are turned
    bool     yarn = false, rope_factors = false; // llama: rotary positions of a context made longer, and with frequencies divided one by one
    float    sink = 7.0f; // what the logits of attention sinks are spread around: as much as a few dozen ordinary keys weigh together
    uint32_t seed = 1;

    // of an attention over the cache
    int32_t dim_k() const { return is_latent() ? latent + rope_dim : head_dim; }
    int32_t dim_v() const { return is_latent() ? latent : head_dim; }
    bool    is_latent() const { return std::string(arch) == "deepseek2"; }

    void write(const std::string & path) const;
};
