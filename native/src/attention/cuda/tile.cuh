// What the kernels on tiles of the store share.
#pragma once

#include "prefill.h"

#include <cuda_fp16.h>

namespace kvasir::cuda {

constexpr float LOG2_E = 1.44269504088896f;

__device__ __forceinline__ uint32_t shared_address(const void * p) { return (uint32_t) __cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy_16(uint32_t to, const void * from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

__device__ __forceinline__ void load_fragments(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

// d[16][8] += a[16][16] b[16][8]
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t bits_of(__half2 h) { return *reinterpret_cast<const uint32_t *>(&h); }
__device__ __forceinline__ __half2 half2_of(uint32_t u) { return *reinterpret_cast<const __half2 *>(&u); }
__device__ __forceinline__ uint32_t pack(float a, float b) { return bits_of(__floats2half2_rn(a, b)); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// two signed bytes (0x80 added to each, in the low bytes of a half) to halves, exactly: 1024 + b + 128 has b + 128 in its mantissa
__device__ __forceinline__ __half2 halves_of(uint32_t biased, uint32_t select) {
    return __hsub2(half2_of(__byte_perm(biased, 0x64646464u, select)), half2_of(0x64806480u));
}

// eight q8_0 elements with one scale to halves
__device__ __forceinline__ uint4 unpack_8(uint2 q, __half2 d) {
    const uint32_t a = q.x ^ 0x80808080u, b = q.y ^ 0x80808080u;
    return make_uint4(bits_of(__hmul2(halves_of(a, 0x4140), d)), bits_of(__hmul2(halves_of(a, 0x4342), d)),
                      bits_of(__hmul2(halves_of(b, 0x4140), d)), bits_of(__hmul2(halves_of(b, 0x4342), d)));
}

__device__ __forceinline__ float softcapped(float s, float softcap) { // 1 - 2 / (1 + e^2x) is tanh; times log2 e
    const float t = 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(s * (2.0f * LOG2_E)));
    return t * (softcap * LOG2_E);
}

// what queries are multiplied with, so that scores are exponents of 2
__device__ __forceinline__ float query_scale(const attention_params & a) { return a.softcap != 0.0f ? a.scale / a.softcap : a.scale * LOG2_E; }

// ALiBi's factor on the mask, times log2 e
__device__ __forceinline__ float mask_slope(const attention_params & a, int32_t query_head) {
    if (a.max_bias <= 0.0f) {
        return LOG2_E;
    }
    int32_t pow2 = 1;
    while (2 * pow2 <= a.n_head) {
        pow2 *= 2;
    }
    const float e = query_head < pow2 ? a.max_bias * (float) (query_head + 1) : a.max_bias * 0.5f * (float) (2 * (query_head - pow2) + 1);
    return exp2f(-e / (float) pow2) * LOG2_E;
}

__device__ __forceinline__ const __half * mask_row(const mask_params & m, int32_t stream, int32_t query_head, int32_t token) {
    return (const __half *) (m.data + token * m.token_bytes + query_head % m.n_head * m.head_bytes + stream % m.n_stream * m.stream_bytes);
}

// What a block of cells offers to tokens [t0, t1) of n_head query heads, from mask_views; bounds of cells inclusive. The lookups are
// every step-th from first on: a thread makes all of them, or a warp shares them.
__device__ __forceinline__ uint32_t view_part(const attention_params & a, int32_t stream, int32_t first_head, int32_t n_head, int32_t t0, int32_t t1,
                                              int32_t cell_lo, int32_t cell_hi, int32_t first, int32_t step) {
    const mask_params & m = a.mask;
    if (cell_lo >= m.n_kv) {
        return VIEW_HIDDEN;
    }
    if (!m.views) {
        return VIEW_HIDDEN | VIEW_OPEN | VIEW_BIASED;
    }
    const int32_t cell_blocks = (m.n_kv + VIEW_CELLS - 1) / VIEW_CELLS, token_blocks = (a.n_tokens + VIEW_TOKENS - 1) / VIEW_TOKENS;
    const int32_t c0 = cell_lo / VIEW_CELLS, nc = min(cell_hi, m.n_kv - 1) / VIEW_CELLS - c0 + 1;
    const int32_t b0 = t0 / VIEW_TOKENS, nb = (t1 - 1) / VIEW_TOKENS - b0 + 1, nh = min(n_head, m.n_head);
    uint32_t bits = cell_hi >= m.n_kv ? VIEW_HIDDEN : 0;
    for (int32_t i = first; i < nc * nb * nh; i += step) {
        const int32_t c = i % nc, b = i / nc % nb, h = i / nc / nb;
        bits |= m.views[((size_t) (stream % m.n_stream * m.n_head + (first_head + h) % m.n_head) * token_blocks + b0 + b) * cell_blocks + c0 + c];
    }
    return bits;
}

__device__ __forceinline__ uint32_t view_by_thread(const attention_params & a, int32_t stream, int32_t query_head, int32_t t0, int32_t t1, int32_t cell_lo, int32_t cell_hi) {
    return view_part(a, stream, query_head, 1, t0, t1, cell_lo, cell_hi, 0, 1);
}

__device__ __forceinline__ uint32_t view_by_warp(const attention_params & a, int32_t stream, int32_t first_head, int32_t n_head, int32_t t0, int32_t t1,
                                                 int32_t cell_lo, int32_t cell_hi, int32_t lane) {
    const uint32_t bits = view_part(a, stream, first_head, n_head, t0, t1, cell_lo, cell_hi, lane, 32);
    __syncwarp();
    return __reduce_or_sync(~0u, bits);
}

} // namespace kvasir::cuda
