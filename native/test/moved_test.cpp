// The statistic of moved queries (kvasir_moved_*): sums, mean outputs and what is folded of them against a reference in double precision,
// for every kind of attention and of rotary positions; and that what fails or is taken back leaves no trace. By our kernels, and by the
// portable path.
#include "contexts.h"
#include "moved_reference.h"

#include "ggml-backend-impl.h"

#include <functional>
#include <numeric>

using namespace kvasir_test;

namespace {

std::string      device_name;
bool             on_cpu, software; // software: a driver that renders on the CPU
kvasir_attention path = KVASIR_ATTENTION_NATIVE;

constexpr int32_t MICRO_BATCH = 128;

llama_context_params moved_params(ggml_type type = GGML_TYPE_F16) {
    llama_context_params p = context_params();
    p.n_ubatch = MICRO_BATCH;
    p.n_batch  = MICRO_BATCH;
    p.type_k = p.type_v = type;
    p.swa_full = true;
    p.n_threads = p.n_threads_batch = 1; // ggml's threads meet after every node of these small graphs
    return p;
}

#define OK(call) CHECK((call) == KVASIR_OK, "%s", kvasir_last_error())

struct head {
    int32_t layer, il, index, group, dv;
    kvasir_head_view view;

    std::vector<int32_t> held() const { return std::vector<int32_t>(view.pos, view.pos + *view.n_slots); }
};

std::vector<head> heads_of(const context & c) {
    std::vector<head> all;
    for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
        kvasir_layer_info info;
        OK(kvasir_cache_layer(c.cache, l, &info));
        for (int32_t h = 0; h < info.n_head_kv; h++) {
            head x{l, info.layer, h, info.n_head / info.n_head_kv, info.head_dim_v, {}};
            OK(kvasir_cache_head(c.cache, l, 0, h, &x.view));
            all.push_back(x);
        }
    }
    return all;
}

// what has been summed up of a head
struct sums {
    std::vector<float> p, squares, output, length2;

    bool operator==(const sums & o) const {
        const auto same = [](const std::vector<float> & a, const std::vector<float> & b) { return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0); };
        return same(p, o.p) && same(squares, o.squares) && same(output, o.output) && same(length2, o.length2);
    }
};

sums read(const context & c, const head & h) {
    const size_t n = (size_t) *h.view.n_slots, group = (size_t) h.group;
    sums s{std::vector<float>(group * n, NAN), std::vector<float>(group * n, NAN), std::vector<float>(group * (size_t) h.dv, NAN), std::vector<float>(group, NAN)};
    OK(kvasir_moved_read(c.cache, h.layer, h.index, s.p.data(), s.squares.data(), s.output.data(), s.length2.data()));
    return s;
}

std::vector<sums> read_all(const context & c) {
    std::vector<sums> all;
    for (const head & h : heads_of(c)) {
        all.push_back(read(c, h));
    }
    return all;
}

// of all layers; how many queries
int32_t sum_up(const context & c, int32_t end, int n_threads = 2) {
    int32_t n = 0, first = -1;
    for (int32_t l = 0; l < kvasir_cache_n_layers(c.cache); l++) {
        OK(kvasir_moved_sum(c.cache, l, end, n_threads, &n));
        CHECK(first < 0 || n == first, "%d queries of layer %d, %d of others", n, l, first);
        first = n;
    }
    return n;
}

double relative(const std::vector<double> & want, const std::vector<float> & got, double share = 1) {
    double difference = 0, all = 0;
    for (size_t i = 0; i < want.size() && i < got.size(); i++) {
        difference += std::abs(want[i] * share - (double) got[i]);
        all += std::abs(want[i] * share);
    }
    return want.size() == got.size() && all > 0 ? difference / all : INFINITY;
}

double largest_difference(const std::vector<double> & want, const std::vector<float> & got) {
    double most = 0;
    for (size_t i = 0; i < want.size() && i < got.size(); i++) {
        most = std::max(most, std::abs(want[i] - (double) got[i]));
    }
    return most;
}

struct accuracy {
    double keys = 0, p = 0, squares = 0, output = 0, length2 = 0;
};

