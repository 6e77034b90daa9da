#include "backend.h"

#include "attention_op.h"
#include "compute_threads.h"
#include "construction.h"
#include "graph.h"
#include "input_mirror.h"
#include "kv_buffer.h"

#include "../error.h"

#include <algorithm>

namespace kvasir {

struct proxy_backend {
    ggml_backend_t inner;
    int            n_threads = 1;
    const compute_threads * threads = nullptr;
    store_graph    graph;
};

namespace {

ggml_guid GUID = {'k', 'v', 'a', 's', 'i', 'r', '-', 'p', 'r', 'o', 'x', 'y', '-', '0', '0', '1'};

proxy_backend * self(ggml_backend_t backend) { return (proxy_backend *) backend->context; }
ggml_backend_t  inner_of(ggml_backend_t backend) { return self(backend)->inner; }
ggml_backend_t  unwrap(ggml_backend_t backend) { return backend && backend->guid == &GUID ? inner_of(backend) : backend; }

const char * backend_name(ggml_backend_t backend) { return backend->device->iface.get_name(backend->device); }

// What was made for the inner backend, its events and graphs, goes before it does.
void backend_free(ggml_backend_t backend) {
    ggml_backend_t inner = inner_of(backend);
    if (inner->iface.synchronize) {
        inner->iface.synchronize(inner);
    }
    delete self(backend);
    llama().ggml_backend_free(inner);
    delete backend;
}

ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    ggml_status status = GGML_STATUS_FAILED;
    const kvasir_status done = guarded([&] {
        proxy_backend & b = *self(backend);
        status = b.graph.compute(b.inner, graph, b.threads ? b.threads->planned(b.n_threads) : b.n_threads);
    });
    return done == KVASIR_OK ? status : done == KVASIR_OUT_OF_MEMORY ? GGML_STATUS_ALLOC_FAILED : GGML_STATUS_FAILED;
}

void backend_set_tensor_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    ggml_backend_t b = inner_of(backend);
    b->iface.set_tensor_async(b, tensor, data, offset, size);
    input_mirror::get().note(tensor, data, offset, size);
}

void backend_get_tensor_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    ggml_backend_t b = inner_of(backend);
    b->iface.get_tensor_async(b, tensor, data, offset, size);
}

bool backend_cpy_tensor_async(ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
    from = unwrap(from);
    to   = unwrap(to);
    input_mirror::get().drop(dst);
    return to->iface.cpy_tensor_async && to->iface.cpy_tensor_async(from, to, src, dst);
}

void backend_synchronize(ggml_backend_t backend) {
    ggml_backend_t b = inner_of(backend);
    b->iface.synchronize(b);
}

void backend_event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    ggml_backend_t b = inner_of(backend);
    b->iface.event_record(b, event);
}

void backend_event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    ggml_backend_t b = inner_of(backend);
    b->iface.event_wait(b, event);
}

void backend_graph_optimize(ggml_backend_t backend, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    ggml_backend_t b = inner_of(backend);
    // CUDA fuses operations, and says here what has to stay allocated for that. Of other backends none is asked: they reorder nodes by
    // what they can see, and the order between an append and the attention over the same head is not to be seen in llama.cpp's graph.
    if (b->iface.graph_optimize && cuda::gpu::is_cuda(b->device)) {
        b->iface.graph_optimize(b, graph, params);
        cuda::cuda_graph::optimize(graph, params);
    }
    keep_queries(graph, params);
}

} // namespace

ggml_backend_t proxy_backend_new(ggml_backend_dev_t device, ggml_backend_dev_t inner_device, const char * params) {
    ggml_backend_t inner = inner_device->iface.init_backend(inner_device, params);
    if (!inner) {
        return nullptr;
    }
    const ggml_backend_i & i     = inner->iface;
    ggml_backend_i         iface = {};
    iface.get_name         = backend_name;
    iface.free             = backend_free;
    iface.set_tensor_async = i.set_tensor_async ? backend_set_tensor_async : nullptr;
    iface.get_tensor_async = i.get_tensor_async ? backend_get_tensor_async : nullptr;
    iface.cpy_tensor_async = i.cpy_tensor_async ? backend_cpy_tensor_async : nullptr;
    iface.synchronize      = i.synchronize ? backend_synchronize : nullptr;
    iface.graph_compute    = backend_graph_compute;
    iface.event_record     = i.event_record ? backend_event_record : nullptr;
    iface.event_wait       = i.event_wait ? backend_event_wait : nullptr;
    iface.graph_optimize   = backend_graph_optimize;

    ggml_backend_t backend = nullptr;
    const kvasir_status made = guarded([&] {
        auto proxy   = std::make_unique<proxy_backend>();
        proxy->inner = inner;
        if (construction::current()) {
            construction::current()->backends.push_back(proxy.get());
        }
        backend = new ggml_backend{&GUID, iface, device, proxy.get()};
        proxy.release();
    });
    if (made != KVASIR_OK) {
        llama().ggml_backend_free(inner);
    }
    return backend;
}

void proxy_backend_set_n_threads(ggml_backend_t backend, int n_threads) {
    ggml_backend_t b = inner_of(backend);
    self(backend)->n_threads = std::max(1, n_threads);
    auto set = (ggml_backend_set_n_threads_t) device_function(b->device, "ggml_backend_set_n_threads");
    if (set) {
        set(b, n_threads);
    }
}

void proxy_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    ggml_backend_t b = inner_of(backend);
    auto set = (ggml_backend_set_abort_callback_t) device_function(b->device, "ggml_backend_set_abort_callback");
    if (set) {
        set(b, callback, data);
    }
}

ggml_backend_t proxy_backend_inner(const proxy_backend * backend) { return backend->inner; }

void proxy_backend_set_threadpool(proxy_backend * backend, ggml_threadpool_t threadpool) {
    if (backend->inner->device == llama().cpu) {
        llama().set_threadpool(backend->inner, threadpool);
    }
}

void proxy_backend_set_threads(proxy_backend * backend, const compute_threads * threads) { backend->threads = threads; }

} // namespace kvasir
