// Contexts of llama.cpp with and without the store over the same model, and what is compared between them.
#pragma once

#include "check.h"
#include "synthetic_model.h"

#include "kvasir.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace kvasir_test {

inline std::string        folder;          // for the models
inline ggml_backend_dev_t proxy = nullptr; // what our models are loaded onto
inline ggml_backend_dev_t inner = nullptr; // and stock llama.cpp's; nullptr: the CPU

struct model_file {
    std::string   path;
    llama_model * stock = nullptr;
    llama_model * ours  = nullptr;

    explicit model_file(const synthetic_model & m) : path(folder + "/" + m.arch + ".gguf") {
        m.write(path);
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = inner ? 999 : 0;
        ggml_backend_dev_t none[] = {inner, nullptr};
        params.devices = none;
        stock = llama_model_load_from_file(path.c_str(), params);
        ggml_backend_dev_t devices[] = {proxy, nullptr};
        params.devices      = devices;
        params.n_gpu_layers = 999;
        const kvasir_status status = kvasir_model_load(path.c_str(), &params, &ours);
        CHECK(stock && status == KVASIR_OK, "%s: %s", m.arch, kvasir_last_error());
        if (!stock || !ours) {
            exit(1);
        }
    }
    ~model_file() {
        llama_model_free(stock);
        llama_model_free(ours);
        remove(path.c_str());
    }
};

inline llama_context_params context_params() {
    llama_context_params p = llama_context_default_params();
    p.n_ctx           = 1024;
    p.n_batch         = 512;
    p.n_ubatch        = 128;
    p.n_threads       = 2;
    p.n_threads_batch = 2;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.swa_full        = false;
    p.no_perf         = true;
    return p;
}

struct context {
    llama_context * c     = nullptr;
    kvasir_cache *  cache = nullptr;
    int             n_vocab;

    context(llama_model * model, const llama_context_params & params, bool ours, kvasir_attention attention = KVASIR_ATTENTION_NATIVE) {
        const kvasir_status status = kvasir_context_new(model, &params, attention, &c, ours ? &cache : nullptr);
        CHECK(status == KVASIR_OK, "%s", kvasir_last_error());
        if (status != KVASIR_OK) {
            exit(1);
        }
        n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    }
    context(llama_context * c, kvasir_cache * cache, int n_vocab) : c(c), cache(cache), n_vocab(n_vocab) {}
    ~context() { kvasir_context_free(c, cache); }
    context(const context &) = delete;

    // one batch; its logits are appended when it succeeds
    kvasir_status try_decode(const llama_token * tokens, int32_t n, int32_t first_pos, std::vector<float> & logits, llama_seq_id seq = 0) {
        llama_batch batch = llama_batch_init(n, 0, 1);
        batch.n_tokens    = n;
        for (int32_t i = 0; i < n; i++) {
            batch.token[i]     = tokens[i];
            batch.pos[i]       = first_pos + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = seq;
            batch.logits[i]    = 1;
        }
        int32_t             result = 0;
        const kvasir_status status = kvasir_decode(c, &batch, &result);
        CHECK(status != KVASIR_OK || result == 0, "decode: %d, %s", result, kvasir_last_error());
        for (int32_t i = 0; status == KVASIR_OK && i < n; i++) {
            const float * row = llama_get_logits_ith(c, i);
            logits.insert(logits.end(), row, row + n_vocab);
        }
        llama_batch_free(batch);
        return status;
    }

    // logits of every token
    std::vector<float> decode(const std::vector<llama_token> & tokens, int32_t first_pos, llama_seq_id seq = 0) {
        std::vector<float> logits;
        for (size_t at = 0; at < tokens.size();) {
            const int32_t       n      = (int32_t) std::min(tokens.size() - at, (size_t) llama_n_batch(c));
            const kvasir_status status = try_decode(tokens.data() + at, n, first_pos + (int32_t) at, logits, seq);
            CHECK(status == KVASIR_OK, "decode: %s", kvasir_last_error());
            at += (size_t) n;
        }
        return logits;
    }
};

