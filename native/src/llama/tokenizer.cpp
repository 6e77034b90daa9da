#include "tokenizer.h"

#include "../error.h"
#include "../platform/thread.h"
#include "assertion.h"

#include <algorithm>
#include <limits>
#include <string>

namespace kvasir {

namespace {

// A text of this many bytes takes so little stack that any thread has it.
constexpr size_t SHORT = 64;

// llama.cpp needs up to some hundred bytes of memory for each byte of a text, and no context takes as many tokens.
constexpr size_t MAX_BYTES = (size_t) 64 << 20;

// What a thread may use of its stack, which is as much memory for the time of the call.
constexpr size_t MAX_STACK = (size_t) 1 << 30;

// llama.cpp goes through all that it has cut a text into at each special token that it finds there: this many take some seconds.
constexpr int64_t MAX_SPECIAL_TOKENS = 1 << 16;

// Some expressions look at the rest of a run of spaces or digits from each of its characters; squares of their lengths, which
// take about a tenth of a microsecond each.
constexpr int64_t MAX_SQUARES = 250 * 1000 * 1000;

// SentencePiece's output is copied as a whole for each character that is written as bytes: tokens copied, times two.
constexpr uint64_t MAX_COPIED = 100ull * 1000 * 1000 * 1000;

// What a thread uses beside the matching, also when it logs.
constexpr size_t BASE_STACK = (size_t) 512 << 10;

constexpr size_t PROBE_CHARACTERS = 128;
constexpr size_t PROBE_STACK      = (size_t) 2 << 20;

// Frames of a recursion take more for each character; less is a buffer here and there.
constexpr size_t LEAST_BYTES_PER_CHARACTER = 64;

// Of systems that do not tell how much was used.
constexpr size_t ASSUMED_BYTES_PER_CHARACTER = 4096;

enum kind { SPACE, LINE, DIGIT, LETTER, SIGN, BEYOND_ASCII };

// some of each kind that pre-tokenisers tell apart
const std::vector<std::vector<const char *>> & samples() {
    static const std::vector<std::vector<const char *>> s = {
        {" ", "\t"},
        {"\n", "\r"},
        {"1"},
        {"a", "A"},
        {"=", "/", "'"},
        {"\xE4\xB8\xAD" /* a Han letter */, "\xE0\xB8\x81" /* a Thai letter */, "\xC3\xA9" /* e acute */, "\xCC\x81" /* combining acute */,
         "\xE3\x80\x80" /* ideographic space */, "\xD9\xA1" /* an Arabic digit */, "\xE2\x80\x9C" /* a quotation mark */, "\xF0\x9F\x98\x80" /* an emoji */},
    };
    return s;
}

kind kind_of(unsigned char byte) {
    if (byte >= 0x80) {
        return BEYOND_ASCII;
    }
    if (byte == '\n' || byte == '\r') {
        return LINE;
    }
    if (byte == ' ' || byte == '\t' || byte == '\v' || byte == '\f') {
        return SPACE;
    }
    if (byte >= '0' && byte <= '9') {
        return DIGIT;
    }
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ? LETTER : SIGN;
}

bool continues_character(unsigned char byte) { return (byte & 0xC0) == 0x80; }

size_t characters_of(std::string_view text) {
    return text.size() - (size_t) std::count_if(text.begin(), text.end(), [](char c) { return continues_character((unsigned char) c); });
}

size_t tokenize_on(const llama_vocab * vocab, std::string_view text, bool add_special, bool parse_special, std::vector<llama_token> & tokens) {
    const assertions_throw no_abort;
    const auto run = [&] {
        return llama().llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(), add_special, parse_special);
    };
    int32_t n = run();
    if (n < 0 && n != std::numeric_limits<int32_t>::min()) {
        tokens.resize((size_t) -(int64_t) n);
        n = run();
    }
    if (n < 0) {
        throw error(KVASIR_FAILED, format("llama.cpp could not split a text of %zu bytes into tokens", text.size()));
    }
    return (size_t) n;
}

std::string repeated(const char * left, const char * right) {
    std::string text;
    for (size_t i = 0; i < PROBE_CHARACTERS; i++) {
        text += i % 2 == 0 ? left : right;
    }
    return text;
}

size_t used_for(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size());
    return measure_stack(PROBE_STACK, [&] {
        try {
            tokenize_on(vocab, text, false, false, tokens);
        } catch (const std::exception &) {
            // the vocabulary has no token for a part of it; it was split into words before that
        }
    });
}

