// Decode and prefill speed of llama.cpp over the store against unmodified llama.cpp, on any device, for any model file,
// also one without a vocabulary: tokens are random. All engines live in one process and take turns.
//
//   context_bench LIBRARIES MODEL [--device CUDA0] [--depth 16384] [--keep 1,0.5,0.25] [--tokens 64] [--repeats 5]
//                 [--prefill 4096 [--moved u,c,c/4]] [--sequences 1] [--type f16|q8_0] [--threads N]
//   context_bench LIBRARIES MODEL --budget MIB [--depth 4032] [--keep 1,0.5,0.25] [--tokens 64] [--device] [--type] [--threads]
//   context_bench LIBRARIES MODEL --grid 1:32:512,2:512:32 [--device CUDA0] [--keep 1,0.5] [--repeats 1] [--type] [--threads]
//
// A kept fraction is carried out by dropping random slots of every head, each head its own number: 20% to 180% of the mean.
// --budget MIB counts how many sequences of depth tokens fit a bound on the memory of K and V: prompts are read one after the
// other, each with all of its slots at first, and what is not kept is dropped before the next one. Then all of them generate so
// many tokens together under that bound.
//
// --prefill N also reads N tokens into empty contexts: unmodified, over the store, over the store with the statistic. With --moved u,c,c/4 instead
// over the store alone and with these statistics of moved queries: what each adds to the time, and to that of the processor, round by round.
//
// --grid takes rows of FastGen's Table 2, batch:prompt:generated, and measures seconds end to end: so many prompts, one after
// the other, then all sequences together, always the most probable token, until each has its generated tokens (the first comes
// from the prompt). A kept fraction is carried out when there are 256 tokens a sequence, or the whole prompt if it is
// longer. From then on each head goes on to keep its share of what is new: every 64 steps it drops some of the slots that came
// since, at random. In between new tokens are held by all heads. All of that is part of the time. Nothing is profiled, as which
// slots are dropped does not matter to the time; --prefill says what a profile adds. Contexts are opened one at a time, and warmed up
// with 8 steps after as much of the prompt as is computed at once.
#include "kvasir.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int32_t DROP_FROM = 256; // tokens of a sequence
constexpr int32_t DROP_EVERY = 64; // steps

struct grid_row {
    int32_t sequences, prompt, generated;
};

struct options {
    std::string           device = "CPU", libraries, model;
    int32_t               depth = 4096, tokens = 64, repeats = 0, prefill = 0, sequences = 1, threads = 0, budget = 0;
    std::vector<double>   keep;
    std::vector<grid_row> grid;
    std::vector<std::string> moved;
    ggml_type             type = GGML_TYPE_F16;
};

