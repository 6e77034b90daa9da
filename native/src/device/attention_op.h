// What an attention of llama.cpp's graph consists of: one FLASH_ATTN_EXT, or the operations of the plain one that it has where flash
// attention is switched off (build_attn_mha in llama-graph.cpp): MUL_MAT(K, Q), in some models soft-capping, SOFT_MAX, MUL_MAT(V, .). V is
// transposed there, and written element by element. A plain attention is taken over where its last operation stands.
#pragma once

#include "../llama/api.h"

#include <array>
#include <cstdint>

namespace kvasir {

struct attention_op {
    const ggml_tensor * node = nullptr; // FLASH_ATTN_EXT, or the last one of a plain attention
    // q [dim_k, tokens, query heads, streams], k [dim_k, cells, KV heads, streams]; v like k, of a plain attention [cells, dim_v, KV heads, streams]
    const ggml_tensor * q = nullptr, * k = nullptr, * v = nullptr, * mask = nullptr, * sinks = nullptr;
    float               scale = 1, max_bias = 0, softcap = 0;
    std::array<ggml_tensor *, 5> inner{}; // of a plain one: what comes before the last operation and is not computed, from MUL_MAT(K, Q) on
    size_t              n_inner = 0;

    bool plain() const { return n_inner > 0; }
};

// Whether a node is one, or the last operation of a plain one.
bool find_attention(const ggml_tensor * node, attention_op & found);

// Where Q comes before a plain attention's last operation the allocator may give its memory away: asks for it to stay until then.
void keep_queries(const ggml_cgraph * graph, ggml_backend_graph_optimize_params * params);

} // namespace kvasir
