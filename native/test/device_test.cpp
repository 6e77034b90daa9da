// The store on a device: contexts over its rows against unmodified llama.cpp on the same device, and what was evicted or
// counted against the CPU's kernels. By the portable path, which on the CPU itself is bit-identical; and where the device
// is a GPU with kernels of ours, by these too.
#include "contexts.h"

#include "ggml-backend-impl.h"

#include <functional>
#include <map>
#include <numeric>
#include <random>

using namespace kvasir_test;

namespace {

std::string        device_name;
ggml_backend_dev_t device, cpu_proxy, device_proxy;
bool               on_cpu;
bool               software; // a driver that renders on the CPU

// the same model on the CPU with our kernels: the reference for what stock llama.cpp does not have
struct cpu_model {
    llama_model * model = nullptr;

    explicit cpu_model(const model_file & m) {
        llama_model_params params = llama_model_default_params();
        ggml_backend_dev_t devices[] = {cpu_proxy, nullptr};
        params.devices      = devices;
        params.n_gpu_layers = 999;
        CHECK(kvasir_model_load(m.path.c_str(), &params, &model) == KVASIR_OK, "%s", kvasir_last_error());
        if (!model) {
            exit(1);
        }
    }
    ~cpu_model() { llama_model_free(model); }
};

constexpr kvasir_attention PORTABLE = KVASIR_ATTENTION_PORTABLE, NATIVE = KVASIR_ATTENTION_NATIVE;
kvasir_attention path = PORTABLE; // that the tests run by

// the path that a layer gets: a GPU's own kernels take some shapes and types only
kvasir_attention path_of(int32_t dim, ggml_type k, ggml_type v) {
    const auto taken = [](ggml_type type) { return type == GGML_TYPE_F16 || type == GGML_TYPE_Q8_0; };
    const bool quantised = k == GGML_TYPE_Q8_0 || v == GGML_TYPE_Q8_0;
    return path == NATIVE && taken(k) && taken(v) && (dim == 64 || (dim == 80 && !quantised) || dim == 96 || dim == 128 || dim == 256) ? NATIVE : PORTABLE;
}

// A backend that has no attention for such heads has no portable path: the context is refused by name.
// latent: so many elements of each K row are its V row; 0: V has rows of its own.
bool refused(const model_file & m, const llama_context_params & params, const char * what, int32_t dim, int32_t group, float softcap = 0, int32_t latent = 0) {
    if (!latent && path_of(dim, params.type_k, params.type_v) == NATIVE) {
        return false;
    }
    ggml_context * c = ggml_init({16 * ggml_tensor_overhead(), nullptr, true});
    ggml_tensor *  k = ggml_new_tensor_3d(c, params.type_k, dim, 256, 1);
    ggml_tensor *  v = latent ? ggml_view_3d(c, k, latent, 256, 1, k->nb[1], k->nb[2], 0) : ggml_new_tensor_3d(c, params.type_v, dim, 256, 1);
    ggml_tensor *  node = ggml_flash_attn_ext(c, ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, 1, group), k, v, ggml_new_tensor_2d(c, GGML_TYPE_F16, 256, 1), 1, 0, softcap);
    // ggml-cuda says yes to all soft-capping, and has it for two head dims
    const bool supported = ggml_backend_dev_supports_op(device, node) && !(softcap != 0 && device_name.rfind("CUDA", 0) == 0 && dim != 128 && dim != 256);
    ggml_free(c);
    if (supported) {
        return false;
    }
    llama_context * context = nullptr;
    kvasir_cache *  cache   = nullptr;
    const kvasir_status status = kvasir_context_new(m.ours, &params, path, &context, &cache);
    CHECK(status == KVASIR_UNSUPPORTED && strstr(kvasir_last_error(), "FLASH_ATTN_EXT"), "%s: status %d, %s", what, status, kvasir_last_error());
    printf("  %-44s refused: ggml has no attention for it on %s\n", what, device_name.c_str());
    return true;
}

constexpr int32_t PROMPT = 270, STEPS = 6; // a second block of 256 slots

void check_device(const char * what, const std::vector<float> & ours, const std::vector<float> & stock, double noise, int n_vocab, bool in_order = true) {
    check_same(what, ours, stock, noise, n_vocab);
    CHECK(!on_cpu || !in_order || ours == stock, "%s: not bit-identical", what);
}

double noise_of(const model_file & m, llama_context_params params, const std::vector<float> & reference, const std::function<std::vector<float>(context &)> & run) {
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context plain(m.stock, params, false);
    return mean_kl(reference, run(plain), plain.n_vocab);
}

std::vector<float> steps(context & c) { return prompt_and_steps(c, PROMPT, STEPS); }

void test_shapes() {
    struct shape {
        const char * name, * arch;
        int32_t heads, kv, dim, swa;
        bool yarn = false, factors = false;
    };
    const shape shapes[] = {
        {"grouped, dim 64", "llama", 6, 2, 64, 0},
        {"odd offsets: one query head each, dim 40", "llama", 3, 3, 40, 0},
        {"ALiBi", "mpt", 4, 4, 32, 0},
        {"ALiBi, dim 64", "mpt", 4, 4, 64, 0},
        {"one KV head, 12 query heads", "llama", 12, 1, 64, 0},
        {"dim 80", "llama", 3, 3, 80, 0},
        {"dim 96", "llama", 4, 2, 96, 0},
        {"dim 128", "llama", 4, 1, 128, 0},
        {"dim 256", "llama", 2, 1, 256, 0},
        {"YaRN", "llama", 6, 2, 64, 0, true},
        {"frequency factors", "llama", 4, 1, 128, 0, false, true},
        {"soft-capped, sliding window of 96", "gemma2", 4, 2, 128, 96},
        {"soft-capped, dim 64", "gemma2", 4, 2, 64, 96},
        {"attention sinks, sliding window of 96", "gpt-oss", 4, 2, 64, 96},
    };
    for (const shape & s : shapes) {
        if (path == PORTABLE && s.dim >= 80 && s.swa == 0) {
            continue; // ggml's kernels are the same for every head; only those of ours differ by dimension
        }
        synthetic_model shape;
        shape.arch = s.arch; shape.n_head = s.heads; shape.n_head_kv = s.kv; shape.head_dim = s.dim; shape.n_swa = s.swa; shape.n_layer = 2;
        shape.yarn = s.yarn; shape.rope_factors = s.factors;
        if (strcmp(s.arch, "mpt") == 0) {
            shape.n_embd = s.heads * s.dim;
        }
        model_file m(shape);
        const llama_context_params params = context_params();
        if (refused(m, params, s.name, s.dim, s.heads / s.kv, strcmp(s.arch, "gemma2") == 0 ? 50.0f : 0.0f)) {
            continue;
        }
        if (s.swa > 0 && s.dim == 64 && path == NATIVE) {
            continue; // there is nothing to compare with
        }
        context stock(m.stock, params, false);
        const auto reference = steps(stock);
        context ours(m.ours, params, true, path);
        check_device(s.name, steps(ours), reference, noise_of(m, params, reference, steps), stock.n_vocab, s.swa == 0);
        kvasir_layer_info info;
        CHECK(kvasir_cache_layer(ours.cache, 1, &info) == KVASIR_OK && device_name == info.device && info.attention == path_of(s.dim, params.type_k, params.type_v), "layer 1: %s, path %d", info.device, info.attention);
    }
}

