// The attention kernels against a reference in double precision, written from the definition and from
// ggml_compute_forward_flash_attn_ext (mask, ALiBi, soft-cap, sinks).
#include "support.h"

#include <algorithm>
#include <map>
#include <thread>

namespace kvasir_test {

namespace {

enum mask_kind { mask_none, mask_causal, mask_random, mask_alibi };

struct shape {
    ggml_type type_k = GGML_TYPE_F16, type_v = GGML_TYPE_F16;
    bool      tiled = true;
    int32_t   dk = 64, dv = 64, group = 3, heads = 1, streams = 1, tokens = 1;
    int32_t   slots = 64;          // of the first head; the others differ
    mask_kind mask = mask_causal;
    bool      mask_per_head = false, holes = false, shuffled = false, sinks = false, open = false;
    float     softcap = 0;
    bool      latent = false;      // V is the first dv elements of K's rows (MLA)
    bool      track = false, statistic = false, statistic_per_head = false;
    int32_t   threads = 2;
};

std::string describe(const shape & s) {
    char text[400];
    snprintf(text, sizeof text, "%s %s/%s tiled=%d dk=%d dv=%d group=%d heads=%d streams=%d tokens=%d slots=%d mask=%d per_head=%d holes=%d shuffled=%d sinks=%d open=%d softcap=%g track=%d stat=%d/%d latent=%d threads=%d",
        cpu_kernels_name(), type_name(s.type_k), type_name(s.type_v), s.tiled, s.dk, s.dv, s.group, s.heads, s.streams, s.tokens, s.slots, s.mask,
        s.mask_per_head, s.holes, s.shuffled, s.sinks, s.open, s.softcap, s.track, s.statistic, s.statistic_per_head, s.latent, s.threads);
    return text;
}

constexpr double eps = 0x1p-24;
constexpr double negligible = 0x1p-40; // the kernels may drop weights below this share of the largest

// worst error relative to the tolerance, over all cases of an instruction set
double worst;

struct problem {
    shape s;
    attention_node node;
    statistic stat;
    std::vector<head_store> heads;
    std::vector<std::vector<char>> k_rows, v_rows; // ggml's layout, for the reference
    std::vector<guarded> memory;
    std::vector<int32_t> query_pos, bounds;
    int32_t n_kv = 0;

    template <class T> T * take(size_t n, std::mt19937_64 & rng) {
        memory.emplace_back(n * sizeof(T), rng() % 4 != 0, alignof(T));
        return memory.back().as<T>();
    }

