#include "graph_builder.h"

#include "../error.h"

#include <algorithm>

namespace kvasir {

static constexpr size_t tensors_per_context = 1024;

graph_builder::graph_builder(ggml_backend_t backend)
    : backend_(backend), device_(backend->device), inputs_(device_, true), scratch_(device_, false), results_(device_, true) {
    ggml_backend_buffer_type_t type = device_->iface.get_buffer_type(device_);
    alignment_ = type->iface.get_alignment(type);
    empty_pool_ = new_pool((size_t) 1 << 14);
    empty_      = llama().ggml_new_graph_custom(empty_pool_.context, 8, false);
}

graph_builder::~graph_builder() {
    for (pool & p : pools_) {
        llama().ggml_free(p.context);
    }
    llama().ggml_free(empty_pool_.context);
}

graph_builder::pool graph_builder::new_pool(size_t size) {
    pool p;
    p.memory.resize(size);
    p.context = llama().ggml_init({p.memory.size(), p.memory.data(), /*.no_alloc =*/ true});
    if (!p.context) {
        throw std::bad_alloc();
    }
    return p;
}

void graph_builder::begin(const ggml_cgraph * original) {
    original_ = original ? original : empty_;
    nodes_.clear();
    pool_ = in_pool_ = 0;
    for (pool & p : pools_) {
        llama().ggml_reset(p.context);
    }
    reset_memory();
}

void graph_builder::pass(ggml_tensor * node) { nodes_.push_back(node); }

ggml_context * graph_builder::context() {
    if (in_pool_ == tensors_per_context) {
        pool_++;
        in_pool_ = 0;
    }
    if (pool_ == pools_.size()) {
        pools_.push_back(new_pool(tensors_per_context * llama().ggml_tensor_overhead()));
    }
    in_pool_++;
    return pools_[pool_].context;
}

ggml_tensor * graph_builder::tensor(ggml_type type, const place & at, int64_t n0, int64_t n1, int64_t n2, size_t nb1, size_t nb2) {
    ggml_tensor * t = llama().ggml_new_tensor_4d(context(), type, n0, n1, n2, 1);
    t->buffer = at.buffer;
    t->data   = at.address;
    if (nb1) {
        t->nb[1] = nb1;
        t->nb[2] = nb2 ? nb2 : nb1 * (size_t) n1;
        t->nb[3] = t->nb[2] * (size_t) n2;
    }
    return t;
}

ggml_tensor * graph_builder::input(ggml_type type, int64_t n0, int64_t n1, int64_t n2, void ** host) {
    const device_arena::piece p = inputs_.take(llama().ggml_row_size(type, n0) * (size_t) (n1 * n2));
    *host = p.host;
    return tensor(type, p, n0, n1, n2);
}

ggml_tensor * graph_builder::scratch(ggml_type type, int64_t n0, int64_t n1, int64_t n2) {
    return tensor(type, scratch_.take(llama().ggml_row_size(type, n0) * (size_t) (n1 * n2)), n0, n1, n2);
}

size_t graph_builder::alloc_size(const ggml_tensor * operation) const {
    ggml_backend_buffer_type_t type = device_->iface.get_buffer_type(device_);
    return type->iface.get_alloc_size ? type->iface.get_alloc_size(type, operation) : llama().ggml_nbytes(operation);
}

ggml_tensor * graph_builder::scratch_for(const ggml_tensor * operation) {
    return tensor(operation->type, scratch_.take(alloc_size(operation)), operation->ne[0], operation->ne[1], operation->ne[2]);
}

ggml_tensor * graph_builder::result(ggml_type type, int64_t n0, int64_t n1, int64_t n2, void ** host) {
    const device_arena::piece p = results_.take(llama().ggml_row_size(type, n0) * (size_t) (n1 * n2));
    *host = p.host;
    return tensor(type, p, n0, n1, n2);
}

bool graph_builder::supports(const ggml_tensor * operation) const { return device_->iface.supports_op(device_, operation); }

ggml_tensor * graph_builder::add(ggml_tensor * operation, const ggml_tensor * out) {
    operation->buffer = out->buffer;
    operation->data   = out->data;
    operation->flags |= GGML_TENSOR_FLAG_COMPUTE;
    if (!supports(operation)) {
        const ggml_tensor * src = operation->src[operation->op == GGML_OP_FLASH_ATTN_EXT ? 1 : 0];
        throw error(KVASIR_UNSUPPORTED, format("%s has no %s from %s [%lld, %lld] to %s, which the adaptive cache needs there", device_->iface.get_name(device_),
                                               llama().ggml_op_name(operation->op), llama().ggml_type_name(src->type), (long long) src->ne[0],
                                               (long long) src->ne[1], llama().ggml_type_name(operation->type)));
    }
    nodes_.push_back(operation);
    return operation;
}

ggml_tensor * graph_builder::copy(ggml_tensor * from, ggml_tensor * to) { return add(llama().ggml_cpy(context(), from, to), to); }

bool graph_builder::bindable(const place & at) const {
    return (size_t) (at.address - (char *) at.buffer->iface.get_base(at.buffer)) % alignment_ == 0;
}

// Some backends bind a source only at an aligned offset, and end the process otherwise. Copies are not that strict.
ggml_tensor * graph_builder::bindable(ggml_tensor * t) {
    return bindable(place(t)) ? t : copy(t, scratch(t->type, t->ne[0], t->ne[1], t->ne[2]));
}

ggml_status graph_builder::compute() {
    if (nodes_.empty()) {
        return GGML_STATUS_SUCCESS;
    }
    inputs_.send();
    // Backends fuse a node into the next one when nobody else uses it. How often llama.cpp's nodes are used stands in the
    // hash table of its graph; our own are not in there and are left alone.
    ggml_cgraph graph = *original_;
    graph.size      = 0;
    graph.n_nodes   = (int) nodes_.size();
    graph.n_leafs   = 0;
    graph.nodes     = nodes_.data();
    graph.leafs     = nullptr;
    graph.grads     = nullptr;
    graph.grad_accs = nullptr;
    graph.uid       = 0;
    const ggml_status status = backend_->iface.graph_compute(backend_, &graph);
    nodes_.clear();
    return status;
}

void graph_builder::synchronize() {
    if (backend_->iface.synchronize) {
        backend_->iface.synchronize(backend_);
    }
}

void graph_builder::fetch_results() {
    synchronize();
    results_.fetch();
}

void graph_builder::reset_memory() {
    if (inputs_.taken() + scratch_.taken() + results_.taken() == 0) {
        return;
    }
    synchronize();
    inputs_.rewind();
    scratch_.rewind();
    results_.rewind();
}

} // namespace kvasir
