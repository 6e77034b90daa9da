#include "input_mirror.h"

#include "../error.h"

#include <cstdint>

namespace kvasir {

input_mirror & input_mirror::get() {
    static input_mirror mirror;
    return mirror;
}

static ggml_backend_buffer_t buffer_of(const ggml_tensor * t) { return t->buffer || !t->view_src ? t->buffer : t->view_src->buffer; }

static bool in_graph(const ggml_tensor * t) { return buffer_of(t) && buffer_of(t)->usage == GGML_BACKEND_BUFFER_USAGE_COMPUTE; }

// cells, positions and masks; not the activations that one device hands to another
static bool interesting(const ggml_tensor * t) { return t->type == GGML_TYPE_I32 || t->type == GGML_TYPE_I64 || t->type == GGML_TYPE_F16; }

// The mask of a prompt's micro-batch over a long context takes longer to copy than many a layer to compute, and who has kernels
// of its own does not look at it: noted only where it has been asked for.
static bool is_large(const ggml_tensor * t) { return t->type == GGML_TYPE_F16 && llama().ggml_nbytes(t) >= (size_t) 1 << 20; }

void input_mirror::watch(ggml_backend_buffer_t buffer) {
    forget(buffer); // another buffer may have been at this address
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = originals_.find(buffer->buft);
    if (found == originals_.end()) {
        found = originals_.insert({buffer->buft, {buffer->iface.set_tensor, buffer->iface.cpy_tensor}}).first;
    }
    if (found->second.set_tensor != buffer->iface.set_tensor || found->second.cpy_tensor != buffer->iface.cpy_tensor) {
        return; // its inputs are read from the device
    }
    buffer->iface.set_tensor = set_tensor;
    if (buffer->iface.cpy_tensor) {
        buffer->iface.cpy_tensor = cpy_tensor;
    }
}

input_mirror::functions input_mirror::original(ggml_backend_buffer_t buffer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return originals_.at(buffer->buft);
}

void input_mirror::set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    get().original(buffer).set_tensor(buffer, tensor, data, offset, size);
    get().note(tensor, data, offset, size);
}

bool input_mirror::cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    get().drop(dst);
    return get().original(buffer).cpy_tensor(buffer, src, dst);
}

void input_mirror::note(const ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    if (!in_graph(tensor)) {
        return; // weights
    }
    const bool noted = interesting(tensor) && offset == 0 && size == llama().ggml_nbytes(tensor) && guarded([&] {
        std::lock_guard<std::mutex> lock(mutex_);
        const key at{buffer_of(tensor), tensor->data};
        if (is_large(tensor) && asked_.count(at) == 0) {
            notes_.erase(at);
            return;
        }
        notes_[at].assign((const char *) data, (const char *) data + size);
    }) == KVASIR_OK;
    if (!noted) {
        drop(tensor);
    }
}

void input_mirror::drop(const ggml_tensor * tensor) {
    std::lock_guard<std::mutex> lock(mutex_);
    notes_.erase({buffer_of(tensor), tensor->data});
}

void input_mirror::forget(ggml_backend_buffer_t buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    notes_.erase(notes_.lower_bound({buffer, nullptr}), notes_.upper_bound({buffer, (const void *) UINTPTR_MAX}));
    asked_.erase(asked_.lower_bound({buffer, nullptr}), asked_.upper_bound({buffer, (const void *) UINTPTR_MAX}));
}

const void * input_mirror::find(const ggml_tensor * tensor) const {
    if (tensor->view_src || tensor->op != GGML_OP_NONE) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    const key at{tensor->buffer, tensor->data};
    if (is_large(tensor)) {
        asked_.insert(at);
    }
    const auto found = notes_.find(at);
    return found != notes_.end() && found->second.size() == llama().ggml_nbytes(tensor) ? found->second.data() : nullptr;
}

} // namespace kvasir
