// The parameters of a ROPE of ggml, as ggml_rope_ext packs them: [1] dims, [2] mode, [4] original context, [5] frequency base,
// [6] frequency scale, [7] extrapolation, [8] attention factor, [9] and [10] YaRN's betas.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <cstring>

namespace kvasir {

inline int32_t rope_number(const ggml_tensor * rope, int i) { return rope->op_params[i]; }

inline float rope_float(const ggml_tensor * rope, int i) {
    float x;
    memcpy(&x, &rope->op_params[i], sizeof x);
    return x;
}

} // namespace kvasir
