// Single words of device memory that the host changes: entries of page tables.
#pragma once

#include <cstdint>

namespace kvasir::cuda {

struct word {
    int32_t * at;
    int32_t   value, pad;
};

struct words_params {
    const word * words;
    int32_t      n;
};

constexpr uint32_t WORDS_THREADS = 256;

} // namespace kvasir::cuda
