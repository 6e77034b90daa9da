#include "accept.h"

#include "backend.h"
#include "construction.h"
#include "cuda/cuda_graph.h"
#include "find_rotation.h"
#include "kv_buffer.h"

#include "../attention/cpu/cpu_attention.h"
#include "../error.h"
#include "../store/cuda_store.h"
#include "../store/device_rows.h"
#include "../store/host_rows.h"

#include <algorithm>
#include <cstring>

namespace kvasir {

kvasir_cache * cache_of(const ggml_tensor * node) {
    if (const side * s = side_of(node)) {
        return s->owner->cache;
    }
    for (const ggml_tensor * src : node->src) {
        if (const side * s = side_of(src)) {
            return s->owner->cache;
        }
    }
    return nullptr;
}

bool found_node::by_element() const { return rows && !rows->is_k && l->transposed; }

int64_t found_node::n_tokens() const {
    return !rows ? attention.q->ne[1] : by_element() ? node->src[0]->ne[1] / rows->tensor->ne[0] : node->src[0]->ne[1];
}

graph_refusal & refused_graph() {
    static thread_local graph_refusal refusal;
    return refusal;
}

void refuse_graph(const kvasir_cache * cache, const std::string & reason) {
    if (refused_graph().cache != cache) {
        refused_graph() = {cache, "the adaptive cache has no path for " + reason};
    }
}

static bool is_cpu(ggml_backend_dev_t device) { return device->iface.get_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU; }

// Asks the device for the operations of the portable path, on one head as they will be built.
static bool accept_portable(const layer & l, int32_t group, std::string & reason) {
    const api & a = llama();
    char memory[1 << 13];
    struct scope {
        ggml_context * context;
        ~scope() { llama().ggml_free(context); }
    } ctx{a.ggml_init({sizeof memory, memory, /*.no_alloc =*/ true})};
    const auto tensor = [&](ggml_type type, int64_t n0, int64_t n1, int64_t n2 = 1) { return a.ggml_new_tensor_4d(ctx.context, type, n0, n1, n2, 1); };
    constexpr int64_t slots = 256;
    ggml_tensor * k = tensor(l.k.format.type, l.k.format.dim, slots), * v = tensor(l.v.format.type, l.v.format.dim, slots), * in_v = v;
    if (l.v.format.part) {
        v = a.ggml_view_2d(ctx.context, k, l.v.format.dim, slots, k->nb[1], 0);
        in_v = k;
    }
    const ggml_tensor * needed[] = {
        a.ggml_set_rows(ctx.context, k, tensor(GGML_TYPE_F32, l.k.format.dim, 1), tensor(GGML_TYPE_I64, 1, 1)),
        a.ggml_set_rows(ctx.context, in_v, tensor(GGML_TYPE_F32, in_v->ne[0], 1), tensor(GGML_TYPE_I64, 1, 1)),
        a.ggml_flash_attn_ext(ctx.context, tensor(GGML_TYPE_F32, l.k.format.dim, 1, group), k, v, tensor(GGML_TYPE_F16, slots, 1), 1, 0, 0),
    };
    for (const ggml_tensor * op : needed) {
        if (!l.device->iface.supports_op(l.device, op)) {
            reason = format("layer %d on %s, which has no %s for K %s, V %s and head dims %d and %d", l.il, l.device->iface.get_name(l.device), a.ggml_op_name(op->op),
                            a.ggml_type_name(l.k.format.type), a.ggml_type_name(l.v.format.type), l.k.format.dim, l.v.format.dim);
            return false;
        }
    }
    return true;
}

static ggml_backend_t inner_backend(ggml_backend_dev_t device) {
    if (const construction * making = construction::current()) {
        for (const proxy_backend * backend : making->backends) {
            if (proxy_backend_inner(backend)->device == device) {
                return proxy_backend_inner(backend);
            }
        }
    }
    throw error(KVASIR_FAILED, format("a layer on %s is first seen when its context is already made", device->iface.get_name(device)));
}

// Layers on the CPU have kernels of ours over host memory, those on NVIDIA GPUs over pages of device memory, but for plain attention.
// Everything else, and these when they are asked to, takes the portable path.
static bool configure(layer & l, int32_t n_head, int32_t n_head_kv, int32_t dim_k, int32_t dim_v, bool latent, bool plain, std::string & reason) {
    const bool native = is_cpu(l.device) && l.cache->attention == KVASIR_ATTENTION_NATIVE;
    const int  n      = l.n_stream * n_head_kv;
    l.attention  = native ? KVASIR_ATTENTION_NATIVE : KVASIR_ATTENTION_PORTABLE;
    l.transposed = plain;
    l.k.format  = rows_format(l.k.tensor->type, dim_k, /*tiled =*/ native && !latent);
    l.v.format  = latent ? rows_part(l.k.format, dim_v) : rows_format(l.v.tensor->type, dim_v, /*tiled =*/ false);
    if (native) {
        if (!cpu_attention_supports(l.k.format, l.v.format)) {
            reason = format("KV types %s and %s (layer %d)", llama().ggml_type_name(l.k.format.type), llama().ggml_type_name(l.v.format.type), l.il);
            return false;
        }
        l.configure(n_head, n_head_kv, std::make_unique<host_rows>(l.cache->limit, l.k.format, l.v.format, n, l.n_cells));
        return true;
    }
    std::string       why_not;
    cuda::page_format pages{};
    cuda::gpu *       gpu = l.cache->attention == KVASIR_ATTENTION_NATIVE ? cuda::gpu::of(l.device, why_not) : nullptr;
    if (gpu && !latent && !plain && cuda::supports(*gpu, l.k.format.type, l.v.format.type, dim_k, dim_v, n_head, n_head_kv, pages)) {
        auto & store = l.cache->gpus[l.device];
        if (!store) {
            store = std::make_shared<cuda::cuda_store>(*gpu);
        }
        l.attention = KVASIR_ATTENTION_NATIVE;
        l.configure(n_head, n_head_kv, std::make_unique<cuda::cuda_rows>(l.cache->limit, store, pages, l, n));
        return true;
    }
    if (!accept_portable(l, n_head / n_head_kv, reason)) {
        return false;
    }
    auto & mover = l.cache->movers[l.device];
    if (!mover) {
        mover = std::make_shared<graph_builder>(inner_backend(l.device));
    }
    l.configure(n_head, n_head_kv, std::make_unique<device_rows>(l.cache->limit, mover, l.k.format, l.v.format, n, l.n_cells, l.il));
    return true;
}

// ggml's own conversions, for the types that have blocks. Once: the threads of another context may be using them.
static void set_row_functions() {
    static const bool set = [] {
        for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1}) {
            rows_set_functions(type, {llama().type_traits_cpu(type)->from_float, llama().ggml_get_type_traits(type)->to_float});
        }
        return true;
    }();
    (void) set;
}

