// How near the attention kernels come to the machine: decode against plain reading of the same memory, prefill against a
// loop of multiply-adds in registers. What is compared runs alternately in one process; medians and ranges are printed.
//
//   kvasir_attention_bench [decode|prefill|moved|all] [--threads 2] [--repeats 15] [--slots 7900] [--dim 64] [--group 3]
//                          [--heads 3] [--layers 30] [--type f16|bf16|q8_0|q4_0] [--tokens 512] [--track] [--kernels NAME]
//
// moved: the sums of moved queries of so many tokens, every one and every fourth, over all slots; time is that of the processor, of all threads.
#include "attention/cpu/cpu_attention.h"
#include "attention/cpu/moved_sums.h"
#include "store/rows.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

using namespace kvasir;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Threads that spin between jobs, as ggml's do between nodes.
class team {
public:
    explicit team(int n) : n_(n) {
        for (int i = 1; i < n; i++) {
            threads_.emplace_back([this, i] {
                for (int seen = 0;;) {
                    while (round_.load(std::memory_order_acquire) == seen) {
                        pause();
                    }
                    seen++;
                    if (stop_) {
                        return;
                    }
                    (*job_)(i);
                    done_.fetch_add(1, std::memory_order_release);
                }
            });
        }
    }
    ~team() {
        stop_ = true;
        round_.fetch_add(1, std::memory_order_release);
        for (auto & t : threads_) {
            t.join();
        }
    }
    void run(const std::function<void(int)> & job) {
        job_ = &job;
        done_.store(0, std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
        job(0);
        while (done_.load(std::memory_order_acquire) != n_ - 1) {
            pause();
        }
    }
    int size() const { return n_; }

private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    int n_;
    std::atomic<int> round_{ 0 }, done_{ 0 };
    const std::function<void(int)> * job_ = nullptr;
    bool stop_ = false;
    std::vector<std::thread> threads_;
};

struct options {
    std::string what = "all", kernels;
    int threads = 2, repeats = 15, slots = 7900, dim = 64, group = 3, heads = 3, layers = 30, tokens = 512;
    ggml_type type = GGML_TYPE_F16;
    bool track = false;
};

const char * type_name(ggml_type t) { return t == GGML_TYPE_F16 ? "f16" : t == GGML_TYPE_BF16 ? "bf16" : t == GGML_TYPE_Q8_0 ? "q8_0" : "q4_0"; }

// median (lowest to highest)
std::string summary(std::vector<double> v, const char * unit) {
    std::sort(v.begin(), v.end());
    char text[100];
    snprintf(text, sizeof text, "%7.2f %s (%.2f to %.2f)", v[v.size() / 2], unit, v.front(), v.back());
    return text;
}

char * reserve(size_t bytes) {
    char * p = (char *) mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return p;
}

struct model {
    std::vector<head_store> heads;
    std::vector<attention_node> nodes;
    std::vector<int32_t> cells, query_pos;
    std::vector<float> q, out, score;
    std::vector<uint16_t> mask;
    char * memory = nullptr;
    size_t bytes = 0, read_bytes = 0;