// Behind other attention kernels hidden states are other ones, and with them the keys of the layers that follow: by how much.
double keys_differ(const context & c, const head & h, const moved_reference & reference) {
    const moved_reference::layer & l = reference.layers.at(h.il);
    const auto         held = h.held();
    std::vector<float> k(held.size() * (size_t) l.dk);
    OK(kvasir_cache_read(c.cache, h.layer, 0, h.index, k.data(), nullptr));
    double difference = 0, all = 0;
    for (size_t s = 0; s < held.size(); s++) {
        for (size_t d = 0; d < (size_t) l.dk; d++) {
            const double x = l.k.at((size_t) held[s])[(size_t) (h.index * l.dk) + d];
            difference += std::abs(x - (double) k[s * (size_t) l.dk + d]);
            all += std::abs(x);
        }
    }
    return difference / all;
}

accuracy & compare(const char * what, accuracy & worst, const head & h, const sums & got, const moved_expected & want, double tolerance) {
    const double p = relative(want.p, got.p), squares = relative(want.squares, got.squares), share = 1 / (double) want.n_outputs,
                 output = relative(want.output, got.output, share), length2 = relative(want.length2, got.length2, share);
    worst.p       = std::max(worst.p, p);
    worst.squares = std::max(worst.squares, squares);
    worst.output  = std::max(worst.output, output);
    worst.length2 = std::max(worst.length2, length2);
    // a square has twice the relative error of its p, and weighs large ones more
    CHECK(p < tolerance && squares < 3 * tolerance && output < 5 * tolerance && length2 < 5 * tolerance && largest_difference(want.p, got.p) < tolerance * (double) want.n,
          "%s, layer %d head %d: p %.2e, squares %.2e, output %.2e, its length %.2e, the largest difference of p %.2e of %d queries", what, h.il, h.index, p, squares, output, length2,
          largest_difference(want.p, got.p), (int) want.n);
    return worst;
}

// When is summed up: after these positions, in turn.
struct pattern {
    const char *         name;
    int32_t              stride;
    std::vector<int32_t> ends;
};

constexpr int32_t PROMPT = 300, STEPS = 70;
int32_t           n_steps = STEPS; // that follow the prompt: fewer where every node takes milliseconds
const pattern PATTERNS[] = {{"c", 1, {PROMPT, PROMPT + 64}}, {"c/4", 4, {PROMPT, PROMPT + 64}}, {"u", 1, {128, 256, PROMPT, PROMPT + 64}}, {"in the middle", 2, {200, 290, PROMPT + 1}}};

// where each position is moved to
std::vector<int32_t> targets(const pattern & p) {
    std::vector<int32_t> to;
    int32_t base = 0;
    for (int32_t end : p.ends) {
        for (int32_t pos = base; pos < end; pos++) {
            to.push_back(end + (pos - base) % 64);
        }
        base = end;
    }
    return to;
}

// the prompt in micro-batches, then token by token; after(position) when so many were read
void feed(context & c, const std::function<void(int32_t)> & after) {
    const auto tokens = random_tokens(PROMPT + STEPS, 7);
    for (int32_t pos = 0; pos < PROMPT + n_steps;) {
        const int32_t n = pos < PROMPT ? std::min(MICRO_BATCH, PROMPT - pos) : 1;
        c.decode(std::vector<llama_token>(tokens.begin() + pos, tokens.begin() + pos + n), pos);
        pos += n;
        after(pos);
    }
}