// by how much the stack is deeper for each character than for a single one; 0: no recursion
size_t deeper(const llama_vocab * vocab, const std::string & text, size_t base) {
    const size_t used = used_for(vocab, text);
    const size_t each = used > base ? (used - base) / PROBE_CHARACTERS : 0;
    return each < LEAST_BYTES_PER_CHARACTER ? 0 : each + 1;
}

} // namespace

void match_depth::measure(const llama_vocab * vocab) {
    if (llama().llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_BPE) {
        return; // the others walk over the text
    }
    base = used_for(vocab, "a");
    if (base == 0) {
        bytes_per_character = ASSUMED_BYTES_PER_CHARACTER;
        return;
    }
    std::string everything;
    for (const auto & kind : samples()) {
        for (const char * sample : kind) {
            everything += repeated(sample, sample);
        }
    }
    if (deeper(vocab, everything, base) == 0) {
        return;
    }
    for (const auto & kind : samples()) {
        for (const char * sample : kind) {
            bytes_per_character = std::max(bytes_per_character, deeper(vocab, repeated(sample, sample), base));
        }
    }
}

void match_depth::measure_joins(const llama_vocab * vocab) {
    for (size_t left = 0; left < N_KINDS; left++) {
        joins[left][left] = true;
        for (size_t right = left + 1; right < N_KINDS; right++) {
            bool joined = base == 0; // when nothing can be measured
            for (const char * l : samples()[left]) {
                for (const char * r : samples()[right]) {
                    joined = joined || deeper(vocab, repeated(l, r), base) > 0;
                }
            }
            joins[left][right] = joins[right][left] = joined;
        }
    }
}

void match_depth::require_short_runs(std::string_view text) {
    int64_t squares = 0, run = 0;
    int     last = -1;
    for (const char c : text) {
        const int kind  = kind_of((unsigned char) c);
        const int group = kind == LINE ? SPACE : kind;
        run     = group == last && (group == SPACE || group == DIGIT) ? run + 1 : 1;
        last    = group;
        squares += group == SPACE || group == DIGIT ? 2 * run - 1 : 0; // run * run in the end
    }
    if (squares > MAX_SQUARES) {
        throw error(KVASIR_INVALID_ARGUMENT, "it has so many spaces, line breaks or digits in a row that the pre-tokeniser of this model would take hours");
    }
}

// the most characters that one match can have
size_t match_depth::longest_match(std::string_view text) const {
    // A match may begin with the last characters of the run before, and end with the first of the run behind.
    size_t longest = 0, run = 0, before = 0, before_that = 0;
    int    last = -1;
    for (const char c : text) {
        const auto byte = (unsigned char) c;
        if (continues_character(byte)) {
            continue;
        }
        const int kind = kind_of(byte);
        if (last >= 0 && !joins[(size_t) last][(size_t) kind]) {
            longest     = std::max(longest, before_that + before + run);
            before_that = before;
            before      = run;
            run         = 0;
        }
        run++;
        last = kind;
    }
    return std::max(longest, before_that + before + run);
}

size_t match_depth::stack_for(const llama_vocab * vocab, std::string_view text) {
    if (text.size() <= SHORT) {
        return 0;
    }
    std::call_once(measured, [&] { measure(vocab); });
    if (bytes_per_character == 0) {
        return 0;
    }
    require_short_runs(text);
    const size_t each    = bytes_per_character + bytes_per_character / 4;
    const size_t most    = MAX_STACK / each;
    size_t       longest = characters_of(text);
    if (longest > most) {
        std::call_once(measured_joins, [&] { measure_joins(vocab); });
        longest = longest_match(text);
        if (longest > most) {
            throw error(KVASIR_INVALID_ARGUMENT, format("%zu characters of it follow each other without a break, more than the %zu that the pre-tokeniser of "
                                                        "this model can match", longest, most));
        }
    }
    return longest * each + BASE_STACK;
}

} // namespace kvasir