static bool accept_attention(const attention_op & op, std::string & reason) {
    side * k = side_of(op.k);
    side * v = side_of(op.v);
    if (!k || !v) {
        reason = "an attention that takes only one of K and V from the cache";
        return false;
    }
    layer & l = *k->owner;
    const bool latent = k == v; // V is a part of K's rows
    if (!k->is_k || (v != &l.v && !latent)) {
        reason = format("an attention over K and V of different layers (layer %d)", l.il);
        return false;
    }
    const ggml_tensor * q = op.q, * kt = op.k, * vt = op.v, * mask = op.mask;
    const int32_t n_head = (int32_t) q->ne[2], n_head_kv = (int32_t) kt->ne[2];
    const int32_t dim_k = (int32_t) kt->ne[0], dim_v = (int32_t) vt->ne[op.plain() ? 1 : 0];
    if (latent && (vt->view_offs != kt->view_offs || dim_v > dim_k || !std::equal(kt->nb, kt->nb + GGML_MAX_DIMS, vt->nb))) {
        reason = format("latent attention whose V is not the first part of K's rows (layer %d)", l.il);
        return false;
    }
    if (op.plain() && (latent || vt->nb[0] != v->tensor->nb[0] || vt->nb[1] != vt->nb[0] * (size_t) l.n_cells)) {
        reason = format("a plain attention over V that is not transposed (layer %d)", l.il);
        return false;
    }
    if (q->type != GGML_TYPE_F32 || (mask && mask->type != (op.plain() ? GGML_TYPE_F32 : GGML_TYPE_F16)) || n_head % n_head_kv != 0 || vt->ne[2] != n_head_kv ||
        (int64_t) dim_k * n_head_kv != k->tensor->ne[0] || (!latent && (int64_t) dim_v * n_head_kv != v->tensor->ne[0])) {
        reason = format("the shape of the attention of layer %d (%d query heads, %d KV heads, head dims %d and %d)", l.il, n_head, n_head_kv, dim_k, dim_v);
        return false;
    }
    if (!rows_supports(k->tensor->type, dim_k) || !rows_supports(v->tensor->type, dim_v)) {
        reason = format("head dims %d and %d with KV types %s and %s (layer %d): a head must be whole blocks of the type", dim_k, dim_v,
                        llama().ggml_type_name(k->tensor->type), llama().ggml_type_name(v->tensor->type), l.il);
        return false;
    }
    set_row_functions();
    if (!l.configured()) {
        if (!configure(l, n_head, n_head_kv, dim_k, dim_v, latent, op.plain(), reason)) {
            return false;
        }
        l.moved->turned = find_rotation(q);
        l.moved->window = l.swa ? l.cache->n_swa : 0;
    }
    if (l.n_head_kv != n_head_kv || l.n_head != n_head || l.k.format.dim != dim_k || l.v.format.dim != dim_v || l.v.format.part != latent || l.transposed != op.plain()) {
        reason = format("attentions of different shapes over the cache of layer %d", l.il);
        return false;
    }
    // fattn-mma-f16.cuh and fattn-vec.cuh have soft-capping for these; for others supports_op says yes, and the kernel ends the process
    if (l.attention == KVASIR_ATTENTION_PORTABLE && op.softcap != 0.0f && cuda::gpu::is_cuda(l.device) && dim_k != 128 && dim_k != 256) {
        reason = format("layer %d on %s, whose FLASH_ATTN_EXT has no soft-capping for head dim %d", l.il, l.device->iface.get_name(l.device), dim_k);
        return false;
    }
    return true;
}

