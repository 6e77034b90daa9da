// Contexts of llama.cpp over the store, for every shape of attention, against unmodified llama.cpp: the same model, the
// same tokens. The yardstick is llama.cpp's own difference between its two attention paths on the same input.
#include "contexts.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <functional>
#include <stdexcept>
#include <numeric>
#include <utility>

#include <unistd.h>
#if defined(__linux__)
#include <sys/resource.h>
#endif

using namespace kvasir_test;

namespace {

synthetic_model with_sinks(float sink = synthetic_model{}.sink) {
    synthetic_model m;
    m.arch = "gpt-oss"; m.n_head = 4; m.n_head_kv = 2; m.n_swa = 96; m.sink = sink;
    return m;
}

// ---- keeping all ----

void test_shapes() {
    struct shape {
        const char * name;
        synthetic_model m;
    };
    std::vector<shape> shapes;
    const auto add = [&](const char * name, const char * arch, int32_t heads, int32_t kv, int32_t dim, int32_t swa = 0) {
        synthetic_model m;
        m.arch = arch; m.n_head = heads; m.n_head_kv = kv; m.head_dim = dim; m.n_swa = swa;
        if (strcmp(arch, "mpt") == 0) {
            m.n_embd = heads * dim;
        }
        shapes.push_back({name, m});
    };
    add("grouped, 3 query heads a KV head, dim 64", "llama", 6, 2, 64);
    add("one KV head, dim 128", "llama", 4, 1, 128);
    add("as many KV heads, dim 80", "llama", 3, 3, 80);
    add("dim 96", "llama", 4, 2, 96);
    add("dim 256", "llama", 2, 1, 256);
    add("dim 40", "llama", 4, 2, 40);
    add("ALiBi", "mpt", 4, 4, 32);
    add("soft-capped, sliding window of 96", "gemma2", 4, 2, 64, 96);
    shapes.push_back({"sinks, sliding window of 96", with_sinks()});
    add("latent rows of 96, 12 query heads", "deepseek2", 12, 1, 0);
    add("latent rows of 576", "deepseek2", 16, 1, 0);
    shapes.back().m.latent = 512; shapes.back().m.rope_dim = 64;
    for (const shape & s : shapes) {
        model_file m(s.m);
        llama_context_params params = context_params();
        context stock(m.stock, params, false);
        const auto reference = prompt_and_steps(stock, 300, 40);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context plain(m.stock, params, false);
        const double noise = mean_kl(reference, prompt_and_steps(plain, 300, 40), stock.n_vocab);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;

        context ours(m.ours, params, true);
        check_same(s.name, prompt_and_steps(ours, 300, 40), reference, noise, stock.n_vocab);
        CHECK(kvasir_cache_n_layers(ours.cache) == s.m.n_layer, "%d layers", kvasir_cache_n_layers(ours.cache));
        kvasir_layer_info info;
        CHECK(kvasir_cache_layer(ours.cache, 0, &info) == KVASIR_OK && info.n_head_kv == s.m.n_head_kv && info.n_head == s.m.n_head && info.head_dim_k == s.m.dim_k() && info.head_dim_v == s.m.dim_v(),
              "layer 0: %d KV heads, %d query heads, dims %d and %d", info.n_head_kv, info.n_head, info.head_dim_k, info.head_dim_v);
        params.swa_full = true; // else a ring of cells: slots are not in the order of the cells, and sums round differently
        context in_order(m.stock, params, false), portable(m.ours, params, true, KVASIR_ATTENTION_PORTABLE);
        const auto want = s.m.n_swa == 0 ? reference : prompt_and_steps(in_order, 300, 40), same = prompt_and_steps(portable, 300, 40);
        CHECK(same == want, "%s: ggml's kernel over the store is not bit-identical, KL %.3e", s.name, mean_kl(want, same, stock.n_vocab));
    }
}

// What the other tests say of sinks they say only where sinks matter.
void test_sinks() {
    const auto run = [](float sink) {
        model_file m(with_sinks(sink));
        context    stock(m.stock, context_params(), false);
        return prompt_and_steps(stock, 300, 40);
    };
    const double effect = mean_kl(run(synthetic_model{}.sink), run(-1e4f), synthetic_model{}.n_vocab);
    printf("  leaving the sinks out: KL %.2e\n", effect);
    CHECK(effect > 1e-2, "leaving the sinks out changes little: KL %.3e", effect);
}

void test_types() {
    model_file m(synthetic_model{});
    const std::pair<ggml_type, ggml_type> pairs[] = {{GGML_TYPE_F16, GGML_TYPE_Q8_0}, {GGML_TYPE_Q8_0, GGML_TYPE_Q8_0}, {GGML_TYPE_BF16, GGML_TYPE_BF16},
                                                     {GGML_TYPE_Q4_0, GGML_TYPE_Q4_0}, {GGML_TYPE_Q4_1, GGML_TYPE_Q5_1}, {GGML_TYPE_Q5_0, GGML_TYPE_F16}};
    for (const auto & [k, v] : pairs) {
        llama_context_params params = context_params();
        params.type_k = k;
        params.type_v = v;
        context stock(m.stock, params, false);
        const auto reference = prompt_and_steps(stock, 300, 40);
        context ours(m.ours, params, true);
        const auto logits = prompt_and_steps(ours, 300, 40);
        // llama.cpp rounds the query to 8 bits (bf16 for bf16) before it multiplies it with a quantised K, we do not: the
        // yardstick is what storing K and V in that type does at all
        params.type_k = params.type_v = GGML_TYPE_F16;
        context full(m.stock, params, false);
        const double loss = mean_kl(prompt_and_steps(full, 300, 40), reference, stock.n_vocab);
        const double kl   = mean_kl(reference, logits, stock.n_vocab);
        printf("  K %-5s V %-5s KL %.2e (the types themselves cost %.2e)\n", ggml_type_name(k), ggml_type_name(v), kl, loss);
        CHECK(kl <= loss, "K %s V %s: KL %.3e to llama.cpp with the same types, loss %.3e", ggml_type_name(k), ggml_type_name(v), kl, loss);
        params.type_k = k;
        params.type_v = v;
        context portable(m.ours, params, true, KVASIR_ATTENTION_PORTABLE);
        CHECK(prompt_and_steps(portable, 300, 40) == reference, "K %s V %s: ggml's kernel over the store is not bit-identical", ggml_type_name(k), ggml_type_name(v));
    }
}

// ---- layers that differ ----

// Layers without rotary positions: their tokens are at the positions that they have in other layers, whatever their cells.
void test_positions() {
    synthetic_model shape;
    shape.arch = "smollm3"; shape.n_layer = 4;
    model_file m(shape);
    llama_context_params params = context_params();
    params.n_seq_max  = 2;
    params.kv_unified = true;
    for (const kvasir_attention path : {KVASIR_ATTENTION_NATIVE, KVASIR_ATTENTION_PORTABLE}) {
        context c(m.ours, params, true, path);
        c.decode(random_tokens(30, 1), 0, 0);
        c.decode(random_tokens(20, 2), 0, 1); // in the cells behind those of the first sequence
        c.decode({7}, 30, 0);
        for (int32_t l = 0; l < shape.n_layer; l++) {
            for (int32_t h = 0; h < shape.n_head_kv; h++) {
                kvasir_head_view view;
                CHECK(kvasir_cache_head(c.cache, l, 0, h, &view) == KVASIR_OK && *view.n_slots == 51, "%d slots", *view.n_slots);
                for (int32_t s = 0; s < *view.n_slots; s++) {
                    const int32_t pos = s < 30 ? s : s < 50 ? s - 30 : 30;
                    CHECK(view.cell[s] == s && view.pos[s] == pos, "layer %d, slot %d: cell %d at position %d", l, s, view.cell[s], view.pos[s]);
                }
            }
        }
    }
}

// ---- failures below ----

bool failing = false; // the next graph with our operations
decltype(ggml_backend_i::graph_compute) graph_compute;
decltype(ggml_backend_device_i::init_backend) init_backend;

// A backend may throw, for one where it has no memory. llama.cpp reuses its graphs: their nodes must be then as they were.
void test_thrown_from_below() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_name("CPU");
    init_backend = cpu->iface.init_backend;
    cpu->iface.init_backend = [](ggml_backend_dev_t device, const char * params) {
        ggml_backend_t backend = init_backend(device, params);
        graph_compute = backend->iface.graph_compute;
        backend->iface.graph_compute = [](ggml_backend_t b, ggml_cgraph * graph) {
            const bool ours = std::any_of(graph->nodes, graph->nodes + graph->n_nodes, [](const ggml_tensor * t) { return t->op == GGML_OP_CUSTOM; });
            if (std::exchange(failing, failing && !ours)) {
                throw std::runtime_error("thrown from below");
            }
            return graph_compute(b, graph);
        };
        return backend;
    };
    {
        model_file         m(synthetic_model{});
        context            c(m.ours, context_params(), true), twin(m.ours, context_params(), true);
        std::vector<float> logits;
        for (context * x : {&c, &twin}) {
            x->decode(random_tokens(40, 3), 0);
            x->decode({5}, 40);
        }
        for (int again = 0; again < 2; again++) {
            const llama_token token = 6;
            failing = true;
            CHECK(c.try_decode(&token, 1, 41, logits) == KVASIR_FAILED && strstr(kvasir_last_error(), "from below"), "%s", kvasir_last_error());
            failing = false;
        }
        CHECK(c.decode({6}, 41) == twin.decode({6}, 41) && c.decode(random_tokens(9, 4), 42) == twin.decode(random_tokens(9, 4), 42), "other logits after an exception");
    }
    cpu->iface.init_backend = init_backend;
}

