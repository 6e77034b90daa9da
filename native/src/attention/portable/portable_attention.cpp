#include "portable_attention.h"

#include "../alibi.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <thread>

namespace kvasir {

namespace {

constexpr uint16_t MASKED = 0xfc00; // -infinity as f16

// What may lie in memory at once for one graph: inputs (masks above all), and weights on their way to the host.
constexpr size_t INPUT_BYTES = (size_t) 64 << 20, RESULT_BYTES = (size_t) 64 << 20;
constexpr size_t WEIGHT_BYTES = (size_t) 16 << 20; // of one node

constexpr int32_t MANY_TOKENS = 32; // whose weights are worth a node that adds those of a query group up

// llama.cpp rounds the number of cells that a graph looks at up to a multiple of this (llama_kv_cache::get_n_kv); ggml's
// CPU kernel splits its work by that number, so sums come out bit by bit the same only for the same number of rows.
constexpr int32_t ROWS_MULTIPLE = 256;

int32_t padded_rows(int32_t n, int32_t mask_n_kv) {
    const int32_t rows = (std::max(n, 1) + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    return mask_n_kv > 0 ? std::max(n, std::min(rows, mask_n_kv)) : rows;
}

// A node over all heads counts them as llama.cpp's does. One over some of them would count these from 0: ALiBi's slopes are in
// its mask.
attention_node masked_as(const attention_node & a, bool all_heads) {
    attention_node masked = a;
    masked.max_bias = all_heads ? 0 : a.max_bias;
    return masked;
}

// masks of a head: one, or one for every query head of the group
int32_t masks_of(const attention_node & a) { return a.mask_n_head > 1 || a.max_bias > 0 ? a.n_head / a.n_head_kv : 1; }

size_t mask_bytes(const attention_node & a, int32_t n_rows, int32_t n_tokens, int32_t n_heads) {
    return (size_t) n_rows * (size_t) n_tokens * (size_t) (n_heads * masks_of(a)) * sizeof(uint16_t);
}

// cells 0, 1, 2, ... one after the other
bool in_order(const head_store & h) { return h.ascending && h.n > 0 && h.cell[0] == 0 && h.cell[h.n - 1] == h.n - 1; }

bool same_cells(const head_store & a, const head_store & b) {
    return &a == &b || (a.n == b.n && ((in_order(a) && in_order(b)) || memcmp(a.cell, b.cell, (size_t) a.n * sizeof(int32_t)) == 0));
}

// whether one node can serve all KV heads of a stream, of which index is the first one's
bool alike(const attention_node & a, const device_rows & rows, int index, int32_t stream) {
    const head_store * heads = a.heads + (size_t) stream * a.n_head_kv;
    bool same = a.mask_n_head == 1 && rows.head_bytes(true, index, a.n_head_kv) && rows.head_bytes(false, index, a.n_head_kv);
    for (int32_t h = 1; same && h < a.n_head_kv; h++) {
        same = same_cells(heads[0], heads[h]) && rows.order(index) == rows.order(index + h);
    }
    return same;
}

// The masks of one head: [mask of masks_of(a)][token][row], gathered from llama.cpp's by cell.
void fill_masks(const attention_node & a, const head_store & head, const std::vector<int32_t> & order, int32_t stream, int32_t kv_head, int32_t first,
                int32_t n_tokens, int32_t n_rows, uint16_t * row) {
    const api &   g          = llama();
    const int32_t first_head = kv_head * (a.n_head / a.n_head_kv);
    const char *  source     = a.mask ? a.mask + (size_t) (stream % a.mask_n_stream) * a.mask_nb[3] : nullptr;
    const bool    whole      = order.empty() && in_order(head) && head.n <= a.mask_n_kv;
    for (int32_t m = 0; m < masks_of(a); m++) {
        const float slope = a.max_bias > 0 ? alibi_slope(a.max_bias, first_head + m, a.n_head) : 1.0f;
        for (int32_t i = first; i < first + n_tokens; i++, row += n_rows) {
            std::fill(order.empty() ? row + head.n : row, row + n_rows, MASKED);
            if (!source) {
                device_rows::for_each_row(order, head.n, [&](int32_t, int32_t r) { row[r] = 0; });
                continue;
            }
            const auto * from = (const uint16_t *) (source + (size_t) i * a.mask_nb[1] + (size_t) ((first_head + m) % a.mask_n_head) * a.mask_nb[2]);
            if (whole) {
                memcpy(row, from, (size_t) head.n * sizeof *row);
            } else {
                device_rows::for_each_row(order, head.n, [&](int32_t s, int32_t r) { row[r] = head.cell[s] < a.mask_n_kv ? from[head.cell[s]] : MASKED; });
            }
            if (a.max_bias > 0) {
                for (int32_t r = 0; r < n_rows; r++) {
                    row[r] = row[r] == MASKED ? MASKED : g.ggml_fp32_to_fp16(slope * g.ggml_fp16_to_fp32(row[r]));
                }
            }
        }
    }
}

void add(const float * values, float share, int32_t first, int32_t last, float * sums) {
    for (int32_t s = first; s < last; s++) {
        sums[s] += values[s] * share;
    }
}

// Adds the weights of every query to the sums of the keys that it saw, as the CPU kernels do. by_row: [of n_heads][token][row], those of
// the query heads of the group or their sum.
void add_weights(const attention_node & a, head_store & h, const std::vector<int32_t> & order, int32_t stream, int32_t first, int32_t n_tokens, int32_t n_rows, int32_t n_heads,
                 const float * by_row) {
    h.saved.save();
    const int32_t     group  = a.n_head / a.n_head_kv;
    const statistic * stat   = a.stat;
    const bool        apart  = stat && stat->rows > 1;
    const float       share  = apart ? 1.0f : 1.0f / (float) group;
    const bool        sorted = stat && std::is_sorted(h.pos, h.pos + h.n); // not with several sequences, or after single evictions
    const auto        held   = std::max(h.n, (int32_t) order.size()); // rows
    std::vector<float> sums(stat ? 0 : (size_t) held), by_slot(stat && !order.empty() ? (size_t) h.n : 0);
    for (int32_t g = 0; g < n_heads; g++) {
        const size_t row = apart ? (size_t) g : 0;
        for (int32_t t = 0; t < n_tokens; t++, by_row += n_rows) {
            if (std::isnan(by_row[0])) {
                continue; // a query that sees nothing has no weights
            }
            if (!stat) {
                add(by_row, share, 0, held, sums.data());
                continue;
            }
            const float * values = by_row;
            if (!order.empty()) {
                device_rows::for_each_row(order, h.n, [&](int32_t s, int32_t r) { by_slot[(size_t) s] = by_row[r]; });
                values = by_slot.data();
            }
            const int32_t pos    = a.query_pos[(size_t) stream * a.n_tokens + first + t];
            const auto    bucket = [&](int32_t b) { return h.buckets + (row * (size_t) (stat->n_bounds + 1) + (size_t) b) * stat->capacity; };
            if (sorted) { // by distance, too: a bucket's slots stand side by side, the most distant ones first
                for (int32_t b = stat->n_bounds, from = 0; b >= 0; b--) {
                    const auto to = b == 0 ? h.n : (int32_t) (std::upper_bound(h.pos + from, h.pos + h.n, pos - stat->bounds[b - 1]) - h.pos);
                    add(values, share, from, to, bucket(b));
                    from = to;
                }
            } else {
                for (int32_t s = 0; s < h.n; s++) {
                    bucket((int32_t) (std::upper_bound(stat->bounds, stat->bounds + stat->n_bounds, pos - h.pos[s]) - stat->bounds))[s] += values[s] * share;
                }
            }
            if (h.recent && pos >= stat->recent_from) {
                add(values, share, 0, h.n, h.recent + row * stat->capacity);
            }
        }
    }
    if (!stat) {
        device_rows::for_each_row(order, h.n, [&](int32_t s, int32_t r) { h.score[s] += sums[(size_t) r]; });
    }
}

} // namespace

void portable_attention::begin(const ggml_cgraph * graph) {
    graph_.begin(graph);
    masks_.clear();
    weights_.clear();
    targets_tensor_ = nullptr;
    status_         = GGML_STATUS_SUCCESS;
}

// Computes what has been built so far, and takes in its weights.
void portable_attention::cut() {
    const ggml_status status = status_ == GGML_STATUS_SUCCESS ? graph_.compute() : status_;
    if (status == GGML_STATUS_SUCCESS && !weights_.empty()) {
        graph_.fetch_results();
        take_in_weights();
    }
    weights_.clear();
    masks_.clear();
    targets_tensor_ = nullptr;
    status_         = status;
}

// By several threads where a prompt has left many, each with heads of its own.
void portable_attention::take_in_weights() {
    constexpr size_t enough_values = 1 << 18, most_threads = 16;
    size_t values = 0;
    for (const weights & w : weights_) {
        values += (size_t) w.n_heads * (size_t) w.n_tokens * (size_t) w.n_rows;
    }
    const size_t n_threads = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, std::clamp<size_t>(values / enough_values, 1, most_threads));
    const auto   take_in   = [&](size_t thread) {
        for (const weights & w : weights_) {
            if ((uintptr_t) w.head / sizeof *w.head % n_threads == thread) {
                add_weights(w.a, *w.head, *w.order, w.stream, w.first, w.n_tokens, w.n_rows, w.n_heads, w.values);
            }
        }
    };
    std::vector<std::future<void>> others;
    for (size_t thread = 1; thread < n_threads; thread++) {
        others.push_back(std::async(std::launch::async, take_in, thread));
    }
    take_in(0);
    for (std::future<void> & other : others) {
        other.get();
    }
}

ggml_status portable_attention::run() {
    if (status_ == GGML_STATUS_SUCCESS) {
        status_ = graph_.compute();
    }
    return status_;
}

ggml_status portable_attention::finish() {
    cut();
    return status_;
}

void portable_attention::append(const ggml_tensor * src, const device_rows & rows, bool is_k, int32_t n_head_kv, const std::vector<int64_t> & targets) {
    if (!targets_tensor_ || targets != targets_) { // V has the same as K, as have layers whose heads hold as much
        void * host;
        targets_tensor_ = graph_.input(GGML_TYPE_I64, (int64_t) targets.size(), 1, 1, &host);
        std::copy(targets.begin(), targets.end(), (int64_t *) host);
        targets_ = targets;
    }
    graph_.rewind_scratch();
    const int64_t n = src->ne[1], dim = src->ne[0] / n_head_kv;
    const size_t  row = (size_t) dim * sizeof(float);
    ggml_tensor * from;
    if (n == 1 || src->nb[1] == row * (size_t) n_head_kv) {
        from = graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(src), dim, n_head_kv * n));
    } else {
        from = graph_.copy(graph_.tensor(GGML_TYPE_F32, place(src), dim, n_head_kv, n, row, src->nb[1]), graph_.scratch(GGML_TYPE_F32, dim, n_head_kv * n));
    }
    ggml_tensor * to = graph_.tensor(rows.format(is_k).type, rows.all(is_k), dim, rows.n_rows(is_k));
    graph_.add(llama().ggml_set_rows(graph_.context(), to, from, targets_tensor_), to);
}

