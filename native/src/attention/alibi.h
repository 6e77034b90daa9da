// ALiBi on the host.
#pragma once

#include <cmath>
#include <cstdint>

namespace kvasir {

// The slope of a query head, as FLASH_ATTN_EXT computes it.
inline float alibi_slope(float max_bias, int32_t head, int32_t n_head) {
    const int32_t n = 1 << (int32_t) std::floor(std::log2((float) n_head));
    return head < n ? std::pow(std::pow(2.0f, -max_bias / (float) n), (float) (head + 1))
                    : std::pow(std::pow(2.0f, -(max_bias / 2.0f) / (float) n), (float) (2 * (head - n) + 1));
}

} // namespace kvasir
