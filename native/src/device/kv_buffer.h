// The ggml buffer in which llama.cpp believes its KV cache to lie. It has addresses but no memory; the rows are in the
// store, found again through ggml_tensor::extra.
#pragma once

#include "../llama/api.h"
#include "../store/cache.h"

namespace kvasir {

struct construction;

// K or V of a layer when the tensor is, or is a view of, a cache tensor of the store; else nullptr
side * side_of(const ggml_tensor * tensor);

// the tensor that a chain of views starts from
const ggml_tensor * root_of(const ggml_tensor * tensor);

// "cache_k_l7", "cache_swa_v_l7", ...: the names that llama_kv_cache gives its tensors
struct cache_name {
    bool    valid = false;
    bool    is_k  = false;
    int32_t il    = -1;
};
cache_name parse_cache_name(const char * name);

// size: what ggml takes the buffer for, which may be less than its tensors span
ggml_backend_buffer_t kv_buffer_new(ggml_backend_buffer_type_t type, ggml_backend_dev_t inner, const construction & made, size_t size, size_t span);

} // namespace kvasir