ggml_tensor * portable_attention::mask(const attention_node & a, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t first,
                                       int32_t n_tokens, int32_t n_rows, together t) {
    // heads that hold the same cells in the same rows share a mask, in all layers that have the same source
    const head_store *           head   = a.heads + (size_t) stream * a.n_head_kv + kv_head;
    const std::vector<int32_t> & order  = rows.order(index);
    const bool                   shared = a.mask_n_head == 1 && a.max_bias <= 0;
    const int32_t                n      = t.apart ? t.n : 1;
    if (shared) {
        for (const known_mask & m : masks_) {
            if (m.source == a.mask && m.stream == stream % a.mask_n_stream && m.first == first && m.n_tokens == n_tokens && m.n == n && m.tensor->ne[0] == n_rows &&
                (n == 1 ? same_cells(*m.head, *head) && *m.order == order : m.head == head)) {
                return m.tensor;
            }
        }
    }
    void *        host;
    ggml_tensor * masks = batch(graph_.input(GGML_TYPE_F16, n_rows, n_tokens, n * masks_of(a), &host), t);
    for (int32_t h = 0; h < n; h++) {
        fill_masks(a, head[h], rows.order(index + h), stream, kv_head + h, first, n_tokens, n_rows, (uint16_t *) host + (size_t) h * n_rows);
    }
    if (shared) {
        masks_.push_back({a.mask, head, &order, stream % a.mask_n_stream, first, n_tokens, n, masks});
    }
    return masks;
}