// V is a part of K's rows: by ggml's kernels everywhere but on the CPU, with what is evicted against ours there
void test_latent() {
    const struct {
        int32_t   latent, rope_dim;
        ggml_type type;
    } cases[] = {{512, 64, GGML_TYPE_F16}, {64, 32, GGML_TYPE_Q8_0}};
    for (const auto & [latent, rope_dim, kv_type] : cases) {
        const ggml_type type = kv_type;
        if (software && latent == 512) {
            continue; // minutes
        }
        synthetic_model shape;
        shape.arch = "deepseek2"; shape.n_head = 16; shape.n_head_kv = 1; shape.n_layer = 2; shape.latent = latent; shape.rope_dim = rope_dim;
        model_file m(shape);
        llama_context_params params = context_params();
        params.type_k = params.type_v = type;
        const std::string name = "latent rows of " + std::to_string(shape.dim_k()) + ", " + ggml_type_name(type);
        if (refused(m, params, name.c_str(), shape.dim_k(), shape.n_head, 0, shape.dim_v())) {
            continue;
        }
        context stock(m.stock, params, false), ours(m.ours, params, true, path);
        const auto reference = steps(stock), logits = steps(ours);
        if (type == GGML_TYPE_F16) {
            check_device(name.c_str(), logits, reference, noise_of(m, params, reference, steps), stock.n_vocab);
        }
        CHECK(!on_cpu || logits == reference, "%s: not bit-identical", name.c_str());
        kvasir_layer_info info;
        CHECK(kvasir_cache_layer(ours.cache, 1, &info) == KVASIR_OK && device_name == info.device && info.attention == PORTABLE && info.slot_bytes == (int64_t) ggml_row_size(type, shape.dim_k()),
              "layer 1: %s, path %d, %lld bytes a slot", info.device, info.attention, (long long) info.slot_bytes);
        cpu_model cpu(m);
        context   reduced(m.ours, params, true, path), on_host(cpu.model, params, true, NATIVE), kept(m.ours, params, true, path), all(cpu.model, params, true, NATIVE);
        const auto run = [&](context & c, bool evict) {
            c.decode(random_tokens(300, 11), 0);
            if (evict) {
                evict_randomly(c.cache, 5, 0.5);
            }
            auto more = c.decode(random_tokens(30, 12), 300);
            for (int32_t i = 0; i < 4; i++) {
                const kvasir_eviction single[] = {{0, 0, 0, 60 + i}, {1, 0, 0, 21}};
                CHECK(!evict || kvasir_cache_evict(c.cache, single, 2) == KVASIR_OK, "%s", kvasir_last_error());
                const auto row = c.decode({(llama_token) (40 + i)}, 330 + i);
                more.insert(more.end(), row.begin(), row.end());
            }
            return more;
        };
        const auto   a = run(reduced, true), b = run(on_host, true), full = run(kept, false), full_cpu = run(all, false);
        const double kl = mean_kl(b, a, ours.n_vocab), noise = mean_kl(full_cpu, full, ours.n_vocab), effect = mean_kl(full, a, ours.n_vocab);
        printf("  %-44s evicted: KL to the CPU's kernels %.2e, keeping all %.2e; effect %.2e\n", name.c_str(), kl, noise, effect);
        CHECK(kl <= 3 * noise + NOISE_FLOOR && kl < 0.02 * effect, "%s: KL %.3e over the same sets, %.3e keeping all, effect %.3e", name.c_str(), kl, noise, effect);
    }
}

struct sums {
    std::vector<float> buckets, recent, scores;
};

sums statistic(context & c, int32_t rows, const kvasir_statistic_params & params);
void compare_sums(const char * what, const std::vector<float> & a, const std::vector<float> & b, double tolerance);

// the share of all weights that may lie elsewhere: K and Q are rounded to f16 here, and activations on the way here
const double WEIGHTS_ELSEWHERE = 0.01;

// The attention that llama.cpp has without flash, taken over as one. Kernels of ours are for flash attention.
void test_plain_attention() {
    synthetic_model shape;
    shape.arch = "grok"; shape.n_head = 4; shape.head_dim = 128; shape.n_embd = 512; shape.n_layer = 2; // soft-capped, for which ggml-cuda has few head dims
    model_file m(shape);
    llama_context_params params = context_params();
    if (refused(m, params, "plain attention", shape.head_dim, 2, 2.0f)) {
        return;
    }
    cpu_model  cpu(m);
    const auto on_host = [&](ggml_type type) {
        llama_context_params p = params;
        p.type_k = p.type_v = type;
        context c(cpu.model, p, true, NATIVE);
        return steps(c);
    };
    context      plain(m.stock, params, false), over_store(m.ours, params, true, path);
    const auto   stock = steps(plain), ours = steps(over_store), f16 = on_host(GGML_TYPE_F16);
    // llama.cpp rounds queries and weights to f16 on the CPU, and elsewhere as its device does
    const double types = mean_kl(f16, on_host(GGML_TYPE_BF16), shape.n_vocab), device_only = mean_kl(f16, stock, shape.n_vocab), kl = mean_kl(stock, ours, shape.n_vocab);
    kvasir_layer_info info;
    CHECK(kvasir_cache_layer(over_store.cache, 1, &info) == KVASIR_OK && info.attention == PORTABLE && device_name == info.device, "layer 1: %s, path %d", info.device, info.attention);
    printf("  KL %.2e (between f16 and bf16 %.2e, llama.cpp to the CPU's kernels %.2e)\n", kl, types, device_only);
    CHECK(kl < types + device_only, "KL %.3e, between f16 and bf16 %.3e, llama.cpp to the CPU's kernels %.3e", kl, types, device_only);
    context    reduced(m.ours, params, true, path), reduced_on_host(cpu.model, params, true, NATIVE);
    const auto run = [&](context & c) {
        c.decode(random_tokens(200, 11), 0);
        evict_randomly(c.cache, 5, 0.3);
        auto logits = c.decode(random_tokens(30, 12), 200);
        for (int32_t i = 0; i < 6; i++) { // llama.cpp reuses its graph
            const auto row = c.decode({(llama_token) (40 + i)}, 230 + i);
            logits.insert(logits.end(), row.begin(), row.end());
        }
        return logits;
    };
    const double evicted = mean_kl(run(reduced_on_host), run(reduced), shape.n_vocab);
    printf("  evicted: KL to the CPU's kernels %.2e\n", evicted);
    CHECK(evicted < types + device_only, "KL %.3e over the same sets, between f16 and bf16 %.3e", evicted, types);
    const int32_t bounds[] = {1, 16, 100};
    const kvasir_statistic_params counted = {bounds, 3, 250, 0};
    context counting(m.ours, params, true, path), counting_on_host(cpu.model, params, true, NATIVE);
    const sums x = statistic(counting, 1, counted), y = statistic(counting_on_host, 1, counted);
    compare_sums("buckets", x.buckets, y.buckets, WEIGHTS_ELSEWHERE);
    compare_sums("scores", x.scores, y.scores, WEIGHTS_ELSEWHERE);
}

// Layers of one device, and of one graph, whose heads have different dims: where there are kernels for one of them only, layers of
// both paths stand side by side.
void test_head_dims() {
    const std::pair<int32_t, int32_t> dims[] = {{64, 40}, {40, 64}, {128, 64}, {40, 112}};
    for (const auto & [sliding, full] : dims) {
        if ((on_cpu && sliding == 128) || (software && sliding != 64)) {
            continue; // on the CPU all head dims are one path; a driver that renders there compiles each shape for half a minute
        }
        synthetic_model shape;
        shape.arch = "gemma4"; shape.n_head = 4; shape.n_head_kv = 2; shape.n_layer = 4; shape.n_swa = 96; shape.head_dim = full; shape.head_dim_swa = sliding;
        const std::string name = "head dims " + std::to_string(sliding) + " and " + std::to_string(full);
        model_file m(shape);
        cpu_model  cpu(m);
        llama_context_params params = context_params();
        if (refused(m, params, name.c_str(), sliding, 2) || refused(m, params, name.c_str(), full, 2)) {
            continue;
        }
        context stock(m.stock, params, false), ours(m.ours, params, true, path);
        const auto reference = steps(stock);
        check_device(name.c_str(), steps(ours), reference, noise_of(m, params, reference, steps), stock.n_vocab, false);
        for (int32_t l = 0; l < shape.n_layer; l++) {
            const int32_t     dim = l % 2 == 0 ? sliding : full;
            kvasir_layer_info info;
            CHECK(kvasir_cache_layer(ours.cache, l, &info) == KVASIR_OK && info.layer == l && info.head_dim_k == dim && info.head_dim_v == dim && info.n_swa == (l % 2 == 0) &&
                  info.attention == path_of(dim, params.type_k, params.type_v), "layer %d: dim %d, n_swa %d, path %d", l, info.head_dim_k, info.n_swa, info.attention);
        }
        params.swa_full = true; // a cell is a position
        context evicting(m.ours, params, true, path), evicting_cpu(cpu.model, params, true, NATIVE), all(m.ours, params, true, path), all_cpu(cpu.model, params, true, NATIVE);
        const auto run = [&](context & c, bool evict) {
            c.decode(random_tokens(200, 11), 0);
            if (evict) {
                evict_randomly(c.cache, 5, 0.3);
            }
            auto logits = c.decode(random_tokens(30, 12), 200);
            for (int32_t i = 0; i < 6; i++) { // llama.cpp reuses its graph
                const auto row = c.decode({(llama_token) (40 + i)}, 230 + i);
                logits.insert(logits.end(), row.begin(), row.end());
                for (int32_t l = 0; evict && l < kvasir_cache_n_layers(c.cache); l++) {
                    const kvasir_eviction single[] = {{l, 0, 0, 60}, {l, 0, 1, 21}};
                    CHECK(kvasir_cache_evict(c.cache, single, 2) == KVASIR_OK, "%s", kvasir_last_error());
                }
            }
            return logits;
        };
        const auto   a = run(evicting, true), b = run(evicting_cpu, true), kept = run(all, false), kept_cpu = run(all_cpu, false);
        const double kl = mean_kl(b, a, ours.n_vocab), noise = mean_kl(kept_cpu, kept, ours.n_vocab), effect = mean_kl(kept, a, ours.n_vocab);
        printf("  evicted: KL to the CPU's kernels %.2e, keeping all %.2e; effect %.2e\n", kl, noise, effect);
        CHECK(kl <= 3 * noise + NOISE_FLOOR && kl < 0.02 * effect, "%s: KL %.3e over the same sets, %.3e keeping all, effect %.3e", name.c_str(), kl, noise, effect);
        const int32_t bounds[] = {1, 16, 100};
        const kvasir_statistic_params counted = {bounds, 3, 250, 0};
        context counting(m.ours, params, true, path), counting_cpu(cpu.model, params, true, NATIVE);
        const sums x = statistic(counting, 1, counted), y = statistic(counting_cpu, 1, counted);
        compare_sums("buckets", x.buckets, y.buckets, WEIGHTS_ELSEWHERE);
        compare_sums("scores", x.scores, y.scores, WEIGHTS_ELSEWHERE);
    }
}

