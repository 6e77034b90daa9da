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
    ~context() { kvasir_context_free(c, cache); }
    context(const context &) = delete;

    // logits of every token
    std::vector<float> decode(const std::vector<llama_token> & tokens, int32_t first_pos, llama_seq_id seq = 0) {
        std::vector<float> logits;
        for (size_t at = 0; at < tokens.size();) {
            const int32_t n     = (int32_t) std::min(tokens.size() - at, (size_t) llama_n_batch(c));
            llama_batch   batch = llama_batch_init(n, 0, 1);
            batch.n_tokens      = n;
            for (int32_t i = 0; i < n; i++) {
                batch.token[i]     = tokens[at + (size_t) i];
                batch.pos[i]       = first_pos + (int32_t) at + i;
                batch.n_seq_id[i]  = 1;
                batch.seq_id[i][0] = seq;
                batch.logits[i]    = 1;
            }
            int32_t             result = 0;
            const kvasir_status status = kvasir_decode(c, &batch, &result);
            CHECK(status == KVASIR_OK && result == 0, "decode: %d, %s", result, kvasir_last_error());
            for (int32_t i = 0; i < n; i++) {
                const float * row = llama_get_logits_ith(c, i);
                logits.insert(logits.end(), row, row + n_vocab);
            }
            llama_batch_free(batch);
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

// loads llama.cpp's backends from a folder; only its errors are printed
inline void load_llama(const char * libraries) {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) {
            fputs(text, stdout);
        }
    }, nullptr);
    ggml_backend_load_all_from_path(libraries);
    llama_backend_init();
    CHECK(kvasir_init() == KVASIR_OK, "%s", kvasir_last_error());
}

} // namespace kvasir_test
