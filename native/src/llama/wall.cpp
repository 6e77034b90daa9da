// The C ABI over functions of llama.cpp that read what others wrote, allocate or can throw.
#include "kvasir.h"

#include "../error.h"
#include "api.h"
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

} // namespace

extern "C" {

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