void test_types() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    const std::pair<ggml_type, ggml_type> pairs[] = {{GGML_TYPE_Q8_0, GGML_TYPE_Q8_0}, {GGML_TYPE_Q4_0, GGML_TYPE_Q5_1}, {GGML_TYPE_BF16, GGML_TYPE_BF16},
                                                     {GGML_TYPE_F16, GGML_TYPE_Q8_0}};
    context    full(m.stock, context_params(), false);
    const auto of_f16 = steps(full);
    for (const auto & [k, v] : pairs) {
        llama_context_params params = context_params();
        params.type_k = k;
        params.type_v = v;
        const std::string name = std::string("K ") + ggml_type_name(k) + " V " + ggml_type_name(v);
        if (refused(m, params, name.c_str(), shape.head_dim, shape.n_head / shape.n_head_kv)) {
            continue;
        }
        context stock(m.stock, params, false), ours(m.ours, params, true, path);
        const auto   reference = steps(stock), logits = steps(ours);
        const double loss = mean_kl(of_f16, reference, stock.n_vocab), kl = mean_kl(reference, logits, stock.n_vocab);
        printf("  K %-5s V %-5s KL %.2e (the types themselves cost %.2e)\n", ggml_type_name(k), ggml_type_name(v), kl, loss);
        // stock llama.cpp rounds the query to 8 bits where K is quantised, kernels of ours do not
        CHECK(on_cpu ? logits == reference : kl <= (path == NATIVE ? 1.0 : 0.1) * loss, "K %s V %s: KL %.3e, the types cost %.3e", ggml_type_name(k), ggml_type_name(v), kl, loss);
    }
}

void test_sequences() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    for (bool unified : {true, false}) {
        llama_context_params params = context_params();
        params.n_seq_max  = 3;
        params.kv_unified = unified;
        params.n_ctx      = 3 * 512;
        context stock(m.stock, params, false), ours(m.ours, params, true, path);
        const auto reference = sequences(stock);
        check_same(unified ? "three sequences in one stream" : "three sequences in three streams", sequences(ours), reference,
                   noise_of(m, params, reference, sequences), stock.n_vocab);
    }
}

void test_eviction() {
    const std::pair<int32_t, ggml_type> cases[] = {{64, GGML_TYPE_F16}, {64, GGML_TYPE_Q8_0}, {32, GGML_TYPE_Q8_0}}; // the last: rows that are no whole words
    for (const auto & [head_dim, kv_type] : cases) {
        const int32_t   dim  = head_dim;
        const ggml_type type = kv_type;
        synthetic_model shape;
        shape.head_dim = dim;
        shape.n_layer  = 2;
        model_file m(shape);
        cpu_model  cpu(m);
        llama_context_params params = context_params();
        params.type_k = params.type_v = type;
        if (refused(m, params, "eviction", dim, shape.n_head / shape.n_head_kv)) {
            continue;
        }
        context ours(m.ours, params, true, path), reference(cpu.model, params, true, NATIVE), kept(m.ours, params, true, path), all(cpu.model, params, true, NATIVE);
        const auto run = [&](context & c, bool evict) {
            c.decode(random_tokens(300, 11), 0);
            if (evict) {
                evict_randomly(c.cache, 5, 0.3);
            }
            auto logits = c.decode(random_tokens(30, 12), 300); // a second turn, against the compressed cache
            if (evict) {
                evict_randomly(c.cache, 6, 0.2);
            }
            for (int32_t i = 0; i < 6; i++) {
                const auto row = c.decode({(llama_token) (40 + i)}, 330 + i);
                logits.insert(logits.end(), row.begin(), row.end());
                for (int32_t l = 0; evict && l < kvasir_cache_n_layers(c.cache); l++) { // and single slots between two tokens
                    const kvasir_eviction single[] = {{l, 0, 0, 60}, {l, 0, 0, 59 - i}, {l, 0, 1, 21}};
                    CHECK(kvasir_cache_evict(c.cache, single, 3) == KVASIR_OK, "%s", kvasir_last_error());
                    // many of one head: rows that are moved again, dropped after a move, and dropped where they lie, at the end
                    kvasir_head_view view;
                    kvasir_cache_head(c.cache, l, 0, 1, &view);
                    std::mt19937 rng((uint32_t) (100 * i + l));
                    std::vector<kvasir_eviction> many;
                    for (int32_t n = *view.n_slots, e = 0; e < 12; e++, n--) {
                        many.push_back({l, 0, 1, e % 4 == 3 ? n - 1 : n - 1 - (int32_t) (rng() % 14)});
                    }
                    CHECK(kvasir_cache_evict(c.cache, many.data(), (int32_t) many.size()) == KVASIR_OK, "%s", kvasir_last_error());
                }
            }
            return logits;
        };
        const auto   a = run(ours, true), b = run(reference, true), full = run(kept, false), full_cpu = run(all, false);
        const double kl = mean_kl(b, a, ours.n_vocab), noise = mean_kl(full_cpu, full, ours.n_vocab), effect = mean_kl(full, a, ours.n_vocab);
        printf("  evicted, dim %d, %s: KL to the CPU's kernels %.2e, keeping all %.2e; effect %.2e\n", dim, ggml_type_name(type), kl, noise, effect);
        CHECK(kl <= 3 * noise + NOISE_FLOOR && kl < 0.02 * effect, "KL %.3e over the same sets, %.3e keeping all, effect %.3e", kl, noise, effect);
        // the rows themselves, moved and compacted
        for (int32_t h = 0; h < 2; h++) {
            kvasir_head_view x, y;
            kvasir_cache_head(ours.cache, 0, 0, h, &x);
            kvasir_cache_head(reference.cache, 0, 0, h, &y);
            std::vector<float> p((size_t) (*x.n_slots * dim)), q((size_t) (*y.n_slots * dim)), v = p, w = q;
            CHECK(*x.n_slots == *y.n_slots && memcmp(x.cell, y.cell, (size_t) *x.n_slots * sizeof(int32_t)) == 0, "%d and %d slots", *x.n_slots, *y.n_slots);
            kvasir_cache_read(ours.cache, 0, 0, h, p.data(), v.data());
            kvasir_cache_read(reference.cache, 0, 0, h, q.data(), w.data());
            double worst = 0;
            for (size_t i = 0; i < p.size() && i < q.size(); i++) {
                worst = std::max({worst, (double) std::fabs(p[i] - q[i]), (double) std::fabs(v[i] - w[i])});
            }
            CHECK(worst < (type == GGML_TYPE_F16 ? 0.02 : 0.15), "head %d: rows differ by %.3e", h, worst); // a step of the type, at values up to 8
        }
    }
}

