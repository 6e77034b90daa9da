#include "graph.h"

#include "backend.h"
#include "kv_buffer.h"

#include "../attention/portable/portable_attention.h"
#include "../error.h"
#include "../store/cuda_store.h"
#include "../store/host_rows.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace kvasir {

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- which nodes have a path ----

bool touches_store(const ggml_tensor * node) {
    if (side_of(node)) {
        return true;
    }
    for (const ggml_tensor * src : node->src) {
        if (side_of(src)) {
            return true;
        }
    }
    return false;
}

static bool on_gpu(const layer & l) { return l.attention == KVASIR_ATTENTION_NATIVE && !l.rows->host(true, 0); }

static bool accept_attention(const ggml_tensor * node, std::string & reason) {
    side * k = side_of(node->src[1]);
    side * v = side_of(node->src[2]);
    if (!k || !v) {
        reason = "an attention that takes only one of K and V from the cache";
        return false;
    }
    layer & l = *k->owner;
    if (k == v) {
        reason = format("multi-head latent attention (layer %d: V is a part of K)", l.il);
        return false;
    }
    if (!k->is_k || v != &l.v) {
        reason = format("an attention over K and V of different layers (layer %d)", l.il);
        return false;
    }
    const ggml_tensor * q = node->src[0], * kt = node->src[1], * vt = node->src[2], * mask = node->src[3];
    const int32_t n_head = (int32_t) q->ne[2], n_head_kv = (int32_t) kt->ne[2];
    const int32_t dim_k = (int32_t) kt->ne[0], dim_v = (int32_t) vt->ne[0];
    if (q->type != GGML_TYPE_F32 || (mask && mask->type != GGML_TYPE_F16) || n_head % n_head_kv != 0 || vt->ne[2] != n_head_kv ||
        (int64_t) dim_k * n_head_kv != k->tensor->ne[0] || (int64_t) dim_v * n_head_kv != v->tensor->ne[0]) {
        reason = format("the shape of the attention of layer %d (%d query heads, %d KV heads, head dims %d and %d)", l.il, n_head, n_head_kv, dim_k, dim_v);
        return false;
    }
    if (!rows_supports(k->tensor->type, dim_k) || !rows_supports(v->tensor->type, dim_v)) {
        reason = format("head dims %d and %d with KV types %s and %s (layer %d): a head must be whole blocks of the type", dim_k, dim_v,
                        llama().ggml_type_name(k->tensor->type), llama().ggml_type_name(v->tensor->type), l.il);
        return false;
    }
    for (side * s : {k, v}) { // ggml's own conversions, for the types that have blocks
        const ggml_type type = s->tensor->type;
        rows_set_functions(type, {llama().type_traits_cpu(type)->from_float, llama().ggml_get_type_traits(type)->to_float});
    }
    if (!l.configured()) {
        l.attention = l.cache->attention;
        cuda::page_format pages{};
        std::string       none;
        cuda::gpu *       gpu = l.attention == KVASIR_ATTENTION_NATIVE ? cuda::gpu::of(l.device, none) : nullptr;
        if (gpu && cuda::supports(*gpu, k->tensor->type, v->tensor->type, dim_k, dim_v, n_head, n_head_kv, pages)) {
            l.k.format  = rows_format(k->tensor->type, dim_k, /*tiled =*/ false);
            l.v.format  = rows_format(v->tensor->type, dim_v, /*tiled =*/ false);
            auto & store = l.cache->gpus[l.device];
            if (!store) {
                store = std::make_shared<cuda::cuda_store>(*gpu);
            }
            l.configure(n_head, n_head_kv, std::make_unique<cuda::cuda_rows>(store, pages, l, l.n_stream * n_head_kv));
            return true;
        }
        l.k.format  = rows_format(k->tensor->type, dim_k, /*tiled =*/ true);
        l.v.format  = rows_format(v->tensor->type, dim_v, /*tiled =*/ false);
        l.configure(n_head, n_head_kv, std::make_unique<host_rows>(l.k.format, l.v.format, l.n_stream * n_head_kv, l.n_cells));
    }
    if (l.n_head_kv != n_head_kv || l.n_head != n_head || l.k.format.dim != dim_k || l.v.format.dim != dim_v) {
        reason = format("attentions of different shapes over the cache of layer %d", l.il);
        return false;
    }
    if (on_gpu(l)) {
        return true;
    }
    if (!cpu_attention_supports(l.k.format, l.v.format)) {
        reason = format("KV types %s and %s (layer %d)", llama().ggml_type_name(l.k.format.type), llama().ggml_type_name(l.v.format.type), l.il);
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
            // whole rows of all heads; the transposed V of an attention without flash writes single elements
            if (s && node->src[0]->type == GGML_TYPE_F32 && node->src[0]->ne[0] == s->tensor->ne[0]) {
                return true;
            }
            break;
        }
        case GGML_OP_FLASH_ATTN_EXT:
            return accept_attention(node, reason);
        default:
            break;
    }
    reason = format("the operation %s over the KV cache (%s)", llama().ggml_op_name(node->op), node->name);
    return false;
}