ggml_tensor * portable_attention::queries(const attention_node & a, const attention_op & op, int32_t stream, int32_t kv_head, int32_t n_kv_heads, int32_t first, int32_t n_tokens) {
    const int32_t group = a.n_head / a.n_head_kv;
    const place   at    = place(op.q) + (size_t) first * a.q_nb[1] + (size_t) kv_head * group * a.q_nb[2] + (size_t) stream * a.q_nb[3];
    return graph_.tensor(GGML_TYPE_F32, at, a.k.dim, n_tokens, group * n_kv_heads, a.q_nb[1], a.q_nb[2]);
}

ggml_tensor * portable_attention::keys_or_values(bool is_k, const device_rows & rows, int index, int32_t n_rows, int32_t n_kv_heads) {
    const row_format & format = rows.format(is_k);
    return graph_.tensor(format.type, rows.rows(is_k, index), format.dim, n_rows, n_kv_heads, format.row_bytes, rows.head_bytes(is_k, index, n_kv_heads));
}

// what a node over these heads reads of each
int32_t portable_attention::rows_read(const attention_node & a, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t n_kv_heads) {
    int32_t n = 0;
    for (int32_t h = 0; h < n_kv_heads; h++) {
        n = std::max(n, padded_rows(rows.extent(index + h, a.heads[stream * a.n_head_kv + kv_head + h].n), a.mask_n_kv));
    }
    return n;
}