void check_sums(const char * name, const model_file & m, const llama_context_params & params, const pattern & p, double tolerance) {
    moved_reference reference;
    reference.moved_to = targets(p);
    llama_context_params watched = params;
    watched.cb_eval           = moved_reference::callback;
    watched.cb_eval_user_data = &reference;
    {
        context stock(m.stock, watched, false);
        feed(stock, [](int32_t) {});
    }
    for (const auto & [il, l] : reference.layers) {
        CHECK(l.replayed < (on_cpu ? 1e-5 : 1e-3), "%s: queries of layer %d that are made again for their own positions differ by %.2e", name, il, l.replayed);
    }
    context ours(m.ours, params, true, path);
    OK(kvasir_moved_record(ours.cache, p.stride));
    const std::vector<head>     heads = heads_of(ours);
    for (const head & h : heads) {
        kvasir_moved_info info{};
        OK(kvasir_moved_layer(ours.cache, h.layer, &info));
        CHECK(info.turned == reference.layers.at(h.il).turned && info.window == reference.window(h.il) && (info.hadamard > 0) == (ggml_is_quantized(params.type_k) && reference.layers.at(h.il).rotated),
              "%s, layer %d: turned %d, a window of %d, a Hadamard matrix of %d", name, h.il, info.turned, info.window, info.hadamard);
    }
    std::vector<moved_expected> want(heads.size());
    size_t   turn = 0;
    int32_t  base = 0;
    accuracy worst;
    feed(ours, [&](int32_t pos) {
        while (turn < p.ends.size() && p.ends[turn] <= pos) {
            const int32_t end = p.ends[turn++], n = sum_up(ours, end, 1 + (int) turn % 3);
            for (size_t i = 0; i < heads.size(); i++) {
                const int64_t before = want[i].n;
                want[i].add(reference, heads[i].il, heads[i].index, heads[i].held(), base, end, p.stride);
                CHECK(want[i].n - before == n, "%d queries up to %d, expected %d", n, end, (int) (want[i].n - before));
                const double differ = keys_differ(ours, heads[i], reference);
                CHECK(differ == 0 || heads[i].il > 0 || !on_cpu, "%s: other keys in the first layer, by %.2e", name, differ);
                worst.keys = std::max(worst.keys, differ);
                compare(name, worst, heads[i], read(ours, heads[i]), want[i], tolerance + 3 * differ);
            }
            base = end;
        }
    });
    CHECK(turn > 0 && (turn == p.ends.size() || p.ends[turn] > PROMPT + n_steps), "%d of the sums", (int) turn);
    printf("  %-36s %-14s keys %.1e p %.1e squares %.1e output %.1e length %.1e\n", name, p.name, worst.keys, worst.p, worst.squares, worst.output, worst.length2);
}

struct shape {
    const char *    name;
    synthetic_model m;
    ggml_type       type = GGML_TYPE_F16;
};

// ggml-cuda has attention for these head dims, soft-capping for 128 and 256 only (unmodified llama.cpp ends there with others), and latent rows of f16 as large models have them
bool on_cuda() { return device_name.rfind("CUDA", 0) == 0; }

void fit_latent(synthetic_model & m) {
    if (on_cuda()) {
        m.n_head = 16; m.latent = 512; m.rope_dim = 64;
    }
}

std::vector<shape> shapes() {
    std::vector<shape> all;
    const auto add = [&](const char * name, const char * arch, int32_t heads, int32_t kv, int32_t dim, ggml_type type = GGML_TYPE_F16) -> shape & {
        shape s{name, {}};
        s.m.arch = arch; s.m.n_head = heads; s.m.n_head_kv = kv; s.m.head_dim = dim; s.m.n_layer = 2; s.type = type;
        if (strcmp(arch, "mpt") == 0 || strcmp(arch, "stablelm") == 0) {
            s.m.n_embd = heads * dim;
        }
        all.push_back(s);
        return all.back();
    };
    add("grouped", "llama", 6, 2, 64);
    add("grouped, q8_0", "llama", 6, 2, 64, GGML_TYPE_Q8_0);
    add("a KV head for each query head", "llama", 3, 3, 64);
    add("a KV head for each query head, q8_0", "llama", 2, 2, 128, GGML_TYPE_Q8_0);
    add("YaRN", "llama", 4, 2, 64).m.yarn = true;
    add("frequency factors", "llama", 4, 1, 64).m.rope_factors = true;
    add("NEOX, a part of each head is turned", "stablelm", 4, 2, 64).m.rotary_dim = 32;
    add("NEOX, a part is turned, q8_0", "stablelm", 4, 2, 64, GGML_TYPE_Q8_0).m.rotary_dim = 16;
    add("every fourth layer without positions", "smollm3", 4, 2, 64).m.n_layer = 4;
    add("soft-capped, sliding window of 96", "gemma2", 4, 2, on_cuda() ? 128 : 64).m.n_swa = 96;
    add("sinks, sliding window of 96", "gpt-oss", 4, 2, 64).m.n_swa = 96;
    add("ALiBi", "mpt", 4, 4, on_cuda() ? 64 : 32);
    add("q4_0", "llama", 4, 2, 64, GGML_TYPE_Q4_0).m.n_layer = 1; // behind which hidden states are too different
    add("odd offsets, head dim 40", "llama", 3, 3, 40);
    add("bf16", "llama", 4, 2, 64, GGML_TYPE_BF16);
    shape & dims = add("two head dims", "gemma4", 4, 2, 64); // on NVIDIA GPUs layers of both paths in one graph
    dims.m.n_swa = 96; dims.m.head_dim_swa = 40;
    fit_latent(add("latent rows", "deepseek2", 4, 1, 0).m);
    if (!on_cuda()) {
        add("latent rows, q8_0", "deepseek2", 4, 1, 0, GGML_TYPE_Q8_0);
    }
    shape & shared = add("layers over rows of others", "gemma4", 4, 2, 64);
    shared.m.n_layer = 4; shared.m.n_shared_kv = 2; shared.m.n_swa = 96; shared.m.head_dim_swa = 64;
    return all;
}