// ---- taking the nodes over ----

static void note_time(store_node & n, int64_t begin) {
    int64_t none = 0;
    n.begin_ns.compare_exchange_strong(none, begin, std::memory_order_relaxed);
    const int64_t end     = now_ns();
    int64_t       current = n.end_ns.load(std::memory_order_relaxed);
    while (current < end && !n.end_ns.compare_exchange_weak(current, end, std::memory_order_relaxed)) {
    }
}

static int64_t index_of(const ggml_tensor * indices, const void * values, int64_t i) {
    return indices->type == GGML_TYPE_I64 ? ((const int64_t *) values)[i] : ((const int32_t *) values)[i];
}

static void run_append(ggml_tensor *, int ith, int nth, void * userdata) {
    store_node &        n     = *(store_node *) userdata;
    const int64_t       begin = now_ns();
    const ggml_tensor * src   = n.node->src[0];
    const ggml_tensor * idx   = n.node->src[1];
    const layer &       l     = *n.l;
    const side &        s     = *n.rows;
    const int64_t       rows  = src->ne[1];
    for (int64_t i = rows * ith / nth; i < rows * (ith + 1) / nth; i++) {
        const int64_t row    = index_of(idx, idx->data, i);
        const int32_t stream = (int32_t) (row / l.n_cells), cell = (int32_t) (row % l.n_cells);
        const float * values = (const float *) ((const char *) src->data + (size_t) i * src->nb[1]);
        for (int32_t h = 0; h < l.n_head_kv; h++) {
            const int index = l.index(stream, h);
            const head_store & head = l.heads[(size_t) index];
            rows_write(s.format, s.is_k ? head.k : head.v, l.slot_plus_1[index][cell] - 1, values + (size_t) h * s.format.dim);
        }
    }
    note_time(n, begin);
}

static void run_attention(ggml_tensor *, int ith, int nth, void * userdata) {
    store_node &  n     = *(store_node *) userdata;
    const int64_t begin = now_ns();
    n.cpu.run(ith, nth);
    note_time(n, begin);
}

// The values of an input of the graph, wherever it lies.
const void * store_graph::host(const ggml_tensor * t) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    if (!buffer || (buffer->buft->iface.is_host && buffer->buft->iface.is_host(buffer->buft))) {
        return t->data;
    }
    for (const auto & copy : copies_) {
        if (copy.first == t->data) {
            return copy.second.data();
        }
    }
    copies_.emplace_back(t->data, std::vector<char>(llama().ggml_nbytes(t)));
    inner_->iface.synchronize(inner_);
    buffer->iface.get_tensor(buffer, t, copies_.back().second.data(), 0, copies_.back().second.size());
    return copies_.back().second.data();
}

