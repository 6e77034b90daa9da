#include "attention_op.h"

#include "kv_buffer.h"

#include <cstring>

namespace kvasir {

namespace {

float parameter(const ggml_tensor * node, int i) {
    float value;
    memcpy(&value, node->op_params + i, sizeof value);
    return value;
}

bool is_scale(const ggml_tensor * node) { return node && node->op == GGML_OP_SCALE && parameter(node, 1) == 0.0f; }

bool is_tanh(const ggml_tensor * node) { return node && node->op == GGML_OP_UNARY && node->op_params[0] == GGML_UNARY_OP_TANH; }

} // namespace

bool find_attention(const ggml_tensor * node, attention_op & found) {
    found      = {};
    found.node = node;
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        found.q        = node->src[0];
        found.k        = node->src[1];
        found.v        = node->src[2];
        found.mask     = node->src[3];
        found.sinks    = node->src[4];
        found.scale    = parameter(node, 0);
        found.max_bias = parameter(node, 1);
        found.softcap  = parameter(node, 2);
        return true;
    }
    ggml_tensor * softmax = node->op == GGML_OP_MUL_MAT ? node->src[1] : nullptr;
    if (!softmax || softmax->op != GGML_OP_SOFT_MAX) {
        return false;
    }
    found.v        = node->src[0];
    found.mask     = softmax->src[1];
    found.sinks    = softmax->src[2];
    found.scale    = parameter(softmax, 0);
    found.max_bias = parameter(softmax, 1);
    ggml_tensor * from[5] = {softmax, softmax->src[0]}; // backwards
    size_t        n = 2;
    if (is_scale(from[1])) { // softcap * tanh(kq * scale / softcap)
        from[2] = from[1]->src[0];
        from[3] = is_tanh(from[2]) ? from[2]->src[0] : nullptr;
        from[4] = is_scale(from[3]) ? from[3]->src[0] : nullptr;
        found.softcap = parameter(from[1], 0);
        if (!from[4] || found.scale != 1.0f || found.softcap == 0.0f) {
            return false;
        }
        found.scale   = parameter(from[3], 0) * found.softcap;
        n             = 5;
    }
    const ggml_tensor * kq = from[n - 1];
    if (!kq || kq->op != GGML_OP_MUL_MAT) {
        return false;
    }
    found.k = kq->src[0];
    found.q = kq->src[1];
    for (size_t i = 0; i < n; i++) {
        found.inner[n - 1 - i] = from[i];
    }
    found.n_inner = n;
    return true;
}

void keep_queries(const ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = graph->nodes[i];
        attention_op  op;
        if (node->op == GGML_OP_MUL_MAT && side_of(node->src[0]) && find_attention(node, op)) {
            params->add_alloc_dep(params->user_data, const_cast<ggml_tensor *>(root_of(op.q)), node);
        }
    }
}

} // namespace kvasir
