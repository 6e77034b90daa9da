#include "moved.h"
#include "keys.cuh"

namespace kvasir::cuda {
namespace {

constexpr float no_score = -1e30f; // finite, so that -inf - no_score is -inf
constexpr float headroom = 8.0f;   // weights that multiply V are relative to 2^-8 of the largest: small ones stay normal in f16

__device__ __forceinline__ moved_layout layout_of(const moved_params & p) {
    return moved_scratch(p.a.n_head, p.a.pages.format.dim_k, p.n_rows, p.n_outputs, p.n_split);
}

// ALiBi's factor on a distance, in units of log2; 0: there is none
__device__ __forceinline__ float bias_slope(const attention_params & a, int32_t query_head) { return a.max_bias > 0.0f ? mask_slope(a, query_head) : 0.0f; }

// x becomes H x in blocks, without the factor that makes it orthonormal; a warp
__device__ __forceinline__ void hadamard(float * x, int32_t dim, int32_t block, int32_t lane) {
    const int32_t pairs = dim / block * (block / 2);
    for (int32_t step = 1; step < block; step *= 2) {
        __syncwarp();
        for (int32_t i = lane; i < pairs; i += 32) {
            float & a = x[i / step * 2 * step + i % step], & b = (&a)[step];
            const float sum = a + b, difference = a - b;
            a = sum;
            b = difference;
        }
    }
    __syncwarp();
    const float scale = rsqrtf((float) block);
    for (int32_t i = lane; i < dim / block * block; i += 32) {
        x[i] *= scale;
    }
    __syncwarp();
}

template <int D, bool OUTPUT> struct attend_shape {
    static constexpr int WARPS = moved_attend_warps(D, OUTPUT), THREADS = 32 * WARPS, KEYS = key_block(D);
};

// 16 queries a warp of a head, over one of n_split pieces of its slots. OUTPUT: outputs too, not divided by the sums of weights yet.
template <int D, bool OUTPUT> __device__ __forceinline__ void attend(const moved_params & p) {
    using S = attend_shape<D, OUTPUT>;
    constexpr int ROWS = 16 * S::WARPS, THREADS = S::THREADS, KEYS = S::KEYS, NB = KEYS / 8, DB = D / 8;
    constexpr int ROW = D * 2 + 16, V_ROW = KEYS * 2 + 16, RAW = KEYS * D, SCALES = KEYS * (D / Q8_BLOCK) * 2;
    constexpr bool HELD = D <= 128; // there are registers for the moved queries
    const attention_params & a = p.a;
    const page_format & f = a.pages.format;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int32_t head = blockIdx.y % a.n_head, split = blockIdx.y / a.n_head, kv_head = head / (a.n_head / a.pages.n_head_kv), n = p.n[kv_head];
    const int32_t row0 = (OUTPUT ? 0 : p.n_outputs) + blockIdx.x * ROWS, row_end = OUTPUT ? p.n_outputs : p.n_rows;
    const int32_t blocks = (n + KEYS - 1) / KEYS, b0 = (int32_t) ((int64_t) blocks * split / p.n_split), b1 = (int32_t) ((int64_t) blocks * (split + 1) / p.n_split);
    const bool raw_k = D % Q8_BLOCK == 0 && f.type_k == Q8_0, raw_v = D % Q8_BLOCK == 0 && f.type_v == Q8_0;
    const moved_layout at_scratch = layout_of(p);
    const int32_t * const table = a.pages.table + (size_t) kv_head * a.pages.table_stride;

    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(16) int32_t key_pos[2][KEYS];
    // f16 comes into the two tiles themselves; q8_0 beside the one
    char * const q_tile = shared, * const q_moved = HELD ? q_tile : q_tile + ROWS * ROW, * const k_tile0 = q_moved + ROWS * ROW, * const k_more = k_tile0 + KEYS * ROW;
    char * const v_tile = k_more + (raw_k ? 2 * (RAW + SCALES) : KEYS * ROW), * const v_raw = v_tile + D * V_ROW;
    const auto k_at = [&](int32_t b) { return raw_k ? k_more + (b & 1) * (RAW + SCALES) : b & 1 ? k_more : k_tile0; };

    // -- queries: the moved ones, which lie in the scratch, and as they were, for the block's own tokens
    const auto load_queries = [&](char * tile, bool moved) {
        for (int x = tid; x < ROWS * DB; x += THREADS) {
            const int32_t r = x / DB, c = x % DB, row = row0 + r;
            const int32_t entry = row < row_end ? p.rows[row].entry : -1;
            uint4 y = make_uint4(0, 0, 0, 0);
            if (entry >= 0) {
                y = moved ? *(const uint4 *) (p.scratch + (((size_t) head * p.n_rows + row) * D + c * 8) * 2)
                          : *(const uint4 *) (p.record + ((size_t) entry * a.n_head + head) * D + c * 8);
            }
            *(uint4 *) (tile + r * ROW + c * 16) = y;
        }
    };
    const uint32_t q_offset = (uint32_t) ((warp * 16 + (lane & 15)) * ROW + (lane >> 4) * 16);
    uint32_t held[HELD ? D / 16 : 1][4];
    load_queries(q_moved, true);
    __syncthreads();
    if constexpr (HELD) {
        #pragma unroll
        for (int k = 0; k < D / 16; k++) {
            load_fragments(held[k], shared_address(q_moved) + q_offset + k * 32);
        }
        __syncthreads();
    }
    load_queries(q_tile, false);

    // -- a thread's rows g and g + 8 of its warp
    int32_t begin[2], pos[2], at[2], own_lo = INT32_MAX, own_hi = INT32_MIN, at_hi = INT32_MIN;
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t row = row0 + warp * 16 + h * 8 + g;
        moved_row r{-1, 0, 0, 0};
        if (row < row_end) {
            r = p.rows[row];
        }
        const bool is = r.entry >= 0;
        begin[h] = is ? r.begin : INT32_MAX; // nothing is its own
        pos[h]   = is ? r.pos : INT32_MIN;
        at[h]    = is ? r.pos + (p.end - r.begin) : p.end;
        own_lo   = min(own_lo, begin[h]);
        own_hi   = max(own_hi, pos[h]);
        at_hi    = max(at_hi, at[h]);
    }
    own_lo = __reduce_min_sync(~0u, own_lo);
    own_hi = __reduce_max_sync(~0u, own_hi);
    at_hi  = __reduce_max_sync(~0u, at_hi);
    const bool  active = own_hi != INT32_MIN;
    const float scale = query_scale(a), slope = bias_slope(a, head);

