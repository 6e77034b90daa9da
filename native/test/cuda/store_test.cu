// The operations on the store against a model of it on the host, bit by bit.
//
// store_test [seed]
#include "../../src/attention/cuda/store.cu"

#include "paged_store.h"

using namespace kvasir::cuda;

namespace {

int failures = 0, checks = 0;

void expect(bool ok, const char * what, const page_format & f, uint32_t seed) {
    checks++;
    failures += !ok;
    static const char * const types[] = {"f16", "q8_0"};
    if (!ok) {
        printf("FAIL %s: dim %d %s %s, seed %u\n", what, f.dim_k, types[f.type_k], types[f.type_v], seed);
    }
}

// the contents of a slot as bytes: K, V, their scales, cell, pos, score
std::vector<char> slot_bytes(paged_store & s, int32_t head, int32_t slot) {
    std::vector<char> x;
    const auto put = [&](const void * p, size_t n) { x.insert(x.end(), (const char *) p, (const char *) p + n); };
    for (int value = 0; value < 2; value++) {
        for (int32_t d = 0; d < (value ? s.format.dim_v : s.format.dim_k); d++) {
            if ((value ? s.format.type_v : s.format.type_k) == F16) {
                put(&s.f16(value, head, slot, d), 2);
            } else {
                put(&s.q8(value, head, slot, d), 1);
                put(&s.q8_scale(value, head, slot, d), 2);
            }
        }
    }
    put(&s.cell(head, slot), 4);
    put(&s.pos(head, slot), 4);
    put(&s.score(head, slot), 4);
    return x;
}

// a row as ggml has it
std::vector<char> row_bytes(paged_store & s, bool value, int32_t head, int32_t slot) {
    std::vector<char> x;
    const int32_t dim = value ? s.format.dim_v : s.format.dim_k;
    for (int32_t d = 0; d < dim; d++) {
        if ((value ? s.format.type_v : s.format.type_k) == F16) {
            const uint16_t h = s.f16(value, head, slot, d);
            x.insert(x.end(), (const char *) &h, (const char *) &h + 2);
            continue;
        }
        if (d % 32 == 0) {
            const uint16_t h = s.q8_scale(value, head, slot, d);
            x.insert(x.end(), (const char *) &h, (const char *) &h + 2);
        }
        x.push_back((char) s.q8(value, head, slot, d));
    }
    return x;
}

void run(int32_t dim, int32_t type_k, int32_t type_v, uint32_t seed) {
    std::mt19937 random(seed);
    const page_format format = make_page_format(type_k, type_v, dim, dim);
    const std::vector<int32_t> lengths = {1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 2111};
    const int32_t heads = (int32_t) lengths.size(), n_layers = 2, n_head_kv = heads;
    std::vector<paged_store> layers;
    for (int32_t l = 0; l < n_layers; l++) {
        layers.emplace_back(format, lengths, random, 10);
        for (int32_t h = 0; h < heads; h++) {
            for (int32_t i = 0; i < lengths[(size_t) h]; i++) {
                layers.back().fill(h, i, random, 1);
                layers.back().cell(h, i)  = (int32_t) (random() % 100000);
                layers.back().pos(h, i)   = (int32_t) (random() % 100000);
                layers.back().score(h, i) = (float) (random() % 1000) * 0.001f;
            }
        }
    }
    device_store d0(layers[0], n_head_kv), d1(layers[1], n_head_kv);
    device_store * devices[] = {&d0, &d1};
    device_array<layer_pages> d_layers(std::vector<layer_pages>{d0.pages, d1.pages});
    const auto read = [&](int32_t l) {
        paged_store s = layers[(size_t) l];
        s.pool = devices[l]->pool.get();
        return s;
    };
    const auto same_slots = [&](const char * what) {
        for (int32_t l = 0; l < n_layers; l++) {
            paged_store got = read(l), & want = layers[(size_t) l];
            bool ok = true;
            for (int32_t h = 0; h < heads; h++) {
                for (int32_t i = 0; i < want.n[(size_t) h]; i++) {
                    ok &= slot_bytes(got, h, i) == slot_bytes(want, h, i);
                }
            }
            expect(ok, what, format, seed);
        }
    };

    // append: to every head but every third token of head 3, and none of layer 1
    {
        const int32_t T = 70;
        std::vector<float> k((size_t) T * n_head_kv * dim), v(k.size());
        std::uniform_real_distribution<float> uniform(-3, 3);
        for (size_t i = 0; i < k.size(); i++) {
            k[i] = uniform(random);
            v[i] = i / (size_t) dim % 11 == 5 ? 0.0f : uniform(random); // rows of zeros, too
        }
        std::vector<int32_t> slots;
        std::vector<token_label> tokens;
        std::vector<int32_t> n = layers[0].n;
        for (int32_t t = 0; t < T; t++) {
            tokens.push_back({0, 500 + 3 * t, 9000 + t, 0});
            for (int32_t h = 0; h < n_head_kv; h++) {
                slots.push_back(h == 3 && t % 3 == 0 ? -1 : n[(size_t) h]++);
            }
        }
        device_array<float> d_k(k), d_v(v);
        device_array<int32_t> d_slots(slots);
        device_array<token_label> d_tokens(tokens);
        const append_params p{d0.pages, (const char *) d_k.data, (const char *) d_v.data, (int64_t) n_head_kv * dim * 4, dim * 4, (int64_t) n_head_kv * dim * 4, dim * 4, d_slots.data, d_tokens.data, T};
        start(append_launch(p), p);
        CHECK(cudaDeviceSynchronize());
        paged_store got = read(0);
        bool exact = true, labels = true;
        for (int32_t t = 0; t < T; t++) {
            for (int32_t h = 0; h < n_head_kv; h++) {
                const int32_t slot = slots[(size_t) t * n_head_kv + h];
                if (slot < 0) {
                    continue;
                }
                labels &= got.cell(h, slot) == tokens[(size_t) t].cell && got.pos(h, slot) == tokens[(size_t) t].pos && got.score(h, slot) == 0.0f;
                for (int value = 0; value < 2; value++) {
                    const float * x = (value ? v : k).data() + ((size_t) t * n_head_kv + h) * dim;
                    if ((value ? type_v : type_k) == F16) {
                        for (int32_t i = 0; i < dim; i++) {
                            exact &= got.f16(value, h, slot, i) == __half_as_ushort(__float2half(x[i]));
                        }
                        continue;
                    }
                    for (int32_t b = 0; b < dim; b += 32) { // approximate division may be off by one unit in the last place
                        float largest = 0;
                        for (int32_t i = b; i < b + 32; i++) {
                            largest = std::max(largest, std::fabs(x[i]));
                        }
                        const float d = largest / 127, id = d != 0 ? 1 / d : 0, got_d = __half2float(__ushort_as_half(got.q8_scale(value, h, slot, b)));
                        exact &= std::fabs(got_d - d) <= d * 0x1.01p-11f;
                        for (int32_t i = b; i < b + 32; i++) {
                            exact &= std::fabs((float) got.q8(value, h, slot, i) - x[i] * id) <= 0.5f + 1e-4f;
                        }
                    }
                }
            }
        }
        expect(exact, "append: values", format, seed);
        expect(labels, "append: labels", format, seed);
        layers[0].pool = got.pool;
        layers[0].n    = n;
        d0.n.set(n);
        same_slots("append: the others");
    }

    // keep, with a statistic in layer 0
    {
        const int32_t rows = 2, n_bounds = 3, capacity = layers[0].stride * PAGE_SLOTS;
        std::vector<float> buckets((size_t) heads * rows * (n_bounds + 1) * capacity), recent((size_t) heads * rows * capacity);
        for (auto * x : {&buckets, &recent}) {
            for (float & y : *x) {
                y = (float) (random() % 1000);
            }
        }
        device_array<float> d_buckets(buckets), d_recent(recent);
        device_array<statistic_columns> columns(std::vector<statistic_columns>{{d_buckets.data, d_recent.data, n_bounds, rows, capacity}, {nullptr, nullptr, 0, 0, 0}});
        std::vector<keep_item> items;
        std::vector<int32_t> slots;
        std::vector<std::vector<int32_t>> kept;
        for (int32_t l = 0; l < n_layers; l++) {
            for (int32_t h = 0; h < heads; h++) {
                std::vector<int32_t> mine;
                const uint32_t percent = (uint32_t) ((h * 37 + l * 50) % 101);
                for (int32_t i = 0; i < layers[(size_t) l].n[(size_t) h]; i++) {
                    if (i < 40 * (h % 3) || random() % 100 < percent) { // some begin with what stays where it is
                        mine.push_back(i);
                    }
                }
                items.push_back({l, h, (int32_t) mine.size(), 0, (int64_t) slots.size()});
                slots.insert(slots.end(), mine.begin(), mine.end());
                kept.push_back(mine);
            }
        }
        device_array<keep_item> d_items(items);
        device_array<int32_t> d_slots(slots);
        const keep_params p{d_layers.data, columns.data, d_items.data, d_slots.data};
        start(keep_launch((int32_t) items.size(), keep_shared(format)), p);
        CHECK(cudaDeviceSynchronize());
        const std::vector<float> got_buckets = d_buckets.get(), got_recent = d_recent.get();
        bool ok = true, sums = true;
        for (int32_t l = 0; l < n_layers; l++) {
            paged_store before = layers[(size_t) l], got = read(l);
            for (int32_t h = 0; h < heads; h++) {
                const std::vector<int32_t> & mine = kept[(size_t) (l * heads + h)];
                for (size_t i = 0; i < mine.size(); i++) {
                    ok &= slot_bytes(got, h, (int32_t) i) == slot_bytes(before, h, mine[i]);
                    for (int32_t r = 0; l == 0 && r < rows; r++) {
                        for (int32_t b = 0; b <= n_bounds; b++) {
                            const size_t row = (((size_t) h * rows + r) * (n_bounds + 1) + b) * capacity;
                            sums &= got_buckets[row + i] == buckets[row + (size_t) mine[i]];
                        }
                        const size_t row = ((size_t) h * rows + r) * capacity;
                        sums &= got_recent[row + i] == recent[row + (size_t) mine[i]];
                    }
                }
                layers[(size_t) l].n[(size_t) h] = (int32_t) mine.size();
            }
            layers[(size_t) l].pool = got.pool;
            devices[l]->n.set(layers[(size_t) l].n);
        }
        expect(ok, "keep", format, seed);
        expect(sums, "keep: the statistic", format, seed);

        // move: the last slot into a hole
        std::vector<move_item> moves;
        const std::vector<float> before_buckets = got_buckets;
        for (int32_t l = 0; l < n_layers; l++) {
            for (int32_t h = 0; h < heads; h++) {
                const int32_t n = layers[(size_t) l].n[(size_t) h];
                if (n >= 2) {
                    moves.push_back({l, h, n - 1, (int32_t) (random() % (uint32_t) (n - 1))});
                }
            }
        }
        device_array<move_item> d_moves(moves);
        const move_params m{d_layers.data, columns.data, d_moves.data};
        start(move_launch((int32_t) moves.size()), m);
        CHECK(cudaDeviceSynchronize());
        const std::vector<float> moved_buckets = d_buckets.get();
        ok = sums = true;
        for (const move_item & x : moves) {
            paged_store got = read(x.layer);
            ok &= slot_bytes(got, x.head, x.to) == slot_bytes(layers[(size_t) x.layer], x.head, x.from);
            for (int32_t r = 0; x.layer == 0 && r < rows * (n_bounds + 1); r++) {
                const size_t row = ((size_t) x.head * rows * (n_bounds + 1) + r) * capacity;
                sums &= moved_buckets[row + (size_t) x.to] == before_buckets[row + (size_t) x.from];
            }
        }
        expect(ok, "move", format, seed);
        expect(sums, "move: the statistic", format, seed);

        // clear the sums of some slots; layer 1 has none
        std::vector<move_item> clears;
        for (int32_t h = 0; h < heads; h++) {
            const int32_t n = layers[0].n[(size_t) h];
            clears.push_back({0, h, n / 3, n / 3 + 1});
            clears.push_back({0, h, n / 2, n});
        }
        clears.push_back({1, 0, 0, 1});
        device_array<move_item> d_clears(clears);
        start(clear_sums_launch((int32_t) clears.size()), clear_params{columns.data, d_clears.data, (int32_t) clears.size()});
        CHECK(cudaDeviceSynchronize());
        std::vector<float> want_buckets = moved_buckets;
        for (const move_item & x : clears) {
            for (int32_t r = 0; x.layer == 0 && r < rows * (n_bounds + 1); r++) {
                const size_t row = ((size_t) x.head * rows * (n_bounds + 1) + r) * capacity;
                std::fill(want_buckets.begin() + (ptrdiff_t) (row + (size_t) x.from), want_buckets.begin() + (ptrdiff_t) (row + (size_t) x.to), 0.0f);
            }
        }
        expect(same_bits(d_buckets.get(), want_buckets), "clear_sums", format, seed);
        paged_store want[] = {layers[0], layers[1]};
        layers[0].pool = d0.pool.get();
        layers[1].pool = d1.pool.get();
        ok = true;
        for (const move_item & x : moves) {
            for (int32_t i = 0; i < x.from; i++) {
                ok &= i == x.to || slot_bytes(layers[(size_t) x.layer], x.head, i) == slot_bytes(want[x.layer], x.head, i);
            }
        }
        expect(ok, "move: the others", format, seed);
    }

    // spans: scores, value norms, gather, then labels and scatter into other slots
    for (int value = 0; value < 2; value++) {
        const int32_t type = value ? type_v : type_k;
        const size_t row = type == Q8_0 ? (size_t) dim / 32 * 34 : (size_t) dim * 2;
        std::vector<span_item> spans, flat;
        int64_t bytes = 0, elements = 0;
        int32_t longest = 1;
        for (int32_t l = 0; l < n_layers; l++) {
            for (int32_t h = 0; h < heads; h++) {
                const int32_t n = layers[(size_t) l].n[(size_t) h], first = n / 5, count = n - first - n / 7;
                spans.push_back({l, h, first, count, value ? SIDE_V : SIDE_K, 0, bytes});
                flat.push_back({l, h, first, count, 0, 0, elements});
                bytes += (int64_t) row * count;
                elements += count;
                longest = std::max(longest, count);
            }
        }
        device_array<span_item> d_spans(spans), d_flat(flat);
        device_array<char> rows((size_t) bytes);
        device_array<float> norms((size_t) elements), scores((size_t) elements);
        const int32_t n_items = (int32_t) spans.size();
        start(span_launch("store_gather", n_items, longest), span_params{d_layers.data, d_spans.data, rows.data});
        start(span_launch("store_value_norms", n_items, longest), span_params{d_layers.data, d_flat.data, (char *) norms.data});
        start(span_launch("store_scores", n_items, longest), span_params{d_layers.data, d_flat.data, (char *) scores.data});
        CHECK(cudaDeviceSynchronize());
        std::vector<char> got = rows.get();
        const std::vector<float> got_norms = norms.get(), got_scores = scores.get();
        bool ok = true, norms_ok = true, scores_ok = true;
        for (size_t i = 0; i < spans.size(); i++) {
            const span_item & s = spans[i];
            paged_store & l = layers[(size_t) s.layer];
            for (int32_t r = 0; r < s.n; r++) {
                const std::vector<char> want = row_bytes(l, value, s.head, s.first + r);
                ok &= memcmp(want.data(), got.data() + s.at + (int64_t) row * r, row) == 0;
                double sum = 0;
                for (int32_t d = 0; d < dim; d++) {
                    sum += (double) l.get(true, s.head, s.first + r, d) * (double) l.get(true, s.head, s.first + r, d);
                }
                const size_t at = (size_t) (flat[i].at + r);
                norms_ok &= std::fabs((double) got_norms[at] - std::sqrt(sum)) <= 1e-6 * std::sqrt(sum); // f32 sums of at most 256 squares
                scores_ok &= got_scores[at] == l.score(s.head, s.first + r);
            }
        }
        expect(ok, "gather", format, seed);
        expect(norms_ok, "value_norms", format, seed);
        expect(scores_ok, "scores", format, seed);

        // other contents
        std::vector<token_label> labels;
        for (int64_t i = 0; i < elements; i++) {
            labels.push_back({0, (int32_t) random() & 0xffff, (int32_t) random() & 0xffff, 0});
        }
        for (char & x : got) {
            x = (char) random();
        }
        rows.set(got);
        device_array<token_label> d_labels(labels);
        start(span_launch("store_scatter", n_items, longest), span_params{d_layers.data, d_spans.data, rows.data});
        start(span_launch("store_labels", n_items, longest), span_params{d_layers.data, d_flat.data, (char *) d_labels.data});
        CHECK(cudaDeviceSynchronize());
        for (size_t i = 0; i < spans.size(); i++) {
            const span_item & s = spans[i];
            paged_store & l = layers[(size_t) s.layer];
            for (int32_t r = 0; r < s.n; r++) {
                const char * x = got.data() + s.at + (int64_t) row * r;
                for (int32_t d = 0; d < dim; d++) {
                    if (type == F16) {
                        memcpy(&l.f16(value, s.head, s.first + r, d), x + d * 2, 2);
                    } else {
                        memcpy(&l.q8_scale(value, s.head, s.first + r, d), x + d / 32 * 34, 2);
                        l.q8(value, s.head, s.first + r, d) = (int8_t) x[d / 32 * 34 + 2 + d % 32];
                    }
                }
                const token_label & label = labels[(size_t) (flat[i].at + r)];
                l.cell(s.head, s.first + r)  = label.cell;
                l.pos(s.head, s.first + r)   = label.pos;
                l.score(s.head, s.first + r) = 0;
            }
        }
        same_slots("scatter and labels");

        // the scores of before, but of every third head: zeros
        std::vector<span_item> put = flat;
        for (size_t i = 0; i < put.size(); i += 3) {
            put[i].at = -1;
        }
        device_array<span_item> d_put(put);
        start(span_launch("store_put_scores", n_items, longest), span_params{d_layers.data, d_put.data, (char *) scores.data});
        CHECK(cudaDeviceSynchronize());
        for (size_t i = 0; i < put.size(); i++) {
            for (int32_t r = 0; r < put[i].n; r++) {
                layers[(size_t) put[i].layer].score(put[i].head, put[i].first + r) = put[i].at < 0 ? 0 : got_scores[(size_t) (put[i].at + r)];
            }
        }
        same_slots("put_scores");
    }

    // whole pages
    {
        paged_store & l = layers[1];
        const size_t n_pages = l.pool.size() / format.bytes;
        std::vector<int32_t> numbers(n_pages);
        std::iota(numbers.begin(), numbers.end(), 0);
        std::shuffle(numbers.begin(), numbers.end(), random);
        std::vector<char> want = l.pool;
        for (size_t i = 0; i < 6; i += 2) {
            memcpy(want.data() + (size_t) numbers[i + 1] * format.bytes, want.data() + (size_t) numbers[i] * format.bytes, format.bytes);
        }
        for (size_t i = 6; i < 9; i++) {
            memset(want.data() + (size_t) numbers[i] * format.bytes, 0, format.bytes);
        }
        device_array<int32_t> d_pages(numbers);
        start(move_pages_launch(3), page_list_params{d1.pool.data, d_pages.data, format.bytes});
        start(zero_pages_launch(3), page_list_params{d1.pool.data, d_pages.data + 6, format.bytes});
        CHECK(cudaDeviceSynchronize());
        expect(d1.pool.get() == want, "move_pages and zero_pages", format, seed);
    }
}

} // namespace

int main(int argc, char ** argv) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("skipped: there is no NVIDIA GPU here\n");
        return 77; // ctest's SKIP_RETURN_CODE
    }
    const uint32_t seed = argc > 1 ? (uint32_t) atoi(argv[1]) : 1;
#define KERNEL(name) kernels()[#name] = (const void *) name;
    KERNEL(store_append) KERNEL(store_keep) KERNEL(store_move) KERNEL(store_gather) KERNEL(store_scatter) KERNEL(store_value_norms)
    KERNEL(store_scores) KERNEL(store_put_scores) KERNEL(store_clear_sums) KERNEL(store_labels) KERNEL(store_zero_pages) KERNEL(store_move_pages)
    uint32_t s = seed * 100;
    for (int32_t dim : {64, 80, 96, 128, 256}) {
        for (int32_t types = 0; types < (dim % Q8_BLOCK ? 1 : 4); types++) {
            run(dim, types & 1, types >> 1, s++);
        }
    }
    printf("store: %d of %d checks failed, seed %u\n", failures, checks, seed);
    return failures || checks == 0;
}