void test_sums() {
    for (const shape & s : shapes()) {
        const auto is = [&s](const char * name) { return strcmp(s.name, name) == 0; };
        if (software && !is("grouped") && !is("grouped, q8_0") && !is("sinks, sliding window of 96") && !is("ALiBi") && !is("odd offsets, head dim 40")) {
            continue; // it compiles each shape for a while
        }
        model_file m(s.m);
        const llama_context_params params = moved_params(s.type);
        for (const pattern & p : PATTERNS) {
            const bool all = is("grouped") || is("grouped, q8_0") || is("sinks, sliding window of 96");
            if (&p != PATTERNS && (!all || software)) {
                continue;
            }
            check_sums(s.name, m, params, p, 1e-3);
        }
        if (is("sinks, sliding window of 96")) { // whose cells are used again as soon as the window has left them
            llama_context_params ring = params;
            ring.swa_full = false;
            check_sums("  in a ring of cells", m, ring, PATTERNS[software ? 0 : 2], 1e-3);
        }
    }
}

// What a device has no operation for is done by others, at last on the host.
void test_missing_operations() {
    static decltype(ggml_backend_device_i::supports_op) supports_op;
    static ggml_op                                      missing;
    if (software || path != KVASIR_ATTENTION_PORTABLE) {
        return;
    }
    ggml_backend_dev_t device = ggml_backend_dev_by_name(device_name.c_str());
    supports_op = device->iface.supports_op;
    device->iface.supports_op = [](ggml_backend_dev_t d, const ggml_tensor * op) { return op->op != missing && supports_op(d, op); };
    for (const auto & [kv, dim] : {std::pair(2, 64), std::pair(1, 0)}) {
        synthetic_model shape;
        shape.n_layer = 2; shape.n_head = 4; shape.n_head_kv = kv; shape.head_dim = dim;
        shape.arch = dim == 0 ? "deepseek2" : "llama";
        if (dim == 0) {
            fit_latent(shape);
        }
        missing = GGML_OP_NONE;
        model_file m(shape);
        for (const auto & [op, name] : {std::pair(GGML_OP_REPEAT_BACK, "no REPEAT_BACK"), std::pair(GGML_OP_SQR, "no SQR")}) {
            missing = op;
            check_sums(name, m, moved_params(dim == 0 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0), PATTERNS[1], 1e-3);
        }
    }
    device->iface.supports_op = supports_op;
}

// ---- what is folded ----

