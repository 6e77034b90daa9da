// The statistic of moved queries against double precision.
//
// Tolerance: what is turned is rounded to f16 once more, and so are keys of q8_0 when they are multiplied by their scales: at most 2^-11 of each element,
// 2e-4 on the average. Scores of spread 1.5 then carry an error of 3e-4, of either sign, with q8_0 4e-4, weights as much of themselves, their squares twice
// that; of sums over many queries it is less. Errors are of all slots of a query head, relative to all of their sums, and a few of
// these have few queries. A slot that is not seen but counted, or the other way round, is 1e-2 and more there.
//
// moved_test [seed] [cases: all | quick]
#include "../../src/attention/cuda/moved.cu"

#include "paged_store.h"

#include <thread>

using namespace kvasir::cuda;

namespace {

constexpr double tolerance = 1e-3, tolerance_squares = 2 * tolerance, tolerance_output = 1e-3;

struct test_case {
    int32_t dim, type_k, type_v, group;
    int32_t n_blocks = 5, stride = 1;  // blocks of 64 tokens, of which every stride-th query is there
    bool    turned = true, halves = false;
    int32_t pairs = 0, offset = 0, hadamard = 0; // pairs 0: all
    int32_t window = 0;
    float   softcap = 0, max_bias = 0;
    bool    sinks = false;
    bool    shuffled = false, holes = false, behind = false; // slots in no order of positions; own tokens that are not held; slots at the end and behind it
    int32_t n_split = 1;
    std::vector<int32_t> lengths = {0, 1, 63, 64, 65, 200, 1000, 1500};
};

int failures = 0, cases = 0;
double worst = 0, worst_squares = 0, worst_output = 0;

void hadamard(std::vector<double> & x, int32_t block) { // the matrix as it is defined: sign by the parity of i & j
    std::vector<double> y = x;
    for (size_t first = 0; first + (size_t) block <= x.size(); first += (size_t) block) {
        for (int32_t i = 0; i < block; i++) {
            double sum = 0;
            for (int32_t j = 0; j < block; j++) {
                sum += (__builtin_popcount((uint32_t) (i & j)) % 2 ? -1 : 1) * x[first + (size_t) j];
            }
            y[first + (size_t) i] = sum / std::sqrt((double) block);
        }
    }
    x = y;
}

template <typename P> void launch_moved(const launch & l, const P & p) {
    if (l.grid_x > 0) {
        start(l, p);
    }
}

void run_case(const test_case & c, uint32_t seed) {
    std::mt19937 random(seed);
    const int32_t D = c.dim, n_head_kv = (int32_t) c.lengths.size(), n_head = n_head_kv * c.group, end = 2000, first = end - 64 * c.n_blocks + 17; // of the first block
    paged_store store(make_page_format(c.type_k, c.type_v, D, D), c.lengths, random);
    for (int32_t h = 0; h < n_head_kv; h++) {
        const int32_t n = c.lengths[(size_t) h];
        // the last tokens, but for holes, and some of those before
        std::vector<int32_t> positions, before((size_t) first);
        for (int32_t p = c.behind ? end + 9 : end - 1; p >= first && (int32_t) positions.size() < n; p--) {
            if (!c.holes || random() % 3) {
                positions.push_back(p);
            }
        }
        std::iota(before.begin(), before.end(), 0);
        std::shuffle(before.begin(), before.end(), random);
        positions.insert(positions.end(), before.begin(), before.begin() + (n - (int32_t) positions.size()));
        std::sort(positions.begin(), positions.end());
        if (c.shuffled) {
            std::shuffle(positions.begin(), positions.end(), random);
        }
        for (int32_t s = 0; s < n; s++) {
            store.fill(h, s, random, 1);
            store.pos(h, s)   = positions[(size_t) s];
            store.score(h, s) = 0.25f * (float) (s % 7);
        }
        if (n % PAGE_SLOTS) { // what was dropped is anything finite
            store.fill(h, n, random, 3);
            store.pos(h, n) = first + 1;
        }
    }
    // blocks, every second one with outputs; the record has entries of others between theirs
    std::vector<moved_row> with, without;
    int32_t n_entries = 3;
    for (int32_t b = 0; b < c.n_blocks; b++) {
        for (int32_t i = c.stride / 2; i < 64; i += c.stride) {
            const int32_t pos = first + 64 * b + i;
            if (pos < end) {
                (b % 2 == 0 ? with : without).push_back({n_entries++, first + 64 * b, pos, 0});
            }
        }
    }
    const auto n_counted = (double) with.size();
    std::vector<moved_row> rows;
    for (const auto * of : {&with, &without}) {
        rows.insert(rows.end(), of->begin(), of->end());
        while (rows.size() % MOVED_TILE) {
            rows.push_back({-1, 0, 0, 0});
        }
        if (of == &with) {
            n_entries += 2;
        }
    }
    const auto n_outputs = (int32_t) ((with.size() + MOVED_TILE - 1) / MOVED_TILE * MOVED_TILE);
    std::vector<uint16_t> record((size_t) n_entries * (size_t) n_head * (size_t) D);
    std::normal_distribution<float> normal(0, 1.5f);
    for (uint16_t & x : record) {
        x = __half_as_ushort(__float2half(normal(random)));
    }
    const int32_t pairs = c.pairs ? c.pairs : D / 2;
    std::vector<double> omega((size_t) pairs);
    for (int32_t i = 0; i < pairs; i++) {
        omega[(size_t) i] = std::pow(1e4, -(double) i / pairs);
    }
    std::vector<float> sinks((size_t) n_head);
    for (float & x : sinks) {
        x = normal(random);
    }
    int64_t capacity = (*std::max_element(c.lengths.begin(), c.lengths.end()) + 63) / 64 * 64 + 64;
    std::vector<float> p0((size_t) (n_head * capacity)), squares0(p0.size());
    for (size_t i = 0; i < p0.size(); i++) { // they are added to
        p0[i]       = (float) (i % 5);
        squares0[i] = (float) (i % 3);
    }

    device_store pages(store, n_head_kv);
    device_array<int32_t>   d_n(c.lengths);
    device_array<moved_row> d_rows(rows);
    device_array<uint16_t>  d_record(record);
    device_array<double>    d_omega(omega), d_output((size_t) (n_head * D)), d_length2((size_t) n_head), d_folded_output((size_t) (n_head * D)), d_folded_length2((size_t) n_head);
    device_array<float>     d_sinks(sinks), d_p(p0), d_squares(squares0), d_mean((size_t) (n_head * D)), d_weight((size_t) n_head);
    moved_params p{};
    p.a.pages    = pages.pages;
    p.a.pages.n  = nullptr;
    p.a.n_head   = n_head;
    p.a.scale    = 1.0f / std::sqrt((float) D);
    p.a.softcap  = c.softcap;
    p.a.max_bias = c.max_bias;
    p.a.sinks    = c.sinks ? d_sinks.data : nullptr;
    p.n        = d_n.data;
    p.rows     = d_rows.data;
    p.record   = d_record.data;
    p.n_rows   = (int32_t) rows.size();
    p.n_outputs = n_outputs;
    p.end      = end;
    p.window   = c.window;
    p.omega    = c.turned ? d_omega.data : nullptr;
    p.n_pairs  = pairs;
    p.offset   = c.offset;
    p.halves   = c.halves;
    p.hadamard = c.hadamard;
    p.n_split  = c.n_split;
    device_array<char> scratch(moved_scratch(n_head, D, p.n_rows, p.n_outputs, p.n_split).bytes);
    p.scratch  = scratch.data;
    p.p        = d_p.data;
    p.squares  = d_squares.data;
    p.capacity = capacity;
    p.output   = d_output.data;
    p.length2  = d_length2.data;
    const auto sum = [&] {
        d_p.set(p0);
        d_squares.set(squares0);
        d_output.set(std::vector<double>(d_output.n));
        d_length2.set(std::vector<double>(d_length2.n));
        CHECK(cudaMemset(scratch.data, 0xff, scratch.n));
        launch_moved(moved_turn_launch(p), p);
        launch_moved(moved_attend_launch(p, true), p);
        launch_moved(moved_attend_launch(p, false), p);
        launch_moved(moved_merge_launch(p), p);
        launch_moved(moved_outputs_launch(p), p);
        launch_moved(moved_columns_launch(p, *std::max_element(c.lengths.begin(), c.lengths.end())), p);
        CHECK(cudaDeviceSynchronize());
        return std::make_pair(d_p.get(), d_squares.get());
    };
    const auto once = sum();
    const std::vector<float> & got_p = once.first, & got_squares = once.second;
    const std::vector<double> got_output = d_output.get(), got_length2 = d_length2.get();
    const auto again = sum();
    const bool same = same_bits(got_p, again.first) && same_bits(got_squares, again.second) && got_output == d_output.get() && got_length2 == d_length2.get();

    // what slots are worth
    moved_means_params m{d_output.data, d_length2.data, d_folded_output.data, d_folded_length2.data, nullptr, n_counted, D, d_mean.data, d_weight.data};
    const moved_fold_params fold{pages.pages, d_n.data, d_squares.data, capacity, d_mean.data, d_weight.data, c.group, 2};
    launch_moved(moved_means_launch(n_head), m);
    launch_moved(moved_fold_launch(pages.pages, *std::max_element(c.lengths.begin(), c.lengths.end())), fold);
    CHECK(cudaDeviceSynchronize());
    paged_store after = store;
    after.pool = pages.pool.get();
    const std::vector<double> folded = d_folded_output.get(), left = d_output.get();
    const bool moved_on = folded == got_output && std::all_of(left.begin(), left.end(), [](double x) { return x == 0; });
    const std::vector<move_item> items = {{0, 1, 0, 1}, {0, n_head_kv - 1, 1, 40}};
    device_array<move_item> d_items(items);
    const moved_reset_params reset{d_p.data, d_squares.data, capacity, d_items.data, (int32_t) items.size(), c.group};
    launch_moved(moved_reset_launch((int32_t) items.size()), reset);
    CHECK(cudaDeviceSynchronize());
    const std::vector<float> cleared = d_p.get();
    bool reset_right = true;
    for (size_t i = 0; i < cleared.size(); i++) {
        const int32_t kv_head = (int32_t) (i / (size_t) capacity) / c.group, slot = (int32_t) (i % (size_t) capacity);
        const bool    gone = std::any_of(items.begin(), items.end(), [&](const move_item & m) { return m.head == kv_head && slot >= m.from && slot < m.to; });
        reset_right = reset_right && cleared[i] == (gone ? 0.0f : got_p[i]);
    }

    std::vector<error_sum> sums((size_t) n_head), square_sums((size_t) n_head), outputs((size_t) n_head), scores((size_t) n_head_kv);
    std::vector<double>    sizes((size_t) n_head_kv); // squares of what scores would be without mean outputs: what is left may be nothing
    std::vector<char>      untouched((size_t) n_head, 1);
    const auto reference = [&](int32_t kv) {
        const int32_t n = c.lengths[(size_t) kv];
        std::vector<double> k((size_t) (n * D)), v(k.size()), losses((size_t) n), without_means((size_t) n);
        for (int32_t s = 0; s < n; s++) {
            for (int32_t d = 0; d < D; d++) {
                k[(size_t) (s * D + d)] = (double) store.get(false, kv, s, d);
                v[(size_t) (s * D + d)] = (double) store.get(true, kv, s, d);
            }
        }
        for (int32_t g = 0; g < c.group; g++) {
            const int32_t head = kv * c.group + g;
            int32_t pow2 = 1;
            while (2 * pow2 <= n_head) {
                pow2 *= 2;
            }
            const double slope = c.max_bias <= 0 ? 0 : head < pow2 ? std::pow(2.0, -(double) c.max_bias / pow2 * (head + 1)) : std::pow(2.0, -(double) c.max_bias / 2 / pow2 * (2 * (head - pow2) + 1));
            std::vector<double> want_p((size_t) n), want_squares((size_t) n), want_output((size_t) D);
            double want_length2 = 0;
            for (size_t r = 0; r < rows.size(); r++) {
                if (rows[r].entry < 0) {
                    continue;
                }
                std::vector<double> q((size_t) D), moved;
                for (int32_t d = 0; d < D; d++) {
                    q[(size_t) d] = (double) __half2float(__ushort_as_half(record[((size_t) rows[r].entry * (size_t) n_head + (size_t) head) * (size_t) D + (size_t) d]));
                }
                moved = q;
                const int32_t by = end - rows[r].begin, pos = rows[r].pos, at = pos + by;
                if (c.turned) {
                    if (c.hadamard) {
                        hadamard(moved, c.hadamard);
                    }
                    for (int32_t i = 0; i < pairs; i++) {
                        double & x = moved[(size_t) (c.offset + (c.halves ? i : 2 * i))], & y = moved[(size_t) (c.offset + (c.halves ? i + pairs : 2 * i + 1))];
                        const double angle = by * omega[(size_t) i], x0 = x;
                        x = x0 * std::cos(angle) - y * std::sin(angle);
                        y = x0 * std::sin(angle) + y * std::cos(angle);
                    }
                    if (c.hadamard) {
                        hadamard(moved, c.hadamard);
                    }
                }
                const auto logit = [&](const std::vector<double> & query, int32_t s, int32_t distance) {
                    double x = 0;
                    for (int32_t d = 0; d < D; d++) {
                        x += query[(size_t) d] * k[(size_t) (s * D + d)];
                    }
                    x *= (double) p.a.scale;
                    return (c.softcap != 0 ? (double) c.softcap * std::tanh(x / (double) c.softcap) : x) - slope * distance;
                };
                double total = c.sinks ? std::exp((double) sinks[(size_t) head]) : 0;
                std::vector<double> w((size_t) n), own((size_t) n);
                for (int32_t s = 0; s < n; s++) {
                    const int32_t key = store.pos(kv, s);
                    if (key < end && (c.window == 0 || key > at - c.window)) {
                        total += w[(size_t) s] = std::exp(logit(moved, s, at - key));
                    }
                    if (key >= rows[r].begin && key <= pos && (c.window == 0 || key > pos - c.window)) {
                        total += own[(size_t) s] = std::exp(logit(q, s, pos - key));
                    }
                }
                if (total == 0) {
                    continue;
                }
                std::vector<double> o((size_t) D);
                for (int32_t s = 0; s < n; s++) {
                    const double x = w[(size_t) s] / total;
                    want_p[(size_t) s] += x;
                    want_squares[(size_t) s] += x * x;
                    for (int32_t d = 0; r < (size_t) n_outputs && d < D; d++) {
                        o[(size_t) d] += (w[(size_t) s] + own[(size_t) s]) / total * v[(size_t) (s * D + d)];
                    }
                }
                for (int32_t d = 0; d < D; d++) {
                    want_output[(size_t) d] += o[(size_t) d];
                    want_length2 += o[(size_t) d] * o[(size_t) d];
                }
            }
            for (int64_t s = 0; s < capacity; s++) {
                const auto   i = (size_t) (head * capacity + s);
                const double from_p = (double) p0[i], from_squares = (double) squares0[i];
                if (s >= n) {
                    untouched[(size_t) head] = (char) (untouched[(size_t) head] && got_p[i] == p0[i] && got_squares[i] == squares0[i]);
                    continue;
                }
                sums[(size_t) head].add((double) got_p[i] - from_p, want_p[(size_t) s]);
                square_sums[(size_t) head].add((double) got_squares[i] - from_squares, want_squares[(size_t) s]);
            }
            for (int32_t d = 0; d < D; d++) {
                outputs[(size_t) head].add(got_output[(size_t) (head * D + d)], want_output[(size_t) d]);
            }
            outputs[(size_t) head].add(got_length2[(size_t) head], want_length2);
            // scores from what the kernels summed up
            const double weight = got_length2[(size_t) head] > 0 ? n_counted / got_length2[(size_t) head] : 0;
            for (int32_t s = 0; s < n; s++) {
                double distance = 0, length2 = 0, squares = 0;
                for (int32_t d = 0; d < D; d++) {
                    const double x = v[(size_t) (s * D + d)] - got_output[(size_t) (head * D + d)] / n_counted;
                    distance += x * x;
                    length2 += v[(size_t) (s * D + d)] * v[(size_t) (s * D + d)];
                }
                const int32_t from = std::max(s - 2, 0), to = std::min(s + 2, n - 1);
                for (int32_t j = from; j <= to; j++) {
                    squares += (double) got_squares[(size_t) (head * capacity + j)] / (to - from + 1);
                }
                losses[(size_t) s] += weight * squares * distance;
                without_means[(size_t) s] += weight * squares * length2;
            }
        }
        for (int32_t s = 0; s < n; s++) {
            scores[(size_t) kv].add((double) after.score(kv, s) - (double) store.score(kv, s), losses[(size_t) s]);
            sizes[(size_t) kv] += without_means[(size_t) s] * without_means[(size_t) s];
        }
    };
    std::vector<std::thread> threads;
    for (int32_t h = 0; h < n_head_kv; h++) {
        threads.emplace_back(reference, h);
    }
    for (auto & t : threads) {
        t.join();
    }
    double error = 0, squares_error = 0, output_error = 0, score_error = 0;
    for (int32_t h = 0; h < n_head; h++) {
        error         = std::max(error, std::sqrt(sums[(size_t) h].nmse()));
        squares_error = std::max(squares_error, std::sqrt(square_sums[(size_t) h].nmse()));
        output_error  = std::max(output_error, std::sqrt(outputs[(size_t) h].nmse()));
    }
    for (int32_t h = 0; h < n_head_kv; h++) {
        score_error = std::max(score_error, std::sqrt(scores[(size_t) h].error / std::max(sizes[(size_t) h], 1e-30)));
    }
    const bool clean = std::all_of(untouched.begin(), untouched.end(), [](char x) { return x; });
    const bool ok = same && clean && moved_on && reset_right && error <= tolerance && squares_error <= tolerance_squares && output_error <= tolerance_output && score_error <= 1e-4;
    static const char * const types[] = {"f16", "q8_0"};
    printf("%s dim %3d %-4s %-4s group %d blocks %d stride %d %s%s pairs %d+%d hadamard %d window %d softcap %g alibi %g%s%s%s%s split %d seed %u: sums %.1e, of squares %.1e, outputs %.1e, scores %.1e%s%s%s%s\n",
           ok ? "ok  " : "FAIL", D, types[c.type_k], types[c.type_v], c.group, c.n_blocks, c.stride, c.turned ? "turned" : "not turned", c.halves ? " by halves" : "", c.offset, pairs, c.hadamard,
           c.window, (double) c.softcap, (double) c.max_bias, c.sinks ? " sinks" : "", c.shuffled ? " shuffled" : "", c.holes ? " holes" : "", c.behind ? " behind" : "", c.n_split, seed, error,
           squares_error, output_error, score_error, same ? "" : ", DIFFERS FROM RUN TO RUN", clean ? "" : ", SLOTS THAT ARE NOT THERE", moved_on ? "" : ", NOT FOLDED", reset_right ? "" : ", NOT RESET");
    cases++;
    failures += !ok;
    worst         = std::max(worst, error);
    worst_squares = std::max(worst_squares, squares_error);
    worst_output  = std::max(worst_output, output_error);
}

// what queries of some tokens become
void record_case(uint32_t seed) {
    std::mt19937 random(seed);
    const int32_t D = 80, n_head = 5, n_tokens = 9;
    std::vector<float> q((size_t) (n_tokens * n_head * D));
    std::normal_distribution<float> normal(0, 2);
    for (float & x : q) {
        x = normal(random);
    }
    const std::vector<int32_t> tokens = {1, 2, 8};
    device_array<float>    d_q(q); // [head][token][dim]
    device_array<int32_t>  d_tokens(tokens);
    device_array<uint16_t> to(tokens.size() * (size_t) (n_head * D));
    const moved_record_params p{(const char *) d_q.data, D * 4, D * 4 * n_tokens, d_tokens.data, to.data, n_head, D};
    launch_moved(moved_record_launch((int32_t) tokens.size()), p);
    CHECK(cudaDeviceSynchronize());
    const std::vector<uint16_t> got = to.get();
    bool ok = true;
    for (size_t i = 0; i < got.size(); i++) {
        const size_t token = (size_t) tokens[i / (size_t) (n_head * D)], head = i / (size_t) D % (size_t) n_head, d = i % (size_t) D;
        ok = ok && got[i] == __half_as_ushort(__float2half_rn(q[(head * (size_t) n_tokens + token) * (size_t) D + d]));
    }
    printf("%s recorded queries\n", ok ? "ok  " : "FAIL");
    cases++;
    failures += !ok;
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
#define KERNELS(dim) KERNEL(moved_weights_##dim) KERNEL(moved_outputs_##dim) KERNEL(moved_columns_##dim)
    KERNELS(64) KERNELS(80) KERNELS(96) KERNELS(128) KERNELS(256)
    KERNEL(moved_turn) KERNEL(moved_merge) KERNEL(moved_output_sums) KERNEL(moved_record) KERNEL(moved_means) KERNEL(moved_fold) KERNEL(moved_reset)

    uint32_t s = seed * 1000;
    record_case(s++);
    // every shape; then every feature
    for (int32_t dim : {64, 80, 96, 128, 256}) {
        for (int32_t types = 0; types < (dim % Q8_BLOCK ? 1 : 4); types++) {
            for (int32_t group : {1, 3}) {
                if (quick && s++ % 4) {
                    continue;
                }
                test_case c{dim, types & 1, types >> 1, group};
                c.halves   = group == 3;
                c.hadamard = types & 1 ? (dim % 64 ? 32 : 64) : 0;
                c.n_split  = group == 3 ? 3 : 1;
                run_case(c, s++);
            }
        }
    }
    for (int32_t dim : {64, 128, 256}) {
        for (int32_t i = 0; i < 16; i++) {
            if (quick && (i + dim / 64) % 5) {
                continue;
            }
            test_case c{dim, i % 2, i / 2 % 2, i % 3 + 1};
            c.n_blocks = i == 0 ? 1 : i == 1 ? 12 : 4;
            c.stride   = i % 4 == 3 ? 1 << i % 3 : i == 2 ? 8 : 1;
            c.turned   = i != 4;
            c.halves   = i % 2;
            c.pairs    = i % 5 == 1 ? dim / 4 : 0;
            c.offset   = i % 5 == 1 ? 16 : 0;
            c.hadamard = i % 3 == 0 ? 0 : i % 2 ? dim : 16;
            c.window   = i % 4 == 1 ? 100 : i == 6 ? 900 : i == 12 ? 20 : 0;
            c.softcap  = i % 5 == 3 ? 20.0f : 0.0f;
            c.max_bias = i == 4 || i == 9 ? 8.0f : 0.0f;
            c.sinks    = i % 3 == 1;
            c.shuffled = i % 4 == 2;
            c.holes    = i % 3 == 2;
            c.behind   = i % 5 == 0;
            c.n_split  = i % 4 + 1;
            run_case(c, s++);
        }
    }
    printf("%d of %d cases failed; worst error of sums %.2e, of squares %.2e, of outputs %.2e\n", failures, cases, worst, worst_squares, worst_output);
    return failures || cases == 0;
}