store_node & store_graph::next() {
    if (used_ == nodes_.size()) {
        nodes_.emplace_back();
    }
    store_node & n = nodes_[used_++];
    n.begin_ns = 0;
    n.end_ns   = 0;
    return n;
}

// The positions of the tokens of a batch stand in the ROPE that made the K rows.
static const ggml_tensor * find_positions(const ggml_tensor * t, int depth) {
    if (!t || depth == 0) {
        return nullptr;
    }
    if (t->op == GGML_OP_ROPE) {
        return t->src[1];
    }
    if (t->view_src) {
        if (const ggml_tensor * p = find_positions(t->view_src, depth - 1)) {
            return p;
        }
    }
    for (int i = 0; i < 2; i++) { // the second source: K may be multiplied by a rotation matrix before it is quantised
        if (const ggml_tensor * p = find_positions(t->src[i], depth - 1)) {
            return p;
        }
    }
    return nullptr;
}

void store_graph::prepare_append(ggml_tensor * node) {
    side *              s   = side_of(node);
    layer &             l   = *s->owner;
    const ggml_tensor * idx = node->src[1];
    const int64_t       n   = node->src[0]->ne[1];
    if (!l.configured() || !idx->data || idx->op != GGML_OP_NONE) {
        throw error(KVASIR_UNSUPPORTED, format("a write to the KV cache of layer %d whose cells are not known beforehand", l.il));
    }
    // a model without rotary positions (ALiBi, learned positions) fills the cells of its one sequence in order
    const ggml_tensor * positions = s->is_k ? find_positions(node->src[0], 8) : nullptr;
    const bool          known     = positions && positions->type == GGML_TYPE_I32 && positions->data && positions->ne[0] >= n;
    const void * rows   = host(idx);
    const void * values = known ? host(positions) : nullptr;
    if (s->is_k) {
        l.query_pos.resize((size_t) n);
    }
    wanted_.resize(l.heads.size());
    for (size_t h = 0; h < wanted_.size(); h++) {
        wanted_[h] = l.heads[h].n;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = index_of(idx, rows, i);
        if (row < 0 || row >= (int64_t) l.n_stream * l.n_cells) {
            throw error(KVASIR_FAILED, format("llama.cpp wrote to row %lld of the KV cache of layer %d", (long long) row, l.il));
        }
        for (int32_t h = 0; h < l.n_head_kv; h++) {
            const int index = l.index((int32_t) (row / l.n_cells), h);
            wanted_[(size_t) index] += l.slot_plus_1[(size_t) index][row % l.n_cells] == 0;
        }
    }
    l.rows->flush();
    l.rows->reserve(wanted_.data());
    for (int64_t i = 0; i < n; i++) {
        const int64_t row    = index_of(idx, rows, i);
        const int32_t stream = (int32_t) (row / l.n_cells), cell = (int32_t) (row % l.n_cells);
        const int32_t pos = !s->is_k ? -1 : known ? ((const int32_t *) values)[i] : cell;
        if (s->is_k) {
            l.query_pos[(size_t) i] = pos;
        }
        for (int32_t h = 0; h < l.n_head_kv; h++) {
            l.slot_for(l.index(stream, h), cell, pos);
        }
    }
    if (on_gpu(l)) {
        return;
    }
    store_node & x = next();
    x.node = node;
    x.rows = s;
    x.l    = &l;
}

static int32_t count_open_cells(const ggml_tensor * mask, int32_t n_tokens) {
    int64_t open = mask->ne[0];
    for (int32_t t = 0; t < n_tokens; t++) {
        const auto * row = (const uint16_t *) ((const char *) mask->data + (size_t) t * mask->nb[1]);
        open = std::find_if(row, row + open, [](uint16_t value) { return value != 0; }) - row;
    }
    return (int32_t) open;
}