// scores are what the sums, the rows of V and the mean outputs say; the means go on over turns
void test_folded() {
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        synthetic_model shape;
        shape.n_layer = 2;
        model_file m(shape);
        for (const int32_t smooth : {1, 5}) {
            if (software && (smooth == 1) == (type == GGML_TYPE_F16)) {
                continue;
            }
            context c(m.ours, moved_params(type), true, path);
            OK(kvasir_moved_record(c.cache, smooth == 1 ? 1 : 4));
            const std::vector<head> heads = heads_of(c);
            std::vector<float>      given;
            for (int32_t h = 0; h < shape.n_head; h++) {
                given.push_back(0.5f + 0.25f * (float) h);
            }
            std::vector<std::vector<double>> score(heads.size());
            std::vector<sums>                first;
            for (int32_t turn = 0; turn < 2; turn++) {
                c.decode(random_tokens(turn == 0 ? 300 : 100, 7), turn == 0 ? 0 : 300);
                sum_up(c, turn == 0 ? 300 : 400);
                const float *           weights = turn == 0 ? nullptr : given.data();
                const std::vector<sums> all     = read_all(c);
                for (size_t i = 0; i < heads.size(); i++) {
                    const head &       h = heads[i];
                    const auto         n = (size_t) *h.view.n_slots, dv = (size_t) h.dv;
                    std::vector<float> v(n * dv);
                    OK(kvasir_cache_read(c.cache, h.layer, 0, h.index, nullptr, v.data()));
                    score[i].resize(n);
                    for (size_t s = 0; s < n; s++) {
                        for (size_t g = 0; g < (size_t) h.group; g++) {
                            double distance = 0, square = 0;
                            for (size_t d = 0; d < dv; d++) {
                                distance += std::pow((double) v[s * dv + d] - (double) all[i].output[g * dv + d], 2);
                            }
                            const size_t from = s < (size_t) smooth / 2 ? 0 : s - (size_t) smooth / 2, to = std::min(n - 1, s + (size_t) smooth / 2);
                            for (size_t j = from; j <= to; j++) {
                                square += (double) all[i].squares[g * n + j] / (double) (to - from + 1);
                            }
                            score[i][s] += (weights ? (double) weights[h.index * h.group + (int32_t) g] : 1 / (double) all[i].length2[g]) * square * distance;
                        }
                    }
                }
                for (int32_t l = 0; l < shape.n_layer; l++) {
                    OK(kvasir_moved_fold(c.cache, l, weights, smooth, 2));
                }
                const std::vector<sums> after = read_all(c);
                for (size_t i = 0; i < heads.size(); i++) {
                    const head & h = heads[i];
                    OK(kvasir_cache_scores(c.cache, h.layer, 0, h.index));
                    const double far = relative(score[i], std::vector<float>(h.view.score, h.view.score + *h.view.n_slots));
                    CHECK(far < 1e-4, "%s, %d neighbours, layer %d head %d: scores differ by %.2e", ggml_type_name(type), smooth, h.il, h.index, far);
                    CHECK(after[i].output == all[i].output && after[i].length2 == all[i].length2, "layer %d head %d: the means have changed", h.il, h.index);
                    CHECK(std::all_of(after[i].p.begin(), after[i].p.end(), [](float x) { return x == 0; }) && std::all_of(after[i].squares.begin(), after[i].squares.end(), [](float x) { return x == 0; }),
                          "layer %d head %d: sums are left", h.il, h.index);
                    if (turn == 1) { // 5 blocks, of which two count, and 2, of which one does
                        const double were = smooth == 1 ? 108 : 27, now = smooth == 1 ? 64 : 16;
                        bool moved = false;
                        for (size_t d = 0; d < all[i].output.size(); d++) {
                            const double since = ((double) all[i].output[d] * (were + now) - (double) first[i].output[d] * were) / now;
                            moved = moved || std::abs(since - (double) first[i].output[d]) > 1e-3;
                            CHECK(std::abs(since) < 10, "layer %d head %d: a mean output of %.3f in the second turn", h.il, h.index, since);
                        }
                        CHECK(moved, "layer %d head %d: the second turn has added nothing", h.il, h.index);
                    }
                }
                first = all;
            }
        }
    }
}

// What is dropped takes its sums along, and what is summed up afterwards is of what is held: in the first layer, whose queries and rows
// do not know of the others.
void test_kept() {
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        if (software) {
            continue;
        }
        synthetic_model shape;
        shape.n_layer = 2;
        model_file m(shape);
        const pattern p = {"kept", 1, {PROMPT, PROMPT + 64}};
        moved_reference reference;
        reference.moved_to = targets(p);
        llama_context_params watched = moved_params(type);
        watched.cb_eval           = moved_reference::callback;
        watched.cb_eval_user_data = &reference;
        {
            context stock(m.stock, watched, false);
            feed(stock, [](int32_t) {});
        }
        context c(m.ours, moved_params(type), true, path);
        OK(kvasir_moved_record(c.cache, 1));
        const std::vector<head> heads = heads_of(c);
        accuracy worst;
        feed(c, [&](int32_t pos) {
            if (pos == PROMPT) {
                sum_up(c, PROMPT);
                evict_randomly(c.cache, 5, 0.3);
                for (const head & h : heads) {
                    const sums s = read(c, h);
                    CHECK(std::all_of(s.p.begin(), s.p.end(), [](float x) { return x == 0; }), "layer %d head %d: sums of slots that have other numbers now", h.il, h.index);
                }
            } else if (pos == PROMPT + 40) { // of the block that is read, too
                for (const head & h : heads) {
                    const kvasir_eviction single[] = {{h.layer, 0, h.index, *h.view.n_slots - 3}, {h.layer, 0, h.index, 11}};
                    OK(kvasir_cache_evict(c.cache, single, 2));
                }
            } else if (pos == PROMPT + 64) {
                CHECK(sum_up(c, pos) == 64, "not the queries of 64 steps");
                for (const head & h : heads) {
                    if (h.il == 0) {
                        moved_expected want;
                        want.add(reference, 0, h.index, h.held(), PROMPT, pos, 1);
                        const sums s = read(c, h);
                        CHECK(relative(want.p, s.p) < 1e-3 && relative(want.squares, s.squares) < 2e-3, "%s, head %d: p %.2e, squares %.2e", ggml_type_name(type), h.index, relative(want.p, s.p),
                              relative(want.squares, s.squares));
                    }
                }
            }
        });
    }
}