    float o[OUTPUT ? DB : 1][4], row_max[2], row_sum[2];
    row_max[0] = row_max[1] = no_score;
    row_sum[0] = row_sum[1] = 0.0f;
    #pragma unroll
    for (int i = 0; i < (OUTPUT ? DB : 1); i++) {
        o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    }

    const auto copy_k = [&](int32_t b, int32_t page_number) {
        const int32_t half = b % (PAGE_SLOTS / KEYS);
        const char * page = a.pages.pool + (size_t) page_number * f.bytes;
        const uint32_t to = shared_address(k_at(b));
        if (!raw_k) {
            const char * from = page + half * (KEYS * D * 2);
            for (int x = tid; x < KEYS * DB; x += THREADS) {
                copy_16(to + x / DB * ROW + x % DB * 16, from + x * 16);
            }
        } else {
            for (int x = tid; x < RAW / 16; x += THREADS) {
                copy_16(to + x * 16, page + half * RAW + x * 16);
            }
            for (int x = tid; x < SCALES / 16; x += THREADS) {
                copy_16(to + RAW + x * 16, page + f.k_scale + half * SCALES + x * 16);
            }
        }
        if (tid < KEYS / 4) {
            copy_16(shared_address(key_pos[b & 1]) + tid * 16, page + f.pos + half * KEYS * 4 + tid * 16);
        }
    };
    const auto copy_v = [&](int32_t b, int32_t page_number) {
        const int32_t half = b % (PAGE_SLOTS / KEYS);
        const char * page = a.pages.pool + (size_t) page_number * f.bytes;
        if (!raw_v) {
            const char * from = page + f.v + half * (KEYS * D * 2);
            for (int x = tid; x < KEYS * DB; x += THREADS) {
                copy_16(shared_address(v_tile) + x / 4 % D * V_ROW + x / (4 * D) * 64 + x % 4 * 16, from + x * 16);
            }
        } else {
            for (int x = tid; x < RAW / 16; x += THREADS) {
                copy_16(shared_address(v_raw) + x * 16, page + f.v + half * RAW + x * 16);
            }
            for (int x = tid; x < SCALES / 16; x += THREADS) {
                copy_16(shared_address(v_raw) + RAW + x * 16, page + f.v_scale + half * SCALES + x * 16);
            }
        }
    };