    problem(const shape & shape_, std::mt19937_64 & rng) : s(shape_) {
        const int32_t n_heads = s.heads * s.streams, n_query_heads = s.heads * s.group;
        std::normal_distribution<float> normal;
        node.k = rows_format(s.type_k, s.dk, s.tiled);
        node.v = rows_format(s.type_v, s.dv, false);
        if (s.latent) {
            node.v = rows_part(node.k, s.dv);
        }
        node.n_stream = s.streams;
        node.n_head_kv = s.heads;
        node.n_head = n_query_heads;
        node.n_tokens = s.tokens;
        node.scale = 1.0f / std::sqrt((float) s.dk);
        node.softcap = s.softcap;
        heads.resize(n_heads);
        int32_t most = 0;
        std::vector<int32_t> count(n_heads);
        for (int32_t i = 0; i < n_heads; i++) {
            count[i] = i == 0 ? s.slots : (int32_t) (rng() % (uint64_t) (s.slots + 20));
            most = std::max(most, count[i]);
        }
        n_kv = (s.holes ? most * 3 : most) + s.tokens + 3;
        for (int32_t i = 0; i < n_heads; i++) {
            head_store & h = heads[i];
            const int32_t n = h.n = count[i];
            k_rows.emplace_back((size_t) n * node.k.row_bytes);
            v_rows.emplace_back((size_t) n * own_bytes(node.v));
            h.k = take<char>(rows_bytes(node.k, n), rng);
            h.v = s.latent ? h.k : take<char>(rows_bytes(node.v, n), rng);
            memset(h.k, 0xff, rows_bytes(node.k, n)); // NaN behind the last slot of a tile
            h.cell = take<int32_t>(n, rng);
            h.pos = take<int32_t>(n, rng);
            std::vector<int32_t> cells(n_kv);
            for (int32_t c = 0; c < n_kv; c++) {
                cells[c] = c;
            }
            if (s.holes) {
                std::shuffle(cells.begin(), cells.end(), rng);
                std::sort(cells.begin(), cells.begin() + n);
                if (n > 0 && !s.open && rng() % 2) {
                    cells[n - 1] = n_kv + 5; // a stale slot, beyond the graph's mask
                }
            }
            if (s.shuffled) {
                std::shuffle(cells.begin(), cells.begin() + n, rng);
                h.ascending = false;
            }
            h.max_cell = -1;
            for (int32_t j = 0; j < n; j++) {
                h.cell[j] = h.pos[j] = cells[j];
                h.max_cell = std::max(h.max_cell, cells[j]);
                random_row(s.type_k, s.dk, k_rows[i].data() + j * node.k.row_bytes, rng);
                rows_set(node.k, h.k, j, k_rows[i].data() + j * node.k.row_bytes);
                if (!s.latent) {
                    random_row(s.type_v, s.dv, v_rows[i].data() + j * node.v.row_bytes, rng);
                    rows_set(node.v, h.v, j, v_rows[i].data() + j * node.v.row_bytes);
                }
            }
        }
        if (s.latent) {
            v_rows = k_rows;
        }
        node.heads = heads.data();

        // llama.cpp's layout of Q: [dk, head, token, stream], permuted
        float * q = take<float>((size_t) s.dk * n_query_heads * s.tokens * s.streams, rng);
        for (size_t i = 0; i < (size_t) s.dk * n_query_heads * s.tokens * s.streams; i++) {
            q[i] = normal(rng) * 1.5f;
        }
        node.q = (const char *) q;
        node.q_nb[2] = (size_t) s.dk * 4;
        node.q_nb[1] = node.q_nb[2] * n_query_heads;
        node.q_nb[3] = node.q_nb[1] * s.tokens;
        float * out = take<float>((size_t) s.dv * n_query_heads * s.tokens * s.streams, rng);
        node.out = (char *) out;
        node.out_nb[1] = (size_t) s.dv * 4;
        node.out_nb[2] = node.out_nb[1] * n_query_heads;
        node.out_nb[3] = node.out_nb[2] * s.tokens;

        const int32_t first = s.tokens >= most ? 0 : std::min(n_kv - s.tokens, most - s.tokens + (int32_t) (rng() % 3));
        for (int32_t i = 0; i < s.streams * s.tokens; i++) {
            query_pos.push_back(first + i % s.tokens);
        }
        node.query_pos = query_pos.data();

        node.mask_n_kv = n_kv;
        if (s.mask != mask_none) {
            node.mask_n_head = s.mask_per_head ? n_query_heads : 1;
            node.mask_n_stream = s.streams;
            uint16_t * m = take<uint16_t>((size_t) n_kv * s.tokens * node.mask_n_head * s.streams, rng);
            node.mask = (const char *) m;
            node.mask_nb[1] = (size_t) n_kv * 2;
            node.mask_nb[2] = node.mask_nb[1] * s.tokens;
            node.mask_nb[3] = node.mask_nb[2] * node.mask_n_head;
            const uint16_t finite[] = { 0, 0, 0x8000, 0x3c00, 0xbc00, 0xc500, 0x0001 };
            for (int32_t st = 0; st < s.streams; st++) {
                for (int32_t h = 0; h < node.mask_n_head; h++) {
                    const bool dead = s.mask == mask_random && rng() % 8 == 0; // every key of this head is masked
                    for (int32_t t = 0; t < s.tokens; t++) {
                        const int32_t p = query_pos[st * s.tokens + t];
                        for (int32_t c = 0; c < n_kv; c++, m++) {
                            *m = c > p && !s.open ? 0xfc00 : 0;
                            if (s.mask == mask_random) {
                                *m = dead || rng() % 3 == 0 ? 0xfc00 : finite[rng() % 7];
                            } else if (s.mask == mask_alibi && c <= p) {
                                *m = to_half((float) (c - p));
                            }
                        }
                    }
                }
            }
            if (s.mask == mask_alibi) {
                node.max_bias = 8.0f;
            }
            if (s.open) {
                node.mask_open = n_kv;
            }
        }
        if (s.sinks) {
            float * z = take<float>(n_query_heads, rng);
            for (int32_t i = 0; i < n_query_heads; i++) {
                z[i] = normal(rng) * 3;
            }
            node.sinks = z;
        }
        if (s.statistic) {
            bounds = { 1, 2 + (int32_t) (rng() % 6), 16, 33, 100 };
            stat.bounds = bounds.data();
            stat.n_bounds = (int32_t) bounds.size();
            stat.recent_from = rng() % 4 ? query_pos[s.tokens - 1] - (int32_t) (rng() % 70) : -1;
            stat.rows = s.statistic_per_head ? s.group : 1;
            stat.capacity = most + rng() % 5;
            node.stat = &stat;
        }
        for (head_store & h : heads) {
            h.track = s.track && rng() % 4 != 0;
            h.score = take<float>(h.n, rng);
            for (int32_t j = 0; j < h.n; j++) {
                h.score[j] = (float) (j % 5) / 4;
            }
            if (s.statistic) {
                const size_t n = (size_t) stat.rows * (bounds.size() + 1) * stat.capacity;
                h.buckets = take<float>(n, rng);
                std::fill(h.buckets, h.buckets + n, 0.5f);
                h.recent = take<float>(stat.rows * stat.capacity, rng);
                std::fill(h.recent, h.recent + stat.rows * stat.capacity, 0.5f);
            }
        }
    }