// ---- several sequences ----

void test_sequences() {
    model_file m(synthetic_model{});
    for (bool unified : {true, false}) {
        llama_context_params params = context_params();
        params.n_seq_max  = 3;
        params.kv_unified = unified;
        params.n_ctx      = 3 * 512;
        context stock(m.stock, params, false), ours(m.ours, params, true), portable(m.ours, params, true, KVASIR_ATTENTION_PORTABLE);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context plain(m.stock, params, false);
        const auto   reference = sequences(stock);
        const double noise     = mean_kl(reference, sequences(plain), stock.n_vocab);
        check_same(unified ? "three sequences in one stream" : "three sequences in three streams", sequences(ours), reference, noise, stock.n_vocab);
        check_same(unified ? "  by ggml's kernel" : "  by ggml's kernel, streams", sequences(portable), reference, noise, stock.n_vocab);
    }
}

// ---- plain attention ----

synthetic_model with_plain_attention() {
    synthetic_model m;
    m.arch = "grok"; m.n_embd = 256; m.n_head = 4;
    return m;
}

// Where llama.cpp has no flash attention for an architecture, V is transposed and several operations are one attention.
void test_plain_attention() {
    model_file m(with_plain_attention());
    // llama.cpp rounds queries and weights to the type of K and V before it multiplies: the yardstick is what another type of 16 bits changes
    const auto stock_with = [&](ggml_type type) {
        llama_context_params params = context_params();
        params.type_k = params.type_v = type;
        context stock(m.stock, params, false);
        return prompt_and_steps(stock, 300, 40);
    };
    const auto   f16 = stock_with(GGML_TYPE_F16), bf16 = stock_with(GGML_TYPE_BF16);
    const double types = mean_kl(f16, bf16, synthetic_model{}.n_vocab);
    for (const kvasir_attention path : {KVASIR_ATTENTION_NATIVE, KVASIR_ATTENTION_PORTABLE}) {
        const char * by = path == KVASIR_ATTENTION_NATIVE ? "by our kernels" : "by ggml's";
        for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16}) {
            llama_context_params params = context_params();
            params.type_k = params.type_v = type;
            context      ours(m.ours, params, true, path);
            const double kl = mean_kl(type == GGML_TYPE_F16 ? f16 : bf16, prompt_and_steps(ours, 300, 40), ours.n_vocab);
            printf("  %s, %-5s KL %.2e (between f16 and bf16 %.2e)\n", by, ggml_type_name(type), kl, types);
            CHECK(kl < types, "%s, %s: KL %.3e, between f16 and bf16 %.3e", by, ggml_type_name(type), kl, types);
        }
        for (bool unified : {true, false}) {
            llama_context_params params = context_params();
            params.n_seq_max  = 3;
            params.kv_unified = unified;
            params.n_ctx      = 3 * 512;
            context      stock(m.stock, params, false), ours(m.ours, params, true, path);
            const auto   reference = sequences(stock);
            const double kl        = mean_kl(reference, sequences(ours), stock.n_vocab);
            printf("  %s, three sequences in %s KL %.2e\n", by, unified ? "one stream" : "three", kl);
            CHECK(kl < types, "%s, three sequences, unified %d: KL %.3e, between f16 and bf16 %.3e", by, unified, kl, types);
        }
        // what it holds of llama.cpp's tensor is in another order there
        context              c(m.ours, context_params(), true, path);
        std::vector<float>   logits;
        const llama_token    token = 5;
        c.decode(random_tokens(60, 1), 0);
        std::vector<uint8_t> state(llama_state_seq_get_size(c.c, 0));
        llama_state_seq_get_data(c.c, state.data(), state.size(), 0);
        CHECK(kvasir_cache_failure(c.cache) == KVASIR_UNSUPPORTED && strstr(kvasir_last_error(), "transposed"), "%s", kvasir_last_error());
        CHECK(c.try_decode(&token, 1, 60, logits) == KVASIR_OK, "%s", kvasir_last_error());
    }
    taken_back(m.ours, KVASIR_ATTENTION_NATIVE, 0, true).run("statistic");
    taken_back(m.ours, KVASIR_ATTENTION_NATIVE, -1, true).run("tracked scores");
}

