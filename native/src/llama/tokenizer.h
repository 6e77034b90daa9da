// Text to tokens and back by llama.cpp, for any text and any vocabulary: what would overflow the stack, run for ever or end the
// process is refused.
#pragma once

#include "api.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace kvasir {

// llama.cpp splits text into words before it looks tokens up. Most pre-tokenisers are loops, but those without a loop of their
// own are matched by std::regex, which takes a few hundred bytes of stack for each character of a match: how many is
// measured once for a vocabulary, by short texts on a stack that is looked at afterwards. No match is longer than the text; of
// a text that is too long for that, no match is longer than the runs of kinds of characters that the pre-tokeniser puts
// side by side, which is measured likewise.
class match_depth {
public:
    // The stack that the text needs; 0: what any thread has. Throws kvasir::error when no stack is deep enough.
    size_t stack_for(const llama_vocab * vocab, std::string_view text);

private:
    static constexpr size_t N_KINDS = 6;

    void   measure(const llama_vocab * vocab);
    void   measure_joins(const llama_vocab * vocab);
    size_t longest_match(std::string_view text) const;
    static void require_short_runs(std::string_view text);

    std::once_flag measured, measured_joins;
    size_t         base = 0;                // stack that a single character takes; 0: the system does not tell
    size_t         bytes_per_character = 0; // and each further one of a match; 0: matching is no recursion
    std::array<std::array<bool, N_KINDS>, N_KINDS> joins{}; // which kinds can be neighbours within a match
};

} // namespace kvasir

struct kvasir_tokenizer {
    explicit kvasir_tokenizer(const llama_vocab * vocab);

    // throw kvasir::error, and whatever llama.cpp throws
    std::vector<llama_token> tokenize(std::string_view text, bool add_special, bool parse_special);
    // both return the bytes of the whole text, of which up to size go to buffer
    size_t detokenize(const llama_token * tokens, size_t n_tokens, char * buffer, size_t size) const;
    size_t piece(llama_token token, char * buffer, size_t size) const;

private:
    // entries that llama.cpp looks for in a text before anything else
    struct texts {
        void   add(const char * text);
        size_t longest(std::string_view text) const; // of those that the text begins with, which is not empty; 0: none

        std::unordered_set<std::string_view>   all; // the vocabulary's
        std::set<size_t, std::greater<size_t>> lengths;
        std::array<bool, 256>                  begins{};
    };

    void check(llama_token token) const;
    void require_few_special(std::string_view text, bool parse_special) const;
    void require_few_byte_fallbacks(std::string_view text);
    void look_for_bytes(bool all_entries);
    void require_all_of(std::string_view text, const std::vector<llama_token> & tokens) const;

    const llama_vocab * vocab;
    const int32_t       n_vocab;

    std::array<texts, 2>  special;         // [0] user-defined tokens, [1] control tokens
    bool                  complete = true; // as far as bytes are concerned
    std::array<bool, 256> missing{};       // that are no entry of their own
    std::once_flag                       looked_for_characters;
    std::unordered_set<std::string_view> characters; // that are an entry of their own; of SentencePiece, once a long text asks
    kvasir::match_depth                  depth;
};
