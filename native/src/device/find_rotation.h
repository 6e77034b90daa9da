// What turns a layer's queries, found in llama.cpp's graph.
#pragma once

#include "../attention/rotation.h"
#include "../llama/api.h"

namespace kvasir {

// The rotation behind the queries of a FLASH_ATTN_EXT: that of the ROPE that made them (op parameters and frequency factors), none where
// there is no ROPE on their way.
rotation find_rotation(const ggml_tensor * q);

} // namespace kvasir