    model(const options & o, int slots, int tokens, bool with_mask) {
        const row_format k = rows_format(o.type, o.dim, true), v = rows_format(o.type, o.dim, false);
        const size_t page = 4096, kb = (rows_bytes(k, slots) + page - 1) / page * page, vb = (rows_bytes(v, slots) + page - 1) / page * page;
        const int n_heads = o.heads * o.layers, n_query_heads = o.heads * o.group;
        bytes = (kb + vb) * n_heads;
        read_bytes = (rows_bytes(k, slots) + rows_bytes(v, slots)) * n_heads;
        memory = reserve(bytes);
        std::mt19937 rng(1);
        std::vector<uint16_t> noise(1 << 16);
        for (auto & x : noise) {
            x = (uint16_t) ((rng() & 1) << 15 | (10 + rng() % 6) << 10 | (rng() & 1023));
        }
        for (size_t i = 0; i < bytes; i += noise.size() * 2) {
            memcpy(memory + i, noise.data(), std::min(noise.size() * 2, bytes - i));
        }
        for (int i = 0; i < slots; i++) {
            cells.push_back(i);
        }
        score.resize((size_t) slots * n_heads);
        heads.resize(n_heads);
        for (int i = 0; i < n_heads; i++) {
            head_store & h = heads[i];
            h.k = memory + (size_t) i * (kb + vb);
            h.v = h.k + kb;
            h.n = slots;
            h.cell = h.pos = cells.data();
            h.max_cell = slots - 1;
            h.score = score.data() + (size_t) i * slots;
            h.track = o.track;
        }
        q.resize((size_t) o.dim * n_query_heads * tokens);
        out.resize(q.size());
        std::normal_distribution<float> normal;
        for (auto & x : q) {
            x = normal(rng);
        }
        for (int t = 0; t < tokens; t++) {
            query_pos.push_back(slots - tokens + t);
        }
        if (with_mask) {
            mask.resize((size_t) slots * tokens);
            for (int t = 0; t < tokens; t++) {
                for (int c = 0; c < slots; c++) {
                    mask[(size_t) t * slots + c] = c > slots - tokens + t ? 0xfc00 : 0;
                }
            }
        }
        for (int l = 0; l < o.layers; l++) {
            attention_node n;
            n.k = k;
            n.v = v;
            n.heads = heads.data() + l * o.heads;
            n.n_head_kv = o.heads;
            n.n_head = n_query_heads;
            n.n_tokens = tokens;
            n.q = (const char *) q.data();
            n.q_nb[2] = (size_t) o.dim * 4;
            n.q_nb[1] = n.q_nb[2] * n_query_heads;
            n.out = (char *) out.data();
            n.out_nb[1] = (size_t) o.dim * 4;
            n.out_nb[2] = n.out_nb[1] * n_query_heads;
            n.scale = 1 / std::sqrt((float) o.dim);
            n.query_pos = query_pos.data();
            if (with_mask) {
                n.mask = (const char *) mask.data();
                n.mask_nb[1] = (size_t) slots * 2;
                n.mask_n_kv = slots;
            }
            nodes.push_back(n);
        }
    }
    ~model() { munmap(memory, bytes); }
};

volatile uint64_t sink;

// reads every cache line once; each thread its own half of every node's memory
void read_all(team & t, const char * memory, size_t bytes) {
    t.run([&](int i) {
        typedef uint64_t v8 __attribute__((vector_size(64), aligned(64)));
        const size_t share = bytes / t.size() / 256 * 256;
        const char * p = memory + share * i;
        v8 a{}, b{}, c{}, d{};
        for (size_t at = 0; at < share; at += 256) {
            const v8 * x = (const v8 *) (p + at);
            a ^= x[0];
            b ^= x[1];
            c ^= x[2];
            d ^= x[3];
        }
        a ^= b ^ c ^ d;
        sink = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    });
}

void decode(const options & o, team & t) {
    model m(o, o.slots, 1, false);
    std::vector<cpu_attention> attention(o.layers);
    cpu_workspace workspace;
    std::vector<double> read, kernel, ratio;
    for (int r = -2; r < o.repeats; r++) {
        double t0 = seconds();
        read_all(t, m.memory, m.bytes);
        const double read_rate = (double) m.bytes / (seconds() - t0) / 1e9;
        t0 = seconds();
        for (int l = 0; l < o.layers; l++) {
            attention[l].plan(m.nodes[l], t.size(), workspace);
        }
        for (int l = 0; l < o.layers; l++) {
            t.run([&](int i) { attention[l].run(i, t.size()); });
        }
        const double kernel_rate = (double) m.read_bytes / (seconds() - t0) / 1e9;
        if (r >= 0) {
            read.push_back(read_rate);
            kernel.push_back(kernel_rate);
            ratio.push_back(100 * kernel_rate / read_rate);
        }
    }
    printf("decode, %s, %d threads, %s, head dim %d, group %d, %d heads x %d slots%s: %.0f MB\n", cpu_kernels_name(), o.threads,
        type_name(o.type), o.dim, o.group, o.heads * o.layers, o.slots, o.track ? ", scores tracked" : "", m.read_bytes / 1e6);
    printf("  plain read  %s\n  decode      %s\n  ratio       %s\n", summary(read, "GB/s").c_str(), summary(kernel, "GB/s").c_str(), summary(ratio, "%").c_str());
}

} // namespace

