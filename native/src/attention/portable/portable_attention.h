// Attention over ragged heads by ggml's own FLASH_ATTN_EXT: one sub-graph node per KV head, on an inner backend whose
// memory the host can address.
#pragma once

#include "../../llama/api.h"
#include "../attention.h"

#include <cstdint>
#include <vector>

namespace kvasir {

class portable_attention {
public:
    // Computes node (a FLASH_ATTN_EXT described by a) into its own memory.
    ggml_status compute(ggml_backend_t inner, const attention_node & a, ggml_tensor * node);

private:
    // rows gathered from the store, masks gathered by slot, and outputs of one stream
    std::vector<char>     k_, v_;
    std::vector<uint16_t> mask_;
    std::vector<float>    out_;
    std::vector<char>     graph_memory_;

    ggml_status compute_stream(ggml_backend_t inner, const attention_node & a, ggml_tensor * node, int32_t stream);
};

} // namespace kvasir