// heads that hold other tokens each are a batch: ggml's fourth dimension
ggml_tensor * portable_attention::batch(ggml_tensor * t, together heads) {
    if (!heads.apart) {
        return t;
    }
    ggml_tensor * b = graph_.tensor(t->type, place(t), t->ne[0], t->ne[1], t->ne[2], t->nb[1], t->nb[2]);
    b->ne[2] /= heads.n;
    b->ne[3] = heads.n;
    b->nb[3] = b->nb[2] * (size_t) b->ne[2];
    return b;
}

ggml_tensor * portable_attention::sinks(const attention_op & op, int32_t first, int32_t n) {
    return graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(op.sinks) + (size_t) first * sizeof(float), n));
}

// KV heads, from kv_head on, that one node can serve: all when they hold the same tokens, else those that lie at one distance
// and have masks of their own as ggml's batches have. Sinks and slopes would be counted from 0 in each.
portable_attention::together portable_attention::heads_together(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head) {
    if (kv_head == 0 && alike(a, rows, index, stream)) {
        return {a.n_head_kv, false};
    }
    int32_t n = 1;
    if (a.n_tokens == 1 && masks_of(a) == 1 && !op.sinks) {
        while (kv_head + n < a.n_head_kv && rows.capacity(index + n) == rows.capacity(index) && rows.head_bytes(true, index, n + 1) && rows.head_bytes(false, index, n + 1)) {
            n++;
        }
    }
    const bool apart = n > 1 && supports_apart(a, rows, index, {n, true});
    return {apart ? n : 1, apart};
}

// whether the device has attention and softmax over a batch whose masks differ, as llama.cpp has for streams
bool portable_attention::supports_apart(const attention_node & a, const device_rows & rows, int index, together t) {
    if (!supports_apart_) {
        const api &   g       = llama();
        const int32_t n_heads = a.n_head / a.n_head_kv * t.n, n = ROWS_MULTIPLE;
        const auto    any     = [&](ggml_type type, int64_t n0, int64_t n2) { return batch(graph_.tensor(type, rows.rows(true, index), n0, 1, n2), t); };
        ggml_tensor * masks   = any(GGML_TYPE_F16, n, t.n);
        ggml_tensor * attention = g.ggml_flash_attn_ext(graph_.context(), any(GGML_TYPE_F32, a.k.dim, n_heads), batch(keys_or_values(true, rows, index, n, t.n), t),
                                                        batch(keys_or_values(false, rows, index, n, t.n), t), masks, a.scale, 0.0f, a.softcap);
        supports_apart_ = graph_.supports(attention) && graph_.supports(g.ggml_soft_max_ext(graph_.context(), any(GGML_TYPE_F32, n, n_heads), masks, a.scale, 0.0f));
    }
    return *supports_apart_;
}

// whether the device adds up the weights of the query heads of a group; where these do not see the same, some may see nothing
bool portable_attention::sums_groups(const attention_node & a, const device_rows & rows, int index) {
    const int32_t group = a.n_head / a.n_head_kv;
    if (group == 1 || a.mask_n_head > 1) {
        return false;
    }
    if (!sums_groups_) {
        const auto any = [&](int64_t n2) { return graph_.tensor(GGML_TYPE_F32, rows.rows(true, index), ROWS_MULTIPLE, MANY_TOKENS, n2); };
        sums_groups_ = graph_.supports(llama().ggml_repeat_back(graph_.context(), any(group), any(1)));
    }
    return *sums_groups_;
}