// 12 independent chains of multiply-adds in registers, one function for every width of vectors
#if defined(__x86_64__)
#define PEAK_TARGET(isa) __attribute__((target(isa), noinline))
#else
#define PEAK_TARGET(isa) __attribute__((noinline))
#endif
#define PEAK(bytes, isa)                                               \
    PEAK_TARGET(isa) static double peak_##bytes(int64_t n, float x) {  \
        typedef float v __attribute__((vector_size(bytes)));           \
        v a[12], f = v{} + x;                                          \
        for (int i = 0; i < 12; i++) {                                 \
            a[i] = v{} + (float) i;                                    \
        }                                                              \
        for (int64_t k = 0; k < n; k++) {                              \
            for (int i = 0; i < 12; i++) {                             \
                a[i] = a[i] * f + f;                                   \
            }                                                          \
        }                                                              \
        for (int i = 1; i < 12; i++) {                                 \
            a[0] += a[i];                                              \
        }                                                              \
        sink = (uint64_t) a[0][0];                                     \
        return 12.0 * 2 * (bytes / 4) * (double) n;                    \
    }
PEAK(16, "sse2")
#if defined(__x86_64__)
PEAK(64, "avx512f,fma")
PEAK(32, "avx2,fma")
#endif

static double peak(int64_t n) {
#if defined(__x86_64__)
    const std::string k = cpu_kernels_name();
    if (k != "baseline") {
        return k == "avx512" ? peak_64(n, 0.5f) : peak_32(n, 0.5f);
    }
#endif
    return peak_16(n, 0.5f);
}

