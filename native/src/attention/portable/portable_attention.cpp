#include "portable_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvasir {

namespace {

constexpr uint16_t MASKED = 0xfc00; // -infinity as f16

// What may lie in memory at once for one graph: inputs (masks above all), and weights on their way to the host.
constexpr size_t INPUT_BYTES = (size_t) 64 << 20, RESULT_BYTES = (size_t) 64 << 20;
constexpr size_t WEIGHT_BYTES = (size_t) 16 << 20; // of one node

// llama.cpp rounds the number of cells that a graph looks at up to a multiple of this (llama_kv_cache::get_n_kv); ggml's
// CPU kernel splits its work by that number, so sums come out bit by bit the same only for the same number of rows.
constexpr int32_t ROWS_MULTIPLE = 256;

int32_t padded_rows(const head_store & h, int32_t mask_n_kv) {
    const int32_t rows = (std::max(h.n, 1) + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    return mask_n_kv > 0 ? std::max(h.n, std::min(rows, mask_n_kv)) : rows;
}

// ALiBi's slope of a query head, as FLASH_ATTN_EXT computes it.
float alibi_slope(float max_bias, int32_t head, int32_t n_head) {
    const int32_t n = 1 << (int32_t) std::floor(std::log2((float) n_head));
    return head < n ? std::pow(std::pow(2.0f, -max_bias / (float) n), (float) (head + 1))
                    : std::pow(std::pow(2.0f, -(max_bias / 2.0f) / (float) n), (float) (2 * (head - n) + 1));
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

// cells 0, 1, 2, ... one after the other
bool in_order(const head_store & h) { return h.ascending && h.n > 0 && h.cell[0] == 0 && h.cell[h.n - 1] == h.n - 1; }

bool same_cells(const head_store & a, const head_store & b) {
    return &a == &b || (a.n == b.n && ((in_order(a) && in_order(b)) || memcmp(a.cell, b.cell, (size_t) a.n * sizeof(int32_t)) == 0));
}

// whether one node can serve all KV heads of a stream, of which index is the first one's
bool alike(const attention_node & a, const device_rows & rows, int index, int32_t stream) {
    const head_store * heads = a.heads + (size_t) stream * a.n_head_kv;
    return a.mask_n_head == 1 && rows.head_bytes(true, index, a.n_head_kv) && rows.head_bytes(false, index, a.n_head_kv) &&
           std::all_of(heads + 1, heads + a.n_head_kv, [&](const head_store & h) { return same_cells(*heads, h); });
}

void add(const float * values, float share, int32_t first, int32_t last, float * sums) {
    for (int32_t s = first; s < last; s++) {
        sums[s] += values[s] * share;
    }
}

// Adds the weights of every query to the sums of the keys that it saw, as the CPU kernels do.
void add_weights(const attention_node & a, head_store & h, int32_t stream, int32_t first, int32_t n_tokens, int32_t n_rows, const float * values) {
    const int32_t     group  = a.n_head / a.n_head_kv;
    const statistic * stat   = a.stat;
    const bool        apart  = stat && stat->rows > 1;
    const float       share  = apart ? 1.0f : 1.0f / (float) group;
    const bool        sorted = stat && std::is_sorted(h.pos, h.pos + h.n); // not with several sequences, or after single evictions
    for (int32_t g = 0; g < group; g++) {
        const size_t row = apart ? (size_t) g : 0;
        for (int32_t t = 0; t < n_tokens; t++, values += n_rows) {
            if (std::isnan(values[0])) {
                continue; // a query that sees nothing has no weights
            }
            if (!stat) {
                add(values, share, 0, h.n, h.score);
                continue;
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
        for (const weights & w : weights_) {
            add_weights(w.a, *w.head, w.stream, w.first, w.n_tokens, w.n_rows, w.values);
        }
    }
    weights_.clear();
    masks_.clear();
    targets_tensor_ = nullptr;
    status_         = status;
}

ggml_status portable_attention::finish() {
    cut();
    return status_;
}

void portable_attention::move_rows(const std::vector<device_rows *> & rows) {
    graph_.begin(nullptr);
    bool computed = true;
    for (device_rows * r : rows) {
        computed = computed && r->add_moves(graph_);
    }
    computed = computed && graph_.compute() == GGML_STATUS_SUCCESS;
    for (device_rows * r : rows) {
        r->settle_moves(computed);
    }
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

ggml_tensor * portable_attention::mask(const attention_node & a, const head_store & head, int32_t stream, int32_t kv_head, int32_t first,
                                       int32_t n_tokens, int32_t n_rows) {
    const api &   g     = llama();
    const int32_t masks = masks_of(a), first_head = kv_head * (a.n_head / a.n_head_kv);
    const bool    shared = a.mask_n_head == 1 && a.max_bias <= 0;
    // heads that hold the same cells share a mask, in all layers that have the same source
    const char * source = a.mask ? a.mask + (size_t) (stream % a.mask_n_stream) * a.mask_nb[3] : nullptr;
    if (shared) {
        for (const known_mask & m : masks_) {
            if (m.source == source && m.first == first && m.n_tokens == n_tokens && m.tensor->ne[0] == n_rows && same_cells(*m.head, head)) {
                return m.tensor;
            }
        }
    }
    void *        host;
    ggml_tensor * t = graph_.input(GGML_TYPE_F16, n_rows, n_tokens, masks, &host);
    auto *        row = (uint16_t *) host;
    const bool    whole = in_order(head) && head.n <= a.mask_n_kv;
    for (int32_t m = 0; m < masks; m++) {
        const float slope = a.max_bias > 0 ? alibi_slope(a.max_bias, first_head + m, a.n_head) : 1.0f;
        for (int32_t i = first; i < first + n_tokens; i++, row += n_rows) {
            std::fill(row + head.n, row + n_rows, MASKED);
            if (!source) {
                std::fill(row, row + head.n, (uint16_t) 0);
                continue;
            }
            const auto * from = (const uint16_t *) (source + (size_t) i * a.mask_nb[1] + (size_t) ((first_head + m) % a.mask_n_head) * a.mask_nb[2]);
            if (whole) {
                memcpy(row, from, (size_t) head.n * sizeof *row);
            } else {
                for (int32_t s = 0; s < head.n; s++) {
                    row[s] = head.cell[s] < a.mask_n_kv ? from[head.cell[s]] : MASKED;
                }
            }
            if (a.max_bias > 0) {
                for (int32_t s = 0; s < head.n; s++) {
                    row[s] = row[s] == MASKED ? MASKED : g.ggml_fp32_to_fp16(slope * g.ggml_fp16_to_fp32(row[s]));
                }
            }
        }
    }
    if (shared) {
        masks_.push_back({source, &head, stream, first, n_tokens, t});
    }
    return t;
}

ggml_tensor * portable_attention::queries(const attention_node & a, const ggml_tensor * node, int32_t stream, int32_t kv_head, int32_t n_kv_heads, int32_t first, int32_t n_tokens) {
    const int32_t group = a.n_head / a.n_head_kv;
    const place   at    = place(node->src[0]) + (size_t) first * a.q_nb[1] + (size_t) kv_head * group * a.q_nb[2] + (size_t) stream * a.q_nb[3];
    return graph_.tensor(GGML_TYPE_F32, at, a.k.dim, n_tokens, group * n_kv_heads, a.q_nb[1], a.q_nb[2]);
}

ggml_tensor * portable_attention::keys_or_values(bool is_k, const device_rows & rows, int index, int32_t n_rows, int32_t n_kv_heads) {
    const row_format & format = rows.format(is_k);
    return graph_.tensor(format.type, rows.rows(is_k, index), format.dim, n_rows, n_kv_heads, format.row_bytes, rows.head_bytes(is_k, index, n_kv_heads));
}

ggml_tensor * portable_attention::sinks(const ggml_tensor * node, int32_t first, int32_t n) {
    return graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(node->src[4]) + (size_t) first * sizeof(float), n));
}

void portable_attention::attend(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int head) {
    graph_.rewind_scratch();
    for (int32_t stream = 0; stream < a.n_stream; stream++) {
        const int     first    = head + stream * a.n_head_kv;
        const int32_t together = alike(a, rows, first, stream) ? a.n_head_kv : 1;
        for (int32_t h = 0; h < a.n_head_kv; h += together) {
            attend_heads(a, node, rows, first + h, stream, h, together);
        }
        const int32_t weighed = a.stat ? together : 1; // a statistic is of all heads
        for (int32_t h = 0; h < a.n_head_kv; h += weighed) {
            if (a.stat || a.heads[stream * a.n_head_kv + h].track) {
                weigh_heads(a, node, rows, first + h, stream, h, weighed);
            }
        }
    }
}

// n_kv_heads: 1, or all
void portable_attention::attend_heads(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t n_kv_heads) {
    const api &        g          = llama();
    const bool         all        = n_kv_heads == a.n_head_kv;
    const int32_t      group      = a.n_head / a.n_head_kv, n_heads = group * n_kv_heads, first_head = kv_head * group;
    const head_store & head       = a.heads[(size_t) stream * a.n_head_kv + kv_head];
    const int32_t      n          = padded_rows(head, a.mask_n_kv);
    const attention_node masked   = masked_as(a, all);
    if (!graph_.empty() && graph_.input_bytes() + (size_t) n * a.n_tokens * masks_of(masked) * sizeof(uint16_t) > INPUT_BYTES) {
        cut();
        graph_.reset_memory();
    }
    ggml_tensor * q         = graph_.bindable(queries(a, node, stream, kv_head, n_kv_heads, 0, a.n_tokens));
    ggml_tensor * k         = keys_or_values(true, rows, index, n, n_kv_heads);
    ggml_tensor * v         = keys_or_values(false, rows, index, n, n_kv_heads);
    ggml_tensor * attention = g.ggml_flash_attn_ext(graph_.context(), q, k, v, mask(masked, head, stream, kv_head, 0, a.n_tokens, n), a.scale, 0.0f, a.softcap);
    memcpy(attention->op_params, node->op_params, sizeof attention->op_params); // precision and hints too
    if (!all) {
        memset(attention->op_params + 1, 0, sizeof(float)); // the bias
    }
    if (node->src[4]) {
        g.ggml_flash_attn_ext_add_sinks(attention, sinks(node, first_head, n_heads));
    }
    // [dim][query head][token]: in place where that is one piece of the node's memory
    const place   at  = place(node) + (size_t) first_head * a.out_nb[1] + (size_t) stream * a.out_nb[3];
    ggml_tensor * out = graph_.tensor(GGML_TYPE_F32, at, a.v.dim, n_heads, a.n_tokens, a.out_nb[1], a.out_nb[2]);
    if ((a.n_tokens == 1 || all) && graph_.bindable(at) && graph_.alloc_size(attention) <= g.ggml_nbytes(attention)) {
        graph_.add(attention, out);
        return;
    }
    ggml_tensor * apart = graph_.add(attention, graph_.scratch_for(attention));
    graph_.copy(apart, out);
}

// softmax(K·q) of one head or all once more, with its weights as the result
void portable_attention::weigh_heads(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t n_kv_heads) {
    const api &          g      = llama();
    const bool           all    = n_kv_heads == a.n_head_kv;
    const int32_t        group  = a.n_head / a.n_head_kv, n_heads = group * n_kv_heads;
    head_store *         heads  = a.heads + (size_t) stream * a.n_head_kv + kv_head;
    const int32_t        n      = padded_rows(*heads, a.mask_n_kv);
    const attention_node masked = masked_as(a, all);
    const size_t         bytes  = (size_t) n * n_heads * sizeof(float); // of one token
    const auto           most   = (int32_t) std::max<size_t>(WEIGHT_BYTES / bytes, 1);
    for (int32_t first = 0; first < a.n_tokens; first += most) {
        const int32_t n_tokens = std::min(most, a.n_tokens - first);
        const size_t  mask_bytes = (size_t) n * n_tokens * masks_of(masked) * sizeof(uint16_t);
        if (graph_.result_bytes() + bytes * (size_t) n_tokens > RESULT_BYTES || graph_.input_bytes() + mask_bytes > INPUT_BYTES) {
            cut();
            graph_.reset_memory();
        }
        ggml_tensor * q  = queries(a, node, stream, kv_head, n_kv_heads, first, n_tokens);
        if (n_tokens == 1 && a.q_nb[2] == (size_t) a.k.dim * sizeof(float)) { // without gaps already
            q = graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(q), a.k.dim, 1, n_heads));
        } else {
            q = graph_.copy(q, graph_.scratch(GGML_TYPE_F32, a.k.dim, n_tokens, n_heads));
        }
        ggml_tensor * k  = keys_or_values(true, rows, index, n, n_kv_heads);
        ggml_tensor * kq = g.ggml_mul_mat(graph_.context(), k, q);
        kq->op_params[0] = GGML_PREC_F32;
        kq               = graph_.add(kq, graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
        float scale = a.scale;
        if (a.softcap != 0) {
            ggml_tensor * x = graph_.add(g.ggml_scale(graph_.context(), kq, a.scale / a.softcap), graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
            kq    = graph_.add(g.ggml_tanh(graph_.context(), x), graph_.scratch(GGML_TYPE_F32, n, n_tokens, n_heads));
            scale = a.softcap;
        }
        ggml_tensor * soft = g.ggml_soft_max_ext(graph_.context(), kq, mask(masked, *heads, stream, kv_head, first, n_tokens, n), scale, all ? a.max_bias : 0.0f);
        if (node->src[4]) {
            g.ggml_soft_max_add_sinks(soft, sinks(node, kv_head * group, n_heads));
        }
        void * host;
        graph_.add(soft, graph_.result(GGML_TYPE_F32, n, n_tokens, n_heads, &host));
        for (int32_t h = 0; h < n_kv_heads; h++) {
            weights_.push_back({a, heads + h, stream, first, n_tokens, n, (const float *) host + (size_t) h * group * n_tokens * n});
        }
    }
}

} // namespace kvasir