// ---- eviction ----

void test_eviction() {
    const struct {
        const char *    name;
        synthetic_model m;
        ggml_type       type;
    } cases[] = {{"f16", {}, GGML_TYPE_F16}, {"q8_0", {}, GGML_TYPE_Q8_0}, {"f16, sinks", with_sinks(), GGML_TYPE_F16}, {"f16, plain attention", with_plain_attention(), GGML_TYPE_F16}};
    for (const auto & [name, shape, type] : cases) {
        model_file m(shape);
        llama_context_params params = context_params();
        params.type_k = params.type_v = type;
        params.swa_full = true; // a cell is a position
        context ours(m.ours, params, true), portable(m.ours, params, true, KVASIR_ATTENTION_PORTABLE), kept(m.ours, params, true);
        const auto run = [&](context & c, bool evict) {
            c.decode(random_tokens(400, 11), 0);
            if (evict) {
                evict_randomly(c.cache, 5, 0.3);
            }
            auto logits = c.decode(random_tokens(30, 12), 400); // a second turn, against the compressed cache
            if (evict) {
                evict_randomly(c.cache, 6, 0.2);
            }
            for (int32_t i = 0; i < 20; i++) {
                const auto row = c.decode({(llama_token) (40 + i)}, 430 + i);
                logits.insert(logits.end(), row.begin(), row.end());
            }
            return logits;
        };
        const auto   a = run(ours, true), b = run(portable, true), all = run(kept, false);
        const double kl = mean_kl(b, a, ours.n_vocab), effect = mean_kl(all, a, ours.n_vocab);
        printf("  evicted, %s: KL to ggml's kernel over the same sets %.2e, to the full cache %.2e\n", name, kl, effect);
        CHECK(kl < 1e-3 * effect, "%s: KL %.3e over the same sets, %.3e to the full cache", name, kl, effect);
    }
}