namespace {

void prefill(const options & o, team & t, bool with_statistic) {
    options one = o;
    one.layers = 4;
    model m(one, o.slots, o.tokens, true);
    std::vector<cpu_attention> attention(one.layers);
    cpu_workspace workspace;
    const std::vector<int32_t> bounds = { 1, 16, 32, 64, o.slots / 20, o.slots / 10, o.slots / 5, 3 * o.slots / 10, 2 * o.slots / 5, o.slots / 2 };
    std::vector<float> sums(m.heads.size() * (bounds.size() + 2) * o.slots);
    statistic st;
    st.bounds = bounds.data();
    st.n_bounds = (int32_t) bounds.size();
    st.recent_from = o.slots - 64;
    st.capacity = o.slots;
    for (size_t i = 0; i < m.heads.size(); i++) {
        m.heads[i].buckets = sums.data() + i * (bounds.size() + 2) * o.slots;
        m.heads[i].recent = m.heads[i].buckets + (bounds.size() + 1) * o.slots;
    }
    // two products of visible (query, key) pairs
    double pairs = 0;
    for (int i = 0; i < o.tokens; i++) {
        pairs += o.slots - o.tokens + i + 1;
    }
    const double flops = pairs * o.dim * 4 * o.group * o.heads * one.layers;
    std::vector<double> top, rate, ratio, counted, extra;
    for (int r = -1; r < o.repeats; r++) {
        double t0 = seconds();
        std::atomic<int64_t> work{ 0 };
        t.run([&](int) { work += (int64_t) peak(1 << 21); });
        const double peak_rate = (double) work / (seconds() - t0) / 1e9;
        double spent[2] = {};
        for (int pass = 0; pass < (with_statistic ? 2 : 1); pass++) {
            t0 = seconds();
            for (int l = 0; l < one.layers; l++) {
                m.nodes[l].stat = pass ? &st : nullptr;
                attention[l].plan(m.nodes[l], t.size(), workspace);
            }
            for (int l = 0; l < one.layers; l++) {
                t.run([&](int i) { attention[l].run(i, t.size()); });
            }
            spent[pass] = seconds() - t0;
        }
        if (r >= 0) {
            top.push_back(peak_rate);
            rate.push_back(flops / spent[0] / 1e9);
            ratio.push_back(100 * rate.back() / peak_rate);
            counted.push_back(flops / spent[1] / 1e9);
            extra.push_back(100 * (spent[1] / spent[0] - 1));
        }
    }
    printf("prefill, %s, %d threads, head dim %d, group %d, %d KV heads, last %d of %d tokens, causal%s\n", cpu_kernels_name(), o.threads, o.dim, o.group, o.heads, o.tokens, o.slots, o.track ? ", scores tracked" : "");
    printf("  multiply-adds  %s\n  prefill        %s\n  ratio          %s\n", summary(top, "GFLOP/s").c_str(), summary(rate, "GFLOP/s").c_str(), summary(ratio, "%").c_str());
    if (with_statistic) {
        printf("  with statistic %s, %s more time\n", summary(counted, "GFLOP/s").c_str(), summary(extra, "%").c_str());
    }
}

double processor_seconds() { return (double) clock() / CLOCKS_PER_SEC; }

void moved(const options & o) {
    options one = o;
    one.layers = 4;
    model m(one, o.slots, 1, false);
    const int n_head = o.heads * o.group;
    const size_t dim = (size_t) o.dim, slots = (size_t) o.slots;
    rotation turned;
    turned.halves = true;
    for (int i = 0; i < o.dim / 2; i++) {
        turned.omega.push_back(std::pow(10000.0, -2.0 * i / o.dim));
    }
    turned.hadamard = o.type == GGML_TYPE_Q8_0 || o.type == GGML_TYPE_Q4_0 ? 64 : 0;
    std::vector<uint16_t> queries((size_t) (o.tokens * n_head) * dim);
    std::mt19937 rng(2);
    for (auto & x : queries) {
        x = (uint16_t) ((rng() & 1) << 15 | (10 + rng() % 6) << 10 | (rng() & 1023));
    }
    std::vector<float> p((size_t) n_head * slots), squares(p.size()), scores(slots * (size_t) o.heads), mean(dim * (size_t) n_head), weights((size_t) n_head, 1.0f);
    std::vector<double> output(dim * (size_t) n_head), length2((size_t) n_head);
    std::vector<float *> p_of, squares_of;
    std::vector<size_t> capacity((size_t) o.heads, slots);
    for (int i = 0; i < o.heads; i++) {
        p_of.push_back(p.data() + (size_t) (i * o.group) * slots);
        squares_of.push_back(squares.data() + (size_t) (i * o.group) * slots);
    }
    const std::vector<const float *> to_fold(squares_of.begin(), squares_of.end());
    std::vector<double> top, rate[2], spent[2], losses;
    for (int r = -1; r < o.repeats; r++) {
        double t0 = processor_seconds();
        const double peak_rate = peak(1 << 21) / (processor_seconds() - t0) / 1e9;
        if (r >= 0) {
            top.push_back(peak_rate);
        }
        for (int kind = 0; kind < 2; kind++) {
            const int stride = kind ? 4 : 1;
            moved_sums_node node;
            std::vector<int32_t> pos;
            for (int b = 0; b * moved_block_tokens < o.tokens; b++) {
                node.blocks.push_back({ o.slots - o.tokens + b * moved_block_tokens, (int32_t) pos.size(), 0, b % 4 == 0 });
                for (int i = b * moved_block_tokens; i < std::min(o.tokens, (b + 1) * moved_block_tokens); i += stride) {
                    pos.push_back(o.slots - o.tokens + i);
                    node.blocks.back().n++;
                }
            }
            node.k = m.nodes[0].k;
            node.v = m.nodes[0].v;
            node.n_head_kv = o.heads;
            node.n_head = n_head;
            node.queries = queries.data();
            node.pos = pos.data();
            node.end = o.slots;
            node.turned = &turned;
            node.scale = 1 / std::sqrt((float) o.dim);
            node.p = p_of.data();
            node.squares = squares_of.data();
            node.capacity = capacity.data();
            node.output = output.data();
            node.length2 = length2.data();
            t0 = processor_seconds();
            for (int l = 0; l < one.layers; l++) {
                node.heads = m.nodes[(size_t) l].heads;
                moved_sums(node, o.threads);
            }
            const double took = processor_seconds() - t0;
            // one product of all pairs, and of every fourth block's a second one
            double products = 0;
            for (const moved_block & b : node.blocks) {
                products += (double) b.n * o.slots * (b.outputs ? 2 : 1);
            }
            if (r >= 0) {
                rate[kind].push_back(100 * products * o.dim * 2 * n_head * one.layers / took / 1e9 / peak_rate);
                spent[kind].push_back(1e3 * took / one.layers);
            }
        }
        t0 = processor_seconds();
        moved_losses_node node;
        node.v = m.nodes[0].v;
        node.n_head_kv = o.heads;
        node.group = o.group;
        node.squares = to_fold.data();
        node.capacity = capacity.data();
        node.output = mean.data();
        node.weights = weights.data();
        for (int l = 0; l < one.layers; l++) {
            node.heads = m.nodes[(size_t) l].heads;
            moved_losses(node, o.threads);
        }
        if (r >= 0) {
            losses.push_back(1e3 * (processor_seconds() - t0) / one.layers);
        }
    }
    printf("moved queries, %s, %d threads, %s, head dim %d, group %d, %d KV heads, %d tokens, %d slots; processor time of a layer\n", cpu_kernels_name(), o.threads, type_name(o.type), o.dim, o.group,
        o.heads, o.tokens, o.slots);
    printf("  multiply-adds of a core  %s\n", summary(top, "GFLOP/s").c_str());
    for (int kind = 0; kind < 2; kind++) {
        printf("  every %-18s %s, %s of multiply-adds\n", kind ? "fourth query" : "query", summary(spent[kind], "ms").c_str(), summary(rate[kind], "%").c_str());
    }
    printf("  losses                   %s\n", summary(losses, "ms").c_str());
}

} // namespace

