// Decode and prefill speed of llama.cpp over the store against unmodified llama.cpp, on any device, for any model file,
// also one without a vocabulary: tokens are random. All engines live in one process and take turns.
//
//   context_bench LIBRARIES MODEL [--device CUDA0] [--depth 16384] [--keep 1,0.5,0.25] [--tokens 64] [--repeats 5]
//                 [--prefill 4096] [--sequences 1] [--type f16|q8_0]
//
// A kept fraction is carried out by dropping random slots of every head, each head its own number: 20% to 180% of the mean.
// --prefill N also reads N tokens into empty contexts: unmodified, over the store, over the store with the statistic.
#include "kvasir.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

struct options {
    std::string         device = "CPU", libraries, model;
    int32_t             depth = 4096, tokens = 64, repeats = 5, prefill = 0, sequences = 1;
    std::vector<double> keep{1.0, 0.5, 0.25};
    ggml_type           type = GGML_TYPE_F16;
};

[[noreturn]] void fail(const char * what) {
    fprintf(stderr, "context_bench: %s: %s\n", what, kvasir_last_error());
    exit(1);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct engine {
    std::string         name;
    llama_context *     context = nullptr;
    kvasir_cache *      cache   = nullptr;
    int32_t             position = 0;
    std::vector<double> rates;

    engine(std::string name, llama_model * model, const llama_context_params & params, bool ours) : name(std::move(name)) {
        if (kvasir_context_new(model, &params, KVASIR_ATTENTION_NATIVE, &context, ours ? &cache : nullptr) != KVASIR_OK) {
            fail(this->name.c_str());
        }
    }
    ~engine() { kvasir_context_free(context, cache); }
    engine(const engine &) = delete;
    engine & operator=(const engine &) = delete;

    void decode(llama_batch & batch) {
        int32_t result = 0;
        if (kvasir_decode(context, &batch, &result) != KVASIR_OK || result != 0) {
            fail("decode");
        }
    }

    // n tokens of each sequence, one sequence after another
    void read(int32_t n, int32_t sequences) {
        std::mt19937 rng(1);
        const int32_t most = (int32_t) llama_n_batch(context), vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
        llama_batch   batch = llama_batch_init(most, 0, 1);
        for (int32_t s = 0; s < sequences; s++) {
            for (int32_t at = 0; at < n; at += batch.n_tokens) {
                batch.n_tokens = std::min(most, n - at);
                for (int32_t i = 0; i < batch.n_tokens; i++) {
                    batch.token[i]     = (llama_token) (rng() % (uint32_t) vocabulary);
                    batch.pos[i]       = position + at + i;
                    batch.n_seq_id[i]  = 1;
                    batch.seq_id[i][0] = s;
                    batch.logits[i]    = at + i == n - 1;
                }
                decode(batch);
            }
        }
        llama_synchronize(context);
        llama_batch_free(batch);
        position += n;
    }

    // one token of each sequence, n times
    void step(int32_t n, int32_t sequences) {
        llama_batch batch = llama_batch_init(sequences, 0, 1);
        batch.n_tokens    = sequences;
        for (int32_t i = 0; i < n; i++, position++) {
            for (int32_t s = 0; s < sequences; s++) {
                batch.token[s]     = (llama_token) (17 + (i * 31 + s) % 200);
                batch.pos[s]       = position;
                batch.n_seq_id[s]  = 1;
                batch.seq_id[s][0] = s;
                batch.logits[s]    = 1;
            }
            decode(batch);
            llama_get_logits_ith(context, -1); // as whoever samples would
        }
        llama_batch_free(batch);
    }

    void drop(double keep) {
        std::mt19937 rng(7);
        std::vector<int32_t> slots;
        for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
            kvasir_layer_info info;
            kvasir_cache_layer(cache, l, &info);
            for (int32_t head = 0; head < info.n_stream * info.n_head_kv; head++) {
                kvasir_head_view view;
                kvasir_cache_head(cache, l, head / info.n_head_kv, head % info.n_head_kv, &view);
                const double share = keep * (0.2 + 1.6 * (rng() / 4294967296.0));
                slots.clear();
                for (int32_t slot = 0; slot < *view.n_slots; slot++) {
                    if (rng() / 4294967296.0 < share) {
                        slots.push_back(slot);
                    }
                }
                if (kvasir_cache_keep(cache, l, head / info.n_head_kv, head % info.n_head_kv, slots.data(), (int32_t) slots.size()) != KVASIR_OK) {
                    fail("keep");
                }
            }
        }
    }
};

void print_rates(const char * test, const engine & e, double kept, double reference, double free_before, double free_now) {
    std::vector<double> r = e.rates;
    std::sort(r.begin(), r.end());
    const double median = r[r.size() / 2];
    kvasir_bytes bytes{};
    if (e.cache) {
        kvasir_cache_bytes(e.cache, &bytes);
    }
    printf("| %-22s | %-14s | %7.1f | %7.1f - %7.1f | %5.2f | %5.1f%% | %8.1f | %8.1f |\n", e.name.c_str(), test, median, r.front(), r.back(), median / reference, 100 * kept,
           (double) bytes.resident_bytes / (1 << 20), (free_before - free_now) / (1 << 20));
    fflush(stdout);
}