    // scores of the warp's queries, in units of log2: moved, or as they were
    const auto score = [&](float (&s)[NB][4], const char * k_tile, bool moved) {
        #pragma unroll
        for (int j = 0; j < NB; j++) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
        }
        const uint32_t k_from = shared_address(k_tile) + ((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 16;
        const uint32_t q_from = shared_address(moved ? q_moved : q_tile) + q_offset;
        #pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t qf[4];
            if (HELD && moved) {
                qf[0] = held[HELD ? k : 0][0], qf[1] = held[HELD ? k : 0][1], qf[2] = held[HELD ? k : 0][2], qf[3] = held[HELD ? k : 0][3];
            } else {
                load_fragments(qf, q_from + k * 32);
            }
            #pragma unroll
            for (int j = 0; j < NB; j += 2) {
                uint32_t kf[4];
                load_fragments(kf, k_from + j * (8 * ROW) + k * 32);
                multiply(s[j], qf, kf[0], kf[1]);
                multiply(s[j + 1], qf, kf[2], kf[3]);
            }
        }
        #pragma unroll
        for (int j = 0; j < NB; j++) {
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                s[j][e] *= scale;
                if (a.softcap != 0.0f) {
                    s[j][e] = softcapped(s[j][e], a.softcap);
                }
            }
        }
    };
    // adds weights, and with OUTPUT what they take of V, to the rows'
    const auto absorb = [&](float (&s)[NB][4]) {
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[0][h * 2], s[0][h * 2 + 1]);
            #pragma unroll
            for (int j = 1; j < NB; j++) {
                x = fmaxf(x, fmaxf(s[j][h * 2], s[j][h * 2 + 1]));
            }
            if constexpr (OUTPUT) { // the four threads of a row have one maximum; else each its own until the end
                x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
                x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
            }
            x = fmaxf(OUTPUT ? x - headroom : x, row_max[h]);
            const float keep = exp2_fast(row_max[h] - x);
            row_max[h] = x;
            row_sum[h] *= keep;
            #pragma unroll
            for (int i = 0; OUTPUT && i < (OUTPUT ? DB : 1); i++) {
                o[i][h * 2] *= keep;
                o[i][h * 2 + 1] *= keep;
            }
            #pragma unroll
            for (int j = 0; j < NB; j++) {
                s[j][h * 2]     = exp2_fast(s[j][h * 2] - x);
                s[j][h * 2 + 1] = exp2_fast(s[j][h * 2 + 1] - x);
                row_sum[h] += s[j][h * 2] + s[j][h * 2 + 1];
            }
        }
        if constexpr (OUTPUT) {
            const uint32_t v_from = shared_address(v_tile) + ((lane & 7) + (lane >> 4) * 8) * V_ROW + (lane >> 3 & 1) * 16;
            #pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                const uint32_t pf[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k][2], s[2 * k][3]), pack(s[2 * k + 1][0], s[2 * k + 1][1]), pack(s[2 * k + 1][2], s[2 * k + 1][3])};
                #pragma unroll
                for (int j = 0; j < DB; j += 2) {
                    uint32_t vf[4];
                    load_fragments(vf, v_from + j * (8 * V_ROW) + k * 32);
                    multiply(o[j], pf, vf[0], vf[1]);
                    multiply(o[j + 1], pf, vf[2], vf[3]);
                }
            }
        }
    };

    // Every step leaves two groups of copies: V of this block, which is brought in while scores are computed, and K of the next.
    const auto page_of_block = [&](int32_t b) { return b < b1 ? table[b / (PAGE_SLOTS / KEYS)] : 0; };
    int32_t page = page_of_block(b0), next_page = page_of_block(b0 + 1);
    if (b0 < b1) {
        copy_k(b0, page);
    }
    copy_commit();
    for (int32_t b = b0; b < b1; b++) {
        copy_wait<0>();
        __syncthreads(); // K has come; nobody reads the last block any more
        if constexpr (OUTPUT) {
            copy_v(b, page);
        }
        copy_commit();
        if (b + 1 < b1) {
            copy_k(b + 1, next_page);
        }
        copy_commit();
        page      = next_page;
        next_page = page_of_block(b + 2);
        const char * const k_tile = raw_k ? k_tile0 : k_at(b);
        if constexpr (D % Q8_BLOCK == 0) {
            if (raw_k) {
                const char * const raw = k_at(b);
                for (int x = tid; x < KEYS * DB; x += THREADS) {
                    const int r = x / DB, c = x % DB;
                    const __half d = *(const __half *) (raw + RAW + r * (D / Q8_BLOCK * 2) + c / 4 * 2);
                    *(uint4 *) (k_tile0 + r * ROW + c * 16) = unpack_8(*(const uint2 *) (raw + x * 8), __half2half2(d));
                }
                __syncthreads();
            }
        }
        const int32_t left = n - b * KEYS; // slots from here on
        const int32_t * const keys = key_pos[b & 1];
        int32_t lo = INT32_MAX, hi = INT32_MIN;
        #pragma unroll
        for (int c = 0; c < KEYS; c += 32) {
            lo = c + lane < left ? min(lo, keys[c + lane]) : lo;
            hi = c + lane < left ? max(hi, keys[c + lane]) : hi;
        }
        lo = __reduce_min_sync(~0u, lo);
        hi = __reduce_max_sync(~0u, hi);
        const bool mixed = left < KEYS || hi >= p.end || slope != 0.0f || (p.window > 0 && lo <= at_hi - p.window);

        float s[NB][4];
        if (active) {
            score(s, k_tile, true);
            if (mixed) {
                #pragma unroll
                for (int j = 0; j < NB; j++) {
                    #pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int c = j * 8 + t * 2 + (e & 1), h = e >> 1;
                        const int32_t key = keys[c];
                        const bool seen = c < left && key < p.end && (p.window == 0 || key > at[h] - p.window);
                        s[j][e] = seen ? s[j][e] - slope * (float) (at[h] - key) : -INFINITY;
                    }
                }
            }
        }
        if constexpr (OUTPUT) {
            copy_wait<1>();
            __syncthreads(); // V has come
            if constexpr (D % Q8_BLOCK == 0) {
                if (raw_v) {
                    for (int x = tid; x < KEYS * DB / 4; x += THREADS) { // 8 slots of 4 rows of V^T
                        const int c = x % (KEYS / 8), d0 = x / (KEYS / 8) * 4;
                        __half2 d[4];
                        #pragma unroll
                        for (int j = 0; j < 4; j++) {
                            const __half * from = (const __half *) (v_raw + RAW) + (c * 8 + j * 2) * (D / Q8_BLOCK) + d0 / Q8_BLOCK;
                            d[j] = __halves2half2(from[0], from[D / Q8_BLOCK]);
                        }
                        #pragma unroll
                        for (int r = 0; r < 4; r++) {
                            const uint4 one = unpack_8(*(const uint2 *) (v_raw + c / 4 * (D * 32) + (d0 + r) * 32 + c % 4 * 8), __float2half2_rn(1.0f));
                            *(uint4 *) (v_tile + (d0 + r) * V_ROW + c * 16) = make_uint4(bits_of(__hmul2(half2_of(one.x), d[0])), bits_of(__hmul2(half2_of(one.y), d[1])),
                                                                                         bits_of(__hmul2(half2_of(one.z), d[2])), bits_of(__hmul2(half2_of(one.w), d[3])));
                        }
                    }
                    __syncthreads();
                }
            }
        }
        if (!active) {
            continue;
        }
        absorb(s);
        if (lo <= own_hi && hi >= own_lo) { // tokens of the blocks themselves: their copies move with the queries
            score(s, k_tile, false);
            #pragma unroll
            for (int j = 0; j < NB; j++) {
                #pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int c = j * 8 + t * 2 + (e & 1), h = e >> 1;
                    const int32_t key = keys[c];
                    const bool seen = c < left && key >= begin[h] && key <= pos[h] && (p.window == 0 || key > pos[h] - p.window);
                    s[j][e] = seen ? s[j][e] - slope * (float) (pos[h] - key) : -INFINITY;
                }
            }
            absorb(s);
        }
    }

    #pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = row_max[h];
        if constexpr (!OUTPUT) {
            max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
            max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
            row_sum[h] *= exp2_fast(row_max[h] - max);
        }
        row_sum[h] += __shfl_xor_sync(~0u, row_sum[h], 1);
        row_sum[h] += __shfl_xor_sync(~0u, row_sum[h], 2);
        const int32_t row = row0 + warp * 16 + h * 8 + g;
        if (row >= row_end) {
            continue;
        }
        if (t == 0) {
            ((float2 *) (p.scratch + at_scratch.sums))[((size_t) split * a.n_head + head) * p.n_rows + row] = make_float2(max, row_sum[h]);
        }
        if constexpr (OUTPUT) {
            float * const to = (float *) (p.scratch + at_scratch.outputs) + (((size_t) split * a.n_head + head) * p.n_outputs + row) * D;
            #pragma unroll
            for (int j = 0; j < DB; j++) {
                *(float2 *) (to + j * 8 + t * 2) = make_float2(o[j][h * 2], o[j][h * 2 + 1]);
            }
        }
    }
}

