// The decode kernels against a reference in double precision: decode_test CUBIN [SEED [DIM]]; with DIM only f16 of that head dim
#include "decode.h"
#include "device.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

using namespace kvasir::cuda;

namespace {

// Queries, and the products of weights with q8_0's scales, are rounded to f16 (unit 2^-11): scores of spread 2 to 3 then carry an error of about
// 2^-11, and so do outputs. 4 units squared leave room for nothing worse.
constexpr double tolerance       = 4.0 / 2048 * 4.0 / 2048;
constexpr double score_tolerance = 4.0 / 2048;

struct test_case {
    int32_t type_k = F16, type_v = F16, dim = 128, n_head_kv = 8, group = 4, n_stream = 2, n_tokens = 1;
    bool    mask = false, mask_per_head = false, mask_per_stream = true, open = false, append = true, overwrite = false, sinks = false, track = false;
    float   softcap = 0, max_bias = 0;
    int32_t n_cta = 0; // 0: all
    bool    turn_q = false, turn_k = false, halves = false; // rotary positions
    std::vector<int32_t> lengths; // repeated over the heads
};

std::mt19937 rng;
float normal(float spread) { return std::normal_distribution<float>(0, spread)(rng); }
int32_t below(int32_t n) { return (int32_t) (rng() % (uint32_t) n); }

std::vector<float> normals(size_t n, float spread) { // from a table: there are many
    static const std::vector<float> table = [] {
        std::vector<float> v(1 << 20);
        for (float & x : v) {
            x = normal(1);
        }
        return v;
    }();
    std::vector<float> v(n);
    size_t at = rng() % table.size();
    for (float & x : v) {
        x = spread * table[at++ % table.size()];
    }
    return v;
}

// a row into its page as the store lays it out; what it then holds goes to `held`
void put(char * section, char * scales, int32_t type, int32_t dim, bool transposed, int32_t slot, const float * row, double * held) {
    const auto at = [&](int32_t e) {
        return transposed ? slot / BLOCK_SLOTS * BLOCK_SLOTS * dim + e * BLOCK_SLOTS + slot % BLOCK_SLOTS : slot * dim + e;
    };
    if (type == F16) {
        for (int32_t e = 0; e < dim; e++) {
            ((__half *) section)[at(e)] = __float2half_rn(row[e]);
            held[e] = (double) __half2float(__float2half_rn(row[e]));
        }
        return;
    }
    for (int32_t b = 0; b < dim / Q8_BLOCK; b++) {
        float top = 0;
        for (int32_t i = 0; i < Q8_BLOCK; i++) {
            top = std::max(top, std::fabs(row[b * Q8_BLOCK + i]));
        }
        const float d = top / 127.0f, by = d != 0.0f ? 1.0f / d : 0.0f;
        ((__half *) scales)[slot * (dim / Q8_BLOCK) + b] = __float2half_rn(d);
        for (int32_t e = b * Q8_BLOCK; e < (b + 1) * Q8_BLOCK; e++) {
            const int8_t q = (int8_t) std::round(row[e] * by);
            ((int8_t *) section)[at(e)] = q;
            held[e] = (double) q * (double) __half2float(__float2half_rn(d));
        }
    }
}

// cosines and sines of random angles, a row of `dim` numbers for each token
std::vector<float> random_turns(int32_t n_tokens, int32_t dim, bool halves) {
    std::vector<float> turns((size_t) (n_tokens * dim));
    for (int32_t i = 0; i < n_tokens; i++) {
        for (int32_t pair = 0; pair < dim / 2; pair++) {
            const float angle = (float) below(6283) * 1e-3f;
            float * at = &turns[(size_t) (i * dim + rotary_place(pair, dim, halves))];
            at[0] = std::cos(angle);
            at[1] = std::sin(angle);
        }
    }
    return turns;
}

// rounded as the kernel rounds: what is appended has to be the same, bit by bit
void turn(float * x, const float * turns, int32_t dim, bool halves) {
    for (int32_t pair = 0; pair < dim / 2; pair++) {
        float & a = x[halves ? pair : 2 * pair], & b = x[halves ? pair + dim / 2 : 2 * pair + 1];
        const float * by = turns + rotary_place(pair, dim, halves), first = a, second = b;
        a = std::fmaf(first, by[0], -(second * by[1]));
        b = std::fmaf(first, by[1], second * by[0]);
    }
}

struct outcome {
    double nmse = 0, score = 0;
    std::string error;
};

outcome run(kernel_library & library, const test_case & c, const cudaDeviceProp & device, device_array<uint32_t> & epoch) {
    const int32_t heads = c.n_stream * c.n_head_kv, n_head = c.n_head_kv * c.group, n_kv = 6000, mask_n_kv = 5888;
    const page_format format = make_page_format(c.type_k, c.type_v, c.dim, c.dim);
    const decode_shape shape = make_decode_shape(format, c.group, c.n_tokens, c.n_cta ? c.n_cta : device.multiProcessorCount, (uint32_t) device.sharedMemPerBlockOptin);
    if (!shape.kernel[0]) {
        return {1, 1, "no kernel"};
    }
    std::vector<int32_t> n((size_t) heads);
    for (int32_t h = 0; h < heads; h++) {
        n[(size_t) h] = c.lengths[(size_t) h % c.lengths.size()];
    }
    const int32_t stride = std::max(1, (*std::max_element(n.begin(), n.end()) + PAGE_SLOTS - 1) / PAGE_SLOTS) + 2;
    int32_t n_page = 0;
    for (int32_t x : n) {
        n_page += (x + PAGE_SLOTS - 1) / PAGE_SLOTS;
    }
    // pages in random order; one full of NaN that nobody owns stands where a table ends
    std::vector<int32_t> order((size_t) n_page + 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<char> pool((size_t) (n_page + 1) * format.bytes, 0);
    memset(pool.data() + (size_t) order[(size_t) n_page] * format.bytes, 0xff, format.bytes);
    std::vector<int32_t> table((size_t) (heads * stride), order[(size_t) n_page]);
    int32_t used = 0;
    std::vector<std::vector<double>> k_held((size_t) heads), v_held((size_t) heads);
    std::vector<std::vector<int32_t>> cells((size_t) heads);
    const auto page_of = [&](std::vector<char> & image, int32_t h, int32_t slot) { return image.data() + (size_t) table[(size_t) (h * stride + slot / PAGE_SLOTS)] * format.bytes; };
    const auto put_slot = [&](std::vector<char> & image, int32_t h, int32_t slot, const float * k, const float * v, int32_t cell, int32_t pos, float score) {
        char * page = page_of(image, h, slot);
        const int32_t at = slot % PAGE_SLOTS;
        put(page, page + format.k_scale, c.type_k, c.dim, false, at, k, &k_held[(size_t) h][(size_t) (slot * c.dim)]);
        put(page + format.v, page + format.v_scale, c.type_v, c.dim, true, at, v, &v_held[(size_t) h][(size_t) (slot * c.dim)]);
        ((int32_t *) (page + format.cell))[at] = cells[(size_t) h][(size_t) slot] = cell;
        ((int32_t *) (page + format.pos))[at] = pos;
        ((float *) (page + format.score))[at] = score;
    };
    for (int32_t h = 0; h < heads; h++) {
        const int32_t slots = n[(size_t) h];
        for (int32_t i = 0; i < (slots + PAGE_SLOTS - 1) / PAGE_SLOTS; i++) {
            table[(size_t) (h * stride + i)] = order[(size_t) used++];
        }
        k_held[(size_t) h].resize((size_t) (slots * c.dim));
        v_held[(size_t) h].resize((size_t) (slots * c.dim));
        cells[(size_t) h].resize((size_t) slots);
        std::vector<int32_t> cell((size_t) n_kv);
        std::iota(cell.begin(), cell.end(), 0);
        std::shuffle(cell.begin(), cell.end(), rng);
        for (int32_t s = 0; s < slots; s++) {
            const std::vector<float> k = normals((size_t) c.dim, 1), v = normals((size_t) c.dim, 1);
            put_slot(pool, h, s, k.data(), v.data(), cell[(size_t) s], s + 3, std::fabs(normal(1)));
        }
    }
    const std::vector<char> before = pool;

    // the rows of this step
    const int32_t rows = c.append ? c.n_stream * c.n_tokens : 0;
    const std::vector<float> turns_k = random_turns(rows, c.dim, c.halves), turns_q = random_turns(c.n_stream * c.n_tokens, c.dim, c.halves);
    const std::vector<float> k_rows = normals((size_t) (rows * c.n_head_kv * c.dim), 1), v_rows = normals((size_t) (rows * c.n_head_kv * c.dim), 1);
    std::vector<token_label> tokens((size_t) rows);
    std::vector<int32_t> slot_of((size_t) (rows * c.n_head_kv), -1);
    for (int32_t r = 0; r < rows; r++) {
        const int32_t stream = r % c.n_stream, i = r / c.n_stream;
        tokens[(size_t) r] = {stream, 5000 + i, 70000 + r, 0};
        for (int32_t hk = 0; hk < c.n_head_kv; hk++) {
            const int32_t h = stream * c.n_head_kv + hk, slots = n[(size_t) h];
            if (slots < c.n_tokens) {
                continue;
            }
            // somewhere in the middle, a different slot for each token; or at the end
            const int32_t slot = c.overwrite ? (slots / c.n_tokens) * i + below(slots / c.n_tokens) : slots - c.n_tokens + i;
            slot_of[(size_t) (r * c.n_head_kv + hk)] = slot;
            const float * k = &k_rows[(size_t) ((r * c.n_head_kv + hk) * c.dim)];
            std::vector<float> turned(k, k + c.dim);
            if (c.turn_k) {
                turn(turned.data(), &turns_k[(size_t) (r * c.dim)], c.dim, c.halves);
            }
            put_slot(pool, h, slot, turned.data(), &v_rows[(size_t) ((r * c.n_head_kv + hk) * c.dim)],
                     tokens[(size_t) r].cell, tokens[(size_t) r].pos, 0.0f);
        }
    }

    const std::vector<float> q = normals((size_t) (c.n_stream * n_head * c.n_tokens * c.dim), 2), sinks = normals((size_t) n_head, 3);
    const int32_t mask_heads = c.mask_per_head ? n_head : 1, mask_streams = c.mask_per_stream ? c.n_stream : 1;
    std::vector<__half> mask((size_t) (c.mask ? mask_streams * mask_heads * c.n_tokens * mask_n_kv : 0));
    for (__half & m : mask) {
        const int32_t kind = below(10);
        m = __float2half_rn(c.open || kind < 3 ? -INFINITY : c.max_bias > 0 || kind == 3 ? -(float) below(40) * 0.25f : 0.0f);
    }
    std::vector<int32_t> track((size_t) heads, 0);
    int32_t regions = 0;
    for (int32_t & t : track) {
        t = c.track && below(3) ? ++regions : 0;
    }

    std::vector<float> queries = q;
    for (int32_t i = 0; c.turn_q && i < c.n_stream * n_head * c.n_tokens; i++) { // [stream][head][token]
        turn(&queries[(size_t) (i * c.dim)], &turns_q[(size_t) ((i / c.n_tokens / n_head * c.n_tokens + i % c.n_tokens) * c.dim)], c.dim, c.halves);
    }

    device_array<char> d_pool(before);
    device_array<int32_t> d_table(table), d_n(n), d_slot(slot_of), d_track(track), d_open(std::vector<int32_t>{c.open ? 1 : 0});
    device_array<float> d_q(q), d_k(k_rows), d_v(v_rows), d_sinks(sinks), d_turns_q(turns_q), d_turns_k(turns_k), d_out((size_t) (c.n_stream * n_head * c.n_tokens * c.dim));
    device_array<token_label> d_token(tokens);
    device_array<__half> d_mask(mask);
    device_array<decode_segment> segments(decode_segments(shape, heads));
    device_array<char> exchange(decode_exchange_bytes(shape, c.dim));
    const int32_t columns = c.group * c.n_tokens, score_stride = stride * PAGE_SLOTS;
    device_array<float> d_scores((size_t) regions * (size_t) columns * (size_t) score_stride), d_lse((size_t) (regions * columns));

    decode_layer layer{};
    layer.pages = {format, d_pool.data(), d_table.data(), d_n.data(), stride, c.n_head_kv};
    layer.n_stream = c.n_stream;
    layer.n_pass = shape.n_pass;
    layer.columns = shape.columns;
    layer.n_column = columns;
    layer.group = c.group;
    layer.open = c.mask ? d_open.data() : nullptr;
    layer.track = c.track ? d_track.data() : nullptr;
    layer.slot = d_slot.data();
    layer.token = d_token.data();
    layer.n_append = rows;
    layer.segments = segments.data();
    layer.scores = d_scores.data();
    layer.lse = d_lse.data();
    layer.score_stride = score_stride;
    device_array<decode_layer> layers(std::vector<decode_layer>{layer});
    plan_params plan{layers.data(), epoch.data(), exchange.data(), exchange.size(), (int32_t) shape.grid, shape.min_blocks, shape.head_blocks};

    decode_params p{};
    p.a.pages = layer.pages;
    if (c.mask) {
        const int64_t row = mask_n_kv * 2;
        p.a.mask = {(const char *) d_mask.data(), row, row * c.n_tokens, row * c.n_tokens * mask_heads, mask_n_kv, mask_heads, mask_streams, nullptr};
    }
    const int64_t row = c.dim * 4;
    p.a.q = (const char *) d_q.data();
    p.a.q_token_bytes = row;
    p.a.q_head_bytes = row * c.n_tokens;
    p.a.q_stream_bytes = row * c.n_tokens * n_head;
    p.a.sinks = c.sinks ? d_sinks.data() : nullptr;
    p.a.n_stream = c.n_stream;
    p.a.n_head = n_head;
    p.a.n_tokens = c.n_tokens;
    p.a.scale = 1.0f / std::sqrt((float) c.dim);
    p.a.softcap = c.softcap;
    p.a.max_bias = c.max_bias;
    p.out = d_out.data();
    p.out_head_bytes = row;
    p.out_token_bytes = row * n_head;
    p.out_stream_bytes = row * n_head * c.n_tokens;
    p.k = (const char *) d_k.data();
    p.v = (const char *) d_v.data();
    p.k_token_bytes = p.v_token_bytes = row * c.n_head_kv;
    p.k_head_bytes = p.v_head_bytes = row;
    p.slot = d_slot.data();
    p.token = d_token.data();
    p.n_append = rows;
    p.turn_q = c.turn_q ? d_turns_q.data() : nullptr;
    p.turn_k = c.turn_k ? d_turns_k.data() : nullptr;
    p.halves = c.halves;
    p.group = c.group;
    p.by_group = reciprocal(p.group);
    p.stages = shape.stages;
    p.ring = shape.ring;
    p.segments = segments.data();
    p.exchange = exchange.data();
    p.scores = d_scores.data();
    p.lse = d_lse.data();
    p.score_stride = score_stride;

    // queries of some tokens are recorded
    const size_t entry = (size_t) (n_head * c.dim);
    device_array<uint16_t> d_record(c.n_stream == 1 ? (size_t) c.n_tokens * entry : 0);
    std::vector<uint64_t> record_at((size_t) c.n_tokens);
    for (int32_t i = 0; i < c.n_tokens; i++) {
        record_at[(size_t) i] = i % 3 == 1 ? 0 : (uint64_t) (uintptr_t) (d_record.data() + (size_t) i * entry);
    }
    device_array<uint64_t> d_record_at(record_at);
    p.record = c.n_stream == 1 ? d_record_at.data() : nullptr;

    const auto step = [&] {
        CUDA(cudaMemset(d_out.data(), 0xff, d_out.size() * 4));
        CUDA(cudaMemset(d_record.data(), 0xff, d_record.size() * 2));
        library.launch("plan", dim3(1, PLAN_CTAS), PLAN_THREADS, plan_shared((int32_t) shape.grid, heads * shape.n_pass), plan);
        library.launch(shape.kernel, dim3(shape.grid), shape.block, shape.shared, p);
        CUDA(cudaDeviceSynchronize());
        return std::make_pair(d_out.get(), d_scores.get());
    };
    const auto once = step();
    const std::vector<float> & out = once.first, & scores = once.second;
    if (c.track) {
        library.launch("accumulate_scores", dim3(4, (uint32_t) heads, 1), SCORE_THREADS, 0, (const decode_layer *) layers.data());
    }
    const std::vector<char> pages = d_pool.get();
    const auto again = step();
    if (memcmp(again.first.data(), out.data(), out.size() * 4) || memcmp(again.second.data(), scores.data(), scores.size() * 4)) {
        return {1, 1, "two runs differ"};
    }
    const std::vector<uint16_t> record = d_record.get();
    for (size_t i = 0; i < record.size(); i++) {
        const size_t token = i / entry, head = i % entry / (size_t) c.dim, e = i % (size_t) c.dim;
        const uint16_t want = record_at[token] ? __half_as_ushort(__float2half_rn(queries[(head * (size_t) c.n_tokens + token) * (size_t) c.dim + e])) : 0xffff;
        if (record[i] != want) {
            return {1, 1, "the recorded query of token " + std::to_string(token) + ", head " + std::to_string(head) + " is wrong at element " + std::to_string(e)};
        }
    }
    // only what was appended, and scores, may have changed
    size_t wrong = 0, first_wrong = 0;
    for (size_t at = pages.size(); at-- > 0;) {
        if (at % format.bytes < format.score && pages[at] != pool[at]) {
            wrong++;
            first_wrong = at;
        }
    }
    if (wrong) {
        return {1, 1, std::to_string(wrong) + " bytes of the pages are wrong, the first is byte " + std::to_string(first_wrong % format.bytes) + " of page " +
                          std::to_string(first_wrong / format.bytes) + ": " + std::to_string(pages[first_wrong]) + ", not " + std::to_string(pool[first_wrong])};
    }

    std::vector<double> square_error((size_t) heads), square((size_t) heads), worst_score((size_t) heads);
    const auto check_head = [&](int32_t h) {
        const int32_t stream = h / c.n_head_kv, hk = h % c.n_head_kv, slots = n[(size_t) h];
        std::vector<double> mass((size_t) slots, 0.0), s((size_t) slots), o((size_t) c.dim);
        for (int32_t r = 0; r < columns; r++) {
            const int32_t token = r / c.group, qh = hk * c.group + r % c.group;
            const float * x = &queries[(size_t) (((stream * n_head + qh) * c.n_tokens + token) * c.dim)];
            int32_t pow2 = 1;
            while (2 * pow2 <= n_head) {
                pow2 *= 2;
            }
            const double slope = c.max_bias <= 0 ? 1.0
                               : qh < pow2       ? std::pow(2.0, -(double) c.max_bias / pow2 * (qh + 1))
                                                 : std::pow(2.0, -(double) c.max_bias / 2 / pow2 * (2 * (qh - pow2) + 1));
            double top = c.sinks ? (double) sinks[(size_t) qh] : -INFINITY;
            for (int32_t i = 0; i < slots; i++) {
                double a = 0;
                for (int32_t e = 0; e < c.dim; e++) {
                    a += (double) x[e] * k_held[(size_t) h][(size_t) (i * c.dim + e)];
                }
                a *= (double) p.a.scale;
                if (c.softcap > 0) {
                    a = (double) c.softcap * std::tanh(a / (double) c.softcap);
                }
                if (c.mask && !c.open) {
                    const int32_t cell = cells[(size_t) h][(size_t) i];
                    const int32_t row = ((stream % mask_streams) * mask_heads + qh % mask_heads) * c.n_tokens + token;
                    a = cell >= mask_n_kv ? -INFINITY : a + slope * (double) __half2float(mask[(size_t) (row * mask_n_kv + cell)]);
                }
                s[(size_t) i] = a;
                top = std::max(top, a);
            }
            double sum = c.sinks ? std::exp((double) sinks[(size_t) qh] - top) : 0.0;
            std::fill(o.begin(), o.end(), 0.0);
            for (int32_t i = 0; i < slots && top > -INFINITY; i++) {
                s[(size_t) i] = std::exp(s[(size_t) i] - top);
                sum += s[(size_t) i];
                for (int32_t e = 0; e < c.dim; e++) {
                    o[(size_t) e] += s[(size_t) i] * v_held[(size_t) h][(size_t) (i * c.dim + e)];
                }
            }
            for (int32_t e = 0; e < c.dim; e++) {
                const double want = sum > 0 ? o[(size_t) e] / sum : 0.0;
                const double got = (double) out[(size_t) (((stream * c.n_tokens + token) * n_head + qh) * c.dim + e)];
                const double error = std::isfinite(got) ? got - want : 1e9;
                square_error[(size_t) h] += error * error;
                square[(size_t) h] += want * want;
            }
            for (int32_t i = 0; i < slots && sum > 0; i++) {
                mass[(size_t) i] += s[(size_t) i] / sum / c.group;
            }
        }
        for (int32_t i = 0; i < slots; i++) {
            const size_t at = (size_t) (page_of(pool, h, i) - pool.data()) + format.score + (size_t) (i % PAGE_SLOTS) * 4;
            float was, is;
            memcpy(&was, &pool[at], 4);
            memcpy(&is, &pages[at], 4);
            const bool tracked = track[(size_t) h] > 0;
            const double error = std::isfinite(is) ? std::fabs((double) is - (double) was - (tracked ? mass[(size_t) i] : 0.0)) : 1e9;
            worst_score[(size_t) h] = std::max(worst_score[(size_t) h], tracked || error == 0 ? error : 1e9);
        }
    };
    std::vector<std::thread> threads;
    const int32_t n_thread = std::min<int32_t>(heads, (int32_t) std::max(1u, std::thread::hardware_concurrency()));
    for (int32_t first = 0; first < n_thread; first++) {
        threads.emplace_back([&, first] {
            for (int32_t h = first; h < heads; h += n_thread) {
                check_head(h);
            }
        });
    }
    for (std::thread & t : threads) {
        t.join();
    }
    const double error = std::accumulate(square_error.begin(), square_error.end(), 0.0), size = std::accumulate(square.begin(), square.end(), 0.0);
    outcome o{size > 0 ? error / size : error, *std::max_element(worst_score.begin(), worst_score.end()), ""};
    if (!(o.nmse <= tolerance)) {
        o.error = "output is off";
    } else if (!(o.score <= score_tolerance)) {
        o.error = "scores are off";
    }
    return o;
}

// `plan`'s cosines and sines against double precision: the worst error, of what CUDA's approximations leave room for. A power of theta_scale has the
// exponent's share of lg2's 2^-22 and 2^-22 of ex2's, the angle is taken to a fraction of a turn in f32, cosine and sine add 2^-20.
double check_rotary(kernel_library & library, int32_t dim, int32_t n_dims, bool halves, bool with_factors, bool yarn, device_array<uint32_t> & epoch) {
    const int32_t n_tokens = 37, last_pos = 4000;
    std::vector<int32_t> pos((size_t) n_tokens), zero(1, 0);
    for (int32_t & x : pos) {
        x = below(last_pos);
    }
    std::vector<float> factors((size_t) (n_dims / 2));
    for (float & x : factors) {
        x = 1.0f + 0.01f * (float) below(700);
    }
    const page_format format = make_page_format(F16, F16, 64, 64);
    device_array<char> pool(format.bytes), exchange(256);
    device_array<int32_t> d_pos(pos), table(zero), n(zero);
    device_array<float> d_factors(factors), turns((size_t) (n_tokens * dim));
    device_array<decode_segment> segments(2);
    decode_layer layer{};
    layer.pages = {format, pool.data(), table.data(), n.data(), 1, 1};
    layer.n_stream = layer.n_pass = layer.n_column = layer.columns = layer.group = 1;
    layer.segments = segments.data();
    rotary_params & r = layer.rotary;
    r = {turns.data(), d_pos.data(), with_factors ? d_factors.data() : nullptr, n_tokens, dim, n_dims, halves, std::pow(10000.0f, -2.0f / (float) n_dims),
         yarn ? 0.25f : 1.0f, yarn ? 1.0f : 0.0f, yarn ? 0.9f : 1.0f, 3.0f, 11.0f};
    device_array<decode_layer> layers(std::vector<decode_layer>{layer});
    library.launch("plan", dim3(1, PLAN_CTAS), PLAN_THREADS, plan_shared(1, 1), plan_params{layers.data(), epoch.data(), exchange.data(), exchange.size(), 1, 1, 1});
    const std::vector<float> got = turns.get();
    double worst = 0;
    for (int32_t i = 0; i < n_tokens; i++) {
        for (int32_t pair = 0; pair < dim / 2; pair++) {
            const double far = pos[(size_t) i] * std::pow((double) r.theta_scale, pair) / (with_factors ? (double) factors[(size_t) pair % factors.size()] : 1.0);
            const double ramp = yarn ? 1.0 - std::min(1.0, std::max(0.0, (pair - (double) r.low) / ((double) r.high - (double) r.low))) : 0.0;
            const double angle = (double) r.freq_scale * far * (1.0 - ramp) + far * ramp, size = (double) r.attn_factor * (yarn ? 1.0 + 0.1 * std::log(1.0 / (double) r.freq_scale) : 1.0);
            const bool turned = 2 * pair < n_dims;
            const double cosine = turned ? std::cos(angle) * size : 1.0, sine = turned ? std::sin(angle) * size : 0.0;
            const float * at = &got[(size_t) (i * dim + rotary_place(pair, dim, halves))];
            const double bound = far * (pair + 2) * std::pow(2.0, -22) + std::pow(2.0, -20);
            worst = std::max({worst, std::fabs((double) at[0] - cosine) / bound, std::fabs((double) at[1] - sine) / bound});
        }
    }
    return worst;
}

const char * name(int32_t type) { return type == Q8_0 ? "q8_0" : "f16"; }

} // namespace

int main(int argc, char ** argv) {
    for (int32_t group = 1; group <= DECODE_MAX_GROUP; group++) {
        for (int32_t column = 0; column < 8 * group; column++) {
            if (quotient(column, reciprocal(group)) != column / group) {
                printf("FAILED: column %d of a group of %d\n", column, group);
                return 1;
            }
        }
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("skipped: there is no NVIDIA GPU here\n");
        return 77; // ctest's SKIP_RETURN_CODE
    }
    if (argc < 2) {
        fprintf(stderr, "usage: decode_test CUBIN [SEED [DIM]]\n");
        return 2;
    }
    const uint32_t seed = argc > 2 ? (uint32_t) atoll(argv[2]) : (uint32_t) std::chrono::system_clock::now().time_since_epoch().count();
    printf("seed %u, tolerance: NMSE %.2e, score %.2e\n", seed, tolerance, score_tolerance);
    rng.seed(seed);
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    kernel_library library(argv[1]);
    device_array<uint32_t> epoch(2);

    int32_t failed = 0, count = 0;
    double worst = 0, worst_score = 0;
    const auto check = [&](const test_case & c) {
        const outcome o = run(library, c, device, epoch);
        count++;
        failed += !o.error.empty();
        worst = std::max(worst, o.nmse);
        worst_score = std::max(worst_score, o.score);
        printf("%s/%s d%d heads %dx%d group %d tokens %d ctas %d%s%s%s%s%s%s%s%s%s%s%s%s%s: NMSE %.2e score %.1e %s\n", name(c.type_k), name(c.type_v), c.dim, c.n_stream, c.n_head_kv,
               c.group, c.n_tokens, c.n_cta, c.mask ? " mask" : "", c.mask_per_head ? "/head" : "", c.mask && !c.mask_per_stream ? "/one stream" : "", c.open ? " open" : "",
               c.append ? " append" : "", c.overwrite ? " overwrite" : "", c.sinks ? " sinks" : "", c.track ? " track" : "", c.softcap > 0 ? " softcap" : "",
               c.max_bias > 0 ? " alibi" : "", c.turn_q ? " turn q" : "", c.turn_k ? " turn k" : "", (c.turn_q || c.turn_k) && c.halves ? " halves" : "", o.nmse, o.score, o.error.empty() ? "ok" : ("FAILED: " + o.error).c_str());
        fflush(stdout);
    };

    const std::vector<int32_t> ragged = {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 500, 1000, 2111, 4097, 7};
    struct kind { int32_t k, v, dim; };
    std::vector<kind> kinds;
    for (const int32_t dim : {64, 80, 96, 128, 256}) {
        for (const int32_t k : {F16, Q8_0}) {
            for (const int32_t v : {F16, Q8_0}) {
                if (dim % Q8_BLOCK == 0 || (k == F16 && v == F16)) {
                    kinds.push_back({k, v, dim});
                }
            }
        }
    }
    if (argc > 3) { // only one dim, f16
        kinds = {{F16, F16, atoi(argv[3])}};
    }
    for (const kind & x : kinds) {
        test_case c;
        c.type_k = x.k;
        c.type_v = x.v;
        c.dim = x.dim;
        c.lengths = ragged;
        for (const int32_t group : {1, 2, 3, 4, 7, 8, 12, 16}) {
            c.group = group;
            check(c);
        }
        for (int32_t i = 0; i < 12; i++) { // everything else, at random
            test_case r = c;
            r.group = (int32_t[]){1, 2, 3, 4, 7, 8, 12}[below(7)];
            r.n_tokens = i % 4 + 1;
            r.n_stream = 1 + below(3);
            r.mask = i % 3 != 2;
            r.mask_per_head = below(4) == 0;
            r.mask_per_stream = below(2);
            r.open = below(4) == 0;
            r.append = below(4) != 0;
            r.overwrite = below(2);
            r.sinks = below(3) == 0;
            r.track = below(2);
            r.softcap = below(3) ? 0.0f : 5.0f;
            r.max_bias = r.mask && below(3) == 0 ? 8.0f : 0.0f;
            r.n_cta = (int32_t[]){0, 0, 1, 5, 40}[below(5)];
            r.halves = decode_turns(x.k, x.dim, true) && below(2);
            r.turn_q = below(4) != 0;
            r.turn_k = below(4) != 0;
            std::shuffle(r.lengths.begin(), r.lengths.end(), rng);
            check(r);
        }
    }
    for (const bool halves : {false, true}) {
        for (const bool with_factors : {false, true}) {
            for (const bool yarn : {false, true}) {
                for (const int32_t dim : {64, 80, 128, 256}) {
                    const int32_t n_dims = halves || yarn ? dim : dim - 16;
                    const double error = check_rotary(library, dim, n_dims, halves, with_factors, yarn, epoch);
                    count++;
                    failed += !(error <= 1);
                    printf("rotary d%d of %d%s%s%s: %.2f of the bound %s\n", n_dims, dim, halves ? " halves" : "", with_factors ? " factors" : "", yarn ? " yarn" : "", error, error <= 1 ? "ok" : "FAILED");
                }
            }
        }
    }
    if (argc <= 3) {
        test_case c; // one KV head for 71 query heads: several passes, and most CTAs share it
        c.dim = 64;
        c.n_head_kv = 1;
        c.group = 71;
        c.n_stream = 1;
        c.track = true;
        for (const int32_t n : {0, 5, 64, 4999}) {
            c.lengths = {n};
            check(c);
        }
        c = {}; // more heads than CTAs
        c.n_head_kv = 32;
        c.n_stream = 32;
        c.group = 1;
        c.lengths = {3, 40, 0, 70, 1, 33, 200};
        check(c);
        c.lengths = {16};
        check(c);
        c = {}; // epochs begin again
        c.lengths = ragged;
        for (uint32_t at = 0xfffefffc; at != 0xffff0004; at++) {
            epoch.set({at, 0});
            check(c);
        }
    }
    printf("%d of %d failed, worst NMSE %.2e, worst score %.1e, seed %u\n", failed, count, worst, worst_score, seed);
    return failed ? 1 : 0;
}