void test_state() {
    model_file m(synthetic_model{});
    context c(m.ours, context_params(), true, path);
    c.decode(random_tokens(300, 3), 0);
    evict_randomly(c.cache, 9, 0.3);
    kvasir_bytes before, after;
    kvasir_cache_bytes(c.cache, &before);
    std::vector<uint8_t> state(llama_state_seq_get_size(c.c, 0));
    CHECK(llama_state_seq_get_data(c.c, state.data(), state.size(), 0) == state.size(), "size of the state");
    const auto expected = c.decode({77}, 300);
    llama_memory_clear(llama_get_memory(c.c), true);
    kvasir_cache_bytes(c.cache, &after);
    CHECK(after.slots == 0 && after.resident_bytes == 0, "%lld slots and %lld bytes after clear", (long long) after.slots, (long long) after.resident_bytes);
    CHECK(llama_state_seq_set_data(c.c, state.data(), state.size(), 0) == state.size(), "state was not taken");
    kvasir_cache_bytes(c.cache, &after);
    CHECK(after.slots == before.slots, "%lld slots, %lld before", (long long) after.slots, (long long) before.slots);
    const double kl = mean_kl(expected, c.decode({77}, 300), c.n_vocab); // the slots are in another order: sums round differently
    CHECK(kl < 1e-5, "KL after restore %.3e", kl);
}

// all of a context's rows go, before any of them was ever dropped
void test_truncate() {
    model_file m(synthetic_model{});
    context c(m.ours, context_params(), true, path);
    const auto expected = c.decode(random_tokens(40, 3), 0);
    llama_memory_clear(llama_get_memory(c.c), false);
    CHECK(kvasir_cache_truncate(c.cache, 0, 0) == KVASIR_OK, "%s", kvasir_last_error());
    const auto again = c.decode(random_tokens(40, 3), 0);
    CHECK(again == expected, "other logits after the cache was emptied, KL %.3e", mean_kl(expected, again, c.n_vocab));
}