void portable_attention::record(const attention_node & a, const attention_op & op, const std::vector<int32_t> & tokens, const place & to) {
    const size_t entry = (size_t) a.n_head * (size_t) a.k.dim * sizeof(uint16_t);
    for (size_t i = 0, n; i < tokens.size(); i += n) { // runs of tokens at one distance
        const int32_t step = i + 1 < tokens.size() ? tokens[i + 1] - tokens[i] : 1;
        for (n = 1; i + n < tokens.size() && tokens[i + n] - tokens[i + n - 1] == step; n++) {
        }
        const place from = place(op.q) + (size_t) tokens[i] * a.q_nb[1];
        graph_.copy(graph_.tensor(GGML_TYPE_F32, from, a.k.dim, a.n_head, (int64_t) n, a.q_nb[2], (size_t) step * a.q_nb[1]),
                    graph_.tensor(GGML_TYPE_F16, to + i * entry, a.k.dim, a.n_head, (int64_t) n));
    }
}

void portable_attention::attend(const attention_node & a, const attention_op & op, const device_rows & rows, int head) {
    graph_.rewind_scratch();
    for (int32_t stream = 0; stream < a.n_stream; stream++) {
        const int  first   = head + stream * a.n_head_kv;
        const auto weighed = [&](int32_t h) { return a.stat || a.heads[stream * a.n_head_kv + h].track; };
        together   t;
        for (int32_t h = 0; h < a.n_head_kv; h += t.n) {
            t = heads_together(a, op, rows, first + h, stream, h);
            attend_heads(a, op, rows, first + h, stream, h, t);
            for (int32_t w = h, n; w < h + t.n; w += n) {
                for (n = 0; w + n < h + t.n && weighed(w + n); n++) {
                }
                if (n == 0) {
                    n = 1;
                    continue;
                }
                n = t.apart || n == a.n_head_kv ? n : 1;
                weigh_heads(a, op, rows, first + w, stream, w, {n, t.apart && n > 1});
            }
        }
    }
}

void portable_attention::attend_heads(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head, together t) {
    const api &          g      = llama();
    const bool           all    = t.n == a.n_head_kv;
    const int32_t        group  = a.n_head / a.n_head_kv, n_heads = group * t.n, first_head = kv_head * group;
    const int32_t        n      = rows_read(a, rows, index, stream, kv_head, t.n);
    const attention_node masked = masked_as(a, all);
    if (graph_.input_bytes() > 0 && graph_.input_bytes() + mask_bytes(masked, n, a.n_tokens, t.apart ? t.n : 1) > INPUT_BYTES) {
        cut();
        graph_.reset_memory();
    }
    ggml_tensor * q = graph_.bindable(queries(a, op, stream, kv_head, t.n, 0, a.n_tokens));
    ggml_tensor * k = batch(keys_or_values(true, rows, index, n, t.n), t), * v = batch(keys_or_values(false, rows, index, n, t.n), t);
    v->view_src = a.v.part ? k : nullptr; // as in llama.cpp's graph: kernels of ggml-cuda rely on it
    ggml_tensor * attention = g.ggml_flash_attn_ext(graph_.context(), batch(q, t), k, v, mask(masked, rows, index, stream, kv_head, 0, a.n_tokens, n, t),
                                                    a.scale, 0.0f, a.softcap);
    if (op.plain()) {
        attention->op_params[3] = GGML_PREC_F32;
    } else {
        memcpy(attention->op_params, op.node->op_params, sizeof attention->op_params); // precision and hints too
    }
    const float max_bias = all ? a.max_bias : 0.0f;
    memcpy(attention->op_params + 1, &max_bias, sizeof max_bias);
    if (op.sinks) {
        g.ggml_flash_attn_ext_add_sinks(attention, sinks(op, first_head, n_heads));
    }
    // [dim][query head][token], of a plain attention [dim][token][query head]: in place where that is one piece of the node's memory
    const place   at  = place(op.node) + (size_t) first_head * a.out_nb[1] + (size_t) stream * a.out_nb[3];
    ggml_tensor * out = graph_.tensor(GGML_TYPE_F32, at, a.v.dim, n_heads, a.n_tokens, a.out_nb[1], a.out_nb[2]);
    if ((a.n_tokens == 1 || (all && !op.plain())) && graph_.bindable(at) && graph_.alloc_size(attention) <= g.ggml_nbytes(attention)) {
        graph_.add(attention, out);
        return;
    }
    const ggml_tensor * apart = graph_.add(attention, graph_.scratch_for(attention));
    graph_.copy(graph_.tensor(GGML_TYPE_F32, place(apart), a.v.dim, n_heads, a.n_tokens), out);
}