// ---- state, memory, statistic ----

void test_state() {
    model_file m(synthetic_model{});
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        llama_context_params params = context_params();
        params.type_k = params.type_v = type;
        context c(m.ours, params, true);
        c.decode(random_tokens(300, 3), 0);
        evict_randomly(c.cache, 9, 0.3);
        kvasir_bytes before, after;
        kvasir_cache_bytes(c.cache, &before);
        std::vector<uint8_t> state(llama_state_seq_get_size(c.c, 0));
        CHECK(llama_state_seq_get_data(c.c, state.data(), state.size(), 0) == state.size(), "size of the state");
        const auto expected = c.decode({77}, 300);
        llama_memory_clear(llama_get_memory(c.c), true);
        kvasir_cache_bytes(c.cache, &after);
        CHECK(after.slots == 0 && after.resident_bytes == 0, "%lld slots after clear", (long long) after.slots);
        CHECK(llama_state_seq_set_data(c.c, state.data(), state.size(), 0) == state.size(), "state was not taken");
        kvasir_cache_bytes(c.cache, &after);
        CHECK(after.slots == before.slots, "%lld slots, %lld before", (long long) after.slots, (long long) before.slots);
        const auto   again = c.decode({77}, 300);
        const double kl    = mean_kl(expected, again, c.n_vocab); // the slots are in another order: sums round differently
        CHECK(kl < NOISE_FLOOR, "%s: KL after restore %.3e", ggml_type_name(type), kl);
    }
}

long resident_kib() {
    FILE * f = fopen("/proc/self/smaps_rollup", "r");
    long   kib = -1;
    char   line[256];
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "Rss: %ld kB", &kib) == 1) {
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    return kib;
}

