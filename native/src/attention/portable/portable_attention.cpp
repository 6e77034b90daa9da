#include "portable_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvasir {

namespace {

constexpr uint16_t MASKED = 0xfc00; // -infinity as f16

// What may lie in memory at once for one graph: inputs (masks above all), and weights on their way to the host.
constexpr size_t INPUT_BYTES = (size_t) 64 << 20, RESULT_BYTES = (size_t) 64 << 20;
constexpr size_t WEIGHT_BYTES = (size_t) 16 << 20; // of one head

// llama.cpp rounds the number of cells that a graph looks at up to a multiple of this (llama_kv_cache::get_n_kv); ggml's
// CPU kernel splits its work by that number, so sums come out bit by bit the same only for the same number of rows.
constexpr int32_t ROWS_MULTIPLE = 256;

int32_t padded_rows(const head_store & h, int32_t mask_n_kv) {
    const int32_t rows = (std::max(h.n, 1) + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    return mask_n_kv > 0 ? std::max(h.n, std::min(rows, mask_n_kv)) : rows;
}

// ALiBi's slope of a query head, as FLASH_ATTN_EXT computes it. A node over one group of heads would count its heads from 0.
float alibi_slope(float max_bias, int32_t head, int32_t n_head) {
    const int32_t n = 1 << (int32_t) std::floor(std::log2((float) n_head));
    return head < n ? std::pow(std::pow(2.0f, -max_bias / (float) n), (float) (head + 1))
                    : std::pow(std::pow(2.0f, -(max_bias / 2.0f) / (float) n), (float) (2 * (head - n) + 1));
}

// masks of a head: one, or one for every query head of the group
int32_t masks_of(const attention_node & a) { return a.mask_n_head > 1 || a.max_bias > 0 ? a.n_head / a.n_head_kv : 1; }

// Adds the weights of every query to the sums of the keys that it saw, as the CPU kernels do.
void add_weights(const attention_node & a, head_store & h, int32_t stream, int32_t first, int32_t n_tokens, int32_t n_rows, const float * values) {
    const int32_t     group = a.n_head / a.n_head_kv;
    const statistic * stat  = a.stat;
    const bool        apart = stat && stat->rows > 1;
    const float       share = apart ? 1.0f : 1.0f / (float) group;
    for (int32_t g = 0; g < group; g++) {
        const size_t row = apart ? (size_t) g : 0;
        for (int32_t t = 0; t < n_tokens; t++, values += n_rows) {
            if (!stat) {
                for (int32_t s = 0; s < h.n; s++) {
                    h.score[s] += std::isfinite(values[s]) ? values[s] * share : 0.0f; // a query that sees nothing has no weights
                }
                continue;
            }
            const int32_t pos    = a.query_pos[(size_t) stream * a.n_tokens + first + t];
            float *       recent = h.recent && pos >= stat->recent_from ? h.recent + row * stat->capacity : nullptr;
            for (int32_t s = 0; s < h.n; s++) {
                const float w = values[s] * share;
                if (!(w > 0)) {
                    continue;
                }
                const auto bucket = std::upper_bound(stat->bounds, stat->bounds + stat->n_bounds, pos - h.pos[s]) - stat->bounds;
                h.buckets[(row * (size_t) (stat->n_bounds + 1) + (size_t) bucket) * stat->capacity + (size_t) s] += w;
                if (recent) {
                    recent[s] += w;
                }
            }
        }
    }
}

} // namespace

void portable_attention::begin(const ggml_cgraph * graph) {
    graph_.begin(graph);
    masks_.clear();
    weights_.clear();
    same_index_ = nullptr;
    status_     = GGML_STATUS_SUCCESS;
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
    same_index_ = nullptr;
    status_     = status;
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

ggml_tensor * portable_attention::slots(const int32_t * slot, int32_t n) {
    if (!same_index_ || same_slots_.size() != (size_t) n || !std::equal(same_slots_.begin(), same_slots_.end(), slot)) {
        void * host;
        same_index_ = graph_.input(GGML_TYPE_I64, n, 1, 1, &host);
        std::copy(slot, slot + n, (int64_t *) host);
        same_slots_.assign(slot, slot + n);
    }
    return same_index_;
}

void portable_attention::append(const append_node & a) {
    graph_.rewind_scratch();
    const auto    n_tokens = (int32_t) a.src->ne[1], dim = (int32_t) (a.src->ne[0] / a.n_head_kv);
    const ggml_type type = a.rows->format(a.is_k).type;
    for (int32_t first = 0; first < n_tokens;) { // the tokens of one stream
        int32_t n = 1;
        while (first + n < n_tokens && a.stream[first + n] == a.stream[first]) {
            n++;
        }
        for (int32_t h = 0; h < a.n_head_kv; h++) {
            const int     index = a.stream[first] * a.n_head_kv + h;
            const place   from  = place(a.src) + (size_t) first * a.src->nb[1] + (size_t) h * dim * sizeof(float);
            ggml_tensor * src   = graph_.bindable(graph_.tensor(GGML_TYPE_F32, from, dim, n, 1, a.src->nb[1]));
            ggml_tensor * dst   = graph_.tensor(type, a.rows->rows(a.is_k, index), dim, a.rows->capacity(index));
            graph_.add(llama().ggml_set_rows(graph_.context(), dst, src, slots(a.slot + (size_t) h * n_tokens + first, n)), dst);
        }
        first += n;
    }
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
            if (m.source == source && m.first == first && m.n_tokens == n_tokens && m.tensor->ne[0] == n_rows && m.head->n == head.n &&
                (m.head == &head || memcmp(m.head->cell, head.cell, (size_t) head.n * sizeof(int32_t)) == 0)) {
                return m.tensor;
            }
        }
    }
    void *        host;
    ggml_tensor * t = graph_.input(GGML_TYPE_F16, n_rows, n_tokens, masks, &host);
    auto *        row = (uint16_t *) host;
    const bool    in_order = head.ascending && head.n > 0 && head.cell[0] == 0 && head.cell[head.n - 1] == head.n - 1;
    for (int32_t m = 0; m < masks; m++) {
        const float slope = a.max_bias > 0 ? alibi_slope(a.max_bias, first_head + m, a.n_head) : 1.0f;
        for (int32_t i = first; i < first + n_tokens; i++, row += n_rows) {
            std::fill(row + head.n, row + n_rows, MASKED);
            if (!source) {
                std::fill(row, row + head.n, (uint16_t) 0);
                continue;
            }
            const auto * from = (const uint16_t *) (source + (size_t) i * a.mask_nb[1] + (size_t) ((first_head + m) % a.mask_n_head) * a.mask_nb[2]);
            if (in_order && head.n <= a.mask_n_kv) {
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

ggml_tensor * portable_attention::queries(const attention_node & a, const ggml_tensor * node, int32_t stream, int32_t kv_head, int32_t first, int32_t n_tokens) {
    const int32_t group = a.n_head / a.n_head_kv;
    const place   at    = place(node->src[0]) + (size_t) first * a.q_nb[1] + (size_t) kv_head * group * a.q_nb[2] + (size_t) stream * a.q_nb[3];
    return graph_.tensor(GGML_TYPE_F32, at, a.k.dim, n_tokens, group, a.q_nb[1], a.q_nb[2]);
}

ggml_tensor * portable_attention::sinks(const ggml_tensor * node, int32_t first, int32_t n) {
    return graph_.bindable(graph_.tensor(GGML_TYPE_F32, place(node->src[4]) + (size_t) first * sizeof(float), n));
}

void portable_attention::attend(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int head) {
    graph_.rewind_scratch();
    for (int32_t stream = 0; stream < a.n_stream; stream++) {
        for (int32_t h = 0; h < a.n_head_kv; h++) {
            const int at = stream * a.n_head_kv + h;
            attend_head(a, node, rows, head + at, stream, h);
            if (a.stat || a.heads[at].track) {
                weigh_head(a, node, rows, head + at, stream, h);
            }
        }
    }
}

void portable_attention::attend_head(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int index, int32_t stream, int32_t kv_head) {
    const api &        g     = llama();
    const int32_t      group = a.n_head / a.n_head_kv, first_head = kv_head * group;
    const head_store & head  = a.heads[(size_t) stream * a.n_head_kv + kv_head];
    const int32_t      n     = padded_rows(head, a.mask_n_kv);
    if (!graph_.empty() && graph_.input_bytes() + (size_t) n * a.n_tokens * masks_of(a) * sizeof(uint16_t) > INPUT_BYTES) {
        cut();
        graph_.reset_memory();
    }
    ggml_tensor * q         = graph_.bindable(queries(a, node, stream, kv_head, 0, a.n_tokens));
    ggml_tensor * k         = graph_.tensor(a.k.type, rows.rows(true, index), a.k.dim, n);
    ggml_tensor * v         = graph_.tensor(a.v.type, rows.rows(false, index), a.v.dim, n);
    ggml_tensor * attention = g.ggml_flash_attn_ext(graph_.context(), q, k, v, mask(a, head, stream, kv_head, 0, a.n_tokens, n), a.scale, 0.0f, a.softcap);
    memcpy(attention->op_params, node->op_params, sizeof attention->op_params); // precision and hints too
    memset(attention->op_params + 1, 0, sizeof(float));                         // the slopes are in the mask
    if (node->src[4]) {
        g.ggml_flash_attn_ext_add_sinks(attention, sinks(node, first_head, group));
    }
    // [dim][query head of the group][token]: in place where that is one piece of the node's memory
    const place   at  = place(node) + (size_t) first_head * a.out_nb[1] + (size_t) stream * a.out_nb[3];
    ggml_tensor * out = graph_.tensor(GGML_TYPE_F32, at, a.v.dim, group, a.n_tokens, a.out_nb[1], a.out_nb[2]);
    if ((a.n_tokens == 1 || group == a.n_head) && graph_.bindable(at) && graph_.alloc_size(attention) <= g.ggml_nbytes(attention)) {
        graph_.add(attention, out);
        return;
    }
    ggml_tensor * apart = graph_.add(attention, graph_.scratch_for(attention));
    graph_.copy(apart, out);
}

// softmax(K·q) of one head once more, with its weights as the result
void portable_attention::weigh_head(const attention_node & a, const ggml_tensor * node, const device_rows & rows, int index, int32_t stream, int32_t kv_head) {
    const api &   g     = llama();
    const int32_t group = a.n_head / a.n_head_kv;
    head_store &  head  = a.heads[(size_t) stream * a.n_head_kv + kv_head];
    const int32_t n     = padded_rows(head, a.mask_n_kv);
    const size_t  bytes = (size_t) n * group * sizeof(float); // of one token
    const auto    most  = (int32_t) std::max<size_t>(WEIGHT_BYTES / bytes, 1);
    for (int32_t first = 0; first < a.n_tokens; first += most) {
        const int32_t n_tokens = std::min(most, a.n_tokens - first);
        const size_t  mask_bytes = (size_t) n * n_tokens * masks_of(a) * sizeof(uint16_t);
        if (graph_.result_bytes() + bytes * (size_t) n_tokens > RESULT_BYTES || graph_.input_bytes() + mask_bytes > INPUT_BYTES) {
            cut();
            graph_.reset_memory();
        }
        ggml_tensor * q     = queries(a, node, stream, kv_head, first, n_tokens);
        ggml_tensor * flat  = graph_.copy(q, graph_.scratch(GGML_TYPE_F32, a.k.dim, n_tokens, group));
        ggml_tensor * k     = graph_.tensor(a.k.type, rows.rows(true, index), a.k.dim, n);
        ggml_tensor * kq    = g.ggml_mul_mat(graph_.context(), k, flat);
        kq->op_params[0]    = GGML_PREC_F32;
        kq                  = graph_.add(kq, graph_.scratch(GGML_TYPE_F32, n, n_tokens, group));
        float scale = a.scale;
        if (a.softcap != 0) {
            ggml_tensor * x = graph_.add(g.ggml_scale(graph_.context(), kq, a.scale / a.softcap), graph_.scratch(GGML_TYPE_F32, n, n_tokens, group));
            kq    = graph_.add(g.ggml_tanh(graph_.context(), x), graph_.scratch(GGML_TYPE_F32, n, n_tokens, group));
            scale = a.softcap;
        }
        ggml_tensor * soft = g.ggml_soft_max_ext(graph_.context(), kq, mask(a, head, stream, kv_head, first, n_tokens, n), scale, 0.0f);
        if (node->src[4]) {
            g.ggml_soft_max_add_sinks(soft, sinks(node, kv_head * group, group));
        }
        void * host;
        graph_.add(soft, graph_.result(GGML_TYPE_F32, n, n_tokens, group, &host));
        weights_.push_back({a, &head, stream, first, n_tokens, n, (const float *) host});
    }
}

} // namespace kvasir