double median(std::vector<double> r) {
    std::sort(r.begin(), r.end());
    return r[r.size() / 2];
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: context_bench LIBRARIES MODEL [options]; see context_bench.cpp\n");
        return 2;
    }
    options o;
    o.libraries = argv[1];
    o.model     = argv[2];
    for (int i = 3; i + 1 < argc; i += 2) {
        const std::string name = argv[i], value = argv[i + 1];
        if (name == "--device") {
            o.device = value;
        } else if (name == "--depth") {
            o.depth = atoi(value.c_str());
        } else if (name == "--tokens") {
            o.tokens = atoi(value.c_str());
        } else if (name == "--repeats") {
            o.repeats = atoi(value.c_str());
        } else if (name == "--prefill") {
            o.prefill = atoi(value.c_str());
        } else if (name == "--sequences") {
            o.sequences = atoi(value.c_str());
        } else if (name == "--type") {
            o.type = value == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
        } else if (name == "--keep") {
            o.keep.clear();
            for (size_t at = 0; at <= value.size();) {
                const size_t comma = std::min(value.find(',', at), value.size());
                o.keep.push_back(atof(value.substr(at, comma - at).c_str()));
                at = comma + 1;
            }
        } else {
            fprintf(stderr, "context_bench: no option %s\n", name.c_str());
            return 2;
        }
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    ggml_backend_load_all_from_path(o.libraries.c_str());
    llama_backend_init();
    ggml_backend_dev_t inner = ggml_backend_dev_by_name(o.device.c_str()), proxy = nullptr;
    if (!inner || kvasir_init() != KVASIR_OK || kvasir_device(o.device.c_str(), &proxy) != KVASIR_OK) {
        fail(o.device.c_str());
    }
    const bool cpu = ggml_backend_dev_type(inner) == GGML_BACKEND_DEVICE_TYPE_CPU;
    const auto load = [&](ggml_backend_dev_t device, bool stock) {
        ggml_backend_dev_t devices[] = {stock && cpu ? nullptr : device, nullptr};
        llama_model_params params = llama_model_default_params();
        params.devices      = devices;
        params.n_gpu_layers = stock && cpu ? 0 : 999;
        llama_model * model = nullptr;
        if (kvasir_model_load(o.model.c_str(), &params, &model) != KVASIR_OK) {
            fail(o.model.c_str());
        }
        return model;
    };
    llama_model * stock_model = load(inner, true), * our_model = load(proxy, false);

    llama_context_params params = llama_context_default_params();
    params.n_seq_max       = (uint32_t) o.sequences;
    params.n_ctx           = (uint32_t) ((o.depth + o.tokens * (o.repeats * (int32_t) o.keep.size() + 2) + 256 + 255) / 256 * 256 * o.sequences);
    params.n_batch         = 2048;
    params.n_ubatch        = 512;
    params.kv_unified      = false;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = o.type;
    params.no_perf         = true;
    const auto free_memory = [&] {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(inner, &free, &total);
        return (double) free;
    };

    printf("| engine                 | test           |     t/s |             range | ratio |   kept |  KV, MiB | device, MiB |\n|---|---|---|---|---|---|---|---|\n");
    if (o.prefill > 0) {
        llama_context_params p = params;
        p.n_ctx     = (uint32_t) ((o.prefill + 255) / 256 * 256);
        p.n_seq_max = 1;
        std::vector<std::unique_ptr<engine>> engines;
        engines.push_back(std::make_unique<engine>("llama.cpp", stock_model, p, false));
        engines.push_back(std::make_unique<engine>("kvasir", our_model, p, true));
        engines.push_back(std::make_unique<engine>("kvasir, profiling", our_model, p, true));
        const int32_t bounds[] = {1, 16, 32, 64, o.prefill / 20, o.prefill / 10, o.prefill / 5, 3 * o.prefill / 10, 2 * o.prefill / 5, o.prefill / 2};
        for (int32_t r = -1; r < o.repeats; r++) { // the first one warms up
            for (size_t i = 0; i < engines.size(); i++) {
                engine & e = *engines[i];
                llama_memory_clear(llama_get_memory(e.context), true);
                e.position = 0;
                kvasir_statistic_params statistic{bounds, 10, -1, 0};
                if (i == 2 && kvasir_statistic_start(e.cache, &statistic) != KVASIR_OK) {
                    fail("statistic");
                }
                const double begin = seconds();
                e.read(o.prefill, 1);
                if (r >= 0) {
                    e.rates.push_back(o.prefill / (seconds() - begin));
                }
            }
        }
        const std::string test = "pp" + std::to_string(o.prefill);
        for (const auto & e : engines) {
            print_rates(test.c_str(), *e, 1, median(engines[0]->rates), 0, 0);
        }
    }
    if (o.depth >= 0) {
        const double start = free_memory();
        engine stock("llama.cpp", stock_model, params, false);
        const double with_stock = free_memory();
        engine ours("kvasir", our_model, params, true);
        stock.read(std::max(o.depth, 1), o.sequences);
        ours.read(std::max(o.depth, 1), o.sequences);
        double kept = 1;
        const std::string test = "tg" + std::to_string(o.tokens) + "@d" + std::to_string(o.depth) + (o.sequences > 1 ? " x" + std::to_string(o.sequences) : "");
        for (double keep : o.keep) {
            if (keep < 1) {
                ours.drop(keep / kept);
            }
            kept = keep;
            stock.rates.clear();
            ours.rates.clear();
            ours.name = "kvasir, " + std::to_string((int) (100 * keep)) + "% kept";
            stock.step(8, o.sequences);
            ours.step(8, o.sequences);
            for (int32_t r = 0; r < o.repeats; r++) {
                for (engine * e : r % 2 ? std::vector<engine *>{&ours, &stock} : std::vector<engine *>{&stock, &ours}) {
                    const double begin = seconds();
                    e->step(o.tokens, o.sequences);
                    e->rates.push_back(o.tokens * o.sequences / (seconds() - begin));
                }
            }
            const double now = free_memory();
            print_rates(test.c_str(), stock, 1, median(stock.rates), start, with_stock);
            print_rates(test.c_str(), ours, keep, median(stock.rates), with_stock, now);
        }
    }
    llama_model_free(stock_model);
    llama_model_free(our_model);
    return 0;
}
