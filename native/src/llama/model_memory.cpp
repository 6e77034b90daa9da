#include "model_memory.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace kvasir {

namespace {

std::string header(const llama_model * model, const std::string & key) {
    char      value[128];
    const int length = llama().llama_model_meta_val_str(model, key.c_str(), value, sizeof value);
    return length < 0 ? "" : value;
}

std::string architecture(const llama_model * model) { return header(model, "general.architecture"); }

template <size_t N> bool is_one_of(const std::string & name, const char * const (&names)[N]) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Those that llama_model::create_memory makes no memory for, beside the diffusion models.
constexpr const char * ENCODERS[] = {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding", "wavtokenizer-dec"};

// Those whose caches create_memory makes with an indexer's keys beside them, as long as the header has an indexer.
constexpr const char * WITH_INDEXER[] = {"deepseek32", "glm-dsa", "dots3note", "hy_v4", "minimax-m3", "qwen4exp"};

} // namespace

std::string why_no_memory(const llama_model * model) {
    const api &       a    = llama();
    const std::string name = architecture(model);
    if (a.llama_model_is_diffusion(model)) {
        return "a diffusion model: it rewrites a text as a whole and has no KV cache";
    }
    if (is_one_of(name, ENCODERS)) {
        return "an encoder: it reads a text as a whole and has no KV cache";
    }
    if (a.llama_model_has_encoder(model) || !a.llama_model_has_decoder(model)) {
        return "a model with an encoder: it does not continue a text from a KV cache alone";
    }
    if (header(model, name + ".attention.causal") == "false") {
        return "a model whose attention is not causal: a token changes what comes before it, and nothing can be kept in a KV cache";
    }
    return "";
}

std::string why_no_store(const llama_model * model) {
    const std::string name = architecture(model);
    if (llama().llama_model_is_recurrent(model)) {
        return "a recurrent model: it has no KV cache";
    }
    if (name == "deepseek4") {
        return "a model with compressed KV caches beside its window (DeepSeek 4)";
    }
    if (is_one_of(name, WITH_INDEXER) && atoi(header(model, name + ".attention.indexer.key_length").c_str()) > 0 &&
        (name != "hy_v4" || atoi(header(model, name + ".attention.indexer.top_k").c_str()) > 0)) {
        return "a model with an indexer's cache beside its KV cache (sparse attention)";
    }
    return "";
}

} // namespace kvasir