// A CTA has slots of a query head and goes over the queries in order. WM: fragments of 16 slots of a warp.
template <int D, int WM> __device__ __forceinline__ void columns(const moved_params & p) {
    constexpr int SLOTS = 64 * WM, ROW = D * 2 + 16, CHUNK = 32, CHUNKS = MOVED_QUERIES / CHUNK, NJ = CHUNK / 8, THREADS = MOVED_COLUMNS_THREADS;
    const attention_params & a = p.a;
    const page_format & f = a.pages.format;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int32_t head = blockIdx.y, kv_head = head / (a.n_head / a.pages.n_head_kv), n = p.n[kv_head], slot0 = blockIdx.x * SLOTS, own0 = slot0 + warp * 16 * WM;
    if (slot0 >= n) {
        return;
    }
    const moved_layout at_scratch = layout_of(p);
    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(16) float   q_lse[2][MOVED_QUERIES];
    __shared__ __align__(16) int32_t q_at[2][MOVED_QUERIES];

    load_keys<D, SLOTS, ROW, THREADS>(a.pages, kv_head, slot0, n, shared);
    copy_wait<0>();
    __syncthreads();
    uint32_t kf[D / 16][WM][4];
    #pragma unroll
    for (int k = 0; k < D / 16; k++) {
        #pragma unroll
        for (int m = 0; m < WM; m++) {
            load_fragments(kf[k][m], shared_address(shared) + (warp * 16 * WM + m * 16 + (lane & 15)) * ROW + (lane >> 4) * 16 + k * 32);
        }
    }
    // a thread's slots: fragment m, rows g and g + 8
    int32_t key[WM][2], key_lo = INT32_MAX;
    #pragma unroll
    for (int m = 0; m < WM; m++) {
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const int32_t slot = own0 + m * 16 + h * 8 + g;
            key[m][h] = INT32_MAX; // is not looked at
            if (slot < n) {
                const char * page = a.pages.pool + (size_t) a.pages.table[(size_t) kv_head * a.pages.table_stride + slot / PAGE_SLOTS] * f.bytes;
                key[m][h] = ((const int32_t *) (page + f.pos))[slot % PAGE_SLOTS];
            }
            key_lo = min(key_lo, key[m][h]);
        }
    }
    __syncwarp();
    key_lo = __reduce_min_sync(~0u, key_lo);
    const float scale = query_scale(a), slope = bias_slope(a, head);
    float sum[WM][2], squares[WM][2];
    #pragma unroll
    for (int m = 0; m < WM; m++) {
        sum[m][0] = sum[m][1] = squares[m][0] = squares[m][1] = 0.0f;
    }

    const auto copy_queries = [&](int32_t tile) {
        const size_t   row  = (size_t) head * p.n_rows + tile * MOVED_QUERIES;
        const char *   from = p.scratch + row * (D * 2);
        const uint32_t to   = shared_address(shared) + (tile & 1) * (MOVED_QUERIES * ROW);
        #pragma unroll
        for (int i = 0; i < MOVED_QUERIES * (D / 8) / THREADS; i++) {
            const int x = tid + i * THREADS;
            copy_16(to + x / (D / 8) * ROW + x % (D / 8) * 16, from + x * 16);
        }
        if (tid < MOVED_QUERIES / 4) {
            copy_16(shared_address(q_lse[tile & 1]) + tid * 16, p.scratch + at_scratch.lse + row * 4 + tid * 16);
        } else if (tid < MOVED_QUERIES / 2) {
            const int x = tid - MOVED_QUERIES / 4;
            copy_16(shared_address(q_at[tile & 1]) + x * 16, p.scratch + at_scratch.at + tile * MOVED_QUERIES * 4 + x * 16);
        }
    };
    const int32_t tiles = p.n_rows / MOVED_QUERIES;
    __syncthreads(); // the keys are in registers
    copy_queries(0);
    copy_commit();
    for (int32_t tile = 0; tile < tiles; tile++) {
        copy_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) {
            copy_queries(tile + 1);
        }
        copy_commit();
        if (key_lo >= p.end) {
            continue;
        }
        const int buffer = tile & 1;
        const uint32_t from = shared_address(shared) + buffer * (MOVED_QUERIES * ROW) + ((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 16;
        #pragma unroll 1
        for (int c = 0; c < CHUNKS; c++) {
            float s[WM][NJ][4];
            #pragma unroll
            for (int m = 0; m < WM; m++) {
                #pragma unroll
                for (int j = 0; j < NJ; j++) {
                    s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
                }
            }
            #pragma unroll
            for (int k = 0; k < D / 16; k++) {
                #pragma unroll
                for (int j = 0; j < NJ; j += 2) {
                    uint32_t qf[4];
                    load_fragments(qf, from + (c * CHUNK + j * 8) * ROW + k * 32);
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        multiply(s[m][j], kf[k][m], qf[0], qf[1]);
                        multiply(s[m][j + 1], kf[k][m], qf[2], qf[3]);
                    }
                }
            }
            // element e of s[m][j]: slot g + e / 2 * 8, query j * 8 + 2 t + e % 2
            if (a.softcap != 0.0f || slope != 0.0f || p.window > 0) {
                #pragma unroll
                for (int j = 0; j < NJ; j++) {
                    const int2 at = *(const int2 *) &q_at[buffer][c * CHUNK + j * 8 + t * 2];
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int32_t distance = (e & 1 ? at.y : at.x) - key[m][e >> 1];
                            float x = s[m][j][e] * scale;
                            x = a.softcap != 0.0f ? softcapped(x, a.softcap) : x;
                            x -= slope * (float) distance;
                            s[m][j][e] = p.window > 0 && distance >= p.window ? -INFINITY : x;
                        }
                    }
                }
            } else {
                #pragma unroll
                for (int m = 0; m < WM; m++) {
                    #pragma unroll
                    for (int j = 0; j < NJ; j++) {
                        #pragma unroll
                        for (int e = 0; e < 4; e++) {
                            s[m][j][e] *= scale;
                        }
                    }
                }
            }
            #pragma unroll
            for (int j = 0; j < NJ; j++) {
                const float2 lse = *(const float2 *) &q_lse[buffer][c * CHUNK + j * 8 + t * 2];
                #pragma unroll
                for (int m = 0; m < WM; m++) {
                    #pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const float x = exp2_fast(s[m][j][e] - (e & 1 ? lse.y : lse.x));
                        sum[m][e >> 1] += x;
                        squares[m][e >> 1] += x * x;
                    }
                }
            }
        }
    }
    #pragma unroll
    for (int m = 0; m < WM; m++) {
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = sum[m][h], y = squares[m][h];
            x += __shfl_xor_sync(~0u, x, 1);
            y += __shfl_xor_sync(~0u, y, 1);
            x += __shfl_xor_sync(~0u, x, 2);
            y += __shfl_xor_sync(~0u, y, 2);
            if (t == 0 && key[m][h] < p.end) { // a slot belongs to one thread
                const size_t slot = (size_t) head * p.capacity + own0 + m * 16 + h * 8 + g;
                p.p[slot] += x;
                p.squares[slot] += y;
            }
        }
    }
}

} // namespace
} // namespace kvasir::cuda