// A token that takes the cell and the position of one that llama.cpp dropped has a score of its own.
void test_rewritten() {
    model_file m(synthetic_model{});
    context replaced(m.ours, context_params(), true, path), never(m.ours, context_params(), true, path);
    for (context * c : {&replaced, &never}) {
        for (int32_t l = 0; l < kvasir_cache_n_layers(c->cache); l++) {
            for (int32_t h = 0; h < 2; h++) {
                CHECK(kvasir_cache_track(c->cache, l, 0, h, 1) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
        c->decode(random_tokens(40, 3), 0);
    }
    replaced.decode({5}, 40);
    CHECK(llama_memory_seq_rm(llama_get_memory(replaced.c), 0, 40, -1), "the last token stays");
    for (context * c : {&replaced, &never}) {
        c->decode({6}, 40);
        c->decode({7}, 41);
    }
    for (int32_t l = 0; l < kvasir_cache_n_layers(never.cache); l++) {
        for (int32_t h = 0; h < 2; h++) {
            float score[2];
            for (int32_t i = 0; i < 2; i++) {
                const context &  c = i ? never : replaced;
                kvasir_head_view view;
                CHECK(kvasir_cache_scores(c.cache, l, 0, h) == KVASIR_OK && kvasir_cache_head(c.cache, l, 0, h, &view) == KVASIR_OK && *view.n_slots == 42, "%s", kvasir_last_error());
                score[i] = view.score[40];
            }
            CHECK(std::fabs(score[0] - score[1]) <= 1e-4 * score[1], "layer %d, head %d: score %.6f, %.6f without the token before it", l, h, score[0], score[1]); // the rows may lie otherwise
        }
    }
}

// ---- whatever comes ----

uint32_t seed = std::random_device{}();

void compare_sums(const char * what, const std::vector<float> & a, const std::vector<float> & b, double tolerance) {
    double difference = 0, total = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += std::fabs(a[i] - b[i]);
        total += b[i];
    }
    printf("  %s: differ by %.2e of %.1f\n", what, difference, total);
    CHECK(a.size() == b.size() && total > 0 && difference < tolerance * total, "%s: %.3e of %.1f", what, difference, total);
}

// norms of some value rows of a head, against those of the rows themselves
void check_value_norms(const context & c, int32_t layer, int32_t stream, int32_t head, uint32_t random) {
    kvasir_head_view  view;
    kvasir_layer_info info;
    CHECK(kvasir_cache_head(c.cache, layer, stream, head, &view) == KVASIR_OK && kvasir_cache_layer(c.cache, layer, &info) == KVASIR_OK, "%s", kvasir_last_error());
    const int32_t slots = *view.n_slots, first = random % 3 ? 0 : slots / 2, n = random % 2 ? slots - first : (slots - first) / 2;
    std::vector<float> norms((size_t) n), rows((size_t) slots * (size_t) info.head_dim_v);
    CHECK(kvasir_cache_value_norms(c.cache, layer, stream, head, first, n, norms.data()) == KVASIR_OK, "%s", kvasir_last_error());
    CHECK(kvasir_cache_read(c.cache, layer, stream, head, nullptr, rows.data()) == KVASIR_OK, "%s", kvasir_last_error());
    for (int32_t i = 0; i < n; i++) {
        const float * row  = rows.data() + (size_t) (first + i) * (size_t) info.head_dim_v;
        const double  norm = std::sqrt(std::inner_product(row, row + info.head_dim_v, row, 0.0));
        CHECK(std::fabs(norms[(size_t) i] - norm) <= 1e-5 * norm, "slot %d of layer %d, head %d: norm %.6f, %.6f expected", first + i, layer, head, norms[(size_t) i], norm); // f32 sums of 64 squares
    }
}

struct outcome {
    std::vector<float> logits, scores; // of every token; of all slots in the end
};

// Three sequences in one stream or three: tokens, tails dropped and, when evict is set, slots dropped from single heads and
// from all alike, so that heads part and lie at other places.
outcome random_operations(context & c, bool unified, bool evict, int32_t n_heads) {
    std::mt19937       rng(seed), choice(seed + 1); // what is evicted does not change the tokens
    outcome            result;
    int32_t            pos[3] = {};
    const auto keep = [&](int32_t stream, int32_t layer, int32_t head, auto && wanted) {
        kvasir_head_view view;
        CHECK(kvasir_cache_head(c.cache, layer, stream, head, &view) == KVASIR_OK, "%s", kvasir_last_error());
        std::vector<int32_t> slots;
        for (int32_t s = 0; s < *view.n_slots; s++) {
            if (wanted(view.cell[s])) {
                slots.push_back(s);
            }
        }
        CHECK(kvasir_cache_keep(c.cache, layer, stream, head, slots.data(), (int32_t) slots.size()) == KVASIR_OK, "%s", kvasir_last_error());
    };
    const auto drop = [&](int32_t stream, int32_t layer, int32_t head, uint32_t n) {
        kvasir_head_view view;
        CHECK(kvasir_cache_head(c.cache, layer, stream, head, &view) == KVASIR_OK, "%s", kvasir_last_error());
        std::vector<kvasir_eviction> slots;
        for (int32_t slot = *view.n_slots - 1 - (int32_t) (n % 5); n > 0 && slot >= 4; n--, slot -= 1 + (int32_t) (n % 9)) {
            slots.push_back({layer, stream, head, slot});
        }
        CHECK(kvasir_cache_evict(c.cache, slots.data(), (int32_t) slots.size()) == KVASIR_OK, "%s", kvasir_last_error());
    };
    const auto each_head = [&](auto && f) {
        for (int32_t stream = 0; stream < (unified ? 1 : 3); stream++) {
            for (int32_t l = 0; l < 2; l++) {
                for (int32_t h = 0; h < n_heads; h++) {
                    f(l, stream, h);
                }
            }
        }
    };
    each_head([&](int32_t l, int32_t stream, int32_t h) { CHECK(kvasir_cache_track(c.cache, l, stream, h, h != 1) == KVASIR_OK, "%s", kvasir_last_error()); });
    for (int step = 0; step < 40; step++) {
        const auto    seq = (llama_seq_id) (step < 3 ? step : (int) (rng() % 3));
        const size_t  n   = step < 3 ? 90 + rng() % 60 : rng() % 4 ? 1 : 1 + rng() % 40;
        if (step > 3 && rng() % 6 == 0) {
            const int32_t tail = 1 + (int32_t) (rng() % 9);
            CHECK(llama_memory_seq_rm(llama_get_memory(c.c), seq, pos[seq] - tail, -1), "sequence %d", seq);
            pos[seq] -= tail;
        }
        if (evict && step > 3) {
            const uint32_t what = choice() % 4, of = choice(), share = choice() % 4;
            const int32_t  one_layer = (int32_t) (of % 2), one_head = (int32_t) (of / 2 % (uint32_t) n_heads), stream = unified ? 0 : seq;
            for (int32_t l = 0; l < 2; l++) {
                for (int32_t h = 0; h < n_heads; h++) {
                    const bool chosen = l == one_layer && h == one_head;
                    if (what == 0 && chosen) {
                        keep(stream, l, h, [&](int32_t) { return choice() % 5 > share; });
                    } else if (what == 1 && chosen) {
                        drop(stream, l, h, 1 + of % 12);
                    } else if (what == 2) {
                        keep(stream, l, h, [&](int32_t cell) { return (uint32_t) cell % 7 != of % 7; });
                    } else if (what == 3) {
                        drop(stream, l, h, 1 + of % 3);
                    }
                }
            }
        }
        std::vector<llama_token> tokens;
        for (size_t i = 0; i < n; i++) {
            tokens.push_back((llama_token) (3 + rng() % 290));
        }
        const auto rows = c.decode(tokens, pos[seq], seq);
        result.logits.insert(result.logits.end(), rows.begin(), rows.end());
        pos[seq] += (int32_t) n;
        if (evict && step % 3 == 0) { // not always: it carries out what is put off
            each_head([&](int32_t l, int32_t stream, int32_t h) { check_value_norms(c, l, stream, h, choice()); });
        }
    }
    each_head([&](int32_t l, int32_t stream, int32_t h) {
        kvasir_head_view view;
        CHECK(kvasir_cache_scores(c.cache, l, stream, h) == KVASIR_OK && kvasir_cache_head(c.cache, l, stream, h, &view) == KVASIR_OK, "%s", kvasir_last_error());
        result.scores.insert(result.scores.end(), view.score, view.score + *view.n_slots);
    });
    return result;
}

void test_random() {
    printf("  seed %u\n", seed);
    synthetic_model shape;
    shape.n_layer = 2;
    shape.n_head = 8; shape.n_head_kv = 4;
    model_file m(shape);
    cpu_model  cpu(m);
    for (bool unified : {true, false}) {
        llama_context_params params = context_params();
        params.n_ctx = 3 * 1024; params.n_seq_max = 3; params.kv_unified = unified;
        context ours(m.ours, params, true, path), reference(cpu.model, params, true, NATIVE), kept(m.ours, params, true, path), all(cpu.model, params, true, NATIVE);
        const auto   a = random_operations(ours, unified, true, shape.n_head_kv), b = random_operations(reference, unified, true, shape.n_head_kv);
        const auto   full = random_operations(kept, unified, false, shape.n_head_kv), full_cpu = random_operations(all, unified, false, shape.n_head_kv);
        const double kl = mean_kl(b.logits, a.logits, ours.n_vocab), noise = mean_kl(full_cpu.logits, full.logits, ours.n_vocab), effect = mean_kl(full.logits, a.logits, ours.n_vocab);
        printf("  %s: KL to the CPU's kernels %.2e, keeping all %.2e; effect %.2e\n", unified ? "one stream" : "three streams", kl, noise, effect);
        CHECK(a.logits.size() == b.logits.size() && kl <= 3 * noise + NOISE_FLOOR && kl < 0.02 * effect, "seed %u: KL %.3e over the same sets, %.3e keeping all, effect %.3e", seed, kl, noise, effect);
        compare_sums("scores", a.scores, b.scores, WEIGHTS_ELSEWHERE);
        double worst = 0; // of one slot: less than 0.5% on the CPU, most of a score where it is another slot's
        for (size_t i = 0; i < a.scores.size() && i < b.scores.size(); i++) {
            worst = std::max(worst, (double) std::fabs(a.scores[i] - b.scores[i]) / std::max(b.scores[i], 0.1f));
        }
        CHECK(worst < 0.1, "seed %u: a score differs by %.3f of itself", seed, worst);
    }
}

// ---- buffers that the device does not have as large as the cache ----

size_t largest_buffer;

// The cache comes in several buffers, or even a tensor of it is larger than one. n_swa of a layer does not depend on that.
void test_buffers() {
    ggml_backend_buffer_type_t type         = ggml_backend_dev_buffer_type(device);
    const auto                 get_max_size = type->iface.get_max_size;
    for (const char * arch : {"llama", "gemma2"}) {
        synthetic_model shape;
        shape.arch = arch; shape.n_layer = 5; shape.n_vocab = 300;
        if (strcmp(arch, "gemma2") == 0) {
            shape.n_head = 4; shape.n_swa = 96; shape.head_dim = 128; // ggml-cuda has no soft-capping for smaller heads
        }
        model_file           m(shape);
        llama_context_params params = context_params();
        params.n_ctx = 8192;
        params.n_batch = params.n_ubatch = 32;
        const auto of = [&](size_t largest, std::vector<float> & logits, std::vector<kvasir_layer_info> & layers) {
            largest_buffer = largest;
            type->iface.get_max_size = [](ggml_backend_buffer_type_t) { return largest_buffer; };
            llama_context * c     = nullptr;
            kvasir_cache *  cache = nullptr;
            const kvasir_status status = kvasir_context_new(m.ours, &params, path, &c, &cache);
            type->iface.get_max_size = get_max_size;
            CHECK(status == KVASIR_OK, "%s, buffers of %d KiB: %s", arch, (int) (largest >> 10), kvasir_last_error());
            if (status != KVASIR_OK) {
                return;
            }
            context ours(c, cache, shape.n_vocab);
            for (int32_t l = 0; l < kvasir_cache_n_layers(cache); l++) {
                layers.emplace_back();
                CHECK(kvasir_cache_layer(cache, l, &layers.back()) == KVASIR_OK, "%s", kvasir_last_error());
            }
            logits = ours.decode(random_tokens(60, 7), 0);
            evict_randomly(ours.cache, 5, 0.2);
            const auto more = ours.decode({7}, 60);
            logits.insert(logits.end(), more.begin(), more.end());
            llama_memory_clear(llama_get_memory(c), true); // of all buffers
            CHECK(bytes_of(ours).slots == 0, "%lld slots after clear", (long long) bytes_of(ours).slots);
        };
        // K of a layer: 2 heads of 64 or 128 in f16
        const size_t       tensor = (size_t) 8192 * 2 * (size_t) shape.head_dim * 2;
        std::vector<float> expected;
        std::vector<kvasir_layer_info> layers;
        of((size_t) 1 << 40, expected, layers);
        for (const size_t largest : {7 * tensor, 3 * tensor, 3 * tensor - 1, 2 * tensor, tensor, tensor - 1, tensor / 3}) {
            std::vector<float> logits;
            std::vector<kvasir_layer_info> found;
            of(largest, logits, found);
            CHECK(logits == expected && found.size() == layers.size() && (int32_t) found.size() == shape.n_layer, "%s, buffers of %d KiB: %d layers, other logits", arch, (int) (largest >> 10), (int) found.size());
            for (size_t l = 0; l < found.size(); l++) {
                CHECK(found[l].layer == (int32_t) l && found[l].n_swa == (shape.n_swa > 0 && l % 2 == 0) && found[l].n_swa == layers[l].n_swa && found[l].n_cells == layers[l].n_cells,
                      "%s, buffers of %d KiB: layer %d in place %d, n_swa %d, %d cells", arch, (int) (largest >> 10), found[l].layer, (int) l, found[l].n_swa, found[l].n_cells);
            }
        }
        printf("  %s: %d layers in buffers from %d to %d KiB\n", arch, (int) layers.size(), (int) (tensor / 3 >> 10), (int) (7 * tensor >> 10));
    }
}

// ---- memory ----

// What the store may occupy for the slots that it holds: rows of 256 slots in whole steps, and pages of the slot tables
// (cell, position and score by slot, the slot by cell).
int64_t rounded_bytes(const context & c) {
    const auto pages = [](int64_t size) { return (size + 4095) / 4096 * 4096; };
    int64_t bytes = 0;
    for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
        kvasir_layer_info info;
        kvasir_cache_layer(c.cache, l, &info);
        for (int32_t h = 0; h < info.n_head_kv; h++) {
            kvasir_head_view view;
            kvasir_cache_head(c.cache, l, 0, h, &view);
            bytes += (*view.n_slots + 255) / 256 * 256 * info.slot_bytes + 3 * pages(4 * *view.n_slots) + pages(4 * 1100);
        }
        bytes += 2 * 4096; // what is behind the last row
    }
    return bytes;
}

int64_t resident(const context & c) {
    kvasir_bytes bytes;
    kvasir_cache_bytes(c.cache, &bytes);
    return bytes.resident_bytes;
}

std::map<ggml_backend_buffer_type_t, decltype(ggml_backend_buffer_type_i::alloc_buffer)> originals;
bool    full = false;      // no allocation succeeds

// Inputs of a graph are known from what is written to the proxy's buffers. A buffer that writes in a way of its own is not
// watched: its inputs are read back.
bool unwatched = false;
decltype(ggml_backend_buffer_i::set_tensor) set_tensor;

void set_tensor_otherwise(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) { set_tensor(buffer, tensor, data, offset, size); }

ggml_backend_buffer_t alloc_unless_full(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = full ? nullptr : originals.at(type)(type, size);
    if (buffer && unwatched) {
        set_tensor = buffer->iface.set_tensor;
        buffer->iface.set_tensor = set_tensor_otherwise;
    }
    return buffer;
}

void test_inputs() {
    model_file m(synthetic_model{});
    for (const int32_t n_prompt : {40, 1300}) { // the masks of the long one are noted only once they were asked for
        const auto run = [&] {
            llama_context_params params = context_params();
            params.n_ctx    = 2048;
            params.n_ubatch = 512;
            context c(m.ours, params, true, path);
            return prompt_and_steps(c, n_prompt, 3);
        };
        const auto watched = run();
        unwatched = true;
        const auto read_back = run();
        unwatched = false;
        CHECK(watched == read_back, "inputs that are read back differ: KL %.3e", mean_kl(watched, read_back, 300));
    }
}

// the operations that the device's backends are given
std::map<ggml_op, int32_t> given;
decltype(ggml_backend_i::graph_compute)       graph_compute;
decltype(ggml_backend_device_i::init_backend) init_backend;

ggml_status compute_counted(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        given[ggml_graph_node(graph, i)->op]++;
    }
    return graph_compute(backend, graph);
}