// ---- no trace ----

void drop_from(const context & c, int32_t pos) {
    llama_memory_seq_rm(llama_get_memory(c.c), 0, pos, -1);
    OK(kvasir_cache_truncate(c.cache, 0, pos));
}

kvasir_status aborted_after(const context & c, const std::vector<llama_token> & tokens, int32_t pos, int32_t calls, int32_t & result) {
    int32_t left = calls;
    llama_set_abort_callback(c.c, [](void * data) { return (*(int32_t *) data)-- <= 0; }, &left);
    llama_batch batch = llama_batch_init((int32_t) tokens.size(), 0, 1);
    for (size_t i = 0; i < tokens.size(); i++) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = pos + (int32_t) i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = 1;
    }
    batch.n_tokens = (int32_t) tokens.size();
    log_errors(false);
    const kvasir_status status = kvasir_decode(c.c, &batch, &result);
    log_errors(true);
    llama_batch_free(batch);
    llama_set_abort_callback(c.c, nullptr, nullptr);
    return status;
}

// A context beside one that never saw what failed, was taken back or was dropped.
class twins {
public:
    twins(const model_file & m, ggml_type type, int32_t stride) : one_(m.ours, params(type), true, path), other_(m.ours, params(type), true, path) {
        for (const context * c : {&one_, &other_}) {
            OK(kvasir_moved_record(c->cache, stride));
        }
    }

    context & one() { return one_; }
    int32_t   pos() const { return pos_; }

    void both(size_t n) {
        const auto tokens = random_tokens(n, (uint32_t) pos_ + 3);
        const auto a = one_.decode(tokens, pos_), b = other_.decode(tokens, pos_);
        CHECK(a == b, "other logits at position %d", pos_);
        pos_ += (int32_t) n;
    }
    void sum_both(const char * what) {
        const int32_t a = sum_up(one_, pos_), b = sum_up(other_, pos_);
        CHECK(a == b && a > 0, "%s: %d queries up to %d, beside %d", what, a, pos_, b);
        same(what);
    }
    void same(const char * what) { CHECK(read_all(one_) == read_all(other_), "%s: other sums at position %d", what, pos_); }

private:
    context one_, other_;
    int32_t pos_ = 0;

    static llama_context_params params(ggml_type type) {
        llama_context_params p = moved_params(type);
        p.n_ubatch = 32;
        return p;
    }
};