#define KVASIR_MOVED(D, WM, CTAS, CTAS_WITH_OUTPUTS) \
    extern "C" __global__ void __launch_bounds__((kvasir::cuda::attend_shape<D, false>::THREADS), CTAS) moved_weights_##D(const __grid_constant__ kvasir::cuda::moved_params p) { \
        kvasir::cuda::attend<D, false>(p); \
    } \
    extern "C" __global__ void __launch_bounds__((kvasir::cuda::attend_shape<D, true>::THREADS), CTAS_WITH_OUTPUTS) moved_outputs_##D(const __grid_constant__ kvasir::cuda::moved_params p) { \
        kvasir::cuda::attend<D, true>(p); \
    } \
    extern "C" __global__ void __launch_bounds__(kvasir::cuda::MOVED_COLUMNS_THREADS, D > 128 ? 2 : 3) moved_columns_##D(const __grid_constant__ kvasir::cuda::moved_params p) { \
        kvasir::cuda::columns<D, WM>(p); \
    }

KVASIR_MOVED(64, 2, 2, 2)
KVASIR_MOVED(80, 2, 2, 2)
KVASIR_MOVED(96, 2, 2, 2)
KVASIR_MOVED(128, 2, 2, 2)
KVASIR_MOVED(256, 1, 2, 2)