    static uint16_t to_half(float x) {
        uint16_t h;
        const row_format f = rows_format(GGML_TYPE_F16, 1, false);
        rows_write(f, (char *) &h, 0, &x);
        return h;
    }

    void run(cpu_attention & a, cpu_workspace & w) {
        float * out = (float *) node.out;
        std::fill(out, out + (size_t) s.dv * node.n_head * s.tokens * s.streams, NAN);
        a.plan(node, s.threads, w);
        std::vector<std::thread> threads;
        for (int i = 1; i < s.threads; i++) {
            threads.emplace_back([&, i] { a.run(i, s.threads); });
        }
        a.run(0, s.threads);
        for (auto & t : threads) {
            t.join();
        }
    }

    void check() {
        std::vector<double> weight, kd, vd;
        for (int32_t st = 0; st < s.streams; st++) {
            for (int32_t hk = 0; hk < s.heads; hk++) {
                check_head(st, hk, weight, kd, vd);
            }
        }
    }

    void check_head(int32_t st, int32_t hk, std::vector<double> & w, std::vector<double> & kd, std::vector<double> & vd) {
        const head_store & h = heads[st * s.heads + hk];
        const int32_t n = h.n, n_buckets = (int32_t) bounds.size() + 1, rows = s.statistic ? stat.rows : 1;
        kd.resize((size_t) n * s.dk);
        vd.resize((size_t) n * s.dv);
        for (int32_t j = 0; j < n; j++) {
            for (int32_t d = 0; d < s.dk; d++) {
                kd[(size_t) j * s.dk + d] = row_value(s.type_k, k_rows[st * s.heads + hk].data() + j * node.k.row_bytes, d);
            }
            for (int32_t d = 0; d < s.dv; d++) {
                vd[(size_t) j * s.dv + d] = row_value(s.latent ? s.type_k : s.type_v, v_rows[st * s.heads + hk].data() + j * node.v.row_bytes, d);
            }
        }
        std::vector<double> score(n), score_tol(n), bucket((size_t) rows * n_buckets * n), recent((size_t) rows * n), column_tol(n);
        for (int32_t t = 0; t < s.tokens; t++) {
            for (int32_t g = 0; g < s.group; g++) {
                const int32_t hq = hk * s.group + g;
                const float * q = (const float *) (node.q + t * node.q_nb[1] + hq * node.q_nb[2] + st * node.q_nb[3]);
                const char * m = node.mask ? node.mask + t * node.mask_nb[1] + (hq % node.mask_n_head) * node.mask_nb[2] + (st % node.mask_n_stream) * node.mask_nb[3] : nullptr;
                double slope = 1;
                if (node.max_bias > 0) {
                    const int l2 = 1 << (int) std::floor(std::log2(node.n_head));
                    slope = hq < l2 ? std::pow(2.0, -(double) node.max_bias / l2 * (hq + 1)) : std::pow(2.0, -(double) node.max_bias / 2 / l2 * (2*(hq - l2) + 1));
                }
                w.assign(n, -INFINITY);
                double top = node.sinks ? node.sinks[hq] : -INFINITY, delta = 0;
                for (int32_t j = 0; j < n; j++) {
                    double x = 0, mass = 0, mv = 0;
                    for (int32_t d = 0; d < s.dk; d++) {
                        const double p = (double) q[d] * kd[(size_t) j * s.dk + d];
                        x += p;
                        mass += std::fabs(p);
                    }
                    x *= node.scale;
                    if (s.softcap != 0) {
                        x = s.softcap * std::tanh(x / s.softcap);
                    }
                    if (m) {
                        uint16_t hv = 0xfc00;
                        if (h.cell[j] < n_kv) {
                            memcpy(&hv, m + (size_t) h.cell[j] * 2, 2);
                        }
                        mv = half_value(hv);
                    }
                    if (mv == -INFINITY) {
                        continue;
                    }
                    x += slope * mv;
                    w[j] = x;
                    top = std::max(top, x);
                    // Error of a score: the rounding errors of a sum of dk terms grow like sqrt(dk), each is relative to the
                    // mass summed; scale, mask and the change to base 2 add a few roundings of the score itself; tanh through
                    // 2^x is good to 2e-7 of the cap.
                    delta = std::max(delta, eps * (mass * node.scale * (std::sqrt((double) s.dk) + 4) + 6 * (std::fabs(x) + std::fabs(slope * mv))) + 2e-7 * s.softcap);
                }
                double z = node.sinks ? std::exp(node.sinks[hq] - top) : 0;
                for (int32_t j = 0; j < n; j++) {
                    w[j] = w[j] == -INFINITY ? 0 : std::exp(w[j] - top);
                    z += w[j];
                }
                for (int32_t j = 0; j < n && z > 0; j++) {
                    w[j] /= z;
                }
                // a weight is off by the error of two scores and of 2^x (a few roundings); the weighted sum of n rows adds sqrt(n)
                const double relative = 2 * delta + eps * (std::sqrt((double) n) + 12);
                const float * out = (const float *) (node.out + hq * node.out_nb[1] + t * node.out_nb[2] + st * node.out_nb[3]);
                for (int32_t d = 0; d < s.dv; d++) {
                    double x = 0, mass = 0, largest = 0;
                    for (int32_t j = 0; j < n; j++) {
                        largest = std::max(largest, std::fabs(vd[(size_t) j * s.dv + d]));
                        x += w[j] * vd[(size_t) j * s.dv + d];
                        mass += w[j] * std::fabs(vd[(size_t) j * s.dv + d]);
                    }
                    const double tolerance = relative * mass + n * negligible * largest, error = std::fabs(out[d] - x);
                    worst = std::max(worst, error / tolerance);
                    CHECK(error <= tolerance, "%s\n  stream %d head %d token %d d %d: %.9g, expected %.9g +- %.2g", describe(s).c_str(), st, hq, t, d, out[d], x, tolerance);
                }
                const int32_t row = rows > 1 ? g : 0;
                const double share = rows > 1 ? 1.0 : 1.0 / s.group;
                for (int32_t j = 0; j < n; j++) {
                    score[j] += w[j] / s.group;
                    column_tol[j] += w[j] * (relative + eps * (s.tokens + 8));
                    if (s.statistic && w[j] > 0) {
                        const int32_t distance = query_pos[st * s.tokens + t] - h.pos[j];
                        const int32_t b = (int32_t) (std::upper_bound(bounds.begin(), bounds.end(), distance) - bounds.begin());
                        bucket[((size_t) row * n_buckets + b) * n + j] += w[j] * share;
                        if (stat.recent_from >= 0 && query_pos[st * s.tokens + t] >= stat.recent_from) {
                            recent[(size_t) row * n + j] += w[j] * share;
                        }
                    }
                }
            }
        }
        const auto close = [&](const char * what, int32_t j, double got, double expected) {
            // every addition to a sum rounds it
            const double tolerance = column_tol[j] + eps * std::fabs(expected) * (s.tokens + 4) + negligible * s.tokens;
            worst = std::max(worst, std::fabs(got - expected) / tolerance);
            CHECK(std::fabs(got - expected) <= tolerance, "%s\n  stream %d head %d %s of slot %d: %.9g, expected %.9g +- %.2g", describe(s).c_str(), st, hk, what, j, got, expected, tolerance);
        };
        for (int32_t j = 0; j < n; j++) {
            close("score", j, h.score[j], j % 5 / 4.0 + (h.track && !s.statistic ? score[j] : 0));
            for (int32_t r = 0; s.statistic && r < rows; r++) {
                for (int32_t b = 0; b < n_buckets; b++) {
                    close("bucket", j, h.buckets[((size_t) r * n_buckets + b) * stat.capacity + j], 0.5 + bucket[((size_t) r * n_buckets + b) * n + j]);
                }
                close("recent", j, h.recent[(size_t) r * stat.capacity + j], 0.5 + recent[(size_t) r * n + j]);
            }
        }
        if (s.statistic) { // nothing is written behind the last slot
            for (int32_t r = 0; r < rows * n_buckets; r++) {
                for (size_t j = n; j < stat.capacity; j++) {
                    CHECK(h.buckets[r * stat.capacity + j] == 0.5f, "%s bucket %d slot %zu", describe(s).c_str(), r, j);
                }
            }
        }
    }
};

cpu_attention attention;
cpu_workspace workspace;
int           n_cases;

void one(const shape & s, std::mt19937_64 & rng) {
    problem p(s, rng);
    p.run(attention, workspace);
    p.check();
    n_cases++;
}

struct head_dims { int32_t k, v; };
constexpr head_dims dims[] = {
    { 64, 64 }, { 128, 128 }, { 40, 40 }, { 72, 72 }, { 80, 80 }, { 96, 96 }, { 112, 112 }, { 192, 128 }, { 192, 192 }, { 256, 256 }, { 320, 256 }, { 512, 512 }, { 576, 512 }, { 20, 36 },
};

bool fits(ggml_type t, int32_t dim) { return rows_supports(t, dim); }

// V is the first elements of K's rows: of every type, at every kind of tail
void latent(std::mt19937_64 & rng, int32_t tokens) {
    const head_dims shapes[] = { { 576, 512 }, { 320, 256 }, { 96, 64 }, { 64, 64 }, { 72, 40 }, { 31, 9 } };
    for (ggml_type type : all_types) {
        for (const head_dims & d : shapes) {
            if (!fits(type, d.k) || !fits(type, d.v)) {
                continue;
            }
            shape s;
            s.type_k = s.type_v = type;
            s.tiled = false;
            s.latent = true;
            s.dk = d.k;
            s.dv = d.v;
            s.tokens = tokens;
            s.group = 16;
            s.slots = 90;
            one(s, rng);
            s.group = 1 + (int32_t) (rng() % 20);
            s.slots = (int32_t) (rng() % 300);
            s.heads = 1 + (int32_t) (rng() % 2);
            s.streams = 1 + (int32_t) (rng() % 2);
            s.holes = rng() % 2;
            s.shuffled = rng() % 2;
            s.track = true;
            s.statistic = rng() % 2;
            one(s, rng);
        }
    }
    for (int32_t n = 1; n <= (quick ? 9 : 70); n++) { // every tail
        shape s;
        s.type_k = s.type_v = all_types[n % 7];
        s.tiled = false;
        s.latent = true;
        s.dk = 96;
        s.dv = 64;
        s.group = 5;
        s.tokens = tokens;
        s.slots = n;
        one(s, rng);
    }
}

template <class F> void for_instruction_sets(const char * part, F && f) {
    for (const std::string & name : instruction_sets()) {
        cpu_kernels_select(name.c_str());
        std::mt19937_64 rng(seed);
        worst = 0;
        n_cases = 0;
        f(rng);
        printf("%-9s %-9s %5d cases, worst error %.3f of the tolerance\n", part, name.c_str(), n_cases, worst);
    }
}

} // namespace

void test_decode() {
    for_instruction_sets("decode", [](std::mt19937_64 & rng) {
        // every tail length
        for (int32_t n = 0; n <= 130; n += quick ? 7 : 1) {
            shape s;
            s.slots = n;
            s.threads = 1 + n % 3;
            one(s, rng);
            s.type_k = all_types[n % 7];
            s.type_v = all_types[n / 7 % 7];
            one(s, rng);
        }
        // every head dim, group size and pair of types
        for (const head_dims & d : dims) {
            for (int32_t group : { 1, 2, 3, 4, 5, 7, 8 }) {
                for (ggml_type k : all_types) {
                    for (ggml_type v : all_types) {
                        if (!fits(k, d.k) || !fits(v, d.v) || rng() % (quick ? 41 : 5) != 0) {
                            continue;
                        }
                        shape s;
                        s.type_k = k;
                        s.type_v = v;
                        s.dk = d.k;
                        s.dv = d.v;
                        s.group = group;
                        s.slots = (int32_t) (rng() % 130);
                        s.tiled = rng() % 4 != 0;
                        one(s, rng);
                    }
                }
            }
        }
        for (int i = 0; i < (quick ? 40 : 250); i++) {
            shape s;
            s.type_k = all_types[rng() % 7];
            s.type_v = all_types[rng() % 7];
            s.dk = rng() % 2 ? 64 : 32;
            s.dv = rng() % 2 ? 64 : 96;
            s.group = 1 + (int32_t) (rng() % 13);
            s.heads = 1 + (int32_t) (rng() % 4);
            s.streams = 1 + (int32_t) (rng() % 3);
            s.tokens = 1 + (int32_t) (rng() % 8);
            s.slots = (int32_t) (rng() % 900);
            s.mask = (mask_kind) (rng() % 4);
            s.mask_per_head = rng() % 3 == 0;
            s.holes = rng() % 2;
            s.shuffled = rng() % 3 == 0;
            s.sinks = rng() % 3 == 0;
            s.open = s.mask == mask_causal && rng() % 2;
            s.softcap = rng() % 3 ? 0.0f : 30.0f;
            s.track = rng() % 2;
            s.statistic = rng() % 4 == 0;
            s.statistic_per_head = rng() % 2;
            s.threads = 1 + (int32_t) (rng() % 4);
            one(s, rng);
        }
        latent(rng, 1);
        shape s; // many units of one head
        s.slots = 9000;
        s.heads = 2;
        s.threads = 4;
        s.track = true;
        one(s, rng);
    });
}

void test_prefill() {
    for_instruction_sets("prefill", [](std::mt19937_64 & rng) {
        for (int32_t n = 9; n <= 130; n += quick ? 13 : 1) {
            shape s;
            s.tokens = n;
            s.slots = n + (n % 2 ? 0 : (int32_t) (rng() % 100));
            s.threads = 1 + n % 3;
            one(s, rng);
            s.type_k = all_types[n % 7];
            s.type_v = all_types[n / 7 % 7];
            s.slots = (int32_t) (rng() % 130);
            one(s, rng);
        }
        for (const head_dims & d : dims) {
            for (int32_t group : { 1, 2, 3, 4, 8 }) {
                for (ggml_type k : all_types) {
                    for (ggml_type v : all_types) {
                        if (!fits(k, d.k) || !fits(v, d.v) || rng() % (quick ? 97 : 13) != 0) {
                            continue;
                        }
                        shape s;
                        s.type_k = k;
                        s.type_v = v;
                        s.dk = d.k;
                        s.dv = d.v;
                        s.group = group;
                        s.tokens = 9 + (int32_t) (rng() % 70);
                        s.slots = (int32_t) (rng() % 130);
                        s.tiled = rng() % 4 != 0;
                        one(s, rng);
                    }
                }
            }
        }
        latent(rng, 12);
        for (int i = 0; i < (quick ? 20 : 80); i++) {
            shape s;
            s.type_k = all_types[rng() % 7];
            s.type_v = all_types[rng() % 7];
            s.dk = rng() % 2 ? 64 : 32;
            s.dv = rng() % 2 ? 64 : 96;
            s.group = 1 + (int32_t) (rng() % 5);
            s.heads = 1 + (int32_t) (rng() % 3);
            s.streams = 1 + (int32_t) (rng() % 3);
            s.tokens = 9 + (int32_t) (rng() % 150);
            s.slots = (int32_t) (rng() % 400);
            s.mask = (mask_kind) (rng() % 4);
            s.mask_per_head = rng() % 3 == 0;
            s.holes = rng() % 2;
            s.shuffled = rng() % 3 == 0;
            s.sinks = rng() % 3 == 0;
            s.softcap = rng() % 3 ? 0.0f : 30.0f;
            s.track = rng() % 2;
            s.threads = 1 + (int32_t) (rng() % 4);
            one(s, rng);
        }
    });
}

void test_statistic() {
    for_instruction_sets("statistic", [](std::mt19937_64 & rng) {
        for (int i = 0; i < (quick ? 30 : 100); i++) {
            shape s;
            s.group = 1 + (int32_t) (rng() % 4);
            s.heads = 1 + (int32_t) (rng() % 3);
            s.streams = 1 + (int32_t) (rng() % 2);
            s.tokens = i % 4 ? 9 + (int32_t) (rng() % 200) : 1 + (int32_t) (rng() % 8);
            s.slots = std::max(s.tokens, (int32_t) (rng() % 400));
            s.mask = rng() % 5 ? mask_causal : mask_random;
            s.holes = rng() % 2;
            s.shuffled = rng() % 4 == 0;
            s.sinks = rng() % 4 == 0;
            s.statistic = true;
            s.statistic_per_head = rng() % 2;
            s.track = rng() % 2;
            s.threads = 1 + (int32_t) (rng() % 4);
            one(s, rng);

            // the same again, added in the same order: bit for bit
            problem p(s, rng);
            const size_t n = (size_t) p.stat.rows * (p.bounds.size() + 1) * p.stat.capacity;
            std::vector<std::vector<float>> first;
            for (int repeat = 0; repeat < 2; repeat++) {
                for (size_t h = 0; h < p.heads.size(); h++) {
                    std::fill(p.heads[h].buckets, p.heads[h].buckets + n, 0.0f);
                }
                p.run(attention, workspace);
                for (size_t h = 0; h < p.heads.size(); h++) {
                    if (repeat == 0) {
                        first.emplace_back(p.heads[h].buckets, p.heads[h].buckets + n);
                    } else {
                        CHECK(memcmp(first[h].data(), p.heads[h].buckets, n * 4) == 0, "%s", describe(s).c_str());
                    }
                }
            }
        }
    });
}

} // namespace kvasir_test