[[noreturn]] void fail(const char * what) { throw std::runtime_error(std::string(what) + ": " + kvasir_last_error()); }

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct engine {
    std::string         name;
    llama_context *     context = nullptr;
    kvasir_cache *      cache   = nullptr;
    int32_t             position = 0;
    std::vector<double> rates;
    std::mt19937        rng{7};
    // of every head, in the order of each_head
    std::vector<double>  share;
    std::vector<int32_t> held; // slots after the last drop

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

    llama_token best(int32_t i) {
        const float * logits = llama_get_logits_ith(context, i);
        return (llama_token) (std::max_element(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)))) - logits);
    }

    // n tokens of each sequence from first on, one sequence after another; next: what is most probable after them
    void read(int32_t n, int32_t sequences, std::vector<llama_token> * next = nullptr, int32_t first = 0) {
        std::mt19937 rng(1);
        const int32_t most = (int32_t) llama_n_batch(context), vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
        llama_batch   batch = llama_batch_init(most, 0, 1);
        for (int32_t s = first; s < first + sequences; s++) {
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
            if (next) {
                (*next)[(size_t) (s - first)] = best(-1);
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

    // n more tokens of each sequence, after every step: what is to be done at that position
    template <typename F> void generate(int32_t n, std::vector<llama_token> & next, F && after_step) {
        llama_batch batch = llama_batch_init((int32_t) next.size(), 0, 1);
        batch.n_tokens    = (int32_t) next.size();
        for (int32_t i = 0; i < n; i++) {
            for (int32_t s = 0; s < batch.n_tokens; s++) {
                batch.token[s]     = next[(size_t) s];
                batch.pos[s]       = position;
                batch.n_seq_id[s]  = 1;
                batch.seq_id[s][0] = s;
                batch.logits[s]    = 1;
            }
            decode(batch);
            for (int32_t s = 0; s < batch.n_tokens; s++) {
                next[(size_t) s] = best(s);
            }
            position++;
            after_step();
        }
        llama_batch_free(batch);
    }

    // f(layer, stream, head)
    template <typename F> void each_head(F && f) const {
        for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
            kvasir_layer_info info;
            kvasir_cache_layer(cache, l, &info);
            for (int32_t head = 0; head < info.n_stream * info.n_head_kv; head++) {
                f(l, head / info.n_head_kv, head % info.n_head_kv);
            }
        }
    }

    // of the tokens before position; all layers
    void sum_moved() {
        for (int32_t l = 0, n = 0; l < kvasir_cache_n_layers(cache); l++) {
            if (kvasir_moved_sum(cache, l, position, llama_n_threads_batch(context), &n) != KVASIR_OK) {
                fail("moved_sum");
            }
        }
    }

    void fold_moved(int32_t smooth) {
        for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
            if (kvasir_moved_fold(cache, l, nullptr, smooth, llama_n_threads_batch(context)) != KVASIR_OK) {
                fail("moved_fold");
            }
        }
    }

    int32_t slots_of(int32_t layer, int32_t stream, int32_t head) const {
        kvasir_head_view view;
        kvasir_cache_head(cache, layer, stream, head, &view);
        return *view.n_slots;
    }

    double random() { return rng() / 4294967296.0; }

    // only: the one stream whose heads drop slots; -1: all do
    void drop(double keep, int32_t only = -1) {
        std::vector<int32_t> slots;
        double               sum = 0;
        share.clear();
        held.clear();
        each_head([&](int32_t, int32_t stream, int32_t) {
            if (only < 0 || stream == only) {
                share.push_back(0.2 + 1.6 * random());
                sum += share.back();
            }
        });
        each_head([&](int32_t layer, int32_t stream, int32_t head) {
            if (only >= 0 && stream != only) {
                return;
            }
            double & mine = share[held.size()];
            mine *= keep * (double) share.size() / sum; // the mean is exact however few heads there are
            slots.clear();
            for (int32_t slot = 0, n = slots_of(layer, stream, head); slot < n; slot++) {
                if (random() < mine) {
                    slots.push_back(slot);
                }
            }
            held.push_back((int32_t) slots.size());
            if (kvasir_cache_keep(cache, layer, stream, head, slots.data(), (int32_t) slots.size()) != KVASIR_OK) {
                fail("keep");
            }
        });
    }

    // of the slots that came since the last drop, every head keeps its share
    void drop_new() {
        std::vector<kvasir_eviction> evictions;
        size_t i = 0;
        each_head([&](int32_t layer, int32_t stream, int32_t head) {
            const int32_t n = slots_of(layer, stream, head);
            int32_t       dropped = 0;
            for (int32_t slot = n - 1; slot >= held[i]; slot--) {
                if (random() >= share[i]) {
                    evictions.push_back({layer, stream, head, slot});
                    dropped++;
                }
            }
            held[i++] = n - dropped;
        });
        if (kvasir_cache_evict(cache, evictions.data(), (int32_t) evictions.size()) != KVASIR_OK) {
            fail("evict");
        }
    }

    // slots held, as a fraction of those of a full cache
    double kept() const {
        int64_t slots = 0, heads = 0;
        each_head([&](int32_t layer, int32_t stream, int32_t head) {
            slots += slots_of(layer, stream, head);
            heads++;
        });
        return (double) slots / ((double) heads * position);
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

template <typename F> void each_part(const std::string & list, F && f) {
    for (size_t at = 0; at <= list.size();) {
        const size_t comma = std::min(list.find(',', at), list.size());
        f(list.substr(at, comma - at).c_str());
        at = comma + 1;
    }
}

// An engine of the grid with what its repeats gave.
struct contender {
    std::string         name;
    llama_model *       model;
    double              keep; // 0: unmodified llama.cpp
    std::vector<double> seconds, first_token;
    double              kept = 1, resident = 0, device = 0;
    std::string         failure; // what kept it from running, such as device memory
};

// One row of the grid on one engine, in a context of its own.
template <typename F> void run(contender & c, const grid_row & row, const llama_context_params & params, F && free_memory) {
    const bool   ours   = c.keep > 0;
    const double before = free_memory();
    engine       e(c.name, c.model, params, ours);
    std::vector<llama_token> next((size_t) row.sequences);
    e.read(std::min(row.prompt, (int32_t) params.n_ubatch), row.sequences, &next);
    e.generate(std::min(row.generated, 8), next, [] {});
    llama_memory_clear(llama_get_memory(e.context), true);
    e.position = 0;
    int32_t    dropped_at = 0;
    const auto drop = [&] {
        if (c.keep >= 1 || !ours || e.position < DROP_FROM || (dropped_at > 0 && e.position < dropped_at + DROP_EVERY)) {
            return;
        }
        if (dropped_at == 0) {
            e.drop(c.keep);
        } else {
            e.drop_new();
        }
        dropped_at = e.position;
    };
    const double begin = seconds();
    e.read(row.prompt, row.sequences, &next);
    const double first = seconds();
    drop();
    e.generate(row.generated - 1, next, drop);
    c.seconds.push_back(seconds() - begin);
    c.first_token.push_back(first - begin);
    c.device = before - free_memory();
    if (ours) {
        kvasir_bytes bytes{};
        kvasir_cache_bytes(e.cache, &bytes);
        c.kept     = e.kept();
        c.resident = (double) bytes.resident_bytes;
    }
}

template <typename F> void run_grid(const options & o, llama_model * stock, llama_model * our_model, llama_context_params params, F && free_memory) {
    printf("| batch [prompt, generated] | engine            |  seconds |               range | stock's | first token, s |     t/s |  held | KV, MiB | device, MiB |\n"
           "|---|---|---|---|---|---|---|---|---|---|\n");
    for (const grid_row & row : o.grid) {
        params.n_seq_max = (uint32_t) row.sequences;
        params.n_ctx     = (uint32_t) ((row.prompt + row.generated + 255) / 256 * 256 * row.sequences);
        std::vector<contender> contenders{{"llama.cpp", stock, 0, {}, {}, 1, 0, 0, {}}};
        for (double keep : o.keep) {
            contenders.push_back({"kvasir, " + std::to_string((int) (100 * keep)) + "% kept", our_model, keep, {}, {}, 1, 0, 0, {}});
        }
        for (int32_t r = 0; r < o.repeats; r++) {
            for (size_t i = 0; i < contenders.size(); i++) {
                contender & c = contenders[(i + (size_t) r) % contenders.size()];
                if (c.failure.empty()) {
                    try {
                        run(c, row, params, free_memory);
                    } catch (const std::runtime_error & e) {
                        c.failure = e.what();
                    }
                }
            }
        }
        const std::string test = std::to_string(row.sequences) + " [" + std::to_string(row.prompt) + ", " + std::to_string(row.generated) + "]";
        for (const contender & c : contenders) {
            if (!c.failure.empty()) {
                printf("| %-25s | %-17s | %s |\n", test.c_str(), c.name.c_str(), c.failure.c_str());
                continue;
            }
            const double s = median(c.seconds);
            char ratio[16] = "-";
            if (contenders[0].failure.empty()) {
                snprintf(ratio, sizeof ratio, "%.3f", s / median(contenders[0].seconds));
            }
            printf("| %-25s | %-17s | %8.3f | %8.3f - %8.3f | %7s | %14.3f | %7.1f | %4.1f%% | %7.1f | %11.1f |\n", test.c_str(), c.name.c_str(), s,
                   *std::min_element(c.seconds.begin(), c.seconds.end()), *std::max_element(c.seconds.begin(), c.seconds.end()), ratio, median(c.first_token),
                   row.sequences * row.generated / s, 100 * c.kept, c.resident / (1 << 20), c.device / (1 << 20));
        }
        fflush(stdout);
    }
    printf("\nseconds: prompt and generation; first token: those of the prompts; t/s: generated tokens. held: slots at the end, as a fraction of all.\n"
           "Below 100%% kept, random slots are dropped at %d tokens or after a longer prompt, and then every %d steps of what is new.\n", DROP_FROM, DROP_EVERY);
}

// What a way of moved queries took, round by round.
struct moved_way {
    std::string         name;
    bool                each = false;  // after each micro-batch
    int32_t             stride = 0;    // 0: no statistic
    std::vector<double> seconds, processor, fold;
};

std::string spread(std::vector<double> v, const char * format) {
    std::sort(v.begin(), v.end());
    char text[100];
    snprintf(text, sizeof text, format, v[v.size() / 2], v.front(), v.back());
    return text;
}

// Prompts without and with the statistics of moved queries, in turns.
void run_moved(const options & o, llama_model * model, llama_context_params params) {
    std::vector<moved_way> ways{{"none", false, 0, {}, {}, {}}};
    for (const std::string & name : o.moved) {
        const size_t stride = name.find('/');
        ways.push_back({name, name[0] == 'u', stride == std::string::npos ? 1 : atoi(name.c_str() + stride + 1), {}, {}, {}});
    }
    params.n_ctx     = (uint32_t) ((o.prefill + 255) / 256 * 256);
    params.n_seq_max = 1;
    params.n_batch   = params.n_ubatch;
    engine e("kvasir", model, params, true);
    const auto processor = [] { return (double) clock() / CLOCKS_PER_SEC; };
    for (int32_t r = -1; r < o.repeats; r++) { // the first one warms up, with one micro-batch
        const int32_t n_tokens = r < 0 ? std::min((int32_t) params.n_ubatch, o.prefill) : o.prefill;
        for (size_t i = 0; i < ways.size(); i++) {
            moved_way & way = ways[(i + (size_t) (r + 1)) % ways.size()];
            llama_memory_clear(llama_get_memory(e.context), true);
            e.position = 0;
            if (kvasir_moved_record(e.cache, way.stride) != KVASIR_OK) {
                fail("moved_record");
            }
            const double begin = seconds(), begin_processor = processor();
            while (e.position < n_tokens) {
                e.read(std::min((int32_t) params.n_ubatch, n_tokens - e.position), 1);
                if (way.each) {
                    e.sum_moved();
                }
            }
            if (way.stride > 0 && !way.each) {
                e.sum_moved();
            }
            const double now = seconds(), now_processor = processor();
            if (way.stride > 0) {
                e.fold_moved(2 * (way.stride / 2) + 1);
            }
            if (r >= 0) {
                way.seconds.push_back(now - begin);
                way.processor.push_back(now_processor - begin_processor);
                way.fold.push_back(100 * (seconds() - now) / (now - begin));
            }
        }
    }
    printf("pp%d, %d threads, %s: every way in each of %d rounds; median (range)\n| moved queries | seconds | added in the same round | processor time | added | fold, of the prompt |\n|---|---|---|---|---|---|\n",
           o.prefill, llama_n_threads_batch(e.context), ggml_type_name(o.type), o.repeats);
    for (const moved_way & way : ways) {
        std::vector<double> added, added_processor;
        for (size_t r = 0; r < way.seconds.size(); r++) {
            added.push_back(100 * (way.seconds[r] / ways[0].seconds[r] - 1));
            added_processor.push_back(100 * (way.processor[r] / ways[0].processor[r] - 1));
        }
        printf("| %-13s | %s | %s | %s | %s | %s |\n", way.name.c_str(), spread(way.seconds, "%.2f (%.2f - %.2f)").c_str(), spread(added, "%.1f%% (%.1f - %.1f)").c_str(),
               spread(way.processor, "%.2f (%.2f - %.2f)").c_str(), spread(added_processor, "%.1f%% (%.1f - %.1f)").c_str(), spread(way.fold, "%.2f%% (%.2f - %.2f)").c_str());
    }
    fflush(stdout);
}

// How many sequences fit, and what they do together.
void run_budget(const options & o, llama_model * model, llama_context_params params) {
    printf("| kept   | sequences of %d tokens in %d MiB | t/s of all | KV, MiB |\n|---|---|---|---|\n", o.depth, o.budget);
    double full = 0;
    for (double keep : o.keep) {
        params.n_seq_max = 64;
        params.n_ctx     = (uint32_t) ((o.depth + o.tokens + 255) / 256 * 256) * params.n_seq_max;
        engine        e("kvasir", model, params, true);
        const int64_t budget = (int64_t) o.budget << 20;
        int32_t n = 0;
        int64_t to_come = 0; // bytes of what a sequence will generate
        for (; n < (int32_t) params.n_seq_max; n++) {
            kvasir_bytes before{}, after{};
            kvasir_cache_bytes(e.cache, &before);
            const int64_t left = budget - (n + 1) * to_come;
            if (left <= 0 || kvasir_cache_limit(e.cache, left) != KVASIR_OK) {
                break;
            }
            e.position = 0;
            try {
                e.read(o.depth, 1, nullptr, n);
            } catch (const std::runtime_error &) {
                llama_memory_seq_rm(llama_get_memory(e.context), n, -1, -1);
                kvasir_cache_truncate(e.cache, n, 0);
                break;
            }
            kvasir_cache_bytes(e.cache, &after);
            if (to_come == 0) {
                to_come = (after.row_bytes - before.row_bytes) / o.depth * (o.tokens + 64); // and the rest of a page
            }
            if (keep < 1) {
                e.drop(keep, n);
            }
        }
        kvasir_cache_limit(e.cache, budget);
        double rate = 0;
        if (n > 0) {
            e.position = o.depth;
            e.step(1, n);
            const double begin = seconds();
            e.step(o.tokens - 1, n);
            rate = n * (o.tokens - 1) / (seconds() - begin);
        }
        kvasir_bytes bytes{};
        kvasir_cache_bytes(e.cache, &bytes);
        printf("| %5.1f%% | %32d | %10.1f | %7.1f |\n", 100 * keep, n, rate, (double) bytes.row_bytes / (1 << 20));
        fflush(stdout);
        full = (double) bytes.full_bytes / params.n_seq_max;
    }
    printf("\nUnmodified llama.cpp allocates %.1f MiB a sequence: %d fit.\n", full / (1 << 20), (int) (o.budget * (double) (1 << 20) / full));
}

int bench(int argc, char ** argv) {
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
        } else if (name == "--moved") {
            each_part(value, [&](const char * part) { o.moved.push_back(part); });
        } else if (name == "--sequences") {
            o.sequences = atoi(value.c_str());
        } else if (name == "--budget") {
            o.budget = atoi(value.c_str());
        } else if (name == "--type") {
            o.type = value == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
        } else if (name == "--threads") {
            o.threads = atoi(value.c_str());
        } else if (name == "--keep") {
            each_part(value, [&](const char * part) { o.keep.push_back(atof(part)); });
        } else if (name == "--grid") {
            bool good = true;
            each_part(value, [&](const char * part) {
                grid_row row{};
                good = good && sscanf(part, "%d:%d:%d", &row.sequences, &row.prompt, &row.generated) == 3 && row.sequences > 0 && row.prompt > 0 && row.generated > 0;
                o.grid.push_back(row);
            });
            if (!good) {
                fprintf(stderr, "context_bench: --grid takes batch:prompt:generated, several with commas, not %s\n", value.c_str());
                return 2;
            }
        } else {
            fprintf(stderr, "context_bench: no option %s\n", name.c_str());
            return 2;
        }
    }
    if (o.keep.empty()) {
        o.keep = o.grid.empty() ? std::vector<double>{1.0, 0.5, 0.25} : std::vector<double>{1.0, 0.5};
    }
    if (o.repeats <= 0) {
        o.repeats = o.grid.empty() ? 5 : 1;
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
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
    if (o.threads > 0) {
        params.n_threads = params.n_threads_batch = o.threads;
    }
    const auto free_memory = [&] {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(inner, &free, &total);
        return (double) free;
    };

    if (!o.grid.empty()) {
        run_grid(o, stock_model, our_model, params, free_memory);
        llama_model_free(stock_model);
        llama_model_free(our_model);
        return 0;
    }
    if (o.budget > 0) {
        run_budget(o, our_model, params);
        llama_model_free(stock_model);
        llama_model_free(our_model);
        return 0;
    }
    if (o.prefill > 0 && !o.moved.empty()) {
        run_moved(o, our_model, params);
        llama_model_free(stock_model);
        llama_model_free(our_model);
        return 0;
    }
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

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: context_bench LIBRARIES MODEL [options]; see context_bench.cpp\n");
        return 2;
    }
    try {
        return bench(argc, argv);
    } catch (const std::runtime_error & e) {
        fprintf(stderr, "context_bench: %s\n", e.what());
        return 1;
    }
}