bool accept_node(const ggml_tensor * node, std::string & reason) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        case GGML_OP_SET_ROWS: {
            side * s = side_of(node);
            if (!s || node->src[0]->type != GGML_TYPE_F32) {
                break;
            }
            // whole rows of all heads, or of the transposed V of a plain attention all elements of each token
            const bool by_element = !s->is_k && node->src[0]->ne[0] == 1 && node->src[1]->type == GGML_TYPE_I64 && node->src[0]->ne[1] % s->tensor->ne[0] == 0;
            if (s->owner->configured() ? s->owner->transposed && !s->is_k ? by_element : node->src[0]->ne[0] == s->tensor->ne[0]
                                       : by_element || node->src[0]->ne[0] == s->tensor->ne[0]) {
                return true;
            }
            break;
        }
        case GGML_OP_FLASH_ATTN_EXT:
        case GGML_OP_MUL_MAT: {
            attention_op op;
            if (find_attention(node, op)) {
                return accept_attention(op, reason);
            }
            const side * s = side_of(node->src[0]);
            if (s && s->is_k) {
                return true; // the first one of a plain attention; whether the others are there, store_graph sees
            }
            if (s) {
                reason = format("a plain attention with more than soft-capping between Q·K and its weights (layer %d)", s->owner->il);
                return false;
            }
            break;
        }
        default:
            break;
    }
    reason = format("the operation %s over the KV cache (%s); positions cannot be shifted in it (llama_memory_seq_add, llama_memory_seq_div)",
                    llama().ggml_op_name(node->op), node->name);
    return false;
}

} // namespace kvasir