// a warp has a query: turned by as many positions as its block is moved
extern "C" __global__ void __launch_bounds__(256) moved_turn(const __grid_constant__ kvasir::cuda::moved_params p) {
    using namespace kvasir::cuda;
    __shared__ float queries[8][256];
    const int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = blockIdx.x * 8 + warp, head = blockIdx.y, dim = p.a.pages.format.dim_k;
    float * const x = queries[warp];
    uint16_t * const to = (uint16_t *) p.scratch + ((size_t) head * p.n_rows + row) * dim;
    const moved_row r = p.rows[row];
    const int32_t by = p.end - r.begin;
    if (head == 0 && lane == 0) {
        ((int32_t *) (p.scratch + layout_of(p).at))[row] = r.entry < 0 ? p.end : r.pos + by;
    }
    if (r.entry < 0) {
        for (int32_t d = lane; d < dim; d += 32) {
            to[d] = 0;
        }
        return;
    }
    const uint16_t * const from = p.record + ((size_t) r.entry * p.a.n_head + head) * dim;
    if (!p.omega) {
        for (int32_t d = lane; d < dim; d += 32) {
            to[d] = from[d];
        }
        return;
    }
    for (int32_t d = lane; d < dim; d += 32) {
        x[d] = __half2float(__ushort_as_half(from[d]));
    }
    __syncwarp();
    if (p.hadamard > 1) {
        hadamard(x, dim, p.hadamard, lane);
    }
    for (int32_t i = lane; i < p.n_pairs; i += 32) {
        constexpr double turn = 6.283185307179586;
        const double angle = (double) by * p.omega[i];
        float sine, cosine;
        sincosf((float) (angle - rint(angle / turn) * turn), &sine, &cosine);
        float & a = x[p.offset + (p.halves ? i : 2 * i)], & b = x[p.offset + (p.halves ? i + p.n_pairs : 2 * i + 1)];
        const float y = a, z = b;
        a = y * cosine - z * sine;
        b = y * sine + z * cosine;
    }
    __syncwarp();
    if (p.hadamard > 1) {
        hadamard(x, dim, p.hadamard, lane);
    }
    for (int32_t d = lane; d < dim; d += 32) {
        to[d] = __half_as_ushort(__float2half_rn(x[d]));
    }
}