void test_no_trace() {
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        synthetic_model shape;
        shape.n_layer = 2;
        model_file m(shape);
        for (const int32_t stride : {1, 4}) {
            if (software && (stride != 1 || type == GGML_TYPE_F16)) {
                continue;
            }
            twins t(m, type, stride);
            context & c = t.one();
            int32_t   result = 0;
            if (on_cpu) { // before anything else: where the blocks begin is not said by tokens that were not read
                CHECK(aborted_after(c, random_tokens(20, 1), 5, 30, result) == KVASIR_OK && result == 2, "decode: %d, %s", result, kvasir_last_error());
                drop_from(c, 0);
            }
            t.both(100);
            t.sum_both("at first");
            t.both(40); // recorded, and not summed up
            int32_t aborted = 0;
            for (int32_t calls = 0; on_cpu && calls < 200; calls += 9) {
                CHECK(aborted_after(c, random_tokens(24, (uint32_t) calls), t.pos(), calls, result) == KVASIR_OK, "%s", kvasir_last_error());
                aborted += result == 2;
                if (result == 0) {
                    drop_from(c, t.pos());
                    break;
                }
                drop_from(c, t.pos());
                t.same("aborted");
            }
            CHECK(!on_cpu || aborted > 2, "aborted %d times only", aborted);
            t.sum_both("after micro-batches that were aborted");
            t.both(20);
            for (const int32_t n : {1, 70}) { // a step; several micro-batches
                if (software && n == 70) {
                    continue;
                }
                for (const bool summed : {false, true}) {
                    OK(kvasir_cache_mark(c.cache, 1));
                    c.decode(random_tokens((size_t) n, 77), t.pos());
                    if (summed) {
                        sum_up(c, t.pos() + n / 2);
                        sum_up(c, t.pos() + n);
                    }
                    OK(kvasir_cache_take_back(c.cache));
                    drop_from(c, t.pos());
                    t.same("taken back");
                }
            }
            if (on_cpu) { // several micro-batches, with sums between them, and the next one fails
                OK(kvasir_cache_mark(c.cache, 1));
                c.decode(random_tokens(64, 78), t.pos());
                sum_up(c, t.pos() + 64);
                CHECK(aborted_after(c, random_tokens(24, 79), t.pos() + 64, 25, result) == KVASIR_OK && result == 2, "decode: %d, %s", result, kvasir_last_error());
                OK(kvasir_cache_take_back(c.cache));
                drop_from(c, t.pos());
                t.same("taken back after a failure");
            }
            t.both(10);
            t.sum_both("after what was taken back");
            OK(kvasir_cache_mark(c.cache, 1)); // a mark that ends keeps what came after it
            t.both(30);
            t.sum_both("behind a mark");
            t.both(7);
            OK(kvasir_cache_mark(c.cache, 0));
            t.sum_both("after a mark");
            t.both(30);
            c.decode(random_tokens(40, 80), t.pos()); // dropped before they are summed up
            drop_from(c, t.pos());
            t.both(40);
            t.sum_both("after tokens that were dropped");
            for (int i = 0; i < 9; i++) {
                t.both(1);
            }
            t.sum_both("steps");
        }
    }
}

// Tokens that are dropped while no head of a layer holds them any more are read again, and counted once.
void test_dropped_unheld() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    context    c(m.ours, moved_params(), true, path);
    OK(kvasir_moved_record(c.cache, 1));
    c.decode(random_tokens(100, 1), 0);
    for (const head & h : heads_of(c)) {
        std::vector<int32_t> slots(50);
        std::iota(slots.begin(), slots.end(), 0);
        OK(kvasir_cache_keep(c.cache, h.layer, 0, h.index, slots.data(), 50));
    }
    drop_from(c, 70);
    c.decode(random_tokens(30, 2), 70);
    CHECK(sum_up(c, 100) == 100, "not 100 queries");
}

// ---- memory ----

void test_limit() {
    synthetic_model shape;
    shape.n_layer = 2;
    model_file m(shape);
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        if (software && type == GGML_TYPE_F16) {
            continue;
        }
        twins     t(m, type, 1);
        context & c = t.one();
        const kvasir_bytes empty = bytes_of(c);
        t.both(200);
        t.sum_both("without a limit");
        t.both(60);
        const std::vector<sums> before = read_all(c);
        int32_t n = 0;
        OK(kvasir_cache_limit(c.cache, 1));
        CHECK(kvasir_moved_sum(c.cache, 0, t.pos(), 1, &n) == KVASIR_OUT_OF_MEMORY && strstr(kvasir_last_error(), "limit"), "%s", kvasir_last_error());
        CHECK(read_all(c) == before, "sums that found no room have changed");
        std::vector<float> logits;
        const auto         tokens = random_tokens(100, 9); // more than a GPU's pages have room for
        log_errors(false);
        CHECK(c.try_decode(tokens.data(), 100, t.pos(), logits) == KVASIR_OUT_OF_MEMORY, "%s", kvasir_last_error());
        log_errors(true);
        drop_from(c, t.pos());
        CHECK(read_all(c) == before, "tokens that found no room have changed the sums");
        OK(kvasir_cache_mark(c.cache, 1));
        CHECK(kvasir_moved_sum(c.cache, 1, t.pos(), 1, &n) == KVASIR_OUT_OF_MEMORY, "%s", kvasir_last_error());
        OK(kvasir_cache_take_back(c.cache));
        CHECK(read_all(c) == before, "sums that found no room at a mark have changed");
        OK(kvasir_cache_limit(c.cache, 0));
        t.sum_both("after a limit");
        t.both(3);
        OK(kvasir_cache_limit(c.cache, 1)); // there is room for these slots already, but none for a second copy of the sums
        OK(kvasir_cache_mark(c.cache, 1));
        CHECK(kvasir_moved_sum(c.cache, 0, t.pos(), 1, &n) == KVASIR_OUT_OF_MEMORY, "%s", kvasir_last_error());
        OK(kvasir_cache_take_back(c.cache));
        OK(kvasir_cache_limit(c.cache, 0));
        t.sum_both("after a limit at a mark");
        // the sums are 8 bytes a slot and query head, the record 2 bytes an element, which a GPU keeps for the next micro-batch, and what it outgrew until the next turn; all go
        const int64_t record = on_cpu ? 0 : (int64_t) t.pos() * shape.n_head * shape.head_dim * 2 * 2 * shape.n_layer;
        const int64_t held = bytes_of(c).resident_bytes;
        OK(kvasir_moved_record(c.cache, 0));
        const int64_t freed = held - bytes_of(c).resident_bytes, least = (int64_t) t.pos() * shape.n_head * 8 * shape.n_layer;
        CHECK(freed >= least && freed < 4 * least + record, "%lld bytes have gone, the sums had %lld", (long long) freed, (long long) least);
        CHECK(kvasir_moved_sum(c.cache, 0, t.pos(), 1, &n) == KVASIR_INVALID_ARGUMENT, "%s", kvasir_last_error());
        OK(kvasir_moved_record(c.cache, 1));
        t.both(20);
        llama_memory_clear(llama_get_memory(c.c), true);
        CHECK(bytes_of(c).resident_bytes == empty.resident_bytes, "%lld bytes of an empty cache, %lld at first", (long long) bytes_of(c).resident_bytes, (long long) empty.resident_bytes);
    }
}