using namespace kvasir;

kvasir_tokenizer::kvasir_tokenizer(const llama_vocab * vocab) : vocab(vocab), n_vocab(llama().llama_vocab_n_tokens(vocab)) {
    if (llama().llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        throw error(KVASIR_UNSUPPORTED, "the model has no vocabulary");
    }
    for (llama_token token = 0; token < n_vocab; token++) {
        const int attributes = llama().llama_vocab_get_attr(vocab, token);
        if (attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_USER_DEFINED)) {
            const bool control = attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN);
            special[control].add(llama().llama_vocab_get_text(vocab, token));
        }
    }
    const enum llama_vocab_type type = llama().llama_vocab_type(vocab);
    if (type == LLAMA_VOCAB_TYPE_BPE || type == LLAMA_VOCAB_TYPE_RWKV) {
        look_for_bytes(type == LLAMA_VOCAB_TYPE_RWKV);
    }
}

void kvasir_tokenizer::texts::add(const char * text) {
    const std::string_view added(text);
    if (!added.empty() && all.insert(added).second) {
        begins[(unsigned char) added[0]] = true;
        lengths.insert(added.size());
    }
}

size_t kvasir_tokenizer::texts::longest(std::string_view text) const {
    if (!begins[(unsigned char) text[0]]) {
        return 0;
    }
    for (const size_t length : lengths) {
        if (length <= text.size() && all.count(text.substr(0, length)) > 0) {
            return length;
        }
    }
    return 0;
}

void kvasir_tokenizer::require_few_special(std::string_view text, bool parse_special) const {
    if (text.size() <= (size_t) MAX_SPECIAL_TOKENS) {
        return;
    }
    int64_t n = 0;
    for (size_t i = 0; i < text.size();) {
        const std::string_view rest = text.substr(i);
        const size_t length = std::max(special[false].longest(rest), parse_special ? special[true].longest(rest) : 0);
        n += length > 0;
        i += std::max<size_t>(1, length);
    }
    if (n > MAX_SPECIAL_TOKENS) {
        throw error(KVASIR_INVALID_ARGUMENT, format("it has %lld special tokens, more than the %lld that are found in reasonable time", (long long) n,
                                                    (long long) MAX_SPECIAL_TOKENS));
    }
}

void kvasir_tokenizer::require_few_byte_fallbacks(std::string_view text) {
    if (llama().llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_SPM || (uint64_t) text.size() * text.size() <= MAX_COPIED) {
        return;
    }
    std::call_once(looked_for_characters, [&] {
        for (llama_token token = 0; token < n_vocab; token++) {
            const std::string_view entry(llama().llama_vocab_get_text(vocab, token));
            if (!entry.empty() && characters_of(entry) == 1) {
                characters.insert(entry);
            }
        }
    });
    uint64_t n = 0;
    for (size_t i = 0; i < text.size();) {
        size_t end = i + 1;
        while (end < text.size() && continues_character((unsigned char) text[end])) {
            end++;
        }
        const std::string_view character = text[i] == ' ' ? "\xE2\x96\x81" : text.substr(i, end - i);
        n += characters.count(character) == 0;
        i = end;
    }
    if (n * text.size() > MAX_COPIED) {
        throw error(KVASIR_INVALID_ARGUMENT, format("the vocabulary has no token for %llu of its characters, and so many are not written as bytes in reasonable "
                                                    "time", (unsigned long long) n));
    }
}

