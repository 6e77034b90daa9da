#include "proxy.h"

#include "accept.h"
#include "backend.h"
#include "construction.h"
#include "cuda/cuda_device.h"
#include "input_mirror.h"
#include "kv_buffer.h"

#include "../error.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace kvasir {

// ---- construction of a context ----

static thread_local construction * current_construction = nullptr;

construction::construction(kvasir_cache * cache) : cache(cache) { current_construction = this; }
construction::~construction() { current_construction = nullptr; }
construction * construction::current() { return current_construction; }

namespace {

// ---- buffer types ----

// KV tensors are recognised when llama.cpp asks for their sizes, which it does just before it allocates buffers for exactly
// those tensors, on the same thread.
struct kv_size {
    size_t reported; // what a tensor takes of a buffer
    size_t real;     // and of the address space
};
thread_local std::vector<kv_size> kv_sizes;

// Takes those that add up to a buffer, and returns the address space that they need; 0: it is another buffer. Where the tensors do
// not fit into one, ggml allocates a buffer when it has asked for the size of the first tensor of the next one, which then
// stays (ggml_backend_alloc_ctx_tensors_from_buft).
size_t take_kv_sizes(size_t size) {
    kv_size sum{};
    for (const kv_size & s : kv_sizes) {
        sum.reported += s.reported;
        sum.real += s.real;
    }
    auto end = kv_sizes.end();
    if (!kv_sizes.empty() && sum.reported > size) {
        end--;
        sum.reported -= end->reported;
        sum.real -= end->real;
    }
    if (sum.reported != size) {
        kv_sizes.clear();
        return 0;
    }
    kv_sizes.erase(kv_sizes.begin(), end);
    return sum.real;
}

proxy_device * self(ggml_backend_buffer_type_t type) { return (proxy_device *) type->context; }
ggml_backend_buffer_type_t inner_type(ggml_backend_buffer_type_t type) {
    ggml_backend_dev_t inner = self(type)->inner;
    return inner->iface.get_buffer_type(inner);
}
bool is_kv(ggml_backend_buffer_type_t type) { return type == &self(type)->kv_buffer_type; }

const char * type_name(ggml_backend_buffer_type_t type) { return is_kv(type) ? self(type)->kv_name.c_str() : self(type)->name.c_str(); }

size_t type_alignment(ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_type_t t = inner_type(type);
    return t->iface.get_alignment(t);
}

size_t type_max_size(ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_type_t t = inner_type(type);
    return t->iface.get_max_size ? t->iface.get_max_size(t) : SIZE_MAX;
}

bool storable(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1: return true;
        default:             return false;
    }
}

size_t type_alloc_size(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    ggml_backend_buffer_type_t t = inner_type(type);
    const size_t size = t->iface.get_alloc_size ? t->iface.get_alloc_size(t, tensor) : llama().ggml_nbytes(tensor);
    if (!construction::current()) {
        return size;
    }
    if (tensor->op != GGML_OP_NONE || tensor->view_src || !storable(tensor->type) || !parse_cache_name(tensor->name).valid) {
        kv_sizes.clear();
        return size;
    }
    // ggml refuses a tensor that is larger than the largest buffer, but this one takes no memory
    const size_t alignment = type_alignment(type), real = (size + alignment - 1) / alignment * alignment;
    const size_t reported  = std::min(real, std::max(type_max_size(type) / alignment * alignment, alignment));
    if (!is_kv(type)) { // else the buffer is there, and the tensor is put into it
        kv_sizes.push_back({reported, real});
    }
    return reported;
}

bool type_is_host(ggml_backend_buffer_type_t type) {
    if (is_kv(type)) {
        return false;
    }
    ggml_backend_buffer_type_t t = inner_type(type);
    return t->iface.is_host && t->iface.is_host(t);
}

ggml_backend_buffer_t type_alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    construction * making = construction::current();
    if (const size_t real = making ? take_kv_sizes(size) : 0) {
        // llama.cpp makes one cache after the other, and looks at the devices of all layers of a cache before it allocates for any
        making->n_caches += making->layers_listed ? 1 : 0;
        making->layers_listed = false;
        ggml_backend_buffer_t buffer = nullptr;
        guarded([&] { buffer = kv_buffer_new(&self(type)->kv_buffer_type, self(type)->inner, *making, size, real); });
        return buffer;
    }
    ggml_backend_buffer_type_t t      = inner_type(type);
    ggml_backend_buffer_t      buffer = t->iface.alloc_buffer(t, size);
    if (buffer && !type_is_host(type)) {
        guarded([&] { input_mirror::get().watch(buffer); });
    }
    return buffer;
}