ggml_backend_t init_counting(ggml_backend_dev_t dev, const char * params) {
    ggml_backend_t backend = init_backend(dev, params);
    graph_compute = backend->iface.graph_compute;
    backend->iface.graph_compute = compute_counted;
    return backend;
}

// As many nodes as llama.cpp's as long as all heads keep the same tokens, and in steps as long as they have room for as many.
void test_nodes() {
    const synthetic_model shape;
    model_file m(shape);
    init_backend = device->iface.init_backend;
    device->iface.init_backend = init_counting;
    {
        context    c(m.ours, context_params(), true, path);
        const auto check = [&](const char * when, const std::vector<llama_token> & tokens, int32_t pos, int32_t attentions) {
            given.clear();
            c.decode(tokens, pos);
            CHECK(given[GGML_OP_SET_ROWS] == shape.n_layer * 2 && given[GGML_OP_FLASH_ATTN_EXT] == shape.n_layer * attentions, "%s: %d SET_ROWS, %d FLASH_ATTN_EXT for %d layers",
                  when, given[GGML_OP_SET_ROWS], given[GGML_OP_FLASH_ATTN_EXT], shape.n_layer);
        };
        check("a prompt", random_tokens(40, 7), 0, 1);
        check("a step", {5}, 40, 1);
        for (int32_t l = 0; l < shape.n_layer; l++) {
            for (int32_t h = 0; h < shape.n_head_kv; h++) {
                const kvasir_eviction same = {l, 0, h, 3};
                CHECK(kvasir_cache_evict(c.cache, &same, 1) == KVASIR_OK, "%s", kvasir_last_error());
            }
        }
        check("the same slot of every head evicted", {6}, 41, 1);
        evict_randomly(c.cache, 5, 0.3);
        check("other slots of every head evicted", {7}, 42, 1); // that lie as far apart as before
        c.decode(random_tokens(300, 7), 43);
        std::vector<int32_t> few(50);
        std::iota(few.begin(), few.end(), 0);
        for (int32_t l = 0; l < shape.n_layer; l++) {
            CHECK(kvasir_cache_keep(c.cache, l, 0, 0, few.data(), (int32_t) few.size()) == KVASIR_OK, "%s", kvasir_last_error());
        }
        check("room for fewer in one head", {7}, 343, 2);
        check("a batch", random_tokens(4, 7), 344, shape.n_head_kv);
        context profiled(m.ours, context_params(), true, path);
        for (const int32_t per_query_head : {0, 1}) { // a prompt's weights are summed up over the query heads, if they may be
            const int32_t bounds[] = {16};
            const kvasir_statistic_params params = {bounds, 1, -1, per_query_head};
            CHECK(kvasir_statistic_start(profiled.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
            given.clear();
            profiled.decode(random_tokens(40, 7), 40 * per_query_head);
            CHECK(given[GGML_OP_SOFT_MAX] == shape.n_layer && given[GGML_OP_REPEAT_BACK] == (per_query_head ? 0 : shape.n_layer), "%d SOFT_MAX, %d REPEAT_BACK for %d layers",
                  given[GGML_OP_SOFT_MAX], given[GGML_OP_REPEAT_BACK], shape.n_layer);
        }
    }
    device->iface.init_backend = init_backend;
}

void test_memory() {
    synthetic_model shape;
    shape.n_layer = 1;
    model_file m(shape);
    llama_context_params params = context_params();
    params.n_ctx = 2048;
    context c(m.ours, params, true, PORTABLE);
    CHECK(resident(c) == 0, "%lld bytes before the first token", (long long) resident(c));
    c.decode(random_tokens(1100, 3), 0);
    CHECK(resident(c) > 0 && resident(c) < 1.05 * (double) rounded_bytes(c), "%lld bytes of %lld", (long long) resident(c), (long long) rounded_bytes(c));
    const int64_t before = resident(c);
    evict_randomly(c.cache, 9, 0.4);
    CHECK(resident(c) < 1.05 * (double) rounded_bytes(c) && resident(c) < 0.7 * (double) before, "%lld bytes, %lld before, %lld needed", (long long) resident(c),
          (long long) before, (long long) rounded_bytes(c));
    for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) { // one slot after another
        for (int32_t h = 0; h < 2; h++) {
            kvasir_head_view view;
            kvasir_cache_head(c.cache, l, 0, h, &view);
            while (*view.n_slots > 40) {
                const kvasir_eviction single = {l, 0, h, *view.n_slots / 2};
                kvasir_cache_evict(c.cache, &single, 1);
            }
        }
    }
    CHECK(resident(c) < 1.05 * (double) rounded_bytes(c), "%lld bytes of %lld", (long long) resident(c), (long long) rounded_bytes(c));
    kvasir_cache_truncate(c.cache, 0, 0);
    CHECK(resident(c) <= 2 * 2 * 4096, "%lld bytes of no slots", (long long) resident(c));
}

void test_out_of_memory() {
    synthetic_model shape;
    shape.n_layer = 1;
    model_file m(shape);
    const auto run = [&](bool interrupted) {
        context c(m.ours, context_params(), true, PORTABLE);
        auto       logits = c.decode(random_tokens(250, 3), 0);
        const auto more   = random_tokens(20, 4);
        if (interrupted) {
            llama_batch batch = llama_batch_init(20, 0, 1);
            batch.n_tokens = 20;
            for (int32_t i = 0; i < 20; i++) {
                batch.token[i] = more[(size_t) i]; batch.pos[i] = 250 + i; batch.n_seq_id[i] = 1; batch.seq_id[i][0] = 0; batch.logits[i] = 1;
            }
            int32_t result = 0;
            full = true;
            const kvasir_status status = kvasir_decode(c.c, &batch, &result);
            CHECK(status == KVASIR_OUT_OF_MEMORY && strstr(kvasir_last_error(), device_name.c_str()), "status %d, result %d: %s", status, result, kvasir_last_error());
            printf("  %s\n", kvasir_last_error());
            kvasir_bytes bytes;
            kvasir_cache_bytes(c.cache, &bytes);
            CHECK(bytes.slots == 1 * 2 * 250, "%lld slots after a token that had no room", (long long) bytes.slots);
            llama_batch_free(batch);
        }
        evict_randomly(c.cache, 5, 0.1); // without room for a copy, too
        kvasir_bytes bytes;
        CHECK(kvasir_cache_bytes(c.cache, &bytes) == KVASIR_OK, "%s", kvasir_last_error());
        full = false;
        const auto rest = c.decode(more, 250);
        logits.insert(logits.end(), rest.begin(), rest.end());
        return logits;
    };
    const auto expected = run(false), got = run(true);
    CHECK(expected == got, "a token that had no room changed what came after it: KL %.3e", mean_kl(expected, got, 300));
}

void test_limit() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    limited_contexts(m.ours, path).run();
    limited_contexts reserve(m.ours, path);
    if (path == NATIVE) {
        reserve.run_reserve(70, 24);   // one page of 64 slots
    } else {
        reserve.run_reserve(290, 220); // a quarter of the buffer
    }
}