void test_memory() {
    synthetic_model shape;
    shape.n_layer = 8; shape.n_head = 8; shape.n_head_kv = 8;
    model_file m(shape);
    llama_context_params params = context_params();
    params.n_ctx = 4096;
    context c(m.ours, params, true);
    c.decode(random_tokens(3000, 3), 0);
    kvasir_bytes before, after;
    kvasir_cache_bytes(c.cache, &before);
    CHECK(before.slots == 8 * 8 * 3000 && before.kept_bytes == before.slots * 64 * 2 * 2, "%lld slots", (long long) before.slots);
    CHECK(before.full_bytes == 8LL * 8 * 4096 * 64 * 2 * 2, "full %lld", (long long) before.full_bytes);
    const long rss = resident_kib();
    for (int32_t l = 0; l < 8; l++) {
        for (int32_t h = 0; h < 8; h++) {
            std::vector<int32_t> slots(1000);
            for (int32_t i = 0; i < 1000; i++) {
                slots[(size_t) i] = 3 * i;
            }
            kvasir_cache_keep(c.cache, l, 0, h, slots.data(), 1000);
        }
    }
    kvasir_cache_bytes(c.cache, &after);
    const double evicted = (double) (before.kept_bytes - after.kept_bytes) / 1024, fell = rss < 0 ? -1 : (double) (rss - resident_kib());
    printf("  evicted %.0f KiB, the process shrank by %.0f KiB\n", evicted, fell);
    // the slot tables of the evicted slots, 12 bytes each, go too: at most 5% more than K and V
    CHECK(rss < 0 || (fell > 0.98 * evicted && fell < 1.07 * evicted), "evicted %.0f KiB, the process shrank by %.0f KiB", evicted, fell);

    // the table from cell to slot: of cells that a head holds none of nothing stays
    const auto keep = [&](int32_t first, int32_t step, int32_t n) {
        std::vector<int32_t> slots((size_t) n);
        for (int32_t i = 0; i < n; i++) {
            slots[(size_t) i] = first + step * i;
        }
        for (int32_t l = 0; l < 8; l++) {
            for (int32_t h = 0; h < 8; h++) {
                CHECK(kvasir_cache_keep(c.cache, l, 0, h, slots.data(), n) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
    };
    keep(0, 20, 50); // over all of the cells
    kvasir_cache_bytes(c.cache, &before);
    const long spread = resident_kib();
    keep(40, 1, 10); // the last ones
    kvasir_cache_bytes(c.cache, &after);
    const long    page   = sysconf(_SC_PAGESIZE), tables = 8 * 8 * (3000 * 4 / page);
    const int64_t rows   = before.row_bytes - after.row_bytes;
    CHECK(before.resident_bytes - rows - after.resident_bytes >= tables * page, "%lld bytes, %lld of the last cells", (long long) before.resident_bytes, (long long) after.resident_bytes);
    CHECK(rss < 0 || (spread - resident_kib()) * 1024 > (rows + tables * page) * 9 / 10, "the process shrank by %ld KiB", spread - resident_kib());
    kvasir_head_view view;
    kvasir_cache_head(c.cache, 3, 0, 5, &view);
    for (int32_t cell = 0; cell < 3000; cell++) {
        const int32_t slot = view.slot_plus_1[cell] - 1;
        CHECK(slot < *view.n_slots && (slot < 0 || view.cell[slot] == cell), "cell %d is said to be in slot %d", cell, slot);
    }
    c.decode(random_tokens(20, 4), 3000);
    CHECK(*view.n_slots == 30 && view.slot_plus_1[view.cell[29]] == 30, "%d slots", *view.n_slots);
}

void test_limit() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    limited_contexts(m.ours, KVASIR_ATTENTION_NATIVE).run();
    limited_contexts(m.ours, KVASIR_ATTENTION_NATIVE).run_reserve(60, 30); // of a page of 32 slots more than two stay
}

void test_statistic() {
    model_file m(synthetic_model{});
    llama_context_params params = context_params();
    context c(m.ours, params, true), plain(m.ours, params, true);
    const int32_t bounds[] = {1, 16, 100};
    kvasir_statistic_params wrong = {bounds, 3, 250, 0};
    const int32_t falling[] = {4, 4};
    wrong.bounds = falling; wrong.n_bounds = 2;
    CHECK(kvasir_statistic_start(c.cache, &wrong) == KVASIR_INVALID_ARGUMENT, "bounds that do not ascend were taken");
    for (int32_t per_query_head : {0, 1}) {
        llama_memory_clear(llama_get_memory(c.c), true);
        llama_memory_clear(llama_get_memory(plain.c), true);
        const kvasir_statistic_params params_ok = {bounds, 3, 250, per_query_head};
        CHECK(kvasir_statistic_start(c.cache, &params_ok) == KVASIR_OK, "%s", kvasir_last_error());
        const auto a = prompt_and_steps(c, 280, 20), b = prompt_and_steps(plain, 280, 20);
        CHECK(mean_kl(b, a, c.n_vocab) < NOISE_FLOOR, "the statistic changed the output: KL %.3e", mean_kl(b, a, c.n_vocab));
        const int32_t rows = per_query_head ? 3 : 1;
        std::vector<float> buckets((size_t) rows * 4 * 300), recent((size_t) rows * 300);
        int64_t n_queries = 0;
        CHECK(kvasir_statistic_read(c.cache, 1, 0, 1, buckets.data(), recent.data(), &n_queries) == KVASIR_OK && n_queries == 300, "%s, %lld queries", kvasir_last_error(), (long long) n_queries);
        for (int32_t r = 0; r < rows; r++) {
            double total = 0, late = 0, own_last = 0;
            for (int32_t i = 0; i < 4 * 300; i++) {
                total += buckets[(size_t) (r * 4 * 300 + i)];
            }
            for (int32_t i = 0; i < 300; i++) {
                late += recent[(size_t) (r * 300 + i)];
            }
            own_last = buckets[(size_t) (r * 4 * 300 + 299)];
            // every query's weights sum to 1; f32 sums of 300 queries
            CHECK(std::fabs(total - 300) < 3e-3 && std::fabs(late - 50) < 1e-3 && own_last > 0 && own_last < 1, "row %d: total %.5f of 300, late %.5f of 50, own %.5f", r, total, late, own_last);
            // the last token was seen by nobody but itself
            CHECK(buckets[(size_t) (r * 4 * 300 + 300 + 299)] == 0, "the last token was seen from a distance");
        }
        CHECK(kvasir_statistic_stop(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
        kvasir_head_view view;
        kvasir_cache_head(c.cache, 1, 0, 1, &view);
        double score = 0;
        for (int32_t s = 0; s < *view.n_slots; s++) {
            score += view.score[s];
        }
        CHECK(std::fabs(score - 300) < 3e-3, "scores sum to %.5f", score);
        kvasir_cache_track(c.cache, 1, 0, 1, 1); // and go on, if asked to
        c.decode({5}, 300);
        c.decode(random_tokens(9, 1), 301);
        score = 0;
        for (int32_t s = 0; s < *view.n_slots; s++) {
            score += view.score[s];
        }
        CHECK(std::fabs(score - 310) < 3e-3, "scores sum to %.5f of 310", score);
        kvasir_cache_track(c.cache, 1, 0, 1, 0);
    }
}

void test_taken_back() {
    model_file m(synthetic_model{});
    taken_back(m.ours, KVASIR_ATTENTION_NATIVE, 0, true).run("statistic");
    taken_back(m.ours, KVASIR_ATTENTION_NATIVE, 1, true).run("statistic of query heads");
    taken_back(m.ours, KVASIR_ATTENTION_NATIVE, -1, true).run("tracked scores");
}

void test_copied() {
    model_file m(synthetic_model{});
    copy_streams(m.ours, KVASIR_ATTENTION_NATIVE);
}

#if defined(__linux__)
// With address space for the statistic of some layers only: none is started.
void test_no_room_for_the_statistic() {
    synthetic_model shape;
    shape.n_layer = 4;
    model_file m(shape);
    llama_context_params params = context_params();
    params.n_ctx = 16384;
    context c(m.ours, params, true);
    c.decode(random_tokens(100, 1), 0);
    const kvasir_bytes before = bytes_of(c);
    std::vector<int32_t> bounds(2000);
    std::iota(bounds.begin(), bounds.end(), 1);
    const kvasir_statistic_params large = {bounds.data(), (int32_t) bounds.size(), -1, 0}, small = {bounds.data(), 3, -1, 0};
    const rlim_t layer = (rlim_t) 2001 * 16384 * 2 * sizeof(float);
    rlimit now{};
    long   pages = 0;
    FILE * f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%ld", &pages) == 1 && getrlimit(RLIMIT_AS, &now) == 0, "the size of the process is not known");
    fclose(f);
    const rlimit some = {(rlim_t) pages * (rlim_t) sysconf(_SC_PAGESIZE) + layer * 5 / 2, now.rlim_max};
    CHECK(setrlimit(RLIMIT_AS, &some) == 0, "no limit could be set");
    const kvasir_status status = kvasir_statistic_start(c.cache, &large);
    CHECK(setrlimit(RLIMIT_AS, &now) == 0, "the limit stays");
    CHECK(status == KVASIR_OUT_OF_MEMORY, "status %d: %s", status, kvasir_last_error());
    CHECK(bytes_of(c).resident_bytes == before.resident_bytes, "%lld bytes, %lld before", (long long) bytes_of(c).resident_bytes, (long long) before.resident_bytes);
    CHECK(kvasir_statistic_read(c.cache, 0, 0, 0, nullptr, nullptr, nullptr) == KVASIR_INVALID_ARGUMENT, "a statistic runs that could not be started");
    c.decode(random_tokens(50, 2), 100);
    CHECK(bytes_of(c).resident_bytes - bytes_of(c).row_bytes < 4 * (before.resident_bytes - before.row_bytes), "%lld bytes of books", (long long) (bytes_of(c).resident_bytes - bytes_of(c).row_bytes));
    CHECK(kvasir_statistic_start(c.cache, &small) == KVASIR_OK, "%s", kvasir_last_error());
    c.decode(random_tokens(50, 3), 150);
    int64_t n_queries = 0;
    CHECK(kvasir_statistic_read(c.cache, 3, 0, 1, nullptr, nullptr, &n_queries) == KVASIR_OK && n_queries == 50, "%lld queries", (long long) n_queries);
    CHECK(kvasir_statistic_stop(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
}
#endif

// ---- what must be refused ----

void expect(kvasir_status wanted, const char * word, llama_model * model, const llama_context_params & params) {
    llama_context * c     = nullptr;
    kvasir_cache *  cache = nullptr;
    const kvasir_status status = kvasir_context_new(model, &params, KVASIR_ATTENTION_NATIVE, &c, &cache);
    printf("  %d: %s\n", status, kvasir_last_error());
    CHECK(status == wanted && strstr(kvasir_last_error(), word), "status %d, wanted %d with '%s': %s", status, wanted, word, kvasir_last_error());
    if (status == KVASIR_OK) {
        kvasir_context_free(c, cache);
    }
}

// llama.cpp moves positions by turning K in its cache, and goes on decoding when that has failed.
void test_shift() {
    model_file m(synthetic_model{});
    for (const kvasir_attention path : {KVASIR_ATTENTION_NATIVE, KVASIR_ATTENTION_PORTABLE}) {
        context c(m.ours, context_params(), true, path), twin(m.ours, context_params(), true, path);
        c.decode(random_tokens(40, 3), 0);
        llama_memory_t memory = llama_get_memory(c.c);
        CHECK(llama_memory_can_shift(memory) && llama_memory_seq_rm(memory, 0, 5, 10), "the positions cannot be moved");
        llama_memory_seq_add(memory, 0, 10, -1, -5);
        const kvasir_bytes before = bytes_of(c);
        std::vector<float> none;
        const llama_token  token = 7;
        for (int again = 0; again < 2; again++) { // for as long as the shift waits
            CHECK(c.try_decode(&token, 1, 35, none) == KVASIR_UNSUPPORTED && strstr(kvasir_last_error(), "shift"), "%s", kvasir_last_error());
        }
        CHECK(none.empty() && bytes_of(c).slots == before.slots, "%lld slots, %lld before", (long long) bytes_of(c).slots, (long long) before.slots);
        llama_memory_clear(memory, true);
        CHECK(c.decode(random_tokens(40, 4), 0) == twin.decode(random_tokens(40, 4), 0), "other logits after a shift that was refused");
    }
}

// Of each of these llama.cpp ends the process, reads memory that is not the batch's, or counts a cell twice.
void test_batches() {
    model_file m(synthetic_model{});
    llama_context_params params = context_params();
    params.n_seq_max = 3;
    params.n_ctx     = 3 * 512;
    params.n_batch   = 64;
    params.n_ubatch  = 32;
    for (const bool ours : {true, false}) {
        for (const bool unified : {false, true}) {
            params.kv_unified = unified;
            context      c(ours ? m.ours : m.stock, params, ours);
            llama_batch  batch = llama_batch_init(65, 0, 300);
            const auto   fill  = [&](int32_t n) {
                batch.n_tokens = n;
                for (int32_t i = 0; i < n; i++) {
                    batch.token[i] = 5; batch.pos[i] = i; batch.n_seq_id[i] = 1; batch.seq_id[i][0] = 0; batch.logits[i] = i + 1 == n;
                }
            };
            int32_t     result = 0;
            const auto  refused = [&](const char * word, const llama_batch & b) {
                result = 0;
                const kvasir_status status = kvasir_decode(c.c, &b, &result);
                CHECK(status == KVASIR_INVALID_ARGUMENT && result < 0 && strstr(kvasir_last_error(), word), "status %d, result %d, wanted '%s': %s", status, result, word,
                      kvasir_last_error());
            };
            const auto without = [&](auto llama_batch::* field) {
                llama_batch b = batch;
                b.*field = nullptr;
                return b;
            };
            fill(65);
            refused("65 tokens", batch);
            for (const int32_t n : {0, -1}) {
                batch.n_tokens = n;
                refused("tokens", batch);
            }
            fill(8);
            refused("neither tokens", without(&llama_batch::token));
            refused("only one of", without(&llama_batch::seq_id));
            refused("only one of", without(&llama_batch::n_seq_id));
            for (const llama_token token : {-1, 300, INT32_MAX}) {
                fill(8);
                batch.token[3] = token;
                refused("token[3]", batch);
            }
            for (const llama_pos pos : {-1, -2, INT32_MIN, INT32_MAX}) {
                fill(8);
                batch.pos[0] = pos;
                refused("pos[0]", batch);
            }
            for (const llama_seq_id id : {-1, unified ? 256 : 3, 100000}) {
                fill(8);
                batch.seq_id[7][0] = id;
                refused("seq_id[7][0]", batch);
            }
            for (const int32_t n : {0, -1, 300}) {
                fill(8);
                batch.n_seq_id[2] = n;
                refused("n_seq_id[2]", batch);
            }
            fill(8);
            batch.n_seq_id[2] = 2; batch.seq_id[2][1] = 0;
            refused(unified ? "twice" : "n_seq_id[2]", batch);
            fill(8);
            llama_seq_id * const id = std::exchange(batch.seq_id[4], nullptr);
            refused("seq_id[4]", batch);
            batch.seq_id[4] = id;
            // and what is right is taken: a full batch, tokens of several sequences where there is one stream, and what llama.cpp fills in
            const auto taken = [&](const llama_batch & b) {
                CHECK(kvasir_decode(c.c, &b, &result) == KVASIR_OK && result == 0, "%d: %s", result, kvasir_last_error());
                llama_memory_clear(llama_get_memory(c.c), true);
            };
            fill(64);
            taken(batch);
            for (int32_t i = 0; unified && i < 64; i++) {
                batch.n_seq_id[i] = 2; batch.seq_id[i][1] = 200;
            }
            taken(batch);
            fill(64);
            taken(without(&llama_batch::pos));
            taken(without(&llama_batch::logits));
            llama_batch bare = llama_batch_get_one(batch.token, 64);
            taken(bare);
            llama_batch_free(batch);
        }
    }
    // outputs: llama.cpp ends the process too, in the second case while it makes the context
    params.kv_unified    = true;
    params.n_outputs_max = 4;
    context            few(m.ours, params, true);
    std::vector<float> logits;
    const auto         tokens = random_tokens(5, 1);
    CHECK(few.try_decode(tokens.data(), 5, 0, logits) == KVASIR_INVALID_ARGUMENT && strstr(kvasir_last_error(), "n_outputs_max"), "%s", kvasir_last_error());
    few.decode({tokens.begin(), tokens.begin() + 4}, 0);
    params.n_outputs_max = 2;
    expect(KVASIR_INVALID_ARGUMENT, "n_seq_max", m.ours, params);
    params.n_outputs_max = 0;
    params.n_batch       = 2;
    expect(KVASIR_INVALID_ARGUMENT, "n_seq_max", m.ours, params);
    // attention in both directions needs the batch in one piece
    params = context_params();
    params.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL;
    params.n_ubatch       = 32;
    context both_ways(m.ours, params, true);
    const auto more = random_tokens(33, 1);
    CHECK(both_ways.try_decode(more.data(), 33, 0, logits) == KVASIR_INVALID_ARGUMENT && strstr(kvasir_last_error(), "1 to 32"), "%s", kvasir_last_error());
    CHECK(both_ways.try_decode(more.data(), 32, 0, logits) == KVASIR_OK, "%s", kvasir_last_error());
}

void test_refusals() {
    {
        model_file m(synthetic_model{});
        llama_context_params params = context_params();
        expect(KVASIR_NOT_INTERCEPTED, "store", m.stock, params);
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        expect(KVASIR_INVALID_ARGUMENT, "flash_attn", m.ours, params);
        params = context_params();
        params.type_k = GGML_TYPE_F32;
        expect(KVASIR_UNSUPPORTED, "KV types", m.ours, params);
        llama_model_params half = llama_model_default_params();
        ggml_backend_dev_t devices[] = {proxy, nullptr};
        half.devices      = devices;
        half.n_gpu_layers = 2;
        llama_model * split = nullptr;
        CHECK(kvasir_model_load(m.path.c_str(), &half, &split) == KVASIR_OK, "%s", kvasir_last_error());
        expect(KVASIR_NOT_INTERCEPTED, "layer 0", split, context_params());
        llama_model_free(split);
        llama_model * none = nullptr;
        CHECK(kvasir_model_load("no such file", &half, &none) == KVASIR_FAILED, "a missing file was loaded");
    }
    {
        synthetic_model shape;
        shape.arch = "mamba";
        model_file m(shape);
        expect(KVASIR_UNSUPPORTED, "recurrent", m.ours, context_params());
    }
    ggml_backend_device * device = nullptr;
    CHECK(kvasir_device("Nonesuch0", &device) == KVASIR_INVALID_ARGUMENT && strstr(kvasir_last_error(), "CPU"), "%s", kvasir_last_error());
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: context_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS [TEST]\n");
        return 2;
    }
    folder = argv[2];
    const std::string only = argc > 3 ? argv[3] : "";
    load_llama(argv[1]);
    CHECK(kvasir_device("CPU", &proxy) == KVASIR_OK, "%s", kvasir_last_error());
    if (!proxy) {
        return check::finish("context_test");
    }
    const std::pair<const char *, std::function<void()>> tests[] = {
        {"shapes", test_shapes}, {"sinks", test_sinks}, {"types", test_types}, {"sequences", test_sequences}, {"plain attention", test_plain_attention}, {"eviction", test_eviction}, {"state", test_state},
        {"memory", test_memory}, {"limit", test_limit}, {"statistic", test_statistic}, {"taken back", test_taken_back}, {"copied", test_copied},
        {"positions", test_positions}, {"thrown from below", test_thrown_from_below}, {"shift", test_shift}, {"batches", test_batches},
#if defined(__linux__)
        {"no room for the statistic", test_no_room_for_the_statistic},
#endif
        {"refusals", test_refusals}};
    for (const auto & [name, test] : tests) {
        if (only.empty() || only == name) {
            printf("%s\n", name);
            test();
        }
    }
    llama_backend_free();
    return check::finish("context_test");
}
