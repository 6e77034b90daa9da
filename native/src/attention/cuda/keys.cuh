// Keys of a head from their pages, as fragments of the tensor cores want them.
#pragma once

#include "tile.cuh"

namespace kvasir::cuda {

// K of SLOTS slots from slot0 on as halves, copied by THREADS threads; what lies behind the head's last page becomes zero
template <int D, int SLOTS, int ROW, int THREADS> __device__ __forceinline__ void load_keys(const layer_pages & pages, int32_t head, int32_t slot0, int32_t n, char * tile) {
    const int32_t * table = pages.table + (size_t) head * pages.table_stride + slot0 / PAGE_SLOTS;
    const bool quantized = D % Q8_BLOCK == 0 && pages.format.type_k == Q8_0;
    const char * page[SLOTS / PAGE_SLOTS];
    #pragma unroll
    for (int i = 0; i < SLOTS / PAGE_SLOTS; i++) {
        page[i] = slot0 + i * PAGE_SLOTS < n ? pages.pool + (size_t) table[i] * pages.format.bytes : nullptr;
    }
    #pragma unroll
    for (int i = 0; i < SLOTS / PAGE_SLOTS; i++) {
        #pragma unroll
        for (int j = 0; j < PAGE_SLOTS * (D / 8) / THREADS; j++) {
            const int x = threadIdx.x + j * THREADS, r = x / (D / 8), c = x % (D / 8);
            char * const to = tile + (i * PAGE_SLOTS + r) * ROW + c * 16;
            if (!page[i]) {
                *(uint4 *) to = make_uint4(0, 0, 0, 0);
            } else if (!quantized) {
                copy_16(shared_address(to), page[i] + x * 16);
            } else {
                const __half d = *(const __half *) (page[i] + pages.format.k_scale + r * (D / Q8_BLOCK * 2) + c / 4 * 2);
                *(uint4 *) to = unpack_8(*(const uint2 *) (page[i] + x * 8), __half2half2(d));
            }
        }
    }
    copy_commit();
}

} // namespace kvasir::cuda
