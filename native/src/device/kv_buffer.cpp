#include "kv_buffer.h"

#include "construction.h"

#include "../error.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace kvasir {

namespace {

struct kv_buffer {
    kvasir_cache *     cache;
    ggml_backend_dev_t inner;
    bool               second; // of the second cache of a sliding-window model
    char *             base;
    size_t             size;
};

// llama.cpp's buffer functions report nothing: what goes wrong in one is the error of the next graph.
template <typename F> void attempt(kvasir_cache * cache, F && body) {
    if (cache->failure == KVASIR_OK) {
        cache->failure = guarded(body);
        if (cache->failure != KVASIR_OK) {
            cache->failure_text = last_error();
        }
    }
}

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
        layer & l = b->cache->layer_of(name.il, b->second, tensor, b->inner);
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
    if (s->owner->transposed && !s->is_k) {
        attempt(s->owner->cache, [&] { throw error(KVASIR_UNSUPPORTED, format("the state of layer %d, whose attention is a plain one: V is transposed in it", s->owner->il)); });
        return {s, 0, 0};
    }
    if (offset % row != 0 || size % row != 0 || !s->owner->configured()) { // it leaves the store as it is
        attempt(s->owner->cache, [&] { throw error(KVASIR_UNSUPPORTED, format("an access to parts of rows of the KV cache of layer %d", s->owner->il)); });
        return {s, 0, 0};
    }
    return {s, (int64_t) (offset / row), (int64_t) (size / row)};
}

// One head's part of the cache tensor's rows r.first ..: [cell of the stream] and where it lies in llama.cpp's memory.
template <typename F> void for_each_part(const row_range & r, F && f) {
    const layer & l = *r.s->owner;
    for (int32_t h = 0; h < l.n_head_kv; h++) {
        for (int64_t i = 0; i < r.count;) { // the cells of one stream
            const int32_t stream = (int32_t) ((r.first + i) / l.n_cells), cell = (int32_t) ((r.first + i) % l.n_cells);
            const int32_t count  = (int32_t) std::min<int64_t>(r.count - i, l.n_cells - cell);
            f(l.index(stream, h), cell, count, (size_t) i * r.s->tensor->nb[1] + (size_t) h * r.s->format.row_bytes);
            i += count;
        }
    }
}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const row_range r = rows_of(tensor, offset, size);
    layer &         l = *r.s->owner;
    const size_t    row_bytes = r.s->format.row_bytes, stride = r.s->tensor->nb[1];
    attempt(self(buffer)->cache, [&] {
        std::vector<int32_t> wanted = l.lengths;
        for_each_part(r, [&](int index, int32_t cell, int32_t count, size_t at) {
            for (int32_t i = 0; i < count; i++) {
                wanted[(size_t) index] += l.slot_plus_1[(size_t) index][cell + i] == 0 && !is_evicted((const char *) data + at + (size_t) i * stride, row_bytes);
            }
        });
        l.cache->require_room([&] { return l.rows->growth(wanted.data()); });
        l.rows->reserve(wanted.data());
        std::vector<char> run; // rows of consecutive slots
        for_each_part(r, [&](int index, int32_t cell, int32_t count, size_t at) {
            int32_t first = 0;
            run.clear();
            const auto write = [&] {
                if (!run.empty()) {
                    l.rows->write(r.s->is_k, index, first, (int32_t) (run.size() / row_bytes), run.data());
                    run.clear();
                }
            };
            for (int32_t i = 0; i < count; i++) {
                const char * row = (const char *) data + at + (size_t) i * stride;
                if (is_evicted(row, row_bytes)) {
                    continue;
                }
                const int32_t slot = l.slot_for(index, cell + i, r.s->is_k ? cell + i : -1);
                if (slot != first + (int32_t) (run.size() / row_bytes)) {
                    write();
                }
                if (run.empty()) {
                    first = slot;
                }
                run.insert(run.end(), row, row + row_bytes);
            }
            write();
        });
    });
}

void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const row_range r = rows_of(tensor, offset, size);
    layer &         l = *r.s->owner;
    const size_t    row_bytes = r.s->format.row_bytes, stride = r.s->tensor->nb[1];
    memset(data, EVICTED, size);
    attempt(self(buffer)->cache, [&] {
        std::vector<char> rows;
        for_each_part(r, [&](int index, int32_t cell, int32_t count, size_t at) {
            const int32_t * slot_plus_1 = l.slot_plus_1[(size_t) index] + cell;
            int32_t         first = INT32_MAX, last = -1; // the slots of the range
            for (int32_t i = 0; i < count; i++) {
                if (slot_plus_1[i] != 0) {
                    first = std::min(first, slot_plus_1[i] - 1);
                    last  = std::max(last, slot_plus_1[i] - 1);
                }
            }
            if (last < 0) {
                return;
            }
            rows.resize((size_t) (last - first + 1) * row_bytes);
            l.rows->read(r.s->is_k, index, first, last - first + 1, rows.data());
            for (int32_t i = 0; i < count; i++) {
                if (slot_plus_1[i] != 0) {
                    memcpy((char *) data + at + (size_t) i * stride, rows.data() + (size_t) (slot_plus_1[i] - 1 - first) * row_bytes, row_bytes);
                }
            }
        });
    });
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
    if (from->is_k) { // V comes with it
        attempt(l.cache, [&] { l.copy_stream((int32_t) (a / stride), (int32_t) (b / stride)); });
    }
    return true;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t) {
    kv_buffer * b = self(buffer);
    for (auto & l : b->cache->layers) {
        if (l->k.tensor ? l->k.tensor->buffer == buffer : l->v.tensor && l->v.tensor->buffer == buffer) {
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

ggml_backend_buffer_t kv_buffer_new(ggml_backend_buffer_type_t type, ggml_backend_dev_t inner, const construction & made, size_t size, size_t span) {
    char * base = (char *) memory_reserve_inaccessible(span);
    if (!base) {
        return nullptr;
    }
    auto * b = new kv_buffer{made.cache, inner, made.n_caches > 1, base, span};
    return llama().ggml_backend_buffer_init(type, INTERFACE, b, size);
}

} // namespace kvasir
