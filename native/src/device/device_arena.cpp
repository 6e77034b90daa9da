#include "device_arena.h"

#include "../error.h"

#include <algorithm>

namespace kvasir {

device_buffer allocate_buffer(ggml_backend_dev_t device, size_t size) {
    ggml_backend_buffer_type_t type = device->iface.get_buffer_type(device);
    if (type->iface.get_max_size && size > type->iface.get_max_size(type)) {
        return nullptr;
    }
    return device_buffer(type->iface.alloc_buffer(type, size));
}

static size_t aligned(ggml_backend_dev_t device, size_t size) {
    ggml_backend_buffer_type_t type = device->iface.get_buffer_type(device);
    const size_t alignment = type->iface.get_alignment(type);
    return (size + alignment - 1) / alignment * alignment;
}

device_arena::piece device_arena::take(size_t size) {
    constexpr size_t smallest = 1 << 16;
    size = aligned(device_, std::max(size, (size_t) 1));
    auto found = std::find_if(chunks_.begin(), chunks_.end(), [size](const chunk & c) { return c.size - c.used >= size; });
    if (found == chunks_.end()) {
        size_t held = 0;
        for (const chunk & c : chunks_) {
            held += c.size;
        }
        chunk c;
        c.size   = std::max({size, held, smallest});
        c.buffer = allocate_buffer(device_, c.size);
        if (!c.buffer) {
            throw error(KVASIR_OUT_OF_MEMORY, format("%s has no room for the %.1f MiB that attention over the adaptive cache works in",
                                                     device_->iface.get_name(device_), (double) c.size / (1 << 20)));
        }
        if (mirrored_) {
            ggml_backend_buffer_type_t type = device_->iface.get_host_buffer_type ? device_->iface.get_host_buffer_type(device_) : nullptr;
            c.pinned = device_buffer(type ? type->iface.alloc_buffer(type, c.size) : nullptr);
            if (!c.pinned) {
                c.own.reset(new char[c.size]);
            }
            c.host = c.pinned ? (char *) c.pinned->iface.get_base(c.pinned.get()) : c.own.get();
        }
        chunks_.push_back(std::move(c));
        found = chunks_.end() - 1;
    }
    chunk & c    = *found;
    char *  base = (char *) c.buffer->iface.get_base(c.buffer.get());
    const piece p{c.buffer.get(), base + c.used, mirrored_ ? c.host + c.used : nullptr};
    c.used += size;
    return p;
}

size_t device_arena::taken() const {
    size_t sum = 0;
    for (const chunk & c : chunks_) {
        sum += c.used;
    }
    return sum;
}

template <typename F> void device_arena::for_each_chunk(F && f) {
    for (chunk & c : chunks_) {
        if (c.used == 0) {
            continue;
        }
        ggml_tensor t{};
        t.type  = GGML_TYPE_I8;
        t.ne[0] = (int64_t) c.used;
        t.ne[1] = t.ne[2] = t.ne[3] = 1;
        t.nb[0] = 1;
        t.nb[1] = t.nb[2] = t.nb[3] = c.used;
        t.buffer = c.buffer.get();
        t.data   = c.buffer->iface.get_base(c.buffer.get());
        f(t, c.host, c.used);
    }
}

void device_arena::send() {
    for_each_chunk([](ggml_tensor & t, const char * host, size_t size) { t.buffer->iface.set_tensor(t.buffer, &t, host, 0, size); });
}

void device_arena::fetch() {
    for_each_chunk([](ggml_tensor & t, char * host, size_t size) { t.buffer->iface.get_tensor(t.buffer, &t, host, 0, size); });
}

void device_arena::rewind() {
    for (chunk & c : chunks_) {
        c.used = 0;
    }
}

} // namespace kvasir