// ---- CUDA graphs ----

void test_captures() {
    model_file m(synthetic_model{});
    context c(m.ours, context_params(), true, path);
    prompt_and_steps(c, 40, 6);
    kvasir_timings t{};
    CHECK(kvasir_cache_timings(c.cache, &t, 1) == KVASIR_OK, "%s", kvasir_last_error());
    const bool wanted = path == NATIVE && !getenv("GGML_CUDA_DISABLE_GRAPHS");
    CHECK((t.captures > 0) == wanted && t.captures <= 6, "%lld graphs were captured", (long long) t.captures);
    kvasir_cache_timings(c.cache, &t, 0);
    CHECK(t.captures == 0 && t.graphs == 0, "%lld captures after a reset", (long long) t.captures);
}

// ---- statistic ----

// What is brought of all heads at once, and read after the next token and evictions, against what a twin reads of one head
// after the other before them.
void test_fetch() {
    model_file    m(synthetic_model{});
    context       c(m.ours, context_params(), true, path), twin(m.ours, context_params(), true, path);
    const int32_t bounds[] = {1, 16, 100}, n_heads = synthetic_model{}.n_head_kv;
    const size_t  columns  = 4;
    std::vector<kvasir_fetch>       items;
    std::vector<std::vector<float>> expected;
    const auto both = [&](auto && f) {
        for (context * x : {&c, &twin}) {
            f(*x);
        }
    };
    const auto begin = [&](std::initializer_list<kvasir_read> whats) {
        items.clear();
        expected.clear();
        for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
            for (int32_t h = 0; h < n_heads; h++) {
                kvasir_head_view view;
                kvasir_cache_head(twin.cache, l, 0, h, &view);
                for (kvasir_read what : whats) {
                    items.push_back({l, h, what, 0, *view.n_slots, nullptr});
                    std::vector<float> values((size_t) *view.n_slots * (what == KVASIR_READ_STATISTIC ? columns : 1));
                    kvasir_status      status = KVASIR_OK;
                    if (what == KVASIR_READ_STATISTIC) {
                        status = kvasir_statistic_read(twin.cache, l, 0, h, values.data(), nullptr, nullptr);
                    } else if (what == KVASIR_READ_VALUE_NORMS) {
                        status = kvasir_cache_value_norms(twin.cache, l, 0, h, 0, *view.n_slots, values.data());
                    } else {
                        status = kvasir_cache_scores(twin.cache, l, 0, h);
                        values.assign(view.score, view.score + *view.n_slots);
                    }
                    CHECK(status == KVASIR_OK, "%s", kvasir_last_error());
                    expected.push_back(values);
                    if (what != KVASIR_READ_STATISTIC) { // some slots, which need not begin where a page does
                        items.push_back({l, h, what, 37 + h, 70, nullptr});
                        expected.emplace_back(values.begin() + 37 + h, values.begin() + 107 + h);
                    }
                }
            }
        }
        CHECK(kvasir_cache_fetch(c.cache, 0, items.data(), (int32_t) items.size()) == KVASIR_OK, "%s", kvasir_last_error());
    };
    const auto end = [&](const char * when) {
        CHECK(kvasir_cache_fetched(c.cache, 0) == KVASIR_OK, "%s", kvasir_last_error());
        for (size_t i = 0; i < items.size(); i++) {
            const std::vector<float> got(items[i].data, items[i].data + expected[i].size());
            const float              sum = std::accumulate(got.begin(), got.end(), 0.0f);
            CHECK(got == expected[i] && sum > 0, "%s: %d of layer %d, head %d, %d slots, sum %.3f", when, items[i].what, items[i].layer, items[i].head, items[i].n_slots, sum);
        }
    };
    both([&](context & x) {
        const kvasir_statistic_params params = {bounds, 3, -1, 0};
        CHECK(kvasir_statistic_start(x.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
        x.decode(random_tokens(300, 3), 0);
    });
    begin({KVASIR_READ_STATISTIC, KVASIR_READ_VALUE_NORMS});
    both([&](context & x) { x.decode({9}, 300); });
    end("the statistic");
    both([&](context & x) {
        CHECK(kvasir_statistic_stop(x.cache) == KVASIR_OK, "%s", kvasir_last_error());
        for (int32_t l = 0; l < kvasir_cache_n_layers(x.cache); l++) {
            for (int32_t h = 0; h < n_heads; h++) {
                kvasir_cache_track(x.cache, l, 0, h, 1);
            }
        }
        evict_randomly(x.cache, 9, 0.3);
    });
    for (int32_t step = 0; step < 6; step++) {
        begin({KVASIR_READ_SCORES, KVASIR_READ_VALUE_NORMS});
        both([&](context & x) {
            x.decode({5 + step}, 301 + step);
            const kvasir_eviction evictions[] = {{0, 0, 1, 30 + step}, {1, 0, 0, 20}, {1, 0, 0, 3}};
            CHECK(kvasir_cache_evict(x.cache, evictions, 3) == KVASIR_OK, "%s", kvasir_last_error());
        });
        end("scores");
    }
    kvasir_head_view view;
    kvasir_cache_head(c.cache, 0, 0, 0, &view);
    const int32_t n = *view.n_slots;
    for (kvasir_fetch wrong : {kvasir_fetch{0, n_heads, KVASIR_READ_SCORES, 0, 1, nullptr}, {0, 0, KVASIR_READ_STATISTIC, 0, n, nullptr}, {0, 0, 3, 0, 1, nullptr},
                               {0, 0, KVASIR_READ_SCORES, n, 1, nullptr}, {0, 0, KVASIR_READ_SCORES, -1, 1, nullptr}, {0, 0, KVASIR_READ_SCORES, 1, INT32_MAX, nullptr}}) {
        CHECK(kvasir_cache_fetch(c.cache, 0, &wrong, 1) == KVASIR_INVALID_ARGUMENT, "%s", kvasir_last_error());
    }
}

sums statistic(context & c, int32_t rows, const kvasir_statistic_params & params) {
    sums s;
    CHECK(kvasir_statistic_start(c.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
    prompt_and_steps(c, PROMPT, STEPS);
    const size_t n = PROMPT + STEPS;
    s.buckets.resize((size_t) rows * 4 * n);
    s.recent.resize((size_t) rows * n);
    int64_t n_queries = 0;
    CHECK(kvasir_statistic_read(c.cache, 1, 0, 1, s.buckets.data(), s.recent.data(), &n_queries) == KVASIR_OK && n_queries == (int64_t) n, "%s, %lld queries",
          kvasir_last_error(), (long long) n_queries);
    CHECK(kvasir_statistic_stop(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
    for (int32_t h = 0; h < 2; h++) { // and scores that go on
        kvasir_cache_track(c.cache, 1, 0, h, 1);
    }
    c.decode({5}, (int32_t) n);
    c.decode(random_tokens(9, 1), (int32_t) n + 1);
    kvasir_head_view view;
    kvasir_cache_head(c.cache, 1, 0, 1, &view);
    CHECK(kvasir_cache_scores(c.cache, 1, 0, 1) == KVASIR_OK, "%s", kvasir_last_error());
    s.scores.assign(view.score, view.score + *view.n_slots);
    return s;
}

// a token that comes to a slot that another one had begins with sums of its own
sums statistic_with_evictions(context & c, const kvasir_statistic_params & params) {
    sums s;
    CHECK(kvasir_statistic_start(c.cache, &params) == KVASIR_OK, "%s", kvasir_last_error());
    c.decode(random_tokens(200, 3), 0);
    const kvasir_eviction evictions[] = {{1, 0, 1, 50}, {1, 0, 1, 10}, {1, 0, 1, 197}}; // the last one is the last slot then
    CHECK(kvasir_cache_evict(c.cache, evictions, 3) == KVASIR_OK, "%s", kvasir_last_error());
    c.decode(random_tokens(40, 4), 200);
    kvasir_head_view view;
    kvasir_cache_head(c.cache, 1, 0, 1, &view);
    CHECK(*view.n_slots == 237, "%d slots", *view.n_slots);
    s.buckets.resize(4 * (size_t) *view.n_slots);
    s.recent.resize((size_t) *view.n_slots);
    int64_t n_queries = 0;
    CHECK(kvasir_statistic_read(c.cache, 1, 0, 1, s.buckets.data(), s.recent.data(), &n_queries) == KVASIR_OK, "%s", kvasir_last_error());
    CHECK(kvasir_statistic_stop(c.cache) == KVASIR_OK, "%s", kvasir_last_error());
    return s;
}

void test_statistic() {
    const int32_t bounds[] = {1, 16, 100};
    for (const char * arch : {"llama", "gemma2", "mpt", "gpt-oss"}) { // soft-capped with a sliding window; ALiBi; sinks
        synthetic_model shape;
        shape.arch = arch; shape.n_layer = 2;
        if (strcmp(arch, "gemma2") == 0) {
            shape.n_head = 4; shape.n_swa = 96; shape.head_dim = 128; // ggml-cuda has no soft-capping for smaller heads
        } else if (strcmp(arch, "mpt") == 0) {
            shape.n_head = shape.n_head_kv = 4; shape.n_embd = 4 * shape.head_dim;
        } else if (strcmp(arch, "gpt-oss") == 0) {
            shape.n_head = 4; shape.n_swa = 96;
        }
        model_file m(shape);
        cpu_model  cpu(m);
        const int32_t per_query_head = strcmp(arch, "llama") == 0;
        const kvasir_statistic_params params = {bounds, 3, 250, per_query_head};
        context ours(m.ours, context_params(), true, path), reference(cpu.model, context_params(), true, NATIVE);
        const int32_t rows = per_query_head ? shape.n_head / shape.n_head_kv : 1;
        const sums a = statistic(ours, rows, params), b = statistic(reference, rows, params);
        const double tolerance = WEIGHTS_ELSEWHERE;
        compare_sums("buckets", a.buckets, b.buckets, tolerance);
        compare_sums("recent queries", a.recent, b.recent, tolerance);
        compare_sums("scores", a.scores, b.scores, tolerance);
        context evicting(m.ours, context_params(), true, path), evicting_cpu(cpu.model, context_params(), true, NATIVE);
        const kvasir_statistic_params shared = {bounds, 3, 220, 0};
        const sums e = statistic_with_evictions(evicting, shared), f = statistic_with_evictions(evicting_cpu, shared);
        compare_sums("buckets after evictions", e.buckets, f.buckets, tolerance);
        compare_sums("recent queries after evictions", e.recent, f.recent, tolerance);
    }
}

// ---- layers on two devices ----

void test_taken_back() {
    model_file m(synthetic_model{});
    taken_back(m.ours, path, 0, on_cpu).run("statistic");
    taken_back(m.ours, path, 1, on_cpu).run("statistic of query heads");
    taken_back(m.ours, path, -1, on_cpu).run("tracked scores");
}

void test_copied() {
    model_file m(synthetic_model{});
    copy_streams(m.ours, path);
}

// Layers that stay on the CPU without a proxy. With op_offload off, or batches that are not worth an offload, llama.cpp never asks a GPU's proxy
// about them.
void test_missed() {
    synthetic_model shape;
    shape.n_layer = 4;
    model_file m(shape);
    llama_model_params half = llama_model_default_params();
    ggml_backend_dev_t devices[] = {device_proxy, nullptr};
    half.devices      = devices;
    half.n_gpu_layers = 3;
    llama_model * model = nullptr;
    CHECK(kvasir_model_load(m.path.c_str(), &half, &model) == KVASIR_OK, "%s", kvasir_last_error());
    for (const bool op_offload : {true, false}) {
        for (const uint32_t n_ubatch : {128, 16}) {
            llama_context_params params = context_params();
            params.op_offload = op_offload;
            params.n_ubatch   = n_ubatch;
            llama_context * c     = nullptr;
            kvasir_cache *  cache = nullptr;
            const kvasir_status status = kvasir_context_new(model, &params, path, &c, &cache);
            CHECK(status == KVASIR_NOT_INTERCEPTED && strstr(kvasir_last_error(), "layer 0"), "offload %d, batches of %u: status %d, %s", op_offload, n_ubatch, status,
                  kvasir_last_error());
            kvasir_context_free(c, cache);
        }
    }
    llama_model_free(model);
}

void test_split() {
    if (on_cpu) {
        return; // there is but one
    }
    synthetic_model shape;
    shape.n_layer = 4;
    model_file m(shape);
    llama_model_params params = llama_model_default_params();
    std::vector<float> split(llama_max_devices(), 0.0f);
    split[0] = split[1] = 1;
    ggml_backend_dev_t devices[] = {cpu_proxy, device_proxy, nullptr};
    params.devices      = devices;
    params.n_gpu_layers = 999;
    params.split_mode   = LLAMA_SPLIT_MODE_LAYER;
    params.tensor_split = split.data();
    llama_model * model = nullptr;
    CHECK(kvasir_model_load(m.path.c_str(), &params, &model) == KVASIR_OK, "%s", kvasir_last_error());
    if (!model) {
        return;
    }
    {
        context stock(m.stock, context_params(), false), ours(model, context_params(), true, path);
        const auto reference = steps(stock);
        check_same("half of the layers on the CPU", steps(ours), reference, noise_of(m, context_params(), reference, steps), stock.n_vocab);
        int32_t on_host = 0, on_device = 0;
        for (int32_t l = 0; l < kvasir_cache_n_layers(ours.cache); l++) {
            kvasir_layer_info info;
            kvasir_cache_layer(ours.cache, l, &info);
            on_host += strcmp(info.device, "CPU") == 0 && info.attention == path;
            on_device += device_name == info.device && info.attention == path_of(shape.head_dim, GGML_TYPE_F16, GGML_TYPE_F16);
        }
        CHECK(on_host > 0 && on_device > 0 && on_host + on_device == 4, "%d layers on the CPU, %d on %s", on_host, on_device, device_name.c_str());
        // an eviction on both
        evict_randomly(ours.cache, 5, 0.3);
        ours.decode({7}, PROMPT + STEPS);
    }
    llama_model_free(model);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: device_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS DEVICE [TEST [SEED]]\n");
        return 2;
    }
    folder      = argv[2];
    device_name = argv[3];
    on_cpu      = device_name == "CPU";
    const std::string only = argc > 4 ? argv[4] : "";
    seed = argc > 5 ? (uint32_t) std::stoul(argv[5]) : seed;
    load_llama(argv[1]);
    device = ggml_backend_dev_by_name(device_name.c_str());
    if (!device) {
        printf("skipped: there is no device %s here\n", device_name.c_str());
        return 77; // ctest's SKIP_RETURN_CODE
    }
    software = strstr(ggml_backend_dev_description(device), "llvmpipe") != nullptr;
    CHECK(kvasir_device("CPU", &cpu_proxy) == KVASIR_OK && kvasir_device(device_name.c_str(), &device_proxy) == KVASIR_OK, "%s", kvasir_last_error());
    if (!cpu_proxy || !device_proxy) {
        return check::finish("device_test");
    }
    proxy = device_proxy;
    inner = on_cpu ? nullptr : device;
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    originals[type] = type->iface.alloc_buffer;
    type->iface.alloc_buffer = alloc_unless_full;
    struct test {
        const char *          name;
        std::function<void()> run;
        bool                  portable_only; // ggml's nodes, and the sizes and failures of its buffers
    };
    const test tests[] = {{"shapes", test_shapes, false}, {"head dims", test_head_dims, false}, {"latent", test_latent, true}, {"plain attention", test_plain_attention, false}, {"types", test_types, false}, {"sequences", test_sequences, false}, {"eviction", test_eviction, false},
                          {"state", test_state, false}, {"truncate", test_truncate, false}, {"rewritten", test_rewritten, false}, {"random", test_random, false}, {"inputs", test_inputs, false}, {"nodes", test_nodes, true}, {"memory", test_memory, true},
                          {"out of memory", test_out_of_memory, true}, {"limit", test_limit, false}, {"captures", test_captures, false},
                          {"fetch", test_fetch, false}, {"statistic", test_statistic, false}, {"taken back", test_taken_back, false}, {"copied", test_copied, false}, {"buffers", test_buffers, false}, {"missed", test_missed, false}, {"split", test_split, false}};
    for (kvasir_attention wanted : {PORTABLE, NATIVE}) {
        if (wanted == NATIVE && (on_cpu || !*kvasir_kernels(device_name.c_str()))) {
            continue; // context_test has the CPU's
        }
        path = wanted;
        printf("%s path\n", path == NATIVE ? "native" : "portable");
        for (const test & t : tests) {
            if ((only.empty() || only == t.name) && !(t.portable_only && path == NATIVE)) {
                printf("%s\n", t.name);
                t.run();
            }
        }
    }
    llama_backend_free();
    return check::finish("device_test");
}
