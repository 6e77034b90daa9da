// What the host reads of an attention mask: f16, one row of cells for each token.
#pragma once

#include <cstdint>
#include <cstring>

namespace kvasir {

// cells [0, result) have a mask of exactly 0 for every one of the tokens
inline int64_t open_cells(const char * mask, size_t token_bytes, int64_t n_tokens, int64_t n_kv) {
    constexpr int64_t words = 8, halves = words * 4; // at once
    int64_t open = n_kv;
    for (int64_t t = 0; t < n_tokens; t++) {
        const char * row  = mask + (size_t) t * token_bytes;
        int64_t      cell = 0;
        for (; cell + halves <= open; cell += halves) {
            uint64_t word[words], any = 0;
            memcpy(word, row + cell * (int64_t) sizeof(uint16_t), sizeof word);
            for (uint64_t w : word) {
                any |= w;
            }
            if (any) {
                break;
            }
        }
        for (uint16_t value; cell < open; cell++) {
            memcpy(&value, row + cell * (int64_t) sizeof value, sizeof value);
            if (value) {
                break;
            }
        }
        open = cell;
    }
    return open;
}

} // namespace kvasir