// log2 of the sum of weights of each query, with those of a sink; +inf where nothing is seen
extern "C" __global__ void __launch_bounds__(kvasir::cuda::MOVED_TILE) moved_merge(const __grid_constant__ kvasir::cuda::moved_params p) {
    using namespace kvasir::cuda;
    const int32_t row = blockIdx.x * MOVED_TILE + threadIdx.x, head = blockIdx.y;
    const moved_layout at = layout_of(p);
    const float2 * const part = (const float2 *) (p.scratch + at.sums) + (size_t) head * p.n_rows + row;
    const size_t step = (size_t) p.a.n_head * p.n_rows;
    float max = p.a.sinks ? p.a.sinks[head] * LOG2_E : no_score, sum = p.a.sinks ? 1.0f : 0.0f;
    for (int32_t s = 0; s < p.n_split; s++) {
        const float2 x = part[s * step];
        const float  m = fmaxf(max, x.x);
        sum = sum * exp2f(max - m) + x.y * exp2f(x.x - m);
        max = m;
    }
    ((float *) (p.scratch + at.lse))[(size_t) head * p.n_rows + row] = p.rows[row].entry >= 0 && sum > 0.0f ? max + log2f(sum) : INFINITY;
}

// Sums of a head's outputs and of their squared lengths. A thread has a dimension, and queries in turn with other groups of threads.
extern "C" __global__ void __launch_bounds__(1024) moved_output_sums(const __grid_constant__ kvasir::cuda::moved_params p) {
    using namespace kvasir::cuda;
    extern __shared__ __align__(16) float part[]; // [2][groups][dim]
    const int32_t dim = p.a.pages.format.dim_v, d = threadIdx.x % dim, group = threadIdx.x / dim, groups = blockDim.x / dim, head = blockIdx.x;
    const moved_layout at = layout_of(p);
    float sum = 0.0f, length2 = 0.0f;
    for (int32_t row = group; row < p.n_outputs; row += groups) {
        const float lse = ((const float *) (p.scratch + at.lse))[(size_t) head * p.n_rows + row];
        float o = 0.0f;
        for (int32_t s = 0; s < p.n_split; s++) {
            const size_t of = (size_t) s * p.a.n_head + head;
            const float  max = ((const float2 *) (p.scratch + at.sums))[of * p.n_rows + row].x;
            o += exp2f(max - lse) * ((const float *) (p.scratch + at.outputs))[(of * p.n_outputs + row) * dim + d];
        }
        sum += o;
        length2 += o * o;
    }
    part[threadIdx.x] = sum;
    part[blockDim.x + threadIdx.x] = length2;
    __syncthreads();
    if (group == 0) {
        for (int32_t i = 1; i < groups; i++) {
            sum += part[i * dim + d];
            length2 += part[blockDim.x + i * dim + d];
        }
        p.output[(size_t) head * dim + d] += (double) sum;
        part[d] = length2; // nobody else reads it: its own sum was there
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (int32_t i = 0; i < dim; i++) {
            total += (double) part[i];
        }
        p.length2[head] += total;
    }
}