void kvasir_tokenizer::look_for_bytes(bool all_entries) {
    std::array<bool, 256> begins{}, single{};
    size_t                n_single = 0;
    std::vector<char>     bytes(256);
    for (llama_token token = 0; token < n_vocab && (all_entries || n_single < 256); token++) {
        const size_t length = piece(token, bytes.data(), bytes.size());
        if (length > bytes.size()) {
            bytes.resize(length);
            piece(token, bytes.data(), bytes.size());
        }
        if (length > 0) {
            begins[(unsigned char) bytes[0]] = true;
        }
        if (length == 1) {
            n_single += !single[(unsigned char) bytes[0]];
            single[(unsigned char) bytes[0]] = true;
        }
    }
    for (size_t byte = 0; byte < 256; byte++) {
        // RWKV's looks for the longest entry that the text goes on with. Where one has begun and none fits, llama.cpp starts again
        // from the first byte of the text, for ever.
        if (all_entries && begins[byte] && !single[byte]) {
            throw error(KVASIR_UNSUPPORTED, format("entries of the vocabulary begin with the byte 0x%02zX, and none is that byte alone", byte));
        }
        missing[byte] = !all_entries && !single[byte];
    }
    complete = n_single == 256 || all_entries;
}

// Of byte pairs llama.cpp leaves out what the vocabulary has no token for, and says nothing.
void kvasir_tokenizer::require_all_of(std::string_view text, const std::vector<llama_token> & tokens) const {
    if (complete || std::none_of(text.begin(), text.end(), [&](char c) { return missing[(unsigned char) c]; })) {
        return;
    }
    std::array<int64_t, 256> lost{};
    for (const char c : text) {
        lost[(unsigned char) c]++;
    }
    std::vector<char> bytes(256);
    for (const llama_token token : tokens) {
        const size_t length = piece(token, bytes.data(), bytes.size());
        if (length > bytes.size()) {
            bytes.resize(length);
            piece(token, bytes.data(), bytes.size());
        }
        for (size_t i = 0; i < length; i++) {
            lost[(unsigned char) bytes[i]]--;
        }
    }
    for (size_t byte = 0; byte < 256; byte++) {
        if (missing[byte] && lost[byte] > 0) {
            throw error(KVASIR_UNSUPPORTED, format("the vocabulary has no token for the byte 0x%02zX", byte));
        }
    }
}

void kvasir_tokenizer::check(llama_token token) const {
    if (token < 0 || token >= n_vocab) {
        throw error(KVASIR_INVALID_ARGUMENT, format("the vocabulary has no token %d", token));
    }
}

std::vector<llama_token> kvasir_tokenizer::tokenize(std::string_view text, bool add_special, bool parse_special) {
    if (text.size() > MAX_BYTES) {
        throw error(KVASIR_INVALID_ARGUMENT, format("it has %zu bytes, more than the %zu that are split at once", text.size(), MAX_BYTES));
    }
    require_few_special(text, parse_special);
    require_few_byte_fallbacks(text);
    // hardly a vocabulary makes more tokens than bytes, but for those that are added
    std::vector<llama_token> tokens(text.size() + 16);
    size_t                   n     = 0;
    const size_t             stack = depth.stack_for(vocab, text);
    const auto               split = [&] { n = tokenize_on(vocab, text, add_special, parse_special, tokens); };
    if (stack == 0) {
        split();
    } else {
        run_on_stack(stack, split);
    }
    tokens.resize(n);
    for (const llama_token token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw error(KVASIR_UNSUPPORTED, "the vocabulary has no token for a part of it, and none for what is unknown");
        }
    }
    require_all_of(text, tokens);
    return tokens;
}

size_t kvasir_tokenizer::detokenize(const llama_token * tokens, size_t n_tokens, char * buffer, size_t size) const {
    for (size_t i = 0; i < n_tokens; i++) {
        check(tokens[i]);
    }
    const assertions_throw no_abort;
    const int32_t n = llama().llama_detokenize(vocab, tokens, (int32_t) n_tokens, buffer, (int32_t) std::min<size_t>(size, INT32_MAX), false, true);
    return (size_t) std::abs((int64_t) n);
}

size_t kvasir_tokenizer::piece(llama_token token, char * buffer, size_t size) const {
    check(token);
    const assertions_throw no_abort;
    const int32_t n = llama().llama_token_to_piece(vocab, token, buffer, (int32_t) std::min<size_t>(size, INT32_MAX), 0, true);
    return (size_t) std::abs((int64_t) n);
}