void store_graph::prepare_attention(ggml_tensor * node, int n_threads) {
    const ggml_tensor * q = node->src[0], * k = node->src[1], * mask = node->src[3], * sinks = node->src[4];
    layer &             l = *side_of(k)->owner;
    kvasir_cache &      c = *l.cache;
    store_node &        x = next();
    x.node = node;
    x.rows = nullptr;
    x.l    = &l;

    attention_node a;
    a.k = l.k.format;
    a.v = l.v.format;
    const int32_t first = l.n_stream > 1 ? (int32_t) (k->view_offs / l.k.tensor->nb[2]) : 0;
    a.heads     = l.heads.data() + l.index(first, 0);
    a.n_stream  = (int32_t) q->ne[3];
    a.n_head_kv = l.n_head_kv;
    a.n_head    = l.n_head;
    a.n_tokens  = (int32_t) q->ne[1];
    a.q         = (const char *) q->data;
    std::copy(q->nb, q->nb + 4, a.q_nb);
    if (mask) {
        a.mask = (const char *) mask->data;
        std::copy(mask->nb, mask->nb + 4, a.mask_nb);
        a.mask_n_kv     = (int32_t) mask->ne[0];
        a.mask_n_head   = (int32_t) mask->ne[2];
        a.mask_n_stream = (int32_t) mask->ne[3];
        constexpr int32_t few_tokens = 8;
        if (a.n_stream == 1 && a.mask_n_head == 1 && a.n_tokens <= few_tokens) { // one mask serves many layers
            if (open_mask_ != mask->data) {
                open_mask_  = mask->data;
                open_cells_ = count_open_cells(mask, a.n_tokens);
            }
            a.mask_open = open_cells_;
        }
    }
    a.out = (char *) node->data;
    std::copy(node->nb, node->nb + 4, a.out_nb);
    a.sinks = sinks ? (const float *) sinks->data : nullptr;
    memcpy(&a.scale, (const float *) node->op_params + 0, sizeof(float));
    memcpy(&a.max_bias, (const float *) node->op_params + 1, sizeof(float));
    memcpy(&a.softcap, (const float *) node->op_params + 2, sizeof(float));
    if (l.query_pos.size() == (size_t) a.n_tokens * (size_t) a.n_stream) {
        a.query_pos = l.query_pos.data();
    }
    if (c.statistic_on) {
        if (!a.query_pos) {
            throw error(KVASIR_UNSUPPORTED, format("the statistic of layer %d: its queries have no known positions", l.il));
        }
        x.stat = c.statistic_of(l);
        a.stat = &x.stat;
        l.n_queries += a.n_tokens;
    }
    x.attention = a;
    x.cpu.plan(x.attention, n_threads, workspace_);
}

static bool is_view(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

void store_graph::find_nodes(const ggml_cgraph * graph) {
    if (graph->uid != 0 && graph->uid == uid_) {
        return;
    }
    uid_ = 0;
    over_store_.clear();
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (is_view(node->op) || !touches_store(node)) {
            continue;
        }
        std::string reason;
        if (!accept_node(node, reason)) {
            throw error(KVASIR_UNSUPPORTED, "the adaptive cache has no path for " + reason);
        }
        over_store_.push_back(i);
    }
    uid_ = graph->uid;
}