const ggml_backend_buffer_type_i BUFFER_TYPE_INTERFACE = {
    /* .get_name       = */ type_name,
    /* .alloc_buffer   = */ type_alloc_buffer,
    /* .get_alignment  = */ type_alignment,
    /* .get_max_size   = */ type_max_size,
    /* .get_alloc_size = */ type_alloc_size,
    /* .is_host        = */ type_is_host,
};

// ---- the device ----

proxy_device * self(ggml_backend_dev_t device) { return (proxy_device *) device->context; }
ggml_backend_dev_t inner_of(ggml_backend_dev_t device) { return self(device)->inner; }

const char * device_name(ggml_backend_dev_t device) { return self(device)->name.c_str(); }
const char * device_description(ggml_backend_dev_t device) { return self(device)->description.c_str(); }

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    ggml_backend_dev_t d = inner_of(device);
    d->iface.get_memory(d, free, total);
}

// llama.cpp offloads layers only to devices that are not of CPU type
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    ggml_backend_dev_t d = inner_of(device);
    d->iface.get_props(d, props);
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
}

ggml_backend_t device_init_backend(ggml_backend_dev_t device, const char * params) { return proxy_backend_new(device, inner_of(device), params); }

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) {
    if (construction * making = construction::current()) {
        making->layers_listed = true;
        kv_sizes.clear(); // of a pass that only measured
    }
    return &self(device)->buffer_type;
}

ggml_backend_buffer_type_t device_host_buffer_type(ggml_backend_dev_t device) {
    ggml_backend_dev_t d = inner_of(device);
    return d->iface.get_host_buffer_type(d);
}

ggml_backend_buffer_t device_buffer_from_host_ptr(ggml_backend_dev_t device, void * ptr, size_t size, size_t max_tensor_size) {
    ggml_backend_dev_t d = inner_of(device);
    return d->iface.buffer_from_host_ptr(d, ptr, size, max_tensor_size);
}

// The scheduler aborts the process when nobody supports an operation on a preallocated tensor. So every operation over
// the store is accepted here; what has no path is noted, and the context is refused when llama.cpp has finished making it.
bool device_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    construction * making = construction::current();
    if (const kvasir_cache * cache = cache_of(op)) {
        guarded([&] {
            std::string reason;
            if (accept_node(op, reason)) {
                return;
            }
            if (!making) {
                refuse_graph(cache, reason);
            } else if (making->unsupported.empty()) {
                making->unsupported = reason;
            }
        });
        return true;
    }
    if (making && op->op == GGML_OP_FLASH_ATTN_EXT && op->src[1]) {
        const cache_name name = parse_cache_name(root_of(op->src[1])->name);
        if (name.valid) {
            guarded([&] { making->missed.insert(name.il); });
        }
    }
    ggml_backend_dev_t d = inner_of(device);
    return d->iface.supports_op(d, op);
}

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    proxy_device * p = self(device);
    return type == &p->buffer_type || type == &p->kv_buffer_type || p->inner->iface.supports_buft(p->inner, type);
}

bool device_offload_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    ggml_backend_dev_t d = inner_of(device);
    return d->iface.offload_op(d, op);
}

ggml_backend_event_t device_event_new(ggml_backend_dev_t device) {
    ggml_backend_dev_t d = inner_of(device);
    return d->iface.event_new(d);
}

void device_event_free(ggml_backend_dev_t device, ggml_backend_event_t event) {
    ggml_backend_dev_t d = inner_of(device);
    d->iface.event_free(d, event);
}

void device_event_synchronize(ggml_backend_dev_t device, ggml_backend_event_t event) {
    ggml_backend_dev_t d = inner_of(device);
    d->iface.event_synchronize(d, event);
}

// ---- the registry entry that the proxies name as theirs ----

std::mutex                                           proxies_mutex;
std::map<ggml_backend_dev_t, std::unique_ptr<proxy_device>> proxies; // by inner device

