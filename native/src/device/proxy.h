// The proxy of a ggml device. It delegates everything to the inner device except the KV cache and the attention over it.
// It is never registered: a registered device of GPU type would be picked up by every other context of the process.
#pragma once

#include "../llama/api.h"

#include <string>

namespace kvasir {

struct proxy_device {
    ggml_backend_dev_t       inner;
    std::string              name, description, kv_name;
    ggml_backend_device      device;
    ggml_backend_buffer_type buffer_type;    // weights and activations: delegates
    ggml_backend_buffer_type kv_buffer_type; // the KV cache

    explicit proxy_device(ggml_backend_dev_t inner);
};

// The proxy of the registered device of that name; throws kvasir::error.
ggml_backend_dev_t proxy_for(const char * inner_name);

} // namespace kvasir