// softmax(K·q) of these heads once more, with its weights as the result
void portable_attention::weigh_heads(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head, together t) {
    const api &          g      = llama();
    const bool           all    = t.n == a.n_head_kv;
    const int32_t        group  = a.n_head / a.n_head_kv, n_heads = group * t.n;
    head_store *         heads  = a.heads + (size_t) stream * a.n_head_kv + kv_head;
    const int32_t        n      = rows_read(a, rows, index, stream, kv_head, t.n);
    const attention_node masked = masked_as(a, all);
    const size_t         bytes  = (size_t) n * n_heads * sizeof(float); // of one token
    const auto           most   = (int32_t) std::max<size_t>(WEIGHT_BYTES / bytes, 1);
    const bool           summed = a.n_tokens >= MANY_TOKENS && (!a.stat || a.stat->rows == 1) && sums_groups(a, rows, index);
    const together       groups = {t.n, true};
    for (int32_t first = 0; first < a.n_tokens; first += most) {
        const int32_t n_tokens = std::min(most, a.n_tokens - first), n_brought = summed ? t.n : n_heads;
        if (a.n_tokens >= MANY_TOKENS) { // else nodes of several heads may run side by side
            graph_.rewind_scratch();
        }
        if (graph_.result_bytes() + bytes / (size_t) n_heads * (size_t) n_brought * (size_t) n_tokens > RESULT_BYTES || graph_.input_bytes() + mask_bytes(masked, n, n_tokens, t.apart ? t.n : 1) > INPUT_BYTES) {
            cut();
            graph_.reset_memory();
        }
        ggml_tensor * q  = queries(a, op, stream, kv_head, t.n, first, n_tokens);
        if (n_tokens == 1 && a.q_nb[2] == (size_t) a.k.dim * sizeof(float)) { // without gaps already
            q = graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(q), a.k.dim, 1, n_heads));
        } else {
            q = graph_.copy(q, graph_.scratch(GGML_TYPE_F32, a.k.dim, n_tokens, n_heads));
        }
        ggml_tensor * kq = g.ggml_mul_mat(graph_.context(), keys_or_values(true, rows, index, n, t.n), q);
        kq->op_params[0] = GGML_PREC_F32;
        kq               = graph_.add(kq, graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
        float scale = a.scale;
        if (a.softcap != 0) {
            ggml_tensor * x = graph_.add(g.ggml_scale(graph_.context(), kq, a.scale / a.softcap), graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
            kq    = graph_.add(g.ggml_tanh(graph_.context(), x), graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
            scale = a.softcap;
        }
        ggml_tensor * soft = g.ggml_soft_max_ext(graph_.context(), batch(kq, t), mask(masked, rows, index, stream, kv_head, first, n_tokens, n, t), scale, all ? a.max_bias : 0.0f);
        if (op.sinks) {
            g.ggml_soft_max_add_sinks(soft, sinks(op, kv_head * group, n_heads));
        }
        void *        host;
        ggml_tensor * brought = graph_.result(GGML_TYPE_F32, n, n_tokens, n_brought, &host);
        if (summed) {
            soft = graph_.add(soft, graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
            graph_.add(g.ggml_repeat_back(graph_.context(), batch(graph_.tensor(GGML_TYPE_F32, place(soft), n, n_tokens, n_heads), groups), batch(brought, groups)), brought);
        } else {
            graph_.add(soft, brought);
        }
        for (int32_t h = 0; h < t.n; h++) {
            const int32_t of_head = n_brought / t.n;
            weights_.push_back({a, heads + h, &rows.order(index + h), stream, first, n_tokens, n, of_head, (const float *) host + (size_t) (h * of_head) * n_tokens * n});
        }
    }
}

} // namespace kvasir