inline double mean_kl(const std::vector<float> & a, const std::vector<float> & b, int n_vocab) {
    double total = 0;
    const size_t rows = a.size() / (size_t) n_vocab;
    for (size_t r = 0; r < rows; r++) {
        const float * x = a.data() + r * (size_t) n_vocab, * y = b.data() + r * (size_t) n_vocab;
        const double  mx = *std::max_element(x, x + n_vocab), my = *std::max_element(y, y + n_vocab);
        double sx = 0, sy = 0, kl = 0;
        for (int i = 0; i < n_vocab; i++) {
            sx += std::exp(x[i] - mx);
            sy += std::exp(y[i] - my);
        }
        for (int i = 0; i < n_vocab; i++) {
            const double lx = x[i] - mx - std::log(sx), ly = y[i] - my - std::log(sy);
            kl += std::exp(lx) * (lx - ly);
        }
        total += kl;
    }
    return total / (double) rows;
}

inline std::vector<llama_token> random_tokens(size_t n, uint32_t seed) {
    std::mt19937 rng(seed);
    std::vector<llama_token> tokens(n);
    for (auto & t : tokens) {
        t = (llama_token) (rng() % 300);
    }
    return tokens;
}

inline std::vector<float> prompt_and_steps(context & c, int32_t n_prompt, int32_t n_steps) {
    std::vector<float> logits = c.decode(random_tokens((size_t) n_prompt, 7), 0);
    const auto         steps  = random_tokens((size_t) n_steps, 8);
    for (int32_t i = 0; i < n_steps; i++) {
        const auto row = c.decode({steps[(size_t) i]}, n_prompt + i);
        logits.insert(logits.end(), row.begin(), row.end());
    }
    return logits;
}

// Rounding to f16 of K, V or partial sums moves logits of order 1 by about 1e-4, so the KL of two right answers is of
// order 1e-8; the factor allows for the spread of that noise between two inputs of a few hundred tokens.
constexpr double NOISE_FACTOR = 2.0, NOISE_FLOOR = 2e-8;

inline void check_same(const char * what, const std::vector<float> & ours, const std::vector<float> & stock, double noise, int n_vocab) {
    const double kl = mean_kl(stock, ours, n_vocab);
    printf("  %-44s KL %.2e (llama.cpp's own two paths %.2e)\n", what, kl, noise);
    CHECK(ours.size() == stock.size() && kl <= NOISE_FACTOR * noise + NOISE_FLOOR, "%s: KL %.3e, noise %.3e", what, kl, noise);
}

inline std::vector<float> sequences(context & c) {
    std::vector<float> all;
    const auto run = [&](const std::vector<llama_token> & tokens, int32_t pos, llama_seq_id seq) {
        const auto logits = c.decode(tokens, pos, seq);
        all.insert(all.end(), logits.begin(), logits.end());
    };
    llama_memory_t memory = llama_get_memory(c.c);
    run(random_tokens(100, 1), 0, 0);
    run(random_tokens(80, 2), 0, 1);
    llama_memory_seq_cp(memory, 0, 2, -1, -1);
    run(random_tokens(5, 3), 100, 2);
    llama_memory_seq_rm(memory, 1, 40, -1); // its cells are used again
    run(random_tokens(60, 4), 40, 1);
    for (int step = 0; step < 4; step++) {
        run({(llama_token) (10 + step)}, 100 + step, 0);
        run({(llama_token) (20 + step)}, 100 + step, 1);
        run({(llama_token) (30 + step)}, 105 + step, 2);
    }
    return all;
}

