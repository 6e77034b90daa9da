// Multi-head latent attention on the CPU, by our kernels and by ggml's: one row a token and layer, of which V is a part. Contexts of a
// small deepseek2 against unmodified llama.cpp, and against the model in double precision, which knows what each layer has kept.
#include "contexts.h"
#include "latent_reference.h"

#include <functional>
#include <numeric>

using namespace kvasir_test;

namespace {

synthetic_model latent_model() {
    synthetic_model m;
    m.arch = "deepseek2"; m.n_head = 12; m.n_head_kv = 1; m.n_layer = 2;
    return m;
}

constexpr kvasir_attention PATHS[] = {KVASIR_ATTENTION_NATIVE, KVASIR_ATTENTION_PORTABLE};
const char * name_of(kvasir_attention path) { return path == KVASIR_ATTENTION_NATIVE ? "our kernels" : "ggml's kernels"; }

double nmse(const std::vector<float> & expected, const std::vector<float> & got) {
    double difference = 0, all = 0;
    for (size_t i = 0; i < expected.size() && i < got.size(); i++) {
        const double d = (double) got[i] - expected[i];
        difference += d * d;
        all += (double) expected[i] * expected[i];
    }
    return expected.size() == got.size() ? difference / all : INFINITY;
}

std::vector<float> part(const std::vector<float> & logits, const context & c, size_t first, size_t n) {
    const auto from = logits.begin() + (ptrdiff_t) (first * (size_t) c.n_vocab);
    return std::vector<float>(from, from + (ptrdiff_t) (n * (size_t) c.n_vocab));
}

kvasir_layer_info layer_of(const context & c, int32_t layer) {
    kvasir_layer_info info{};
    CHECK(kvasir_cache_layer(c.cache, layer, &info) == KVASIR_OK, "%s", kvasir_last_error());
    return info;
}

kvasir_head_view head_of(const context & c, int32_t layer, int32_t stream = 0) {
    kvasir_head_view view{};
    CHECK(kvasir_cache_head(c.cache, layer, stream, 0, &view) == KVASIR_OK, "%s", kvasir_last_error());
    return view;
}

constexpr int32_t PROMPT = 300, STEPS = 40;

// ---- keeping all ----

void test_kept() {
    model_file m(latent_model());
    const llama_context_params params = context_params();
    context stock(m.stock, params, false);
    const auto reference = prompt_and_steps(stock, PROMPT, STEPS);
    latent_reference exact(latent_model(), m.path);
    auto tokens = random_tokens(PROMPT, 7);
    const auto more = random_tokens(STEPS, 8);
    tokens.insert(tokens.end(), more.begin(), more.end());
    const auto in_double = exact.logits(tokens);
    const double own = nmse(in_double, reference); // llama.cpp rounds queries to f16, and in a prompt weights
    for (kvasir_attention path : PATHS) {
        context ours(m.ours, params, true, path);
        const auto   logits = prompt_and_steps(ours, PROMPT, STEPS);
        const double error = nmse(in_double, logits);
        printf("  %-14s NMSE to double precision %.2e (llama.cpp's %.2e), to llama.cpp %.2e in the prompt, %.2e in steps\n", name_of(path), error, own,
               nmse(part(reference, stock, 0, PROMPT), part(logits, ours, 0, PROMPT)), nmse(part(reference, stock, PROMPT, STEPS), part(logits, ours, PROMPT, STEPS)));
        CHECK(path == KVASIR_ATTENTION_PORTABLE ? logits == reference : error < 1e-8, "%s: NMSE %.3e", name_of(path), error);
        CHECK(nmse(part(reference, stock, PROMPT, STEPS), part(logits, ours, PROMPT, STEPS)) < 2e-5, "steps differ from llama.cpp's");
    }
}

void test_types() {
    model_file m(latent_model());
    llama_context_params params = context_params();
    context full(m.stock, params, false);
    const auto run    = [](context & c) { return prompt_and_steps(c, PROMPT, 10); };
    const auto in_f16 = run(full);
    for (ggml_type type : {GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1}) {
        params.type_k = params.type_v = type; // llama.cpp takes no two types for one row
        context stock(m.stock, params, false), portable(m.ours, params, true, KVASIR_ATTENTION_PORTABLE), ours(m.ours, params, true);
        const auto   reference = run(stock);
        const double loss = mean_kl(in_f16, reference, stock.n_vocab), kl = mean_kl(reference, run(ours), stock.n_vocab);
        printf("  %-5s KL %.2e (the type itself costs %.2e)\n", ggml_type_name(type), kl, loss);
        CHECK(kl <= loss, "%s: KL %.3e to llama.cpp with the same type, loss %.3e", ggml_type_name(type), kl, loss);
        CHECK(run(portable) == reference, "%s: ggml's kernel over the store is not bit-identical", ggml_type_name(type));
        CHECK(layer_of(ours, 0).type_k == type && layer_of(ours, 0).type_v == type && layer_of(ours, 0).slot_bytes == (int64_t) ggml_row_size(type, 96), "%lld bytes a slot",
              (long long) layer_of(ours, 0).slot_bytes);
    }
}

void test_sequences() {
    model_file m(latent_model());
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
        if (!unified) { // one of them is a copy, whose norms are those of its own rows
            for (const context * c : {&ours, &portable}) {
                std::vector<float> a(100), b(100);
                CHECK(kvasir_cache_value_norms(c->cache, 1, 0, 0, 0, 100, a.data()) == KVASIR_OK && kvasir_cache_value_norms(c->cache, 1, 2, 0, 0, 100, b.data()) == KVASIR_OK && a == b,
                      "%s", kvasir_last_error());
            }
        }
    }
}