extern "C" __global__ void __launch_bounds__(256) moved_record(const __grid_constant__ kvasir::cuda::moved_record_params p) {
    using namespace kvasir::cuda;
    const char * const from = p.q + p.tokens[blockIdx.x] * p.token_bytes;
    uint16_t * const to = p.to + (size_t) blockIdx.x * p.n_head * p.dim;
    for (int32_t x = threadIdx.x; x < p.n_head * (p.dim / 4); x += 256) {
        const float4 y = *(const float4 *) (from + x / (p.dim / 4) * p.head_bytes + x % (p.dim / 4) * 16);
        *(uint2 *) (to + x * 4) = make_uint2(pack(y.x, y.y), pack(y.z, y.w));
    }
}

extern "C" __global__ void __launch_bounds__(256) moved_means(const __grid_constant__ kvasir::cuda::moved_means_params p) {
    const int32_t head = blockIdx.x;
    for (int32_t d = threadIdx.x; d < p.dim; d += 256) {
        const size_t i = (size_t) head * p.dim + d;
        const double x = p.folded_output[i] + p.output[i];
        p.folded_output[i] = x;
        p.output[i]        = 0;
        p.mean[i]          = (float) (x / p.n);
    }
    if (threadIdx.x == 0) {
        const double x = p.folded_length2[head] + p.length2[head];
        p.folded_length2[head] = x;
        p.length2[head]        = 0;
        p.weight[head]         = p.given ? p.given[head] : x > 0 ? (float) (p.n / x) : 0.0f;
    }
}

// a lane has a slot, the warps share the dimensions
extern "C" __global__ void __launch_bounds__(256) moved_fold(const __grid_constant__ kvasir::cuda::moved_fold_params p) {
    using namespace kvasir::cuda;
    extern __shared__ __align__(16) float rows[]; // [dim][32]
    __shared__ float part[8][32];
    const page_format & f = p.pages.format;
    const int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.y, slot0 = blockIdx.x * BLOCK_SLOTS, slot = slot0 + lane;
    const int32_t n = (int32_t) min((int64_t) p.n[kv_head], p.capacity);
    if (slot0 >= n) {
        return;
    }
    char * const page = p.pages.pool + (size_t) p.pages.table[(size_t) kv_head * p.pages.table_stride + slot0 / PAGE_SLOTS] * f.bytes;
    const int32_t half = slot0 % PAGE_SLOTS / BLOCK_SLOTS;
    for (int32_t d = warp; d < f.dim_v; d += 8) {
        const size_t i = (size_t) (half * f.dim_v + d) * BLOCK_SLOTS + lane;
        rows[d * BLOCK_SLOTS + lane] = f.type_v == F16 ? __half2float(((const __half *) (page + f.v))[i])
            : (float) ((const int8_t *) (page + f.v))[i] * __half2float(((const __half *) (page + f.v_scale))[slot % PAGE_SLOTS * (f.dim_v / Q8_BLOCK) + d / Q8_BLOCK]);
    }
    float loss = 0.0f;
    for (int32_t g = 0; g < p.group; g++) {
        const int32_t head = kv_head * p.group + g;
        float distance = 0.0f;
        for (int32_t d = warp; d < f.dim_v; d += 8) { // a thread's own elements
            const float x = rows[d * BLOCK_SLOTS + lane] - p.mean[(size_t) head * f.dim_v + d];
            distance += x * x;
        }
        __syncthreads();
        part[warp][lane] = distance;
        __syncthreads();
        if (warp == 0 && slot < n) {
            float total = 0.0f, squares = 0.0f;
            for (int32_t w = 0; w < 8; w++) {
                total += part[w][lane];
            }
            const int32_t first = max(slot - p.reach, 0), last = min(slot + p.reach, n - 1);
            for (int32_t j = first; j <= last; j++) {
                squares += p.squares[(size_t) head * p.capacity + j];
            }
            loss += p.weight[head] * (squares / (float) (last - first + 1)) * total;
        }
    }
    if (warp == 0 && slot < n) {
        ((float *) (page + f.score))[slot % PAGE_SLOTS] += loss;
    }
}

// a warp has an item
extern "C" __global__ void __launch_bounds__(256) moved_reset(const __grid_constant__ kvasir::cuda::moved_reset_params p) {
    const int32_t i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= p.n_items) {
        return;
    }
    const kvasir::cuda::move_item item = p.items[i];
    const int32_t n = item.to - item.from;
    for (int64_t x = lane; x < (int64_t) p.group * n; x += 32) {
        const size_t at = (size_t) (item.head * p.group + x / n) * p.capacity + item.from + x % n;
        p.p[at]       = 0.0f;
        p.squares[at] = 0.0f;
    }
}