inline void evict_randomly(kvasir_cache * cache, uint32_t seed, double share) {
    std::mt19937 rng(seed);
    for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
        kvasir_layer_info info;
        kvasir_cache_layer(cache, l, &info);
        for (int32_t h = 0; h < info.n_head_kv; h++) {
            kvasir_head_view view;
            kvasir_cache_head(cache, l, 0, h, &view);
            std::vector<int32_t> slots;
            for (int32_t s = 0; s < *view.n_slots; s++) {
                if (rng() % 1000 >= 1000 * share * (h + 1) || s < 4) { // heads of different lengths
                    slots.push_back(s);
                }
            }
            CHECK(kvasir_cache_keep(cache, l, 0, h, slots.data(), (int32_t) slots.size()) == KVASIR_OK, "%s", kvasir_last_error());
            for (int32_t s = 0; s < *view.n_slots; s++) {
                CHECK(view.slot_plus_1[view.cell[s]] == s + 1 && view.pos[s] == view.cell[s], "layer %d head %d slot %d: cell %d pos %d", l, h, s, view.cell[s], view.pos[s]);
            }
            if (h == 0) { // single slots too: the last one moves into the hole
                kvasir_eviction single[] = {{l, 0, h, *view.n_slots - 5}, {l, 0, h, 7}};
                CHECK(kvasir_cache_evict(cache, single, 2) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
    }
}

inline kvasir_bytes bytes_of(const context & c) {
    kvasir_bytes bytes{};
    CHECK(kvasir_cache_bytes(c.cache, &bytes) == KVASIR_OK, "%s", kvasir_last_error());
    return bytes;
}

// A cache with a limit beside one without, fed the same tokens: the limit holds at every step, tokens that would exceed it
// leave nothing behind, and what comes after them is what comes of the cache that never refused any.
class limited_contexts {
public:
    limited_contexts(llama_model * model, kvasir_attention path) : free_(model, params(), true, path), limited_(model, params(), true, path) {
        both(random_tokens(300, 3));
    }

    void run() {
        CHECK(kvasir_cache_limit(limited_.cache, -1) == KVASIR_INVALID_ARGUMENT && kvasir_cache_limit(nullptr, 1) == KVASIR_INVALID_ARGUMENT, "%s", kvasir_last_error());
        const kvasir_bytes before = bytes_of(limited_);
        CHECK(before.row_bytes >= before.kept_bytes && before.row_bytes <= before.resident_bytes && before.row_bytes == bytes_of(free_).row_bytes, "%lld bytes of rows",
              (long long) before.row_bytes);
        limit(before.row_bytes * 3 / 2);
        refuse(500);
        printf("  %s\n", kvasir_last_error());
        CHECK(strstr(kvasir_last_error(), "limit"), "%s", kvasir_last_error());
        fill();
        for (const context * c : {&free_, &limited_}) {
            evict_randomly(c->cache, 5, 0.2);
        }
        both(random_tokens(20, 5));
        fill();
        limit(bytes_of(limited_).row_bytes * 2);
        both(random_tokens(20, 6));
        limit(bytes_of(limited_).row_bytes / 2); // below what is held: only more is refused
        within_ = false;
        refuse(500);
        limit(0);
        both(random_tokens(500, 7));
        llama_memory_clear(llama_get_memory(limited_.c), true);
        CHECK(bytes_of(limited_).row_bytes == 0, "%lld bytes of no rows", (long long) bytes_of(limited_).row_bytes);
    }

    // What one head holds in reserve goes to another: with so many slots of the first head evicted one by one, there is
    // memory for so many tokens, but not where it is needed.
    void run_reserve(int32_t evicted, int32_t appended) {
        for (const context * c : {&free_, &limited_}) {
            for (int32_t i = 0; i < evicted; i++) {
                for (int32_t l = 0; l < kvasir_cache_n_layers(c->cache); l++) {
                    const kvasir_eviction single = {l, 0, 0, 5};
                    CHECK(kvasir_cache_evict(c->cache, &single, 1) == KVASIR_OK, "%s", kvasir_last_error());
                }
            }
        }
        limit(bytes_of(limited_).row_bytes);
        both(random_tokens((size_t) appended, 4));
        CHECK(bytes_of(free_).row_bytes > bytes_of(limited_).row_bytes, "the cache without a limit holds nothing in reserve: %lld bytes", (long long) bytes_of(free_).row_bytes);
    }

private:
    context free_, limited_;
    int64_t limit_  = 0;
    bool    within_ = true;
    int32_t pos_    = 0;

    static llama_context_params params() {
        llama_context_params p = context_params();
        p.n_ctx    = 2048;
        p.n_ubatch = 512; // a batch fails as a whole
        return p;
    }

    void limit(int64_t bytes) {
        limit_ = bytes;
        CHECK(kvasir_cache_limit(limited_.cache, bytes) == KVASIR_OK, "%s", kvasir_last_error());
    }

    bool try_both(const std::vector<llama_token> & tokens) {
        std::vector<float>  expected, got;
        const kvasir_bytes  before = bytes_of(limited_);
        const kvasir_status status = limited_.try_decode(tokens.data(), (int32_t) tokens.size(), pos_, got);
        const kvasir_bytes  after  = bytes_of(limited_);
        CHECK(limit_ == 0 || !within_ || after.row_bytes <= limit_, "%lld bytes, the limit is %lld", (long long) after.row_bytes, (long long) limit_);
        if (status != KVASIR_OK) {
            CHECK(status == KVASIR_OUT_OF_MEMORY, "status %d: %s", status, kvasir_last_error());
            CHECK(after.slots == before.slots && after.row_bytes <= before.row_bytes, "%lld slots and %lld bytes after tokens that had no room, %lld and %lld before",
                  (long long) after.slots, (long long) after.row_bytes, (long long) before.slots, (long long) before.row_bytes);
            return false;
        }
        CHECK(free_.try_decode(tokens.data(), (int32_t) tokens.size(), pos_, expected) == KVASIR_OK, "%s", kvasir_last_error());
        CHECK(expected == got, "the limit changed what came after position %d: KL %.3e", pos_, mean_kl(expected, got, free_.n_vocab));
        pos_ += (int32_t) tokens.size();
        return true;
    }

    void both(const std::vector<llama_token> & tokens) { CHECK(try_both(tokens), "%s", kvasir_last_error()); }
    void refuse(size_t n) { CHECK(!try_both(random_tokens(n, 9)), "%d tokens were taken", (int) n); }

    // tokens until there is room for none, by twenties and then one by one
    void fill() {
        const int32_t first = pos_;
        for (size_t n : {20, 1}) {
            while (pos_ < 1500 && try_both(random_tokens(n, (uint32_t) pos_))) {
            }
        }
        CHECK(pos_ > first && pos_ < 1500, "filled from %d to %d", first, pos_);
    }
};

inline void log_errors(bool on) {
    llama_log_set(on ? [](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) {
            fputs(text, stdout);
        }
    } : [](ggml_log_level, const char *, void *) {}, nullptr);
}

// What a cache has counted: of every layer and head the sums of a running statistic and the scores, and how many queries.
struct counts {
    std::vector<float>   values;
    std::vector<int64_t> queries;

    bool operator==(const counts & other) const {
        return queries == other.queries && values.size() == other.values.size() && memcmp(values.data(), other.values.data(), values.size() * sizeof(float)) == 0;
    }
};

// of the first slots of each head of a stream; columns: of the statistic that runs, or 0
inline counts counts_of(const context & c, int32_t slots, int32_t columns, int32_t stream = 0) {
    counts all;
    for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
        kvasir_layer_info info;
        kvasir_cache_layer(c.cache, l, &info);
        for (int32_t h = 0; h < info.n_head_kv; h++) {
            kvasir_head_view view;
            kvasir_cache_head(c.cache, l, stream, h, &view);
            CHECK(*view.n_slots >= slots, "layer %d head %d has %d slots of %d", l, h, *view.n_slots, slots);
            if (columns > 0) {
                std::vector<float> sums((size_t) columns * (size_t) *view.n_slots);
                int64_t n_queries = 0;
                CHECK(kvasir_statistic_read(c.cache, l, stream, h, sums.data(), nullptr, &n_queries) == KVASIR_OK, "%s", kvasir_last_error());
                all.queries.push_back(n_queries);
                for (int32_t i = 0; i < columns; i++) {
                    all.values.insert(all.values.end(), sums.begin() + (ptrdiff_t) i * *view.n_slots, sums.begin() + (ptrdiff_t) i * *view.n_slots + slots);
                }
            } else {
                CHECK(kvasir_cache_scores(c.cache, l, stream, h) == KVASIR_OK, "%s", kvasir_last_error());
                all.values.insert(all.values.end(), view.score, view.score + slots);
            }
        }
    }
    return all;
}