int main(int argc, char ** argv) {
    options o;
    for (int i = 1; i < argc; i++) {
        const std::string a = argv[i];
        const auto number = [&] {
            if (i + 1 == argc) {
                fprintf(stderr, "%s needs a number\n", a.c_str());
                exit(2);
            }
            return atoi(argv[++i]);
        };
        if (a == "--threads") { o.threads = number(); }
        else if (a == "--repeats") { o.repeats = number(); }
        else if (a == "--slots") { o.slots = number(); }
        else if (a == "--dim") { o.dim = number(); }
        else if (a == "--group") { o.group = number(); }
        else if (a == "--heads") { o.heads = number(); }
        else if (a == "--layers") { o.layers = number(); }
        else if (a == "--tokens") { o.tokens = number(); }
        else if (a == "--track") { o.track = true; }
        else if (a == "--kernels" && i + 1 < argc) { o.kernels = argv[++i]; }
        else if (a == "--type" && i + 1 < argc) {
            const std::string t = argv[++i];
            o.type = t == "bf16" ? GGML_TYPE_BF16 : t == "q8_0" ? GGML_TYPE_Q8_0 : t == "q4_0" ? GGML_TYPE_Q4_0 : GGML_TYPE_F16;
        } else if (a == "decode" || a == "prefill" || a == "moved" || a == "all") {
            o.what = a;
        } else {
            fprintf(stderr, "unknown argument %s\n", a.c_str());
            return 2;
        }
    }
    if (!o.kernels.empty() && !cpu_kernels_select(o.kernels.c_str())) {
        fprintf(stderr, "no kernels %s on this machine\n", o.kernels.c_str());
        return 2;
    }
    if (o.what == "decode" || o.what == "prefill" || o.what == "all") {
        team t(o.threads);
        if (o.what != "prefill") {
            decode(o, t);
        }
        if (o.what != "decode") {
            prefill(o, t, true);
        }
    }
    if (o.what == "moved" || o.what == "all") {
        moved(o);
    }
    return 0;
}