ggml_status store_graph::compute(ggml_backend_t inner, ggml_cgraph * graph, int n_threads) {
    const int64_t begin = now_ns();
    used_      = 0;
    open_mask_ = nullptr;
    find_nodes(graph);
    kvasir_cache * cache = nullptr;
    bool           gpu   = false;
    inner_ = inner;
    copies_.clear();
    for (int i : over_store_) {
        ggml_tensor * node = graph->nodes[i];
        cache = side_of(node->op == GGML_OP_SET_ROWS ? node : node->src[1])->owner->cache;
        cache->report_failure();
        if (node->op == GGML_OP_SET_ROWS) {
            prepare_append(node);
        } else if (!on_gpu(*side_of(node->src[1])->owner)) {
            prepare_attention(node, n_threads);
        } else {
            gpu = true;
        }
    }
    if (!cache) {
        return inner->iface.graph_compute(inner, graph);
    }
    const int64_t prepared = now_ns();

    ggml_status status;
    if (gpu) {
        if (!gpu_) {
            gpu_ = std::make_unique<cuda::cuda_graph>(inner);
        }
        status = gpu_->compute(graph, over_store_, [this](const ggml_tensor * t) { return host(t); });
    } else if (nodes_[0].l->attention == KVASIR_ATTENTION_PORTABLE) { // all layers of one device have the same path
        status = compute_portable(inner, graph);
    } else {
        for (size_t i = 0; i < used_; i++) {
            store_node & x = nodes_[i];
            x.op = x.node->op;
            memcpy(x.params, x.node->op_params, sizeof x.params);
            ggml_custom_op_params custom{};
            custom.fun      = x.rows ? run_append : run_attention;
            custom.n_tasks  = GGML_N_TASKS_MAX;
            custom.userdata = &x;
            static_assert(sizeof custom <= sizeof x.params, "custom operations keep their parameters in the tensor");
            x.node->op = GGML_OP_CUSTOM;
            memcpy(x.node->op_params, &custom, sizeof custom);
        }
        status = inner->iface.graph_compute(inner, graph);
        for (size_t i = 0; i < used_; i++) {
            nodes_[i].node->op = nodes_[i].op;
            memcpy(nodes_[i].node->op_params, nodes_[i].params, sizeof nodes_[i].params);
        }
    }
    for (size_t i = 0; i < used_; i++) {
        const int64_t ns = nodes_[i].end_ns - nodes_[i].begin_ns;
        (nodes_[i].rows ? cache->append_ns : cache->attention_ns) += ns;
    }
    cache->graphs++;
    cache->prepare_ns += prepared - begin;
    cache->graph_ns += now_ns() - begin;
    return status;
}

// Runs nodes [first, last) of a graph on the inner backend.
static ggml_status compute_range(ggml_backend_t inner, const ggml_cgraph * graph, int first, int last) {
    if (std::all_of(graph->nodes + first, graph->nodes + last, [](const ggml_tensor * t) { return is_view(t->op); })) {
        return GGML_STATUS_SUCCESS;
    }
    ggml_cgraph range = *graph;
    range.size    = 0;
    range.n_nodes = last - first;
    range.n_leafs = 0;
    range.nodes   = graph->nodes + first;
    range.grads   = nullptr;
    range.grad_accs = nullptr;
    range.leafs   = nullptr;
    range.uid     = 0;
    return inner->iface.graph_compute(inner, &range);
}

// The graph is cut at every node over the store: ggml's own kernel computes attention, on rows gathered for it.
ggml_status store_graph::compute_portable(ggml_backend_t inner, ggml_cgraph * graph) {
    int    first = 0;
    size_t at    = 0;
    for (int i = 0; i < graph->n_nodes && at < used_; i++) {
        if (graph->nodes[i] != nodes_[at].node) {
            continue;
        }
        store_node & x      = nodes_[at++];
        ggml_status  status = compute_range(inner, graph, first, i);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (inner->iface.synchronize) {
            inner->iface.synchronize(inner);
        }
        if (x.rows) {
            run_append(x.node, 0, 1, &x);
        } else {
            const bool scored = x.attention.stat || std::any_of(x.l->heads.begin(), x.l->heads.end(), [](const head_store & h) { return h.track; });
            if (scored) { // statistic and scores come from our kernels; the output is overwritten below
                run_attention(x.node, 0, 1, &x);
            }
            const int64_t begin = now_ns();
            status = portable_.compute(inner, x.attention, x.node);
            note_time(x, begin);
            if (status != GGML_STATUS_SUCCESS) {
                return status;
            }
        }
        first = i + 1;
    }
    return compute_range(inner, graph, first, graph->n_nodes);
}

} // namespace kvasir
