// Attention of many queries and the statistic against double precision.
//
// Tolerances: q and the weights are rounded to f16 (2^-12 relative at most), sums are f32. An output is a weighted mean of
// rows, so its relative error is of the order of 2^-12 x the spread of a score: NMSE around 1e-7; a masked slot that is
// counted, or a missing one, gives 1e-3 and more. The reference computes some rows and columns of each case, all heads.
//
// prefill_test [seed] [cases: all | quick]
#include "../../src/attention/cuda/prefill.cu"
#include "../../src/attention/cuda/statistic.cu"

#include "paged_store.h"

#include <thread>

using namespace kvasir::cuda;

namespace {

constexpr double tolerance = 2e-6, tolerance_lse = 2e-3, tolerance_statistic = 4e-6;

enum mask_kind { NO_MASK, CAUSAL, MASK, MASK_NO_VIEWS };

struct test_case {
    int32_t   dim, type_k, type_v, group, n_tokens;
    mask_kind mask    = CAUSAL;
    bool      shuffled = false; // slots in no order of positions
    int32_t   n_stream = 1, mask_n_head = 1;
    float     softcap = 0, max_bias = 0;
    bool      sinks = false, per_query_head = false, scores = false;
    int32_t   n_bounds = 9, recent = 32; // recent: the last so many positions
    std::vector<int32_t> lengths = {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 2111};
};

int failures = 0, cases = 0;
double worst_nmse = 0, worst_statistic = 0;

double half_value(uint16_t h) { return (double) __half2float(__ushort_as_half(h)); }

void run_case(const test_case & c, uint32_t seed, device_limits limits) {
    std::mt19937 random(seed);
    const int32_t n_head_kv = (int32_t) c.lengths.size(), n_head = n_head_kv * c.group, heads = n_head_kv * c.n_stream, T = c.n_tokens, D = c.dim;
    std::vector<int32_t> lengths;
    for (int32_t s = 0; s < c.n_stream; s++) {
        for (int32_t h = 0; h < n_head_kv; h++) {
            lengths.push_back(c.lengths[(size_t) ((h + 5 * s) % n_head_kv)]);
        }
    }
    const int32_t past = 2300, end = past + T;
    paged_store store(make_page_format(c.type_k, c.type_v, D, D), lengths, random);
    // what was never written is zero in the store; what was evicted is anything finite
    for (auto p : {0, 1}) {
        for (int32_t h = 0; h < heads; h++) {
            const int32_t n = lengths[(size_t) h];
            if (p && n % PAGE_SLOTS) {
                store.fill(h, n, random, 3);
                store.cell(h, n) = 1;
            }
        }
    }
    std::vector<int32_t> cell_of((size_t) end);
    std::iota(cell_of.begin(), cell_of.end(), 0);
    if (c.shuffled) {
        std::shuffle(cell_of.begin(), cell_of.end(), random);
    }
    for (int32_t h = 0; h < heads; h++) {
        const int32_t n = lengths[(size_t) h], recent = std::min(n, T);
        std::vector<int32_t> positions((size_t) past);
        std::iota(positions.begin(), positions.end(), 0);
        std::shuffle(positions.begin(), positions.end(), random);
        positions.resize((size_t) (n - recent));
        for (int32_t i = end - recent; i < end; i++) {
            positions.push_back(i);
        }
        std::sort(positions.begin(), positions.end());
        if (c.shuffled) {
            std::shuffle(positions.begin(), positions.end(), random);
        }
        for (int32_t i = 0; i < n; i++) {
            store.fill(h, i, random, 1);
            store.pos(h, i)  = positions[(size_t) i];
            store.cell(h, i) = cell_of[(size_t) positions[(size_t) i]];
        }
    }

    std::uniform_real_distribution<float> uniform(-1.7320508f, 1.7320508f);
    std::vector<float> q((size_t) c.n_stream * T * n_head * D); // [stream][token][head][dim]
    for (float & x : q) {
        x = uniform(random);
    }
    std::vector<int32_t> query_pos;
    for (int32_t s = 0; s < c.n_stream; s++) {
        for (int32_t i = 0; i < T; i++) {
            query_pos.push_back(past + i);
        }
    }
    // cells behind n_kv are masked; holes are cells of other sequences
    const bool masked = c.mask == MASK || c.mask == MASK_NO_VIEWS;
    const int32_t n_kv = end - 7, mask_n_stream = c.n_stream;
    std::vector<uint16_t> mask;
    if (masked) {
        mask.resize((size_t) mask_n_stream * c.mask_n_head * T * n_kv, 0xfc00);
        std::vector<int32_t> pos_of((size_t) end);
        for (int32_t p = 0; p < end; p++) {
            pos_of[(size_t) cell_of[(size_t) p]] = p;
        }
        for (size_t plane = 0; plane < (size_t) mask_n_stream * c.mask_n_head; plane++) {
            for (int32_t i = 0; i < T; i++) {
                uint16_t * row = mask.data() + (plane * T + i) * n_kv;
                const int32_t window = plane % 2 ? 700 : INT32_MAX; // sliding window
                for (int32_t cell = 0; cell < n_kv; cell++) {
                    const int32_t d = past + i - pos_of[(size_t) cell];
                    const bool hole = cell / 96 % 7 == 3 || (cell % 13 == (int32_t) plane && cell > n_kv / 2);
                    if (d >= 0 && d < window && !hole) {
                        row[cell] = __half_as_ushort(__float2half(c.max_bias > 0 ? (float) -d : 0.0f));
                    }
                }
            }
        }
    }
    std::vector<float> sinks((size_t) n_head);
    for (float & x : sinks) {
        x = uniform(random);
    }

    device_store device(store, n_head_kv);
    device_array<float> d_q(q), d_sinks(sinks), out((size_t) c.n_stream * T * n_head * D), lse((size_t) c.n_stream * n_head * T);
    device_array<int32_t> d_pos(query_pos);
    device_array<uint16_t> d_mask(mask);
    prefill_params p{};
    attention_params & a = p.a;
    a.pages = device.pages;
    if (masked) {
        a.mask = {(const char *) d_mask.data, (int64_t) n_kv * 2, (int64_t) n_kv * T * 2, (int64_t) n_kv * T * c.mask_n_head * 2, n_kv, c.mask_n_head, mask_n_stream, nullptr};
    }
    a.q = (const char *) d_q.data;
    a.q_token_bytes = (int64_t) n_head * D * 4, a.q_head_bytes = D * 4, a.q_stream_bytes = (int64_t) T * n_head * D * 4;
    a.query_pos = d_pos.data;
    a.sinks     = c.sinks ? d_sinks.data : nullptr;
    a.n_stream = c.n_stream, a.n_head = n_head, a.n_tokens = T;
    a.causal   = c.mask == CAUSAL;
    a.scale    = 1.0f / std::sqrt((float) D);
    a.softcap  = c.softcap;
    a.max_bias = c.max_bias;
    p.out = out.data;
    p.out_head_bytes = D * 4, p.out_token_bytes = (int64_t) n_head * D * 4, p.out_stream_bytes = (int64_t) T * n_head * D * 4;
    p.lse = lse.data;
    device_array<char> partial(prefill_workspace_bytes(a, limits)), views(masked ? mask_view_bytes(a.mask, T) : 0);
    device_array<int32_t> arrived((size_t) prefill_tiles(a));
    p.partial = (float *) partial.data;
    p.arrived = arrived.data;
    p.stages  = prefill_stages(a, limits);
    if (c.mask == MASK) {
        mask_views_params m{a.mask, (uint8_t *) views.data, T};
        start(mask_views_launch(a.mask, T), m);
        a.mask.views = (const uint8_t *) views.data;
    }

    statistic_params st{};
    st.a   = a;
    st.lse = lse.data;
    const int32_t rows = c.per_query_head ? c.group : 1, capacity = store.stride * PAGE_SLOTS;
    const std::vector<int32_t> bounds_all = {16, 32, 64, 200, 410, 820, 1230, 1640, 2050};
    const std::vector<int32_t> bounds(bounds_all.begin(), bounds_all.begin() + c.n_bounds);
    device_array<char> workspace(statistic_workspace_bytes(a));
    device_array<int32_t> d_bounds(bounds);
    device_array<float> buckets((size_t) heads * rows * (c.n_bounds + 1) * capacity), recent((size_t) heads * rows * capacity);
    st.workspace   = workspace.data;
    st.buckets     = c.scores ? nullptr : buckets.data;
    st.recent      = c.recent && !c.scores ? recent.data : nullptr;
    st.bounds      = d_bounds.data;
    st.n_bounds    = c.n_bounds;
    st.rows        = rows;
    st.recent_from = c.recent ? end - c.recent : -1;
    st.capacity    = capacity;
    std::vector<int32_t> track((size_t) heads);
    for (int32_t h = 0; h < heads; h++) {
        track[(size_t) h] = h % 3 != 1;
    }
    device_array<int32_t> d_track(track);
    st.track = d_track.data;

    const auto compute = [&] {
        start(prefill_launch(a, limits), p);
        start(statistic_queries_launch(a), st);
        start(statistic_launch(a, limits.n_sm), st);
        CHECK(cudaDeviceSynchronize());
    };
    compute();
    const std::vector<float> got = out.get(), got_lse = lse.get(), got_buckets = buckets.get(), got_recent = recent.get();
    if (!c.scores) {
        statistic_totals_params totals{device.pages, buckets.data, heads, c.n_bounds, rows, capacity};
        start(statistic_totals_launch(device.pages, heads), totals);
    }
    paged_store after = store;
    after.pool = device.pool.get();
    CHECK(cudaMemset(out.data, 0xff, out.n * 4));
    CHECK(cudaMemset(buckets.data, 0, buckets.n * 4));
    CHECK(cudaMemset(recent.data, 0, recent.n * 4));
    CHECK(cudaMemset(lse.data, 0xff, lse.n * 4));
    compute();
    const bool same = same_bits(got, out.get()) && same_bits(got_lse, lse.get()) && same_bits(got_buckets, buckets.get()) && same_bits(got_recent, recent.get());
    const std::vector<int32_t> left = arrived.get();
    const bool clean = std::all_of(left.begin(), left.end(), [](int32_t x) { return x == 0; });

    // the reference
    const auto score = [&](int32_t stream, int32_t query_head, int32_t token, int32_t slot) -> double {
        const int32_t kv = query_head / c.group, h = stream * n_head_kv + kv;
        const float * x = q.data() + (((size_t) stream * T + token) * n_head + query_head) * D;
        const int32_t cell = store.cell(h, slot);
        double bias = 0;
        if (c.mask == CAUSAL && store.pos(h, slot) > query_pos[(size_t) stream * T + token]) {
            return -INFINITY;
        }
        if (masked) {
            if (cell >= n_kv) {
                return -INFINITY;
            }
            const double m = half_value(mask[((size_t) (stream * c.mask_n_head + query_head % c.mask_n_head) * T + token) * n_kv + cell]);
            if (std::isinf(m)) {
                return -INFINITY;
            }
            double slope = 1;
            if (c.max_bias > 0) {
                const int32_t p2 = 1 << (int32_t) std::floor(std::log2((double) n_head));
                slope = query_head < p2 ? std::pow(2.0, -c.max_bias / p2 * (query_head + 1)) : std::pow(2.0, -c.max_bias / 2 / p2 * (2 * (query_head - p2) + 1));
            }
            bias = m * slope;
        }
        float sum[8] = {};
        double dot = 0;
        for (int32_t d = 0; d < D; d += 8) {
            for (int32_t e = 0; e < 8; e++) {
                sum[e] = x[d + e] * store.get(false, h, slot, d + e);
                dot += (double) sum[e];
            }
        }
        dot *= (double) a.scale;
        return (c.softcap != 0 ? (double) c.softcap * std::tanh(dot / (double) c.softcap) : dot) + bias;
    };
    std::vector<error_sum> errors((size_t) heads), lse_errors((size_t) heads), sums((size_t) heads), total_errors((size_t) heads);
    const auto head_reference = [&](int32_t h) {
        std::mt19937 pick(seed + 17 * (uint32_t) h);
        const int32_t stream = h / n_head_kv, n = lengths[(size_t) h];
        for (int32_t sample = 0; sample < 10; sample++) {
            const int32_t head = h % n_head_kv * c.group + (int32_t) (pick() % (uint32_t) c.group), token = sample == 0 ? 0 : sample == 1 ? T - 1 : (int32_t) (pick() % (uint32_t) T);
            std::vector<double> s((size_t) n), y((size_t) D);
            double top = c.sinks ? (double) sinks[(size_t) head] : -INFINITY, sum = 0;
            for (int32_t i = 0; i < n; i++) {
                s[(size_t) i] = score(stream, head, token, i);
                top = std::max(top, s[(size_t) i]);
            }
            for (int32_t i = 0; i < n; i++) {
                const double w = std::isinf(s[(size_t) i]) ? 0 : std::exp(s[(size_t) i] - top);
                sum += w;
                for (int32_t d = 0; w != 0 && d < D; d++) {
                    y[(size_t) d] += w * (double) store.get(true, h, i, d);
                }
            }
            if (c.sinks) {
                sum += std::exp((double) sinks[(size_t) head] - top);
            }
            for (int32_t d = 0; d < D; d++) {
                errors[(size_t) h].add((double) got[(((size_t) stream * T + token) * n_head + head) * D + d], sum > 0 ? y[(size_t) d] / sum : 0.0);
            }
            lse_errors[(size_t) h].add((double) got_lse[((size_t) stream * n_head + head) * T + token], sum > 0 ? top * M_LOG2E + std::log2(sum) : INFINITY);
        }
        // columns; the rows' log-sum-exp is checked above
        for (int32_t sample = 0; sample < 6 && n > 0; sample++) {
            const int32_t slot = sample == 0 ? 0 : sample == 1 ? n - 1 : (int32_t) (pick() % (uint32_t) n);
            std::vector<double> want((size_t) rows * (c.n_bounds + 1)), want_recent((size_t) rows);
            double total = 0;
            for (int32_t g = 0; g < c.group; g++) {
                for (int32_t token = 0; token < T; token++) {
                    const int32_t head = h % n_head_kv * c.group + g, d = query_pos[(size_t) stream * T + token] - store.pos(h, slot);
                    const double s = score(stream, head, token, slot), l = (double) got_lse[((size_t) stream * n_head + head) * T + token];
                    const double w = std::isinf(s) ? 0 : std::exp2(s * M_LOG2E - l) / (c.per_query_head ? 1 : c.group);
                    const int32_t b = (int32_t) (std::upper_bound(bounds.begin(), bounds.end(), d) - bounds.begin()), row = c.per_query_head ? g : 0;
                    want[(size_t) row * (c.n_bounds + 1) + b] += w;
                    want_recent[(size_t) row] += query_pos[(size_t) stream * T + token] >= st.recent_from ? w : 0;
                    total += w / (c.per_query_head ? c.group : 1);
                }
            }
            for (int32_t r = 0; r < rows && !c.scores; r++) {
                for (int32_t b = 0; b <= c.n_bounds; b++) {
                    sums[(size_t) h].add((double) got_buckets[(((size_t) h * rows + r) * (c.n_bounds + 1) + b) * capacity + slot], want[(size_t) r * (c.n_bounds + 1) + b]);
                }
                if (c.recent) {
                    sums[(size_t) h].add((double) got_recent[((size_t) h * rows + r) * capacity + slot], want_recent[(size_t) r]);
                }
            }
            total_errors[(size_t) h].add((double) after.score(h, slot), !c.scores || track[(size_t) h] ? total : 0);
        }
    };
    std::vector<std::thread> threads;
    for (int32_t h = 0; h < heads; h++) {
        threads.emplace_back(head_reference, h);
    }
    for (auto & t : threads) {
        t.join();
    }
    double nmse = 0, statistic = 0, lse_worst = 0;
    for (int32_t h = 0; h < heads; h++) {
        nmse      = std::max(nmse, errors[(size_t) h].nmse());
        lse_worst = std::max(lse_worst, lse_errors[(size_t) h].worst);
        statistic = std::max(statistic, std::max(sums[(size_t) h].nmse(), total_errors[(size_t) h].nmse()));
    }
    for (int32_t h = 0; h < heads; h++) {
        for (const auto & e : {errors[(size_t) h], sums[(size_t) h], total_errors[(size_t) h]}) {
            if (e.nmse() > tolerance_statistic) {
                printf("head %d of %d slots: NMSE %.2e, worst %g instead of %g\n", h, lengths[(size_t) h], e.nmse(), e.got, e.want);
            }
        }
    }
    const bool ok = same && clean && nmse <= tolerance && lse_worst <= tolerance_lse && statistic <= tolerance_statistic;
    static const char * const masks[] = {"none", "causal", "mask", "mask without views"};
    static const char * const types[] = {"f16", "q8_0"};
    printf("%s dim %3d %-4s %-4s group %d tokens %3d streams %d mask %s/%d%s%s softcap %g alibi %g%s%s seed %u: NMSE %.2e, lse %.1e, statistic %.2e%s%s\n", ok ? "ok  " : "FAIL", D,
           types[c.type_k], types[c.type_v], c.group, T, c.n_stream, masks[c.mask], c.mask_n_head, c.shuffled ? " shuffled" : "", c.sinks ? " sinks" : "", (double) c.softcap, (double) c.max_bias,
           c.per_query_head ? " per query head" : "", c.scores ? " scores" : "", seed, nmse, lse_worst, statistic, same ? "" : ", DIFFERS FROM RUN TO RUN", clean ? "" : ", COUNTERS LEFT");
    cases++;
    failures += !ok;
    worst_nmse      = std::max(worst_nmse, nmse);
    worst_statistic = std::max(worst_statistic, statistic);
}

} // namespace

