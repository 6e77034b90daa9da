#include "portable_attention.h"

#include "../../store/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvasir {

namespace {

constexpr uint16_t MASKED = 0xfc00; // -infinity as f16

// llama.cpp rounds the number of cells that a graph looks at up to a multiple of this (llama_kv_cache::get_n_kv); ggml's
// kernel splits its work by that number, so sums come out bit by bit the same only for the same number of rows.
constexpr int32_t ROWS_MULTIPLE = 256;

int32_t padded_rows(const head_store & h, int32_t mask_n_kv) {
    const int32_t rows = (std::max(h.n, 1) + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    return mask_n_kv > 0 ? std::max(h.n, std::min(rows, mask_n_kv)) : std::max(h.n, 1);
}

// ALiBi's slope of a query head, as FLASH_ATTN_EXT computes it. A node over one group of heads would count its heads from 0.
float alibi_slope(float max_bias, int32_t head, int32_t n_head) {
    const int32_t n = 1 << (int32_t) std::floor(std::log2((float) n_head));
    return head < n ? std::pow(std::pow(2.0f, -max_bias / (float) n), (float) (head + 1))
                    : std::pow(std::pow(2.0f, -(max_bias / 2.0f) / (float) n), (float) (2 * (head - n) + 1));
}

} // namespace

ggml_status portable_attention::compute(ggml_backend_t inner, const attention_node & a, ggml_tensor * node) {
    for (int32_t stream = 0; stream < a.n_stream; stream++) {
        const ggml_status status = compute_stream(inner, a, node, stream);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

ggml_status portable_attention::compute_stream(ggml_backend_t inner, const attention_node & a, ggml_tensor * node, int32_t stream) {
    const api &   g     = llama();
    const int32_t group = a.n_head / a.n_head_kv;
    const head_store * heads = a.heads + (size_t) stream * a.n_head_kv;

    size_t rows = 0;
    for (int32_t h = 0; h < a.n_head_kv; h++) {
        rows += (size_t) padded_rows(heads[h], a.mask_n_kv);
    }
    const bool    alibi = a.max_bias > 0;
    const int32_t masks = a.mask_n_head > 1 || alibi ? group : 1;
    k_.assign(rows * a.k.row_bytes, 0);
    v_.assign(rows * a.v.row_bytes, 0);
    mask_.resize(rows * (size_t) a.n_tokens * (size_t) masks);
    out_.resize((size_t) a.n_head * a.n_tokens * a.v.dim);

    const size_t n_nodes = 16 * (size_t) a.n_head_kv;
    graph_memory_.resize(n_nodes * 2 * sizeof(ggml_tensor) + ((size_t) 1 << 18));
    ggml_context * ctx   = g.ggml_init({graph_memory_.size(), graph_memory_.data(), /*.no_alloc =*/ true});
    ggml_cgraph *  graph = g.ggml_new_graph_custom(ctx, n_nodes, false);

    const auto tensor = [&](ggml_type type, int64_t n0, int64_t n1, int64_t n2, const void * data) {
        ggml_tensor * t = g.ggml_new_tensor_4d(ctx, type, n0, n1, n2, 1);
        t->data   = const_cast<void *>(data);
        t->buffer = node->buffer; // the CPU backend only asks whether it is one of its extra types
        return t;
    };

    char *     k    = k_.data();
    char *     v    = v_.data();
    uint16_t * mask = mask_.data();
    float *    out  = out_.data();
    for (int32_t h = 0; h < a.n_head_kv; h++) {
        const head_store & head  = heads[h];
        const int32_t      n     = padded_rows(head, a.mask_n_kv);
        const int32_t      first = h * group;
        rows_gather(a.k, head.k, nullptr, 0, head.n, k);
        rows_gather(a.v, head.v, nullptr, 0, head.n, v);
        for (int32_t m = 0; m < masks; m++) {
            const float slope = alibi ? alibi_slope(a.max_bias, first + m, a.n_head) : 1.0f;
            for (int32_t t = 0; t < a.n_tokens; t++) {
                uint16_t * row = mask + ((size_t) m * a.n_tokens + t) * n;
                std::fill(row, row + head.n, (uint16_t) 0);
                std::fill(row + head.n, row + n, MASKED);
                if (a.mask) {
                    const char * base = a.mask + (size_t) t * a.mask_nb[1] + (size_t) ((first + m) % a.mask_n_head) * a.mask_nb[2] +
                                        (size_t) (stream % a.mask_n_stream) * a.mask_nb[3];
                    const auto * from = (const uint16_t *) base;
                    for (int32_t s = 0; s < head.n; s++) {
                        row[s] = head.cell[s] < a.mask_n_kv ? from[head.cell[s]] : MASKED;
                    }
                    if (alibi) {
                        for (int32_t s = 0; s < head.n; s++) {
                            row[s] = row[s] == MASKED ? MASKED : g.ggml_fp32_to_fp16(slope * g.ggml_fp16_to_fp32(row[s]));
                        }
                    }
                }
            }
        }
        ggml_tensor * q = tensor(GGML_TYPE_F32, a.k.dim, a.n_tokens, group, a.q + (size_t) first * a.q_nb[2] + (size_t) stream * a.q_nb[3]);
        q->nb[1] = a.q_nb[1];
        q->nb[2] = a.q_nb[2];
        q->nb[3] = a.q_nb[2] * (size_t) group;
        ggml_tensor * attention = g.ggml_flash_attn_ext(ctx, q, tensor(a.k.type, a.k.dim, n, 1, k), tensor(a.v.type, a.v.dim, n, 1, v),
                                                        tensor(GGML_TYPE_F16, n, a.n_tokens, masks, mask), a.scale, 0.0f, a.softcap);
        memcpy(attention->op_params, node->op_params, sizeof attention->op_params); // precision and hints too
        memset(attention->op_params + 1, 0, sizeof(float));                         // the slopes are in the mask
        if (a.sinks) {
            g.ggml_flash_attn_ext_add_sinks(attention, tensor(GGML_TYPE_F32, group, 1, 1, a.sinks + first));
        }
        attention->data   = out;
        attention->buffer = node->buffer;
        g.ggml_build_forward_expand(graph, attention);
        k += (size_t) n * a.k.row_bytes;
        v += (size_t) n * a.v.row_bytes;
        mask += (size_t) n * a.n_tokens * masks;
        out += (size_t) group * a.n_tokens * a.v.dim;
    }
    const ggml_status status = inner->iface.graph_compute(inner, graph);
    g.ggml_free(ctx);
    if (status != GGML_STATUS_SUCCESS) {
        return status;
    }
    // each node wrote [token][query head of the group][dim]
    const float * from = out_.data();
    for (int32_t h = 0; h < a.n_head_kv; h++) {
        for (int32_t t = 0; t < a.n_tokens; t++) {
            char * to = a.out + (size_t) h * group * a.out_nb[1] + (size_t) t * a.out_nb[2] + (size_t) stream * a.out_nb[3];
            for (int32_t i = 0; i < group; i++, from += a.v.dim) {
                memcpy(to + (size_t) i * a.out_nb[1], from, (size_t) a.v.dim * sizeof(float));
            }
        }
    }
    return status;
}

} // namespace kvasir
