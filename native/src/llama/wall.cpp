// The C ABI over functions of llama.cpp that read what others wrote, allocate or can throw.
#include "kvasir.h"

#include "../error.h"
#include "../platform/library.h"
#include "api.h"
#include "assertion.h"
#include "sampler.h"
#include "tokenizer.h"

#include <algorithm>
#include <cstring>
#include <memory>

using namespace kvasir;

namespace {

void require(bool condition, const char * what) {
    if (!condition) {
        throw error(KVASIR_INVALID_ARGUMENT, what);
    }
}

// of ggml, before its devices are there and everything else can be looked up
template <typename F> F * early(const char * name) {
    use_loaded_llama();
    F * function = (F *) find_symbol(name);
    if (!function) {
        throw error(KVASIR_INCOMPATIBLE, format("none of the loaded libraries has %s; load ggml and llama.cpp first", name));
    }
    return function;
}

llama_memory_t memory_of(llama_context * context) {
    require(context != nullptr, "context is NULL");
    return llama().llama_get_memory(context);
}

} // namespace

extern "C" {

kvasir_status kvasir_backends_load(const char * directory) noexcept {
    return guarded([&] {
        require(directory, "directory is NULL");
        early<decltype(ggml_backend_load_all_from_path)>("ggml_backend_load_all_from_path")(directory);
    });
}

kvasir_status kvasir_device_memory(ggml_backend_device * device, size_t * free, size_t * total) noexcept {
    return guarded([&] {
        require(device && free && total, "device, free or total is NULL");
        const assertions_throw no_abort;
        llama().ggml_backend_dev_memory(device, free, total);
    });
}

kvasir_status kvasir_model_description(const llama_model * model, char * buffer, size_t size) noexcept {
    return guarded([&] {
        require(model && buffer && size > 0, "model or buffer is NULL, or there is no room");
        llama().llama_model_desc(model, buffer, size);
    });
}

kvasir_status kvasir_model_chat_template(const llama_model * model, const char ** source) noexcept {
    return guarded([&] {
        require(model && source, "model or source is NULL");
        *source = llama().llama_model_chat_template(model, nullptr);
    });
}

kvasir_status kvasir_logits(llama_context * context, int32_t index, float ** logits) noexcept {
    return guarded([&] {
        require(context && logits, "context or logits is NULL");
        const assertions_throw no_abort;
        *logits = llama().llama_get_logits_ith(context, index);
        if (!*logits) {
            throw error(KVASIR_INVALID_ARGUMENT, format("llama.cpp has no logits for token %d of the last batch", index));
        }
    });
}

kvasir_status kvasir_memory_remove(llama_context * context, int32_t sequence, int32_t first, int32_t * removed) noexcept {
    return guarded([&] {
        llama_memory_t memory = memory_of(context);
        require(removed != nullptr, "removed is NULL");
        const assertions_throw no_abort;
        *removed = llama().llama_memory_seq_rm(memory, sequence, first, -1);
    });
}

kvasir_status kvasir_memory_first(llama_context * context, int32_t sequence, int32_t * position) noexcept {
    return guarded([&] {
        llama_memory_t memory = memory_of(context);
        require(position != nullptr, "position is NULL");
        const assertions_throw no_abort;
        *position = llama().llama_memory_seq_pos_min(memory, sequence);
    });
}

kvasir_status kvasir_memory_clear(llama_context * context) noexcept {
    return guarded([&] {
        llama_memory_t memory = memory_of(context);
        const assertions_throw no_abort;
        llama().llama_memory_clear(memory, false);
    });
}

kvasir_status kvasir_sampler_new(const kvasir_sampling * sampling, int32_t n_vocab, kvasir_sampler ** sampler) noexcept {
    return guarded([&] {
        require(sampling && sampler, "sampling or sampler is NULL");
        *sampler = new kvasir_sampler(*sampling, n_vocab);
    });
}

void kvasir_sampler_free(kvasir_sampler * sampler) noexcept { delete sampler; }

kvasir_status kvasir_sampler_sample(kvasir_sampler * sampler, llama_context * context, int32_t index, int32_t * token) noexcept {
    return guarded([&] {
        require(sampler && context && token, "sampler, context or token is NULL");
        *token = sampler->sample(context, index);
    });
}

kvasir_status kvasir_sampler_accept(kvasir_sampler * sampler, int32_t token) noexcept {
    return guarded([&] {
        require(sampler != nullptr, "sampler is NULL");
        sampler->accept(token);
    });
}

kvasir_status kvasir_sampler_forget(kvasir_sampler * sampler) noexcept {
    return guarded([&] {
        require(sampler != nullptr, "sampler is NULL");
        sampler->forget();
    });
}

kvasir_status kvasir_sampler_reset(kvasir_sampler * sampler) noexcept {
    return guarded([&] {
        require(sampler != nullptr, "sampler is NULL");
        sampler->reset();
    });
}

kvasir_status kvasir_tokenizer_new(const llama_vocab * vocab, kvasir_tokenizer ** tokenizer) noexcept {
    return guarded([&] {
        require(vocab && tokenizer, "vocab or tokenizer is NULL");
        *tokenizer = new kvasir_tokenizer(vocab);
    });
}

void kvasir_tokenizer_free(kvasir_tokenizer * tokenizer) noexcept { delete tokenizer; }

kvasir_status kvasir_tokenize(kvasir_tokenizer * tokenizer, const char * text, size_t length, int32_t add_special, int32_t parse_special, int32_t * tokens,
                              size_t capacity, size_t * n_tokens) noexcept {
    return guarded([&] {
        require(tokenizer && (text || length == 0) && (tokens || capacity == 0) && n_tokens, "tokenizer, text, tokens or n_tokens is NULL");
        const std::vector<llama_token> all = tokenizer->tokenize({text ? text : "", length}, add_special != 0, parse_special != 0);
        *n_tokens = all.size();
        std::copy_n(all.begin(), std::min(capacity, all.size()), tokens);
    });
}

kvasir_status kvasir_detokenize(const kvasir_tokenizer * tokenizer, const int32_t * tokens, size_t n_tokens, char * buffer, size_t size, size_t * length) noexcept {
    return guarded([&] {
        require(tokenizer && (tokens || n_tokens == 0) && (buffer || size == 0) && length, "tokenizer, tokens, buffer or length is NULL");
        require(n_tokens <= INT32_MAX, "too many tokens");
        *length = tokenizer->detokenize(tokens, n_tokens, buffer, size);
    });
}

kvasir_status kvasir_token_piece(const kvasir_tokenizer * tokenizer, int32_t token, char * buffer, size_t size, size_t * length) noexcept {
    return guarded([&] {
        require(tokenizer && (buffer || size == 0) && length, "tokenizer, buffer or length is NULL");
        *length = tokenizer->piece(token, buffer, size);
    });
}

} // extern "C"