// ---- eviction ----

// Half of each layer's slots go, others in every layer, and single ones later: what is left must be what the model in double
// precision gives when its layers see only that.
void test_evicted() {
    model_file m(latent_model());
    latent_reference exact(latent_model(), m.path);
    auto tokens = random_tokens(PROMPT, 7);
    const auto turn = random_tokens(30, 8), steps = random_tokens(20, 9);
    tokens.insert(tokens.end(), turn.begin(), turn.end());
    tokens.insert(tokens.end(), steps.begin(), steps.end());
    std::vector<std::vector<int32_t>> gone(2, std::vector<int32_t>(tokens.size(), INT32_MAX)); // [layer][position] from which position on
    std::vector<float> expected;
    for (kvasir_attention path : PATHS) {
        context c(m.ours, context_params(), true, path);
        auto logits = c.decode(random_tokens(PROMPT, 7), 0);
        std::mt19937 rng(17);
        for (int32_t l = 0; l < 2; l++) {
            const kvasir_head_view view = head_of(c, l);
            std::vector<int32_t>   slots;
            for (int32_t s = 0; s < *view.n_slots; s++) {
                if (rng() % 2 || s < 4) {
                    slots.push_back(s);
                } else {
                    gone[(size_t) l][(size_t) view.pos[s]] = PROMPT;
                }
            }
            CHECK(kvasir_cache_keep(c.cache, l, 0, 0, slots.data(), (int32_t) slots.size()) == KVASIR_OK, "%s", kvasir_last_error());
        }
        const auto append = [&](const std::vector<float> & rows) { logits.insert(logits.end(), rows.begin(), rows.end()); };
        append(c.decode(turn, PROMPT));
        for (int32_t i = 0; i < 20; i++) {
            append(c.decode({steps[(size_t) i]}, PROMPT + 30 + i));
            for (int32_t l = 0; l < 2; l++) { // single ones between two tokens
                const kvasir_head_view view = head_of(c, l);
                const int32_t          slot = 5 + 3 * i + l;
                gone[(size_t) l][(size_t) view.pos[slot]] = PROMPT + 31 + i;
                const kvasir_eviction single = {l, 0, 0, slot};
                CHECK(kvasir_cache_evict(c.cache, &single, 1) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
        if (expected.empty()) {
            const auto everything = exact.logits(tokens);
            exact.sees = [&](int32_t layer, int32_t query, int32_t key) { return query < gone[(size_t) layer][(size_t) key]; };
            expected = exact.logits(tokens);
            const double effect = nmse(everything, expected);
            printf("  what was evicted matters: NMSE %.2e\n", effect);
            CHECK(effect > 1e-3, "NMSE %.3e", effect);
        }
        const double error = nmse(expected, logits);
        printf("  %-14s NMSE to double precision %.2e\n", name_of(path), error);
        CHECK(error < (path == KVASIR_ATTENTION_NATIVE ? 1e-8 : 2e-5), "%s: NMSE %.3e", name_of(path), error);
        for (int32_t l = 0; l < 2; l++) { // the rows that stay, after all the moving
            const kvasir_head_view view = head_of(c, l);
            const auto n = (size_t) *view.n_slots, dk = (size_t) layer_of(c, l).head_dim_k, dv = (size_t) layer_of(c, l).head_dim_v;
            std::vector<float> k(n * dk), v(n * dv), norms(n);
            CHECK(kvasir_cache_read(c.cache, l, 0, 0, k.data(), v.data()) == KVASIR_OK, "%s", kvasir_last_error());
            CHECK(kvasir_cache_value_norms(c.cache, l, 0, 0, 0, (int32_t) n, norms.data()) == KVASIR_OK, "%s", kvasir_last_error());
            for (size_t s = 0; s < n; s++) {
                const float * row = k.data() + s * dk, * value = v.data() + s * dv;
                const double  norm = std::sqrt(std::inner_product(value, value + dv, value, 0.0));
                double worst = 0;
                for (size_t i = 0; i < dk; i++) {
                    worst = std::max(worst, std::fabs(row[i] - exact.rows[(size_t) l][(size_t) view.pos[s] * dk + i]));
                }
                CHECK(worst < 0.02, "layer %d, slot %zu: a row that differs by %.3e", l, s, worst); // a step of f16, at values up to 8
                CHECK(std::equal(value, value + dv, row), "layer %d, slot %zu: V is not the first part of K", l, s);
                CHECK(std::fabs(norms[s] - norm) <= 1e-5 * norm, "layer %d, slot %zu: norm %.6f, %.6f expected", l, s, norms[s], norm);
            }
        }
    }
}

// A row that takes the place of another one has the norm of its own V.
void test_rewritten() {
    model_file m(latent_model());
    for (kvasir_attention path : PATHS) {
        context c(m.ours, context_params(), true, path);
        const auto norm_of_last = [&] {
            float norm = 0;
            CHECK(kvasir_cache_value_norms(c.cache, 0, 0, 0, 40, 1, &norm) == KVASIR_OK, "%s", kvasir_last_error());
            return norm;
        };
        c.decode(random_tokens(40, 3), 0);
        c.decode({5}, 40);
        const float first = norm_of_last();
        CHECK(llama_memory_seq_rm(llama_get_memory(c.c), 0, 40, -1), "the last token stays");
        c.decode({6}, 40);
        const float other = norm_of_last();
        CHECK(llama_memory_seq_rm(llama_get_memory(c.c), 0, 40, -1), "the last token stays");
        c.decode({5}, 40);
        CHECK(norm_of_last() == first && other != first, "%s: norms %.6f, %.6f, %.6f", name_of(path), first, other, norm_of_last());
    }
}

// ---- bytes ----

void test_bytes() {
    const synthetic_model shape = latent_model();
    model_file m(shape);
    for (kvasir_attention path : PATHS) {
        context c(m.ours, context_params(), true, path);
        c.decode(random_tokens(PROMPT, 3), 0);
        const kvasir_bytes bytes = bytes_of(c);
        const int64_t      row   = 2 * (shape.latent + shape.rope_dim); // f16
        CHECK(bytes.slots == 2 * PROMPT && bytes.kept_bytes == bytes.slots * row && bytes.full_bytes == 2 * 1024 * row, "%s: %lld slots, %lld of %lld bytes", name_of(path),
              (long long) bytes.slots, (long long) bytes.kept_bytes, (long long) bytes.full_bytes);
        CHECK(layer_of(c, 0).slot_bytes == row, "%lld bytes a slot", (long long) layer_of(c, 0).slot_bytes);
        // whole pages of 4096 bytes; buffers of 256 rows, an eighth more, and what kernels read behind the last row
        const int64_t most = path == KVASIR_ATTENTION_NATIVE ? 2 * ((PROMPT * row + 4095) / 4096 * 4096) : 2 * (512 * row + 4096);
        CHECK(bytes.row_bytes >= bytes.kept_bytes && bytes.row_bytes <= most, "%s: %lld bytes of rows, %lld expected", name_of(path), (long long) bytes.row_bytes, (long long) most);
        evict_randomly(c.cache, 3, 0.5);
        CHECK(bytes_of(c).row_bytes < bytes.row_bytes * 3 / 4, "%lld bytes of rows, %lld before", (long long) bytes_of(c).row_bytes, (long long) bytes.row_bytes);
        CHECK(kvasir_cache_truncate(c.cache, 0, 0) == KVASIR_OK && bytes_of(c).slots == 0 && bytes_of(c).kept_bytes == 0, "%s", kvasir_last_error());
        llama_memory_clear(llama_get_memory(c.c), true);
        c.decode(random_tokens(PROMPT, 3), 0);
        CHECK(kvasir_cache_limit(c.cache, bytes.row_bytes * 3 / 2) == KVASIR_OK, "%s", kvasir_last_error());
        const auto         more = random_tokens(128, 4); // one micro-batch after another
        std::vector<float> logits;
        int32_t            pos = PROMPT;
        kvasir_status      status = KVASIR_OK;
        while (pos < 900 && (status = c.try_decode(more.data(), 128, pos, logits)) == KVASIR_OK) {
            pos += 128;
        }
        CHECK(status == KVASIR_OUT_OF_MEMORY && bytes_of(c).slots == 2 * pos && bytes_of(c).row_bytes <= bytes.row_bytes * 3 / 2, "%s: status %d at %d, %lld slots, %lld bytes of rows",
              name_of(path), status, pos, (long long) bytes_of(c).slots, (long long) bytes_of(c).row_bytes);
    }
}

void test_state() {
    model_file m(latent_model());
    for (kvasir_attention path : PATHS) {
        context c(m.ours, context_params(), true, path);
        c.decode(random_tokens(PROMPT, 3), 0);
        evict_randomly(c.cache, 9, 0.3);
        const kvasir_bytes   before = bytes_of(c);
        std::vector<uint8_t> state(llama_state_seq_get_size(c.c, 0));
        CHECK(llama_state_seq_get_data(c.c, state.data(), state.size(), 0) == state.size(), "size of the state");
        const auto expected = c.decode({77}, PROMPT);
        llama_memory_clear(llama_get_memory(c.c), true);
        CHECK(bytes_of(c).slots == 0 && bytes_of(c).resident_bytes == 0, "%lld slots after clear", (long long) bytes_of(c).slots);
        CHECK(llama_state_seq_set_data(c.c, state.data(), state.size(), 0) == state.size(), "state was not taken");
        CHECK(bytes_of(c).slots == before.slots, "%lld slots, %lld before", (long long) bytes_of(c).slots, (long long) before.slots);
        const double kl = mean_kl(expected, c.decode({77}, PROMPT), c.n_vocab); // the slots are in another order: sums round differently
        CHECK(kl < (path == KVASIR_ATTENTION_NATIVE ? NOISE_FLOOR : 1e-5), "%s: KL after restore %.3e", name_of(path), kl);
    }
}

// ---- the statistic ----

void test_statistic() {
    model_file m(latent_model());
    latent_reference exact(latent_model(), m.path);
    exact.bounds = {1, 16, 100};
    auto tokens = random_tokens(PROMPT, 7);
    const auto steps = random_tokens(STEPS, 8);
    tokens.insert(tokens.end(), steps.begin(), steps.end());
    exact.logits(tokens);
    const size_t n = PROMPT + STEPS;
    for (kvasir_attention path : PATHS) {
        context c(m.ours, context_params(), true, path);
        const kvasir_statistic_params params = {exact.bounds.data(), 3, -1, 0};
        CHECK(kvasir_statistic_start(c.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
        prompt_and_steps(c, PROMPT, STEPS);
        for (int32_t l = 0; l < 2; l++) {
            std::vector<float> buckets(4 * n);
            int64_t n_queries = 0;
            CHECK(kvasir_statistic_read(c.cache, l, 0, 0, buckets.data(), nullptr, &n_queries) == KVASIR_OK && n_queries == (int64_t) n, "%s, %lld queries", kvasir_last_error(),
                  (long long) n_queries);
            double difference = 0, total = 0;
            for (size_t i = 0; i < buckets.size(); i++) {
                difference += std::fabs(buckets[i] - exact.sums[(size_t) l][i]);
                total += exact.sums[(size_t) l][i];
            }
            printf("  %-14s layer %d: sums differ by %.2e of %.1f\n", name_of(path), l, difference, total);
            // ours: f32 sums; ggml's kernels round queries and rows' products to f16
            CHECK(std::fabs(total - (double) n) < 1e-6 && difference < (path == KVASIR_ATTENTION_NATIVE ? 2e-4 : 1e-2) * total, "%.3e of %.3f", difference, total);
        }
        CHECK(kvasir_statistic_stop(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
    }
}

// ---- what must be refused ----

void test_refusals() {
    model_file m(latent_model());
    llama_context_params params = context_params();
    params.type_k = GGML_TYPE_Q8_0; // llama.cpp refuses two types for one row
    llama_context * c     = nullptr;
    kvasir_cache *  cache = nullptr;
    CHECK(kvasir_context_new(m.ours, &params, KVASIR_ATTENTION_NATIVE, &c, &cache) != KVASIR_OK && !c && !cache, "K and V of two types were taken");
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: latent_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS [TEST]\n");
        return 2;
    }
    folder = argv[2];
    const std::string only = argc > 3 ? argv[3] : "";
    load_llama(argv[1]);
    CHECK(kvasir_device("CPU", &proxy) == KVASIR_OK, "%s", kvasir_last_error());
    if (!proxy) {
        return check::finish("latent_test");
    }
    const std::pair<const char *, std::function<void()>> tests[] = {
        {"kept", test_kept}, {"types", test_types}, {"sequences", test_sequences}, {"evicted", test_evicted}, {"rewritten", test_rewritten},
        {"bytes", test_bytes}, {"state", test_state}, {"statistic", test_statistic}, {"refusals", test_refusals}};
    for (const auto & [name, test] : tests) {
        if (only.empty() || only == name) {
            printf("%s\n", name);
            test();
        }
    }
    llama_backend_free();
    return check::finish("latent_test");
}