const char * reg_name(ggml_backend_reg_t) { return "Kvasir"; }

size_t reg_device_count(ggml_backend_reg_t) {
    std::lock_guard<std::mutex> lock(proxies_mutex);
    return proxies.size();
}

ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) {
    std::lock_guard<std::mutex> lock(proxies_mutex);
    auto it = proxies.begin();
    std::advance(it, index);
    return &it->second->device;
}

ggml_backend_buffer_type_t * extra_buffer_types(ggml_backend_dev_t device) {
    ggml_backend_dev_t d  = inner_of(device);
    auto get = (ggml_backend_dev_get_extra_bufts_t) device_function(d, "ggml_backend_dev_get_extra_bufts");
    return get ? get(d) : nullptr;
}

void * reg_function(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return (void *) proxy_backend_set_n_threads;
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return (void *) proxy_backend_set_abort_callback;
    }
    if (strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) {
        return (void *) extra_buffer_types;
    }
    return nullptr;
}

ggml_backend_reg registry = {
    /* .api_version = */ GGML_BACKEND_API_VERSION,
    /* .iface       = */ {reg_name, reg_device_count, reg_device, reg_function},
    /* .context     = */ nullptr,
};

} // namespace

proxy_device::proxy_device(ggml_backend_dev_t inner)
    : inner(inner), name(std::string("Kvasir-") + inner->iface.get_name(inner)),
      description(std::string("adaptive KV cache over ") + inner->iface.get_description(inner)), kv_name(name + "-KV") {
    device.iface = {
        /* .get_name             = */ device_name,
        /* .get_description      = */ device_description,
        /* .get_memory           = */ device_memory,
        /* .get_type             = */ device_type,
        /* .get_props            = */ device_props,
        /* .init_backend         = */ device_init_backend,
        /* .get_buffer_type      = */ device_buffer_type,
        /* .get_host_buffer_type = */ inner->iface.get_host_buffer_type ? device_host_buffer_type : nullptr,
        /* .buffer_from_host_ptr = */ inner->iface.buffer_from_host_ptr ? device_buffer_from_host_ptr : nullptr,
        /* .supports_op          = */ device_supports_op,
        /* .supports_buft        = */ device_supports_buft,
        /* .offload_op           = */ inner->iface.offload_op ? device_offload_op : nullptr,
        /* .event_new            = */ inner->iface.event_new ? device_event_new : nullptr,
        /* .event_free           = */ inner->iface.event_free ? device_event_free : nullptr,
        /* .event_synchronize    = */ inner->iface.event_synchronize ? device_event_synchronize : nullptr,
    };
    device.reg     = &registry;
    device.context = this;
    buffer_type    = {BUFFER_TYPE_INTERFACE, &device, this};
    kv_buffer_type = {BUFFER_TYPE_INTERFACE, &device, this};
}

ggml_backend_dev_t proxy_for(const char * inner_name) {
    const api & a = llama();
    std::string known;
    for (size_t i = 0; i < a.ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t inner = a.ggml_backend_dev_get(i);
        const char *       name  = inner->iface.get_name(inner);
        if (strcmp(name, inner_name) != 0) {
            known += (known.empty() ? "" : ", ") + std::string(name);
            continue;
        }
        const char * reorder = getenv("GGML_CUDA_GRAPH_OPT");
        if (cuda::gpu::is_cuda(inner) && reorder && atoi(reorder) == 1) {
            throw error(KVASIR_UNSUPPORTED, "GGML_CUDA_GRAPH_OPT=1 lets ggml reorder what the adaptive cache needs in order: unset it");
        }
        if (cuda::gpu::is_cuda(inner) && getenv("GGML_CUDA_DEVICES")) { // their numbers are not the driver's
            throw error(KVASIR_UNSUPPORTED, format("%s: GGML_CUDA_DEVICES makes ggml's CUDA devices other ones than the driver's: unset it", name));
        }
        std::lock_guard<std::mutex> lock(proxies_mutex);
        auto & proxy = proxies[inner];
        if (!proxy) {
            proxy = std::make_unique<proxy_device>(inner);
        }
        return &proxy->device;
    }
    throw error(KVASIR_INVALID_ARGUMENT, format("no device is called %s; there are: %s", inner_name, known.c_str()));
}

} // namespace kvasir