// Tokens that are aborted at every point of their graphs, or taken back, beside a cache that never saw them.
class taken_back {
public:
    // per_query_head: of a statistic; -1: scores are tracked. aborts: the device asks llama.cpp's abort callback
    taken_back(llama_model * model, kvasir_attention path, int32_t per_query_head, bool aborts)
        : per_query_head_(per_query_head), aborts_(aborts), left_alone_(model, params(), true, path), c_(model, params(), true, path) {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        CHECK(llama_vocab_n_tokens(vocab) > 0, "no vocabulary");
        for (const context * c : {&left_alone_, &c_}) {
            begin_counting(*c);
            kvasir_layer_info info;
            kvasir_cache_layer(c->cache, 0, &info);
            columns_ = per_query_head < 0 ? 0 : 4 * (per_query_head ? info.n_head / info.n_head_kv : 1);
        }
    }

    void run(const char * what) {
        both(random_tokens(60, 1));
        const counts before = counts_of(c_, pos_, columns_);
        double sum = 0;
        for (float x : before.values) {
            sum += x;
        }
        CHECK(sum > 60, "%s: nothing was counted", what);
        int32_t points = 0;
        for (const int32_t n : {24, 1, 80}) { // a micro-batch, a decode step, three micro-batches
            const bool marked = n > MICRO_BATCH;
            for (int32_t calls = 0; aborts_; calls += n == 1 ? 3 : n == 24 ? 5 : 17) {
                if (marked) {
                    CHECK(kvasir_cache_mark(c_.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
                }
                const bool aborted = decode_aborted(random_tokens((size_t) n, (uint32_t) (calls + n)), calls);
                if (!aborted) {
                    CHECK(calls > 20, "the graph of %d tokens asked for an abort %d times only", n, calls);
                    CHECK(kvasir_cache_take_back(c_.cache) == KVASIR_OK, "%s", kvasir_last_error()); // without a mark: nothing
                    CHECK((counts_of(c_, pos_, columns_) == before) == marked, "%s: %d tokens were %s", what, n, marked ? "not taken back" : "taken back without a mark");
                    drop();
                    if (!marked) { // it has been counted: begin again
                        restore();
                    }
                    break;
                }
                points++;
                CHECK(counts_of(c_, pos_, columns_) == before, "%s: %d tokens that were aborted at call %d of the callback have left a trace", what, n, calls);
                CHECK(kvasir_cache_take_back(c_.cache) == KVASIR_OK, "%s", kvasir_last_error());
                CHECK(counts_of(c_, pos_, columns_) == before, "%s: taking back what is taken back changed it", what);
                drop();
            }
        }
        CHECK(!aborts_ || points > 40, "%s: aborted at %d points only", what, points);

        for (const size_t n : {1, 5, 80}) { // without a failure
            CHECK(kvasir_cache_mark(c_.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
            c_.decode(random_tokens(n, 77), pos_);
            CHECK(!(counts_of(c_, pos_, columns_) == before), "%s: %d tokens were not counted", what, (int) n);
            CHECK(kvasir_cache_take_back(c_.cache) == KVASIR_OK, "%s", kvasir_last_error());
            CHECK(counts_of(c_, pos_, columns_) == before, "%s: %d tokens that were taken back have left a trace", what, (int) n);
            const counts after = counts_of(c_, pos_ + (int32_t) n, columns_);
            CHECK(std::count_if(after.values.begin(), after.values.end(), [](float x) { return x != 0; }) <=
                  std::count_if(before.values.begin(), before.values.end(), [](float x) { return x != 0; }), "%s: slots that came later are not left with zeros", what);
            drop();
        }
        // a statistic that is started behind the mark gives way to the one before
        CHECK(kvasir_cache_mark(c_.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
        const int32_t                 other[] = {2, 5};
        const kvasir_statistic_params params  = {other, 2, -1, 0};
        CHECK(kvasir_statistic_start(c_.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
        c_.decode(random_tokens(400, 78), pos_); // more than the columns of the one before have room for
        CHECK(kvasir_cache_take_back(c_.cache) == KVASIR_OK, "%s", kvasir_last_error());
        CHECK(counts_of(c_, pos_, columns_) == before, "%s: the statistic of before the mark has not come back as it was", what);
        int64_t n_queries = 0;
        CHECK((kvasir_statistic_read(c_.cache, 0, 0, 0, nullptr, nullptr, &n_queries) == KVASIR_OK) == (columns_ > 0), "%s: whether a statistic runs: %s", what, kvasir_last_error());
        drop();
        // a mark that ends keeps what was counted
        CHECK(kvasir_cache_mark(c_.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
        both(random_tokens(70, 79));
        CHECK(kvasir_cache_mark(c_.cache, 0) == KVASIR_OK && kvasir_cache_take_back(c_.cache) == KVASIR_OK, "%s", kvasir_last_error());
        both(random_tokens(5, 80));
        for (int32_t i = 0; i < 5; i++) {
            both({(llama_token) (30 + i)});
        }
        printf("  %s: aborted at %d points\n", what, points);
    }

private:
    static constexpr int32_t MICRO_BATCH = 32;

    int32_t per_query_head_, columns_ = 0;
    bool    aborts_;
    context left_alone_, c_;
    int32_t pos_ = 0;

    static llama_context_params params() {
        llama_context_params p = context_params();
        p.n_ubatch = MICRO_BATCH;
        p.swa_full = true;
        return p;
    }

    void begin_counting(const context & c) const {
        static const int32_t bounds[] = {1, 16, 100};
        const kvasir_statistic_params params = {bounds, 3, 30, per_query_head_};
        if (per_query_head_ >= 0) {
            CHECK(kvasir_statistic_start(c.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
            return;
        }
        for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
            kvasir_layer_info info;
            kvasir_cache_layer(c.cache, l, &info);
            for (int32_t h = 0; h < info.n_head_kv; h++) {
                CHECK(kvasir_cache_track(c.cache, l, 0, h, 1) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
    }

    void both(const std::vector<llama_token> & tokens) {
        const auto expected = left_alone_.decode(tokens, pos_), got = c_.decode(tokens, pos_);
        CHECK(expected == got, "what was taken back changed what came after position %d: KL %.3e", pos_, mean_kl(expected, got, c_.n_vocab));
        pos_ += (int32_t) tokens.size();
        CHECK(counts_of(left_alone_, pos_, columns_) == counts_of(c_, pos_, columns_), "what was taken back changed the counts at position %d", pos_);
    }

    // whether it was aborted, when the callback had been asked so often
    bool decode_aborted(const std::vector<llama_token> & tokens, int32_t calls) {
        int32_t left = calls;
        llama_set_abort_callback(c_.c, [](void * data) { return (*(int32_t *) data)-- <= 0; }, &left);
        llama_batch batch = llama_batch_init((int32_t) tokens.size(), 0, 1);
        batch.n_tokens    = (int32_t) tokens.size();
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            batch.token[i]     = tokens[(size_t) i];
            batch.pos[i]       = pos_ + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = 1;
        }
        int32_t             result = 0;
        log_errors(false);
        const kvasir_status status = kvasir_decode(c_.c, &batch, &result);
        log_errors(true);
        llama_batch_free(batch);
        llama_set_abort_callback(c_.c, nullptr, nullptr);
        CHECK(status == KVASIR_OK && (result == 0 || result == 2), "decode: %d, %s", result, kvasir_last_error());
        return result == 2;
    }

    void drop() {
        llama_memory_seq_rm(llama_get_memory(c_.c), 0, pos_, -1);
        CHECK(kvasir_cache_truncate(c_.cache, 0, pos_) == KVASIR_OK, "%s", kvasir_last_error());
    }

    // from the beginning, as the other one
    void restore() {
        llama_memory_clear(llama_get_memory(c_.c), true);
        begin_counting(c_);
        c_.decode(random_tokens(60, 1), 0);
    }
};

// A sequence that is copied to another stream: rows, slots, scores and sums go with it, or nothing does.
inline void copy_streams(llama_model * model, kvasir_attention path) {
    llama_context_params params = context_params();
    params.n_seq_max  = 2;
    params.kv_unified = false;
    params.n_ctx      = 2 * 512;
    for (const int32_t per_query_head : {-1, 0}) {
        context c(model, params, true, path);
        const int32_t n_layers = kvasir_cache_n_layers(c.cache);
        const auto    for_each_head = [&](const auto & f) {
            for (int32_t l = 0; l < n_layers; l++) {
                kvasir_layer_info info;
                kvasir_cache_layer(c.cache, l, &info);
                for (int32_t h = 0; h < info.n_head_kv; h++) {
                    f(l, h);
                }
            }
        };
        const int32_t                 bounds[] = {1, 16, 100};
        const kvasir_statistic_params counting = {bounds, 3, 30, per_query_head};
        if (per_query_head < 0) { // of the first sequence only: what the other one has was copied
            for_each_head([&](int32_t l, int32_t h) { CHECK(kvasir_cache_track(c.cache, l, 0, h, 1) == KVASIR_OK, "%s", kvasir_last_error()); });
        } else {
            CHECK(kvasir_statistic_start(c.cache, &counting) == KVASIR_OK, "%s", kvasir_last_error());
        }
        c.decode(random_tokens(200, 1), 0, 0);
        c.decode(random_tokens(250, 2), 0, 1);
        evict_randomly(c.cache, 3, 0.3);
        const auto slots_of = [&](int32_t stream, int32_t l, int32_t h) {
            kvasir_head_view view;
            kvasir_cache_head(c.cache, l, stream, h, &view);
            return *view.n_slots;
        };
        int32_t least = INT32_MAX;
        for_each_head([&](int32_t l, int32_t h) { least = std::min(least, slots_of(0, l, h)); });
        const int32_t columns = per_query_head < 0 ? 0 : 4;
        const counts  before  = counts_of(c, least, columns, 0);
        // what is copied stays below what the other stream had, but not with a limit below what is held
        CHECK(kvasir_cache_failure(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
        llama_memory_seq_rm(llama_get_memory(c.c), 1, 0, -1);
        CHECK(kvasir_cache_truncate(c.cache, 1, 0) == KVASIR_OK, "%s", kvasir_last_error());
        CHECK(kvasir_cache_limit(c.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
        llama_memory_seq_cp(llama_get_memory(c.c), 0, 1, -1, -1);
        std::vector<float> logits;
        const llama_token  token = 5;
        log_errors(false);
        const kvasir_status refused = c.try_decode(&token, 1, 200, logits, 1);
        log_errors(true);
        CHECK(refused == KVASIR_OUT_OF_MEMORY, "status %d: %s", refused, kvasir_last_error());
        for_each_head([&](int32_t l, int32_t h) { CHECK(slots_of(1, l, h) == 0, "layer %d head %d has %d slots of a stream that could not be copied", l, h, slots_of(1, l, h)); });
        CHECK(counts_of(c, least, columns, 0) == before, "a copy that was refused changed the scores");
        CHECK(kvasir_cache_failure(c.cache) == KVASIR_OK, "told twice: %s", kvasir_last_error());
        CHECK(kvasir_cache_limit(c.cache, 0) == KVASIR_OK, "%s", kvasir_last_error());

        llama_memory_seq_rm(llama_get_memory(c.c), 1, 0, -1);
        llama_memory_seq_cp(llama_get_memory(c.c), 0, 1, -1, -1);
        if (per_query_head >= 0) { // the token that makes llama.cpp copy is not counted in the copy
            CHECK(kvasir_cache_mark(c.cache, 1) == KVASIR_OK, "%s", kvasir_last_error());
        }
        const auto a = c.decode({5}, 200, 1);
        const counts copied = counts_of(c, least, columns, 1);
        if (per_query_head < 0) {
            CHECK(copied == before, "the scores of a copied sequence are not those of the sequence");
        } else { // and the copied stream's sums go on from those of the sequence
            double more = 0, was = 0;
            for (size_t i = 0; i < copied.values.size(); i++) {
                CHECK(copied.values[i] >= before.values[i], "a sum of %.5f where the sequence has %.5f", copied.values[i], before.values[i]);
                more += copied.values[i] - before.values[i];
                was += before.values[i];
            }
            CHECK(was > 100 && more > 0 && more < (double) copied.queries.size(), "the copy's sums are %.3f more than %.3f", more, was);
        }
        for_each_head([&](int32_t l, int32_t h) {
            kvasir_head_view x, y;
            kvasir_cache_head(c.cache, l, 0, h, &x);
            kvasir_cache_head(c.cache, l, 1, h, &y);
            CHECK(*y.n_slots == *x.n_slots + 1 && memcmp(x.pos, y.pos, (size_t) *x.n_slots * sizeof(int32_t)) == 0, "layer %d head %d: %d slots, the copy has %d", l, h, *x.n_slots, *y.n_slots);
        });
        const auto   b  = c.decode({5}, 200, 0);
        const double kl = mean_kl(b, a, c.n_vocab);
        CHECK(kl < NOISE_FLOOR, "the copy goes on differently: KL %.3e", kl);
    }
    // what a function of llama.cpp cannot report is known right after it
    context c(model, params, true, path);
    c.decode(random_tokens(100, 1), 0, 0);
    std::vector<uint8_t> state(llama_state_seq_get_size(c.c, 0));
    CHECK(llama_state_seq_get_data(c.c, state.data(), state.size(), 0) == state.size(), "size of the state");
    CHECK(kvasir_cache_limit(c.cache, 1) == KVASIR_OK && kvasir_cache_failure(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
    llama_state_seq_set_data(c.c, state.data(), state.size(), 1);
    CHECK(kvasir_cache_failure(c.cache) == KVASIR_OUT_OF_MEMORY, "a state that found no memory: %s", kvasir_last_error());
}

// loads llama.cpp's backends from a folder; only its errors are printed
inline void load_llama(const char * libraries) {
    log_errors(true);
    ggml_backend_load_all_from_path(libraries);
    llama_backend_init();
    CHECK(kvasir_init() == KVASIR_OK, "%s", kvasir_last_error());
}

} // namespace kvasir_test
