#include "kv_buffer.h"

#include "../error.h"

#include <cstdlib>
#include <cstring>
#include <vector>

namespace kvasir {

namespace {

struct kv_buffer {
    kvasir_cache * cache;
    int32_t        index; // 0: the first buffer of the context, 1: the second one of a sliding-window model
    char *         base;
    size_t         size;
};

kv_buffer * self(ggml_backend_buffer_t buffer) { return (kv_buffer *) buffer->context; }

void buffer_free(ggml_backend_buffer_t buffer) {
    kv_buffer * b = self(buffer);
    memory_unmap(b->base, b->size);
    delete b; // the store outlives llama.cpp's buffers: it belongs to the kvasir_cache
}

void * buffer_base(ggml_backend_buffer_t buffer) { return self(buffer)->base; }

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    if (tensor->view_src) {
        return GGML_STATUS_SUCCESS;
    }
    const cache_name name = parse_cache_name(tensor->name);
    if (!name.valid) {
        return GGML_STATUS_FAILED;
    }
    return guarded([&] {
        kv_buffer * b = self(buffer);
        layer & l = b->cache->layer_of(name.il, b->index > 0, tensor);
        side &  s = name.is_k ? l.k : l.v;
        s.tensor  = tensor;
        tensor->extra = &s;
    }) == KVASIR_OK ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
}

// llama.cpp's state functions read and write whole rows of the cache tensor. A head that has dropped a cell writes this
// byte all over its part of the row: as f16, bf16 or block scale a NaN, which no row that attention can use contains.
constexpr uint8_t EVICTED = 0xff;

bool is_evicted(const char * row, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if ((uint8_t) row[i] != EVICTED) {
            return false;
        }
    }
    return true;
}

struct row_range {
    side *  s;
    int64_t first, count;
};

row_range rows_of(const ggml_tensor * tensor, size_t offset, size_t size) {
    const ggml_tensor * root = root_of(tensor);
    side *              s    = (side *) root->extra;
    const size_t        row  = root->nb[1];
    offset += (const char *) tensor->data - (const char *) root->data;
    if (offset % row != 0 || size % row != 0 || !s->owner->configured()) {
        // nothing can be reported from here; an access that is not by rows leaves the store as it is
        return {s, 0, 0};
    }
    return {s, (int64_t) (offset / row), (int64_t) (size / row)};
}

void buffer_set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const row_range r = rows_of(tensor, offset, size);
    layer &         l = *r.s->owner;
    for (int64_t i = 0; i < r.count; i++) {
        const int32_t stream = (int32_t) ((r.first + i) / l.n_cells), cell = (int32_t) ((r.first + i) % l.n_cells);
        const char *  row    = (const char *) data + (size_t) i * r.s->tensor->nb[1];
        for (int32_t h = 0; h < l.n_head_kv; h++, row += r.s->format.row_bytes) {
            if (!is_evicted(row, r.s->format.row_bytes)) {
                const int index = l.index(stream, h);
                rows_set(r.s->format, r.s->rows(index), l.slot_for(index, cell, cell), row);
            }
        }
    }
}

void buffer_get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const row_range r = rows_of(tensor, offset, size);
    layer &         l = *r.s->owner;
    memset(data, EVICTED, size);
    for (int64_t i = 0; i < r.count; i++) {
        const int32_t stream = (int32_t) ((r.first + i) / l.n_cells), cell = (int32_t) ((r.first + i) % l.n_cells);
        char *        row    = (char *) data + (size_t) i * r.s->tensor->nb[1];
        for (int32_t h = 0; h < l.n_head_kv; h++, row += r.s->format.row_bytes) {
            const int     index = l.index(stream, h);
            const int32_t slot  = l.slot_plus_1[index][cell] - 1;
            if (slot >= 0) {
                rows_get(r.s->format, r.s->rows(index), slot, row);
            }
        }
    }
}

// llama_memory_seq_cp between streams copies a whole stream of every cache tensor
bool buffer_cpy_tensor(ggml_backend_buffer_t, const ggml_tensor * src, ggml_tensor * dst) {
    side * from = side_of(src);
    side * to   = side_of(dst);
    if (!from || from != to || !from->owner->configured()) {
        return false;
    }
    layer &       l      = *from->owner;
    const size_t  stride = from->tensor->nb[2];
    const size_t  a = (size_t) ((const char *) src->data - (const char *) from->tensor->data);
    const size_t  b = (size_t) ((const char *) dst->data - (const char *) from->tensor->data);
    if (a % stride != 0 || b % stride != 0 || src->ne[1] != l.n_cells || dst->ne[1] != l.n_cells) {
        return false;
    }
    l.copy_stream((int32_t) (a / stride), (int32_t) (b / stride), *from);
    return true;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t) {
    kv_buffer * b = self(buffer);
    for (auto & l : b->cache->layers) {
        if (l->swa == (b->index > 0)) {
            l->clear();
        }
    }
}

const ggml_backend_buffer_i INTERFACE = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_base,
    /* .init_tensor   = */ buffer_init_tensor,
    /* .memset_tensor = */ nullptr,
    /* .set_tensor    = */ buffer_set_tensor,
    /* .get_tensor    = */ buffer_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ buffer_cpy_tensor,
    /* .clear         = */ buffer_clear,
    /* .reset         = */ nullptr,
};

} // namespace

const ggml_tensor * root_of(const ggml_tensor * tensor) {
    while (tensor->view_src) {
        tensor = tensor->view_src;
    }
    return tensor;
}

side * side_of(const ggml_tensor * tensor) {
    if (!tensor) {
        return nullptr;
    }
    const ggml_tensor * root = root_of(tensor);
    return root->buffer && root->buffer->iface.init_tensor == buffer_init_tensor ? (side *) root->extra : nullptr;
}

cache_name parse_cache_name(const char * name) {
    cache_name result;
    if (strncmp(name, "cache_", 6) != 0) {
        return result;
    }
    const char * k = strstr(name, "k_l");
    const char * v = strstr(name, "v_l");
    const char * p = k ? k : v;
    if (p && p[3] >= '0' && p[3] <= '9') {
        result = {true, k != nullptr, (int32_t) strtol(p + 3, nullptr, 10)};
    }
    return result;
}

ggml_backend_buffer_t kv_buffer_new(ggml_backend_buffer_type_t type, kvasir_cache * cache, size_t size) {
    char * base = (char *) memory_reserve_inaccessible(size);
    if (!base) {
        return nullptr;
    }
    auto * b = new kv_buffer{cache, cache->n_buffers++, base, size};
    return llama().ggml_backend_buffer_init(type, INTERFACE, b, size);
}

} // namespace kvasir