// ---- what cannot be moved ----

// Weights behind RoPE do not let a query be turned by a rotation: that is said, and nothing is recorded.
void test_refused() {
    synthetic_model shape;
    shape.arch = "hunyuan-dense"; shape.n_layer = 2;
    model_file m(shape);
    context    c(m.ours, moved_params(), true, path), never(m.ours, moved_params(), true, path);
    CHECK(kvasir_moved_record(c.cache, 1) == KVASIR_UNSUPPORTED && strstr(kvasir_last_error(), "layer 0"), "%s", kvasir_last_error());
    const auto tokens = random_tokens(100, 1);
    CHECK(c.decode(tokens, 0) == never.decode(tokens, 0), "other logits");
    int32_t n = 0;
    CHECK(kvasir_moved_sum(c.cache, 0, 100, 1, &n) == KVASIR_INVALID_ARGUMENT, "%s", kvasir_last_error());
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: moved_test FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_MODELS DEVICE [TEST]\n");
        return 2;
    }
    folder      = argv[2];
    device_name = argv[3];
    on_cpu      = device_name == "CPU";
    const std::string only = argc > 4 ? argv[4] : "";
    load_llama(argv[1]);
    ggml_backend_dev_t device = ggml_backend_dev_by_name(device_name.c_str());
    if (!device) {
        printf("skipped: there is no device %s here\n", device_name.c_str());
        return 77; // ctest's SKIP_RETURN_CODE
    }
    software = strstr(ggml_backend_dev_description(device), "llvmpipe") != nullptr;
    n_steps  = software ? 2 : STEPS;
    CHECK(kvasir_device(device_name.c_str(), &proxy) == KVASIR_OK, "%s", kvasir_last_error());
    if (!proxy) {
        return check::finish("moved_test");
    }
    inner = on_cpu ? nullptr : device;
    const std::pair<const char *, std::function<void()>> tests[] = {{"sums", test_sums}, {"missing operations", test_missing_operations}, {"folded", test_folded}, {"kept", test_kept}, {"no trace", test_no_trace}, {"dropped unheld", test_dropped_unheld}, {"limit", test_limit}, {"refused", test_refused}};
    for (kvasir_attention wanted : {KVASIR_ATTENTION_NATIVE, KVASIR_ATTENTION_PORTABLE}) {
        if (wanted == KVASIR_ATTENTION_NATIVE && !*kvasir_kernels(device_name.c_str())) {
            continue;
        }
        path = wanted;
        printf("%s path\n", path == KVASIR_ATTENTION_NATIVE ? "native" : "portable");
        for (const auto & [name, test] : tests) {
            if (only.empty() || only == name) {
                printf("%s\n", name);
                test();
            }
        }
    }
    llama_backend_free();
    return check::finish("moved_test");
}