int main(int argc, char ** argv) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("skipped: there is no NVIDIA GPU here\n");
        return 77; // ctest's SKIP_RETURN_CODE
    }
    const uint32_t seed = argc > 1 ? (uint32_t) atoi(argv[1]) : 1;
    const bool quick = argc > 2 && std::string(argv[2]) == "quick";
#define KERNEL(name) kernels()[#name] = (const void *) name;
    KERNEL(prefill_64_128) KERNEL(prefill_80_128) KERNEL(prefill_96_128) KERNEL(prefill_128_128)
    KERNEL(prefill_64_64) KERNEL(prefill_80_64) KERNEL(prefill_96_64) KERNEL(prefill_128_64) KERNEL(prefill_256_64) KERNEL(mask_views)
    KERNEL(statistic_64) KERNEL(statistic_80) KERNEL(statistic_96) KERNEL(statistic_128) KERNEL(statistic_256) KERNEL(statistic_queries) KERNEL(statistic_totals)
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    const device_limits limits{device.multiProcessorCount, (uint32_t) device.sharedMemPerMultiprocessor};

    const device_limits few{3, 100 * 1024}; // of a smaller device: one stage, fewer pieces
    uint32_t s = seed * 1000;
    // every shape, plain causal; then every feature
    for (int32_t dim : {64, 80, 96, 128, 256}) {
        for (int32_t types = 0; types < (dim % Q8_BLOCK ? 1 : 4); types++) {
            for (int32_t group : {1, 3, 4, 8}) {
                for (int32_t tokens : {1, 2, 15, 16, 17, 64, 100, 512}) {
                    if (quick && (s++ % 16 || tokens == 512)) {
                        continue;
                    }
                    test_case c{dim, types & 1, types >> 1, group, tokens};
                    c.per_query_head = (tokens + group) % 2;
                    run_case(c, s++, tokens == 17 ? few : limits);
                }
            }
        }
    }
    for (int32_t dim : {64, 128, 256}) {
        for (int32_t i = 0; i < 14; i++) {
            if (quick && (i + dim / 64) % 5) {
                continue;
            }
            test_case c{dim, i % 2, i / 2 % 2, i % 3 == 0 ? 1 : i % 3 == 1 ? 4 : 3, i % 4 == 3 ? 200 : 100 - 11 * i + 60};
            c.mask           = i < 2 ? NO_MASK : i % 4 == 1 ? MASK_NO_VIEWS : i % 4 == 0 ? CAUSAL : MASK;
            c.shuffled       = i % 3 == 2;
            c.n_stream       = i % 4 == 2 ? 2 : 1;
            c.softcap        = i % 5 == 3 ? 20.0f : 0.0f;
            c.max_bias       = i % 4 == 3 && i > 4 ? 8.0f : 0.0f;
            c.sinks          = i % 2;
            c.scores         = i % 7 == 6;
            c.per_query_head = !c.scores && i % 3 == 1;
            c.mask_n_head    = i == 10 || i == 13 ? (int32_t) c.lengths.size() * c.group : 1;
            c.n_bounds       = i == 5 ? 0 : i == 6 ? 1 : 9;
            c.recent         = i == 7 ? 0 : 40;
            run_case(c, s++, i % 5 == 4 ? few : limits);
        }
    }
    printf("%s: %d of %d cases failed; worst NMSE %.2e, statistic %.2e\n", device.name, failures, cases, worst_nmse, worst_statistic);
    return failures || cases == 0;
}
