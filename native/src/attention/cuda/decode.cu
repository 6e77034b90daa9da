// Decode attention over the paged store.
//
// A warp works on a block of 32 slots at a time, and has a ring of blocks of its own in shared memory that the copy engine
// fills (cp.async before sm_90): warps wait for one another only where a head's share of the CTA ends, and what comes after is already
// on its way then. S^T = K Q^T and O^T = V^T P^T: slots and dims are the rows of the matrix products, queries the 8 columns.
// The order of slots in S^T is chosen so that P^T, transposed by movmatrix, meets the 8 neighbouring slots that a
// lane reads of a row of V.
#include "decode.h"
#include "tile.cuh"

namespace kvasir::cuda {
namespace {

constexpr int   BLOCKS_PER_PAGE = PAGE_SLOTS / BLOCK_SLOTS;
constexpr float HEADROOM = 8.0f; // weights are relative to 2^-8 of the largest: small ones stay normal in f16

enum word : int { HEAD, BEGIN, END, SLOTS, MORE, WHERE, TRACK, ROW, PARTS, SHARE, EXCHANGE, EPOCH, ROW_SLOT, ROW_PAGE, ROW_CELL, ROW_POS, PAGE }; // of a decode_segment
static_assert(PAGE + SEGMENT_PAGES == 32, "one lane per word");

// ---- copies into shared memory ----

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr uint32_t ARRIVALS = 1;
#else
constexpr uint32_t ARRIVALS = 32;
#endif

__device__ __forceinline__ void barrier_init(uint32_t barrier) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(barrier), "r"(ARRIVALS) : "memory");
}

__device__ __forceinline__ void barriers_ready() { // to the copy engine too
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    __syncwarp();
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#else
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#endif
    } while (!done);
}

// What a warp read or wrote there by itself must not be overtaken by the next copy.
__device__ __forceinline__ void done_by_hand() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncwarp();
}

struct copier { // of a warp
    int      lane;
    uint64_t policy; // the store is read once: it should not push everything else out of L2

    __device__ __forceinline__ explicit copier(int lane) : lane(lane), policy(0) {
#if __CUDA_ARCH__ >= 900
        asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
#endif
    }
    __device__ __forceinline__ void begin(uint32_t barrier, uint32_t bytes) const {
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\t@p mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n\t}" :: "r"(barrier), "r"(bytes) : "memory");
#endif
    }
    template <uint32_t BYTES> __device__ __forceinline__ void copy(uint32_t to, const char * from, uint32_t barrier) const {
        static_assert(BYTES % 16 == 0, "whole 16 bytes");
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\t"
                     "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;\n\t}"
                     :: "r"(to), "l"(from), "r"(BYTES), "r"(barrier), "l"(policy) : "memory");
#else
#pragma unroll
        for (uint32_t at = 0; at < BYTES; at += 512) {
            if (at + (uint32_t) lane * 16 < BYTES) {
                copy_16(to + at + (uint32_t) lane * 16, from + at + (uint32_t) lane * 16);
            }
        }
#endif
    }
    __device__ __forceinline__ void end(uint32_t barrier) const {
#if __CUDA_ARCH__ < 900
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(barrier) : "memory");
#endif
    }
};

// ---- the exchange between CTAs: every 8 bytes carry the epoch, so neither a fence nor a counter is needed ----

__device__ __forceinline__ void send(uint4 * to, float a, float b, uint32_t epoch) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};"
                 :: "l"(to), "r"(__float_as_uint(a)), "r"(epoch), "r"(__float_as_uint(b)) : "memory");
}
__device__ __forceinline__ uint4 look(const uint4 * at) {
    uint4 r;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(at) : "memory");
    return r;
}
__device__ __forceinline__ bool arrived(uint4 x, uint32_t epoch) { return x.y == epoch && x.w == epoch; }

struct sum { // weights relative to 2^max: their sum, and their sum with two elements of V, 8 rows apart
    float max, weight, x, y;
};

// what weights are relative to: finite even if there are none
__device__ __forceinline__ float base_of(float max) { return max == -INFINITY ? 0.0f : max; }

// ---- small things ----

__device__ __forceinline__ uint32_t transposed(uint32_t x) { // an 8 x 8 matrix of halves across the warp
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
    return r;
}
__device__ __forceinline__ float column_max(float x) {
#pragma unroll
    for (int o = 4; o < 32; o *= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    }
    return x;
}
__device__ __forceinline__ float column_sum(float x) {
#pragma unroll
    for (int o = 4; o < 32; o *= 2) {
        x += __shfl_xor_sync(~0u, x, o);
    }
    return x;
}

template <int N> struct known { // a number that loops are unrolled with
    __device__ constexpr operator int() const { return N; }
};

// ---- attention ----

template <int TK, int TV, int D> struct block_shape { // a block in a stage
    static constexpr uint32_t K = BLOCK_SLOTS * D * (TK == Q8_0 ? 1 : 2), K_SCALE = TK == Q8_0 ? BLOCK_SLOTS * (D / Q8_BLOCK) * 2 : 0;
    static constexpr uint32_t V = BLOCK_SLOTS * D * (TV == Q8_0 ? 1 : 2), V_SCALE = TV == Q8_0 ? BLOCK_SLOTS * (D / Q8_BLOCK) * 2 : 0;
    static constexpr uint32_t AT_K_SCALE = K, AT_V = K + K_SCALE, AT_V_SCALE = AT_V + V, AT_CELL = AT_V_SCALE + V_SCALE, CELL = BLOCK_SLOTS * 4;
    static constexpr uint32_t BYTES = AT_CELL + CELL;
    static_assert(BYTES == decode_stage_bytes(TK, TV, D), "as the host counts");
    static constexpr int WIDE = decode_wide_tiles(D);
    static constexpr int STEP = decode_step(TK, D);
};

// 16 or 8 bytes of K as pairs of halves
template <int TK, int STEP> __device__ __forceinline__ void k_fragment(uint32_t (&to)[STEP / 2], const char * k, const char * scale) {
    if constexpr (TK == Q8_0) {
        const __half2 d = __half2half2(*(const __half *) scale);
#pragma unroll
        for (int i = 0; i < STEP / 8; i++) {
            const uint4 x = unpack_8(make_uint2(((const uint32_t *) k)[2 * i], ((const uint32_t *) k)[2 * i + 1]), d);
            to[4 * i] = x.x, to[4 * i + 1] = x.y, to[4 * i + 2] = x.z, to[4 * i + 3] = x.w;
        }
    } else if constexpr (STEP == 8) {
        const uint4 x = *(const uint4 *) k;
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        const uint2 x = *(const uint2 *) k;
        to[0] = x.x, to[1] = x.y;
    }
}

// ---- rotary positions ----

// a pair of elements by an angle; each operation is rounded once, and not as the compiler likes
__device__ __forceinline__ void turn(float & a, float & b, float cosine, float sine) {
    const float x = a, y = b;
    a = __fmaf_rn(x, cosine, -__fmul_rn(y, sine));
    b = __fmaf_rn(x, sine, __fmul_rn(y, cosine));
}
__device__ __forceinline__ void turn_pairs(float4 & x, float4 by) {
    turn(x.x, x.y, by.x, by.y);
    turn(x.z, x.w, by.z, by.w);
}
// 4 elements and those half a row further on, by what stands at the places of both
__device__ __forceinline__ void turn_halves(float4 & x, float4 & y, float4 by_x, float4 by_y) {
    turn(x.x, y.x, by_x.x, by_x.y);
    turn(x.y, y.y, by_x.z, by_x.w);
    turn(x.z, y.z, by_y.x, by_y.y);
    turn(x.w, y.w, by_y.z, by_y.w);
}

struct column_info { // of a query row
    const char * mask; // its row of the mask
    float        slope;
};

// A row to append, 4 elements a lane: 32 lanes, then again.
template <int D> struct appended_row {
    static constexpr int ROUNDS = (D + 127) / 128;
    float4 x[ROUNDS];

    __device__ __forceinline__ void load(const char * row, int lane) {
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const int e = (i * 32 + lane) * 4;
            x[i] = D % 128 == 0 || e < D ? *(const float4 *) (row + e * 4) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }

    __device__ __forceinline__ void turn(const appended_row & by, bool halves, int lane) {
        if (!halves) {
#pragma unroll
            for (int i = 0; i < ROUNDS; i++) {
                turn_pairs(x[i], by.x[i]);
            }
        } else if constexpr (D == 256) {
            turn_halves(x[0], x[1], by.x[0], by.x[1]);
        } else if constexpr (D == 64 || D == 128) { // the other half is another lane's
            const auto other = [](float4 a) {
                return make_float4(__shfl_xor_sync(~0u, a.x, D / 8), __shfl_xor_sync(~0u, a.y, D / 8), __shfl_xor_sync(~0u, a.z, D / 8), __shfl_xor_sync(~0u, a.w, D / 8));
            };
            float4 y = other(x[0]);
            const float4 by_y = other(by.x[0]);
            if (lane & (D / 8)) {
                turn_halves(y, x[0], by_y, by.x[0]);
            } else {
                turn_halves(x[0], y, by.x[0], by_y);
            }
        }
    }

    // into slot `slot` of a block: in its stage and in its page
    template <int TYPE, bool TRANSPOSED> __device__ __forceinline__ void put(int slot, char * stage, char * stage_scale, char * page, char * page_scale, int lane) const {
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const int e = (i * 32 + lane) * 4;
            float scale = 1.0f, by = 1.0f;
            if constexpr (TYPE == Q8_0) {
                float top = fmaxf(fmaxf(fabsf(x[i].x), fabsf(x[i].y)), fmaxf(fabsf(x[i].z), fabsf(x[i].w)));
#pragma unroll
                for (int o = 1; o < Q8_BLOCK / 4; o *= 2) {
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
                }
                scale = top / 127.0f;
                by    = scale != 0.0f ? 1.0f / scale : 0.0f;
            }
            if (D % 128 != 0 && e >= D) {
                continue;
            }
            const float v[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
            if constexpr (TYPE == Q8_0) {
                int8_t q[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    q[j] = (int8_t) roundf(v[j] * by);
                }
                if constexpr (TRANSPOSED) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        ((int8_t *) stage)[(e + j) * BLOCK_SLOTS + slot] = q[j];
                        ((int8_t *) page)[(e + j) * BLOCK_SLOTS + slot]  = q[j];
                    }
                } else {
                    const char4 all = make_char4(q[0], q[1], q[2], q[3]);
                    *(char4 *) (stage + slot * D + e) = all;
                    *(char4 *) (page + slot * D + e)  = all;
                }
                if (lane % (Q8_BLOCK / 4) == 0) {
                    const int at = slot * (D / Q8_BLOCK) + e / Q8_BLOCK;
                    ((__half *) stage_scale)[at] = __float2half_rn(scale);
                    ((__half *) page_scale)[at]  = __float2half_rn(scale);
                }
            } else if constexpr (TRANSPOSED) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const __half h = __float2half_rn(v[j]);
                    ((__half *) stage)[(e + j) * BLOCK_SLOTS + slot] = h;
                    ((__half *) page)[(e + j) * BLOCK_SLOTS + slot]  = h;
                }
            } else {
                const uint2 all = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
                *(uint2 *) (stage + (slot * D + e) * 2) = all;
                *(uint2 *) (page + (slot * D + e) * 2)  = all;
            }
        }
    }
};

template <int TK, int TV, int D, int NT> __device__ __forceinline__ void decode(const decode_params & p) {
    using B = block_shape<TK, TV, D>;
    constexpr int STEP = B::STEP, STEPS = D / (4 * STEP), PRODUCTS = STEP / 4; // a row of K: STEPS reads of PRODUCTS matrix products
    constexpr int MT = D / 16;                                             // row tiles of O^T
    constexpr int KT = D / 16;                                             // depth tiles of S^T

    extern __shared__ __align__(128) char shared[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, n_warp = blockDim.x >> 5, stages = p.stages;
    const page_format & f = p.a.pages.format;

    // Every lane has what it wants of the segment that is worked on. Of the one whose blocks are fetched each lane has a word, as
    // a page's number is found by its index.
    const auto field = [&](uint32_t of, int i) { return (int32_t) __shfl_sync(~0u, of, i); };
    const decode_segment * const first_segment = p.segments + blockIdx.x, * segment = first_segment;
    const auto segment_of = [&](int32_t head) { return p.segments + gridDim.x + head; };
    const auto word_of = [&](const decode_segment * s) { return __ldg((const uint32_t *) s + lane); };
    uint32_t next_word = word_of(segment), after_word = 0;
    int4 blocks = __ldg((const int4 *) &segment->head); // HEAD, BEGIN, END, SLOTS
    int4 about  = __ldg((const int4 *) &segment->more); // MORE, WHERE, TRACK, ROW

    // barriers: per stage of this warp K and V; then that of the queries, wide only
    const uint32_t barriers = shared_address(shared) + (uint32_t) (warp * stages * 16), query_barrier = shared_address(shared) + (uint32_t) (n_warp * stages * 16);
    float * const raw_queries = (float *) (shared + n_warp * stages * 16 + 16);   // [column][D], of the segment that comes next, wide only
    uint2 * const queries = (uint2 *) (raw_queries + (NT > 1 ? NT * 8 * D : 0));  // [depth tile][column tile][lane], wide only
    column_info * const columns = (column_info *) (queries + (NT > 1 ? KT * NT * 32 : 0));
    float4 * const tile = (float4 *) (columns + NT * 8);                          // [warp][row tile][lane] accumulators
    float4 * const tile_sum = tile + n_warp * MT * 32;                            // [warp][4] maxima and sums of two columns
    char * const ring = shared + p.ring + (size_t) (warp * stages) * B::BYTES;
    const uint32_t ring_address = shared_address(ring);
    if (lane < 2 * stages) {
        barrier_init(barriers + (uint32_t) lane * 8);
    } else if (NT > 1 && threadIdx.x == 31) {
        barrier_init(query_barrier);
    }
    barriers_ready();
    if (NT > 1) {
        __syncthreads();
    }
    if (blocks.x < 0) {
        return;
    }
    const int group = p.group, n_column = group * p.a.n_tokens;
    const bool masked = p.a.mask.data && about.y >= 0;

    struct place { // of a segment
        int32_t stream, head_kv, head, first_column, n_here;
    };
    const auto place_of = [&](int32_t where) {
        const int32_t stream = where >> 20 & 0x7ff, head_kv = where >> 8 & 0xfff, first_column = (where & 0xff) * (NT * 8);
        return place{stream, head_kv, stream * p.a.pages.n_head_kv + head_kv, first_column, min(NT * 8, n_column - first_column)};
    };
    const auto token_in = [&](int32_t column) { return quotient(column, p.by_group); };

    // -- queries and rows to append: those of later segments are asked for early, as every load waits behind the blocks that are on their way
    const copier copies(lane);
    const auto query_row = [&](const place & at, int32_t i) {
        const int32_t column = at.first_column + i, token = token_in(column), query_head = at.head_kv * group + column - token * group;
        return p.a.q + token * p.a.q_token_bytes + query_head * p.a.q_head_bytes + at.stream * p.a.q_stream_bytes;
    };
    constexpr bool EARLY = D <= 128;                                     // registers suffice to ask for what turns queries, too
    float4 raw[NT == 1 ? KT : 1], by[NT == 1 && EARLY ? KT : 1]; // this lane's elements of its column, and what turns them
    const auto turn_of = [&](const place & at, int k) {
        return __ldg((const float4 *) (p.turn_q + (at.stream * p.a.n_tokens + token_in(at.first_column + min(g, at.n_here - 1))) * D + t * STEP + k / PRODUCTS * 4 * STEP + k % PRODUCTS * 4));
    };
    const auto request_queries = [&](const place & at) {
        if constexpr (NT == 1) {
            const char * row = query_row(at, min(g, at.n_here - 1)) + t * (STEP * 4);
            asm volatile("" : "+l"(row)); // one address with offsets, not as many addresses
#pragma unroll
            for (int k = 0; k < KT; k++) {
                raw[k] = __ldg((const float4 *) (row + (k / PRODUCTS * 4 * STEP + k % PRODUCTS * 4) * 4));
            }
            if constexpr (EARLY) {
                if (p.turn_q) {
#pragma unroll
                    for (int k = 0; k < KT; k++) {
                        by[k] = turn_of(at, k);
                    }
                }
            }
        } else if (warp == n_warp - 1) { // the one with the fewest blocks
            copies.begin(query_barrier, (uint32_t) at.n_here * (D * 4));
#pragma unroll 1
            for (int32_t i = 0; i < at.n_here; i++) {
                copies.template copy<D * 4>(shared_address(raw_queries) + (uint32_t) (i * D * 4), query_row(at, i), query_barrier);
            }
            copies.end(query_barrier);
        }
    };
    int32_t row = -1, row_slot = 0; // to append by this warp; -2: several rows are appended to the head
    appended_row<D> k_row, v_row, k_by;
    const auto load_row = [&](int32_t i, int32_t head_kv) {
        k_row.load(p.k + i * p.k_token_bytes + head_kv * p.k_head_bytes, lane);
        if (p.turn_k) {
            k_by.load((const char *) (p.turn_k + i * D), lane);
        }
        v_row.load(p.v + i * p.v_token_bytes + head_kv * p.v_head_bytes, lane);
    };
    const auto request_row = [&] {
        row      = about.w;
        row_slot = __ldg(&segment->row_slot);
        if (row >= 0) {
            if (((row_slot / BLOCK_SLOTS - blocks.y) & (n_warp - 1)) == warp) { // n_warp is a power of two
                if constexpr (NT == 1) { // wide has no registers to spare
                    load_row(row, place_of(about.y).head_kv);
                }
            } else {
                row = -1;
            }
        }
    };

    // -- what is to be read next: this warp's blocks of all segments of the CTA, up to `stages` blocks ahead of the arithmetic
    int next_head = blocks.x, next_first = blocks.y, next_block = next_first + warp, next_end = blocks.z, next_more = about.x, ahead = 0;
    const char * from = nullptr; // the page of the block being fetched; none: there is nothing left
    int half = 0;
    if (next_more > 0) {
        after_word = word_of(segment_of(next_head + 1));
    }
    const auto fetch_from = [&](int32_t page) {
        from = p.a.pages.pool + (size_t) (uint32_t) page * f.bytes;
        half = next_block % BLOCKS_PER_PAGE;
        next_block += n_warp;
    };
    const auto fetch_next = [&] {
        while (next_block >= next_end) {
            if (next_more <= 0) {
                from = nullptr;
                return;
            }
            next_word  = after_word;
            next_head  = field(next_word, HEAD);
            next_first = field(next_word, BEGIN);
            next_end   = field(next_word, END);
            next_more  = field(next_word, MORE);
            next_block = next_first + warp;
            if (next_more > 0) {
                after_word = word_of(segment_of(next_head + 1));
            }
        }
        const int i = next_block / BLOCKS_PER_PAGE - next_first / BLOCKS_PER_PAGE;
        fetch_from(i < SEGMENT_PAGES ? field(next_word, PAGE + i) : ahead);
        if (next_block < next_end && next_block / BLOCKS_PER_PAGE - next_first / BLOCKS_PER_PAGE >= SEGMENT_PAGES) {
            ahead = p.a.pages.table[(size_t) place_of(field(next_word, WHERE)).head * (size_t) p.a.pages.table_stride + next_block / BLOCKS_PER_PAGE];
        }
    };
    const auto fetch_k = [&](int stage) {
        const uint32_t to = ring_address + (uint32_t) stage * B::BYTES, barrier = barriers + (uint32_t) stage * 16;
        copies.begin(barrier, B::K + B::K_SCALE + (masked ? B::CELL : 0));
        copies.template copy<B::K>(to, from + half * B::K, barrier);
        if constexpr (TK == Q8_0) {
            copies.template copy<B::K_SCALE>(to + B::AT_K_SCALE, from + f.k_scale + half * B::K_SCALE, barrier);
        }
        if (masked) {
            copies.template copy<B::CELL>(to + B::AT_CELL, from + f.cell + half * B::CELL, barrier);
        }
        copies.end(barrier);
    };
    const auto fetch_v = [&](int stage) {
        const uint32_t to = ring_address + (uint32_t) stage * B::BYTES, barrier = barriers + (uint32_t) stage * 16 + 8;
        copies.begin(barrier, B::V + B::V_SCALE);
        copies.template copy<B::V>(to + B::AT_V, from + f.v + half * B::V, barrier);
        if constexpr (TV == Q8_0) {
            copies.template copy<B::V_SCALE>(to + B::AT_V_SCALE, from + f.v_scale + half * B::V_SCALE, barrier);
        }
        copies.end(barrier);
    };
    int filled = 0;
    if (next_block < next_end) { // the first block, without what others need: it is what everything waits for
        static_assert(2 * DECODE_MAX_WARPS / BLOCKS_PER_PAGE < SEGMENT_PAGES, "the second block's page is among the first ones");
        fetch_from(field(next_word, PAGE + next_block / BLOCKS_PER_PAGE - next_first / BLOCKS_PER_PAGE));
        fetch_k(0);
        fetch_v(0);
        filled = 1;
    }
#pragma unroll 1
    for (; filled < stages; filled++) {
        fetch_next();
        if (!from) {
            break;
        }
        fetch_k(filled);
        fetch_v(filled);
    }
    request_queries(place_of(about.y));
    request_row();

    const auto finish = [&](const place & at, int32_t track, int32_t column, int32_t pair, sum x) {
        const int32_t token = token_in(at.first_column + column), query_head = at.head_kv * group + at.first_column + column - token * group;
        if (p.a.sinks) {
            const float sink = p.a.sinks[query_head] * LOG2_E, m = fmaxf(x.max, sink), by = exp2_fast(x.max - m);
            x = {m, x.weight * by + exp2_fast(sink - m), x.x * by, x.y * by};
        }
        const float scale = x.weight > 0.0f ? __fdividef(1.0f, x.weight) : 0.0f;
        float * const out = (float *) ((char *) p.out + query_head * p.out_head_bytes + token * p.out_token_bytes + at.stream * p.out_stream_bytes) + pair / 8 * 16 + pair % 8;
        out[0] = x.x * scale;
        out[8] = x.y * scale;
        if (track > 0 && pair == 0) {
            p.lse[(size_t) (track - 1) * (size_t) n_column + (size_t) (at.first_column + column)] = x.weight > 0.0f ? x.max + log2f(x.weight) : INFINITY;
        }
    };

    // part i of a head that begins at `place`: two places per CTA, of which part 0 may have the second
    constexpr uint32_t PLACE_BYTES = NT * 8 * (D / 2 + 1) * 16;
    const auto place_in_exchange = [&](int32_t place, int32_t i) { return (uint32_t) (i == 0 ? place : (place & ~1) + 2 * i) * PLACE_BYTES; };
    int4 parts = {}; // PARTS, SHARE, EXCHANGE, EPOCH

    const int slot_row = 8 * (g >> 1) + (g & 1); // this lane's rows of S^T are the slots slot_row + 2 * i of a block
    int stage = 0;
    uint32_t parity = 0, query_parity = 0;
    for (;;) {
        const place at = place_of(about.y);
        const int32_t stream = at.stream, head_kv = at.head_kv, head = at.head, first_column = at.first_column, n_here = at.n_here, n_tile = NT == 1 ? 1 : (n_here + 7) / 8;
        const int32_t begin = blocks.y, end = blocks.z, slots = blocks.w, track = about.z;
        const auto token_of = [&](int32_t column) { return token_in(first_column + column); };
        const auto head_of = [&](int32_t column) { return head_kv * group + first_column + column - token_of(column) * group; };

        // -- queries, as f16 in units of log2; columns that there are none for become zero
        const float scale = p.a.softcap != 0.0f ? __fdividef(p.a.scale, p.a.softcap) : p.a.scale * LOG2_E;
        const auto scaled = [&](float4 x, bool is) {
            return is ? make_uint2(pack(x.x * scale, x.y * scale), pack(x.z * scale, x.w * scale)) : make_uint2(0, 0);
        };
        uint2 q[NT == 1 ? KT : 1];
        if constexpr (NT == 1) {
            const auto turn_at = [&](int k) { return EARLY ? by[EARLY ? k : 0] : turn_of(at, k); };
            if (p.turn_q && !p.halves) {
#pragma unroll
                for (int k = 0; k < KT; k++) {
                    turn_pairs(raw[k], turn_at(k));
                }
            } else if constexpr (decode_turns(TK, D, true)) {
                if (p.turn_q) {
#pragma unroll
                    for (int k = 0; k < KT / 2; k++) {
                        turn_halves(raw[k], raw[k + KT / 2], turn_at(k), turn_at(k + KT / 2));
                    }
                }
            }
            if (p.record && begin == 0 && warp == n_warp - 1) { // one CTA of each head begins there
                if (const uint64_t entry = g < n_here ? __ldg(p.record + token_of(g)) : 0) {
                    uint16_t * const to = (uint16_t *) entry + head_of(g) * D + t * STEP;
#pragma unroll
                    for (int k = 0; k < KT; k++) {
                        *(uint2 *) (to + k / PRODUCTS * 4 * STEP + k % PRODUCTS * 4) = make_uint2(pack(raw[k].x, raw[k].y), pack(raw[k].z, raw[k].w));
                    }
                }
                __syncwarp(); // lanes may have parted
            }
#pragma unroll
            for (int k = 0; k < KT; k++) {
                q[k] = scaled(raw[k], g < n_here);
            }
        } else {
            barrier_wait(query_barrier, query_parity);
            query_parity ^= 1;
            for (int i = threadIdx.x; i < KT * NT * 32; i += (int) blockDim.x) {
                const int column = i / 32 % NT * 8 + i % 32 / 4, k = i / 32 / NT;
                const int e = k / PRODUCTS * 4 * STEP + i % 4 * STEP + k % PRODUCTS * 4;
                const float * row = raw_queries + (column < n_here ? column : 0) * D;
                float4 x = *(const float4 *) (row + e);
                if (p.turn_q) {
                    const float * turns = p.turn_q + (stream * p.a.n_tokens + token_of(column < n_here ? column : 0)) * D;
                    if (!p.halves) {
                        turn_pairs(x, *(const float4 *) (turns + e));
                    } else {
                        const int lo = e % (D / 2), hi = lo + D / 2;
                        float4 first = *(const float4 *) (row + lo), second = *(const float4 *) (row + hi);
                        turn_halves(first, second, *(const float4 *) (turns + lo), *(const float4 *) (turns + hi));
                        x = e < D / 2 ? first : second;
                    }
                }
                queries[i] = scaled(x, column < n_here);
                if (p.record && begin == 0 && column < n_here) { // one CTA of each head begins there
                    if (const uint64_t entry = __ldg(p.record + token_of(column))) {
                        *(uint2 *) ((uint16_t *) entry + head_of(column) * D + e) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
                    }
                }
            }
            done_by_hand();
        }
        if (masked && (int) threadIdx.x < n_here) {
            columns[threadIdx.x] = {(const char *) mask_row(p.a.mask, stream, head_of((int) threadIdx.x), token_of((int) threadIdx.x)),
                                    mask_slope(p.a, head_of((int) threadIdx.x))};
        }
        if (NT > 1 || masked) {
            __syncthreads();
        }
        // -- the blocks that rows are appended to
        int32_t append_first = 0x7fffffff, append_last = -1;
        const auto appended = [&](int32_t i) { // the slot of row i, if it is this head's
            return i < p.n_append && p.token[i].stream == stream ? p.slot[i * p.a.pages.n_head_kv + head_kv] : -1;
        };
        if (row >= 0) {
            append_first = append_last = row_slot / BLOCK_SLOTS;
        } else if (row == -2) {
#pragma unroll 1
            for (int32_t i = lane; i < p.n_append; i += 32) {
                const int32_t s = appended(i);
                if (s >= 0) {
                    append_first = min(append_first, s / BLOCK_SLOTS);
                    append_last  = max(append_last, s / BLOCK_SLOTS);
                }
            }
            append_first = __reduce_min_sync(~0u, append_first);
            append_last  = __reduce_max_sync(~0u, append_last);
        }

        float acc[NT][MT][4], top[NT][2], weight[NT][2];
#pragma unroll
        for (int n = 0; n < NT; n++) {
            top[n][0] = top[n][1] = -INFINITY;
            weight[n][0] = weight[n][1] = 0.0f;
#pragma unroll
            for (int i = 0; i < MT; i++) {
                acc[n][i][0] = acc[n][i][1] = acc[n][i][2] = acc[n][i][3] = 0.0f;
            }
        }

        for (int32_t b = begin + warp; b < end; b += n_warp) {
            char * const block = ring + stage * B::BYTES;
            const bool append = b >= append_first && b <= append_last;
            barrier_wait(barriers + (uint32_t) stage * 16, parity);
            if (append) {
                barrier_wait(barriers + (uint32_t) stage * 16 + 8, parity);
                char * const page = p.a.pages.pool + (size_t) (uint32_t) (row >= 0 ? __ldg(&segment->row_page) : p.a.pages.table[(size_t) head * (size_t) p.a.pages.table_stride + b / BLOCKS_PER_PAGE]) * f.bytes;
                const int    half_of_page = b % BLOCKS_PER_PAGE;
                int32_t      looked_at = 0; // rows, 32 at a time
                uint32_t     found = 0;     // of the last ones
                for (bool several = true; several;) {
                    int32_t slot, cell, pos;
                    if (row >= 0) {
                        if constexpr (NT > 1) {
                            load_row(row, head_kv);
                        }
                        slot = row_slot, cell = __ldg(&segment->row_cell), pos = __ldg(&segment->row_pos);
                        several = false;
                    } else {
                        for (; !found && looked_at < p.n_append; looked_at += 32) {
                            const int32_t s = appended(looked_at + lane);
                            found = __ballot_sync(~0u, s >= 0 && s / BLOCK_SLOTS == b);
                        }
                        if (!found) {
                            break;
                        }
                        const int32_t i = looked_at - 32 + __ffs((int) found) - 1;
                        found &= found - 1;
                        load_row(i, head_kv);
                        slot = appended(i), cell = p.token[i].cell, pos = p.token[i].pos;
                    }
                    slot %= BLOCK_SLOTS;
                    if (p.turn_k) {
                        k_row.turn(k_by, p.halves, lane);
                    }
                    k_row.template put<TK, false>(slot, block, block + B::AT_K_SCALE, page + half_of_page * B::K, page + f.k_scale + half_of_page * B::K_SCALE, lane);
                    v_row.template put<TV, true>(slot, block + B::AT_V, block + B::AT_V_SCALE, page + f.v + half_of_page * B::V, page + f.v_scale + half_of_page * B::V_SCALE, lane);
                    if (lane == 0) {
                        const int32_t i = half_of_page * BLOCK_SLOTS + slot;
                        ((int32_t *) (block + B::AT_CELL))[slot] = cell;
                        ((int32_t *) (page + f.cell))[i] = cell;
                        ((int32_t *) (page + f.pos))[i]  = pos;
                        ((float *) (page + f.score))[i]  = 0.0f;
                    }
                }
                __syncwarp();
            }

            // -- S^T = K Q^T
            float s[NT][2][4];
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[n][0][i] = s[n][1][i] = 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                uint32_t k[4][STEP / 2];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int slot = slot_row + 2 * i, e = j * 4 * STEP + t * STEP;
                    k_fragment<TK, STEP>(k[i], block + (slot * D + e) * (TK == Q8_0 ? 1 : 2), block + B::AT_K_SCALE + (slot * (D / Q8_BLOCK) + e / Q8_BLOCK) * 2);
                }
#pragma unroll
                for (int u = 0; u < PRODUCTS; u++) {
                    const uint32_t a0[4] = {k[0][2 * u], k[1][2 * u], k[0][2 * u + 1], k[1][2 * u + 1]};
                    const uint32_t a1[4] = {k[2][2 * u], k[3][2 * u], k[2][2 * u + 1], k[3][2 * u + 1]};
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        if (n < n_tile) {
                            const uint2 x = NT == 1 ? q[NT == 1 ? j * PRODUCTS + u : 0] : queries[((j * PRODUCTS + u) * NT + n) * 32 + lane];
                            multiply(s[n][0], a0, x.x, x.y);
                            multiply(s[n][1], a1, x.x, x.y);
                        }
                    }
                }
            }
            int32_t cell[4];
            if (masked) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    cell[i] = ((const int32_t *) (block + B::AT_CELL))[slot_row + 2 * i];
                }
            }
            fetch_next();
            if (from) {
                done_by_hand();
                fetch_k(stage);
            }

            // -- what is seen, and weights
            uint32_t w[NT][2][2];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                if (n >= n_tile) {
                    continue;
                }
                if (p.a.softcap != 0.0f) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        s[n][0][i] = softcapped(s[n][0][i], p.a.softcap);
                        s[n][1][i] = softcapped(s[n][1][i], p.a.softcap);
                    }
                }
                if (masked) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int column = n * 8 + 2 * t + c;
                        const column_info info = columns[column < n_here ? column : 0];
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            float & x = s[n][i >> 1][(i & 1) * 2 + c];
                            x = (uint32_t) cell[i] < (uint32_t) p.a.mask.n_kv ? x + info.slope * __half2float(((const __half *) info.mask)[cell[i]]) : -INFINITY;
                        }
                    }
                }
                if ((b + 1) * BLOCK_SLOTS > slots) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (b * BLOCK_SLOTS + slot_row + 2 * i >= slots) {
                            s[n][i >> 1][(i & 1) * 2] = s[n][i >> 1][(i & 1) * 2 + 1] = -INFINITY;
                        }
                    }
                }
                if (track > 0) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int column = n * 8 + 2 * t + c;
                        if (column < n_here) {
                            float * to = p.scores + ((size_t) (track - 1) * (size_t) n_column + (size_t) (first_column + column)) * (size_t) p.score_stride;
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                const int32_t slot = b * BLOCK_SLOTS + slot_row + 2 * i;
                                if (slot < slots) {
                                    to[slot] = s[n][i >> 1][(i & 1) * 2 + c];
                                }
                            }
                        }
                    }
                }
                float base[2];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const float m = column_max(fmaxf(fmaxf(s[n][0][c], s[n][0][2 + c]), fmaxf(s[n][1][c], s[n][1][2 + c]))) - HEADROOM;
                    const float higher = fmaxf(top[n][c], m);
                    base[c] = base_of(higher);
                    const float keep = exp2_fast(top[n][c] - base[c]);
                    top[n][c] = higher;
                    weight[n][c] *= keep;
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        acc[n][i][c] *= keep;
                        acc[n][i][2 + c] *= keep;
                    }
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float p0 = exp2_fast(s[n][i][0] - base[0]), p1 = exp2_fast(s[n][i][1] - base[1]);
                    const float p2 = exp2_fast(s[n][i][2] - base[0]), p3 = exp2_fast(s[n][i][3] - base[1]);
                    weight[n][0] += p0 + p2;
                    weight[n][1] += p1 + p3;
                    w[n][i][0] = transposed(pack(p0, p1));
                    w[n][i][1] = transposed(pack(p2, p3));
                }
            }

            // -- O^T += V^T P^T
            barrier_wait(barriers + (uint32_t) stage * 16 + 8, parity);
            char * const v = block + B::AT_V;
            if constexpr (TV == Q8_0) {
                // a slot's scale goes into its weight
                constexpr int PER = D % 64 == 0 ? 2 : 1; // groups of 32 dims whose scales are read at once
#pragma unroll
                for (int j = 0; j < D / Q8_BLOCK; j += PER) {
                    __half2 scales[PER][4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const char * at = block + B::AT_V_SCALE + ((8 * t + 2 * i) * (D / Q8_BLOCK) + j) * 2;
                        if constexpr (PER == 2) {
                            const uint32_t x = *(const uint32_t *) at, y = *(const uint32_t *) (at + D / Q8_BLOCK * 2);
                            scales[0][i] = half2_of(__byte_perm(x, y, 0x5410));
                            scales[1][i] = half2_of(__byte_perm(x, y, 0x7632));
                        } else {
                            scales[0][i] = __halves2half2(*(const __half *) at, *(const __half *) (at + D / Q8_BLOCK * 2));
                        }
                    }
#pragma unroll
                    for (int i = 0; i < PER * 2; i++) {
                        const int m = 2 * j + i;
                        const uint2 lo = *(const uint2 *) (v + (16 * m + g) * 32 + 8 * t), hi = *(const uint2 *) (v + (16 * m + 8 + g) * 32 + 8 * t);
                        const uint32_t lx = lo.x ^ 0x80808080u, ly = lo.y ^ 0x80808080u, hx = hi.x ^ 0x80808080u, hy = hi.y ^ 0x80808080u;
                        const uint32_t a0[4] = {bits_of(halves_of(lx, 0x4140)), bits_of(halves_of(hx, 0x4140)), bits_of(halves_of(lx, 0x4342)), bits_of(halves_of(hx, 0x4342))};
                        const uint32_t a1[4] = {bits_of(halves_of(ly, 0x4140)), bits_of(halves_of(hy, 0x4140)), bits_of(halves_of(ly, 0x4342)), bits_of(halves_of(hy, 0x4342))};
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            if (n < n_tile) {
                                const __half2 * sc = scales[i / 2];
                                multiply(acc[n][m], a0, bits_of(__hmul2(half2_of(w[n][0][0]), sc[0])), bits_of(__hmul2(half2_of(w[n][0][1]), sc[1])));
                                multiply(acc[n][m], a1, bits_of(__hmul2(half2_of(w[n][1][0]), sc[2])), bits_of(__hmul2(half2_of(w[n][1][1]), sc[3])));
                            }
                        }
                    }
                }
            } else {
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    const uint4 lo = *(const uint4 *) (v + (16 * m + g) * 64 + 16 * t), hi = *(const uint4 *) (v + (16 * m + 8 + g) * 64 + 16 * t);
                    const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w};
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        if (n < n_tile) {
                            multiply(acc[n][m], a0, w[n][0][0], w[n][0][1]);
                            multiply(acc[n][m], a1, w[n][1][0], w[n][1][1]);
                        }
                    }
                }
            }
            if (from) {
                done_by_hand();
                fetch_v(stage);
            }
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }

        // -- the warps' results together; to the output, or to the other CTAs of this head
        parts = __ldg((const int4 *) &segment->parts);
        const int32_t  n_part = parts.x >> 16;
        const uint32_t epoch  = (uint32_t) parts.w;
        uint4 * const  mine   = (uint4 *) ((char *) p.exchange + place_in_exchange(parts.z, parts.x & 0xffff));
        const bool goes_on = about.x > 0;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            if (n >= n_tile) {
                continue;
            }
            const float sums[2] = {column_sum(weight[n][0]), column_sum(weight[n][1])};
            if (g == 0) {
                tile_sum[warp * 4 + t] = make_float4(top[n][0], top[n][1], sums[0], sums[1]);
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
                tile[(warp * MT + i) * 32 + lane] = make_float4(acc[n][i][0], acc[n][i][1], acc[n][i][2], acc[n][i][3]);
            }
            __syncthreads();
            if (n == 0 && goes_on) { // nobody wants this segment's queries and row any more
                segment = segment_of(blocks.x + 1);
                blocks  = __ldg((const int4 *) &segment->head);
                about   = __ldg((const int4 *) &segment->more);
                request_queries(place_of(about.y));
                request_row();
            }
            const int column = n * 8 + 2 * t; // and the one after it
            const auto put_together = [&](auto warps) {
                float4 part[DECODE_MAX_WARPS]; // of each warp; one that had no blocks has a weight of zero, as has one that there is not
                sum x{-INFINITY, 0.0f, 0.0f, 0.0f}, y = x;
#pragma unroll
                for (int o = 0; o < DECODE_MAX_WARPS; o++) {
                    part[o] = tile_sum[(o < warps ? o : 0) * 4 + t];
                    x.max   = fmaxf(x.max, part[o].x);
                    y.max   = fmaxf(y.max, part[o].y);
                }
                const float base_x = base_of(x.max), base_y = base_of(y.max);
#pragma unroll
                for (int o = 0; o < DECODE_MAX_WARPS; o++) {
                    part[o].x = o < warps ? exp2_fast(part[o].x - base_x) : 0.0f;
                    part[o].y = o < warps ? exp2_fast(part[o].y - base_y) : 0.0f;
                    x.weight += part[o].x * part[o].z;
                    y.weight += part[o].y * part[o].w;
                }
#pragma unroll 1
                for (int i = warp; i < MT; i += warps) {
                    x.x = x.y = y.x = y.y = 0.0f;
#pragma unroll
                    for (int o = 0; o < DECODE_MAX_WARPS; o++) {
                        const float4 v = tile[((o < warps ? o : 0) * MT + i) * 32 + lane];
                        x.x += v.x * part[o].x;
                        y.x += v.y * part[o].y;
                        x.y += v.z * part[o].x;
                        y.y += v.w * part[o].y;
                    }
                    const int pair = i * 8 + g;
#pragma unroll 1
                    for (int c = 0; c < 2 && column + c < n_here; c++) {
                        const sum z = c ? y : x;
                        if (n_part == 1) {
                            finish(at, track, column + c, pair, z);
                            continue;
                        }
                        uint4 * const to = mine + (column + c) * (D / 2 + 1);
                        send(to + pair, z.x, z.y, epoch);
                        if (pair == 0) {
                            send(to + D / 2, z.max, z.weight, epoch);
                        }
                    }
                }
            };
            if (column < n_here) {
                if (NT == 1 && n_warp == DECODE_MAX_WARPS) { // as good as always
                    put_together(known<DECODE_MAX_WARPS>());
                } else {
                    put_together(n_warp);
                }
            }
            if (goes_on || n + 1 < n_tile) {
                __syncthreads();
            }
        }
        if (!goes_on) {
            break;
        }
    }

    // -- heads that other CTAs share: every CTA puts together its share of the elements. Of two such heads each gets half of the warps.
    const bool halves = n_warp > 1 && segment != first_segment && parts.x >> 16 > 1 && __ldg(&first_segment->parts) >> 16 > 1;
    const int sharers = halves ? n_warp / 2 : n_warp, sharer = halves ? warp / 2 : warp;
    for (bool last = true;; last = false) {
        const int32_t n_part = parts.x >> 16;
        if (n_part > 1 && !(halves && (warp % 2 == 0) != last)) {
            constexpr int AT_ONCE = 3; // parts that a lane looks at at once
            const int log_lanes = n_part <= 2 ? 1 : n_part <= 4 ? 2 : 3, lanes = 1 << log_lanes, at_once = 32 >> log_lanes; // lanes per pair of elements, pairs of a warp
            const place at = place_of(about.y);
            const int32_t begin = parts.y & 0xffff, end = parts.y >> 16;
            const uint32_t epoch = (uint32_t) parts.w;
#pragma unroll 1
            for (int32_t i0 = begin + sharer * at_once; i0 < end; i0 += sharers * at_once) {
                const int32_t i = min(i0 + (lane >> log_lanes), end - 1), column = i / (D / 2), pair = i % (D / 2);
                const char * const value_at = (const char *) p.exchange + (uint32_t) (column * (D / 2 + 1) + pair) * 16u, * const weight_at = value_at + (D / 2 - pair) * 16;
                sum x = {-INFINITY, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
                for (int32_t o0 = lane & (lanes - 1); o0 < n_part; o0 += lanes * AT_ONCE) {
                    uint4 value[AT_ONCE], weight[AT_ONCE];
                    bool all;
                    do {
                        all = true;
#pragma unroll
                        for (int u = 0; u < AT_ONCE; u++) { // past the last one: the first again
                            const uint32_t part = place_in_exchange(parts.z, o0 + u * lanes < n_part ? o0 + u * lanes : o0);
                            value[u]  = look((const uint4 *) (value_at + part));
                            weight[u] = look((const uint4 *) (weight_at + part));
                        }
#pragma unroll
                        for (int u = 0; u < AT_ONCE; u++) {
                            all = all && arrived(value[u], epoch) && arrived(weight[u], epoch);
                        }
                    } while (!all);
                    float m = x.max;
#pragma unroll
                    for (int u = 0; u < AT_ONCE; u++) {
                        m = fmaxf(m, __uint_as_float(weight[u].x));
                    }
                    const float base = base_of(m), keep = exp2_fast(x.max - base);
                    x = {m, x.weight * keep, x.x * keep, x.y * keep};
#pragma unroll
                    for (int u = 0; u < AT_ONCE; u++) {
                        const float by = o0 + u * lanes < n_part ? exp2_fast(__uint_as_float(weight[u].x) - base) : 0.0f;
                        x.weight += by * __uint_as_float(weight[u].z);
                        x.x += by * __uint_as_float(value[u].x);
                        x.y += by * __uint_as_float(value[u].z);
                    }
                }
                float m = x.max;
                for (int o = 1; o < lanes; o *= 2) {
                    m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
                }
                const float keep = exp2_fast(x.max - base_of(m));
                x = {m, x.weight * keep, x.x * keep, x.y * keep};
                for (int o = 1; o < lanes; o *= 2) {
                    x.weight += __shfl_xor_sync(~0u, x.weight, o);
                    x.x += __shfl_xor_sync(~0u, x.x, o);
                    x.y += __shfl_xor_sync(~0u, x.y, o);
                }
                if (i0 + (lane >> log_lanes) < end && (lane & (lanes - 1)) == 0) {
                    finish(at, about.z, column, pair, x);
                }
            }
        }
        if (segment == first_segment) {
            break;
        }
        segment = first_segment;
        about   = __ldg((const int4 *) &segment->more);
        parts   = __ldg((const int4 *) &segment->parts);
    }
}

// ---- the plan ----

constexpr uint32_t EPOCH_LIMIT = 0xffff0000u;

// Heads laid one after another, each as long as its blocks and `head_blocks` before them; equal pieces of that.
struct cut { // the first block of a piece
    int32_t head, block;
    __device__ __forceinline__ bool operator<=(const cut & o) const { return head < o.head || (head == o.head && block <= o.block); }
    __device__ __forceinline__ bool operator==(const cut & o) const { return head == o.head && block == o.block; }
};

// the last of n ascending ones that is <= x; the first always is
template <class T> __device__ __forceinline__ int32_t last_at_most(const T * v, int32_t n, const T & x) {
    int32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        const int32_t mid = (lo + hi) / 2;
        (v[mid] <= x ? lo : hi) = mid;
    }
    return lo;
}

// The fewest blocks, min_blocks at least, so that pieces of no more suffice for all heads when each has CTAs of its own; one warp.
template <class F> __device__ __forceinline__ int32_t least_piece(int32_t lane, int32_t n_head, int32_t n_cta, int32_t min_blocks, F blocks_in) {
    int32_t most = min_blocks;
    for (int32_t h = lane; h < n_head; h += 32) {
        most = max(most, blocks_in(h));
    }
    __syncwarp();
    int32_t lo = min_blocks, hi = __reduce_max_sync(~0u, most);
    while (lo < hi) {
        const int32_t mid = (lo + hi) / 2;
        int32_t need = 0;
        for (int32_t h = lane; h < n_head; h += 32) {
            need += (blocks_in(h) + mid - 1) / mid;
        }
        __syncwarp();
        if (__reduce_add_sync(~0u, need) <= n_cta) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return lo;
}

__device__ __forceinline__ int32_t block_sum_before(int32_t x) { // of the threads before this one; all of a block of PLAN_THREADS
    __shared__ int32_t sums[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t inclusive = x;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
        const int32_t y = __shfl_up_sync(~0u, inclusive, o);
        inclusive += lane >= o ? y : 0;
    }
    if (lane == 31) {
        sums[warp] = inclusive;
    }
    __syncthreads();
    if (warp == 0) {
        int32_t total = sums[lane];
#pragma unroll
        for (int o = 1; o < 32; o *= 2) {
            const int32_t y = __shfl_up_sync(~0u, total, o);
            total += lane >= o ? y : 0;
        }
        sums[lane] = total;
    }
    __syncthreads();
    return inclusive - x + (warp ? sums[warp - 1] : 0);
}

} // namespace

extern "C" __global__ void __launch_bounds__(PLAN_THREADS) plan(const plan_params p) {
    extern __shared__ __align__(16) char shared[];
    cut * const cuts = (cut *) shared;                          // [n_cta + 1]
    int32_t * const start = (int32_t *) (cuts + p.n_cta + 1);   // [n_head + 1]
    __shared__ uint32_t epoch;
    __shared__ int32_t shared_count;
    __shared__ bool clear;
    const decode_layer layer = p.layers[blockIdx.x];
    const int32_t n_head = layer.n_stream * layer.pages.n_head_kv * layer.n_pass;

    // Every layer has an epoch of its own; the last CTA to leave moves on to the next ones. Long before they repeat, the exchange is cleared.
    if (threadIdx.x == 0) {
        const uint32_t base = *(volatile uint32_t *) p.epoch;
        clear = base >= EPOCH_LIMIT;
        epoch = (clear ? 0 : base) + blockIdx.x + 1;
    }

    const int32_t each = (n_head + (int32_t) PLAN_THREADS - 1) / (int32_t) PLAN_THREADS, first = min(n_head, (int32_t) threadIdx.x * each), last = min(n_head, first + each);
    const auto blocks_of = [](int32_t slots) { return max(1, (slots + BLOCK_SLOTS - 1) / BLOCK_SLOTS); };
    int32_t mine = 0;
    for (int32_t h = first; h < last; h++) {
        mine += blocks_of(layer.pages.n[h / layer.n_pass]) + p.head_blocks;
    }
    int32_t before = block_sum_before(mine);
    for (int32_t h = first; h < last; h++) {
        start[h] = before;
        before += blocks_of(layer.pages.n[h / layer.n_pass]) + p.head_blocks;
        if (h + 1 == n_head) {
            start[n_head] = before;
        }
    }
    __syncthreads();
    if (clear) {
        for (uint64_t i = threadIdx.x; i < p.exchange_bytes / 16; i += PLAN_THREADS) {
            ((uint4 *) p.exchange)[i] = make_uint4(0, 0, 0, 0);
        }
    }
    if (threadIdx.x == 0 && atomicAdd(p.epoch + 1, 1u) + 1 == gridDim.x * gridDim.y) {
        p.epoch[0] = (clear ? 0 : p.epoch[0]) + gridDim.x;
        p.epoch[1] = 0;
    }

    // cosines and sines; ggml computes them with the same approximations (its CUDA backend is compiled with fast math)
    const rotary_params & rotary = layer.rotary;
    for (int32_t i = (int32_t) (blockIdx.y * PLAN_THREADS + threadIdx.x); rotary.table && i < rotary.n_tokens * rotary.dim / 2; i += (int32_t) (gridDim.y * PLAN_THREADS)) {
        const int32_t token = i / (rotary.dim / 2), pair = i % (rotary.dim / 2);
        float2 turn = make_float2(1.0f, 0.0f); // for elements that have no angle
        if (2 * pair < rotary.n_dims) {
            const float far = __fdividef((float) rotary.pos[token] * __powf(rotary.theta_scale, (float) pair), rotary.factors ? rotary.factors[pair] : 1.0f);
            float theta = rotary.freq_scale * far, size = rotary.attn_factor;
            if (rotary.ext_factor != 0.0f) { // YaRN
                const float ramp = 1.0f - fminf(1.0f, fmaxf(0.0f, __fdividef((float) pair - rotary.low, fmaxf(0.001f, rotary.high - rotary.low))));
                const float mix  = ramp * rotary.ext_factor;
                theta = theta * (1.0f - mix) + far * mix;
                size *= 1.0f + 0.1f * __logf(__fdividef(1.0f, rotary.freq_scale));
            }
            turn = make_float2(__cosf(theta) * size, __sinf(theta) * size);
        }
        *(float2 *) (rotary.table + token * rotary.dim + rotary_place(pair, rotary.dim, rotary.halves)) = turn;
    }

    const auto blocks_in = [&](int32_t h) { return start[h + 1] - start[h] - p.head_blocks; };
    const bool enough = n_head <= p.n_cta;
    if (enough && threadIdx.x < 32) {
        const int32_t blocks = least_piece((int32_t) threadIdx.x, n_head, p.n_cta, p.min_blocks, blocks_in);
        if (threadIdx.x == 0) {
            shared_count = blocks;
        }
    }
    __syncthreads();
    const int32_t total = start[n_head], least = enough ? shared_count : 0;
    int32_t n_piece = max(1, min(p.n_cta, max(n_head, total / (p.min_blocks + p.head_blocks))));
    if (enough && (int64_t) least * n_piece * 16 <= (int64_t) total * 17) {
        // every head to CTAs of its own: a second head would cost a CTA more than what equal pieces save
        mine = 0;
        for (int32_t h = first; h < last; h++) {
            mine += (blocks_in(h) + least - 1) / least;
        }
        before = block_sum_before(mine);
        for (int32_t h = first; h < last; h++) {
            const int32_t blocks = blocks_in(h), n = (blocks + least - 1) / least;
            for (int32_t i = 0; i < n; i++) {
                cuts[before + i] = {h, (int32_t) ((int64_t) blocks * i / n)};
            }
            before += n;
            if (h + 1 == n_head) {
                cuts[before] = {n_head, 0};
                shared_count = before;
            }
        }
        __syncthreads();
        n_piece = shared_count;
    } else {
        // a piece is longer than head_blocks, so no two cuts fall on the same block but a head's first
        const int32_t crumb = min(p.head_blocks, total / n_piece / 16); // what is not worth a segment of its own
        for (int32_t i = (int32_t) threadIdx.x; i <= n_piece; i += (int32_t) PLAN_THREADS) {
            const int32_t x = (int32_t) ((int64_t) i * total / n_piece);
            cut c = {n_head, 0};
            if (i < n_piece) {
                c.head  = last_at_most(start, n_head, x);
                c.block = max(0, x - start[c.head] - p.head_blocks);
                if (c.block < crumb) {
                    c.block = 0;
                } else if (blocks_in(c.head) - c.block < crumb) {
                    c = {c.head + 1, 0};
                }
            }
            cuts[i] = c;
        }
        __syncthreads();
    }

    const int lane = threadIdx.x & 31;
    for (int32_t i = (int32_t) (blockIdx.y * (PLAN_THREADS / 32) + threadIdx.x / 32); i < p.n_cta + n_head; i += (int32_t) (gridDim.y * (PLAN_THREADS / 32))) {
        int32_t head, piece, begin;
        bool used;
        if (i < p.n_cta) { // the first segment of a CTA
            piece = i;
            used  = i < n_piece && !(cuts[i] == cuts[i + 1]);
            head  = used ? cuts[i].head : -1;
            begin = used ? cuts[i].block : 0;
        } else { // the others begin their head
            head  = i - p.n_cta;
            begin = 0;
            piece = last_at_most(cuts, n_piece, cut{head, 0});
            used  = !(cuts[piece] == cut{head, 0});
            if (!used) {
                continue;
            }
        }
        int32_t word = -1;
        if (used) {
            const int32_t store_head = head / layer.n_pass, slots = layer.pages.n[store_head], blocks = blocks_in(head);
            const cut stop = cuts[piece + 1];
            const int32_t end = min(stop.head > head ? blocks : stop.block, (slots + BLOCK_SLOTS - 1) / BLOCK_SLOTS);
            const int32_t first_piece = last_at_most(cuts, n_piece, cut{head, 0}), last_piece = last_at_most(cuts, n_piece, cut{head, blocks - 1});
            const int32_t part = piece - first_piece, n_part = last_piece - first_piece + 1;
            const int32_t pairs = min(layer.columns, layer.n_column - head % layer.n_pass * layer.columns) * (layer.pages.format.dim_v / 2); // of elements
            // rows to append: plain decode has one at most, and it is found here for the decode kernel
            const int32_t stream = store_head / layer.pages.n_head_kv, head_kv = store_head % layer.pages.n_head_kv;
            int32_t n_row = 0, row = -1, row_slot = 0;
            for (int32_t r0 = 0; r0 < layer.n_append; r0 += 32) {
                const bool is = r0 + lane < layer.n_append;
                int32_t s = is ? layer.slot[(r0 + lane) * layer.pages.n_head_kv + head_kv] : -1;
                s = is && layer.token[r0 + lane].stream == stream ? s : -1;
                const uint32_t set = __ballot_sync(~0u, s >= 0);
                if (set) {
                    n_row += __popc(set);
                    row      = r0 + __ffs((int) set) - 1;
                    row_slot = __shfl_sync(~0u, s, __ffs((int) set) - 1);
                }
            }
            if (n_row > 1) {
                row = -2;
            } else if (row_slot / BLOCK_SLOTS < begin || row_slot / BLOCK_SLOTS >= end) {
                row = -1;
            }
            switch (lane) {
                case HEAD:     word = head; break;
                case BEGIN:    word = begin; break;
                case END:      word = end; break;
                case SLOTS:    word = slots; break;
                case MORE:     word = stop.head - (stop.block > 0 ? 0 : 1) - head; break;
                case PARTS:    word = n_part << 16 | part; break;
                case SHARE:    word = pairs * (part + 1) / n_part << 16 | pairs * part / n_part; break;
                case EXCHANGE: word = 2 * first_piece + (cuts[first_piece] == cut{head, 0} ? 0 : 1); break;
                case EPOCH:    word = (int32_t) epoch; break;
                case WHERE:    word = stream << 20 | head_kv << 8 | head % layer.n_pass | (layer.open && *layer.open ? (int32_t) 0x80000000u : 0); break;
                case TRACK:    word = layer.track ? layer.track[store_head] : 0; break;
                case ROW:      word = row; break;
                case ROW_SLOT: word = row_slot; break;
                case ROW_CELL: word = row >= 0 ? layer.token[row].cell : 0; break;
                case ROW_POS:  word = row >= 0 ? layer.token[row].pos : 0; break;
                default: {
                    const int32_t page = lane == ROW_PAGE ? row_slot / PAGE_SLOTS : begin / BLOCKS_PER_PAGE + lane - PAGE;
                    word = page * PAGE_SLOTS < slots ? layer.pages.table[(size_t) store_head * (size_t) layer.pages.table_stride + (size_t) page] : 0;
                }
            }
        }
        ((int32_t *) (layer.segments + i))[lane] = word;
    }
}

// ---- the scores of tracked heads ----

extern "C" __global__ void __launch_bounds__(SCORE_THREADS) accumulate_scores(const decode_layer * layers) {
    const decode_layer & layer = layers[blockIdx.z];
    const int32_t head = (int32_t) blockIdx.y;
    if (head >= layer.n_stream * layer.pages.n_head_kv || !layer.track) {
        return;
    }
    const int32_t region = layer.track[head] - 1;
    if (region < 0) {
        return;
    }
    const int32_t slots = layer.pages.n[head];
    const float * scores = layer.scores + (size_t) region * (size_t) layer.n_column * (size_t) layer.score_stride;
    const float * lse = layer.lse + (size_t) region * (size_t) layer.n_column;
    for (int32_t s = (int32_t) (blockIdx.x * SCORE_THREADS + threadIdx.x); s < slots; s += (int32_t) (gridDim.x * SCORE_THREADS)) {
        float w = 0.0f;
        for (int32_t c = 0; c < layer.n_column; c++) {
            w += exp2f(scores[(size_t) c * (size_t) layer.score_stride + (size_t) s] - lse[c]);
        }
        const int32_t page = layer.pages.table[(size_t) head * (size_t) layer.pages.table_stride + (size_t) (s / PAGE_SLOTS)];
        float * const score = (float *) (layer.pages.pool + (size_t) page * layer.pages.format.bytes + layer.pages.format.score) + s % PAGE_SLOTS;
        *score += w / (float) layer.group;
    }
}

#define KVASIR_DECODE(name, tk, tv, d)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(DECODE_MAX_WARPS * 32, 1) decode_##name##_d##d(const __grid_constant__ decode_params p) {        \
        decode<tk, tv, d, 1>(p);                                                                                                            \
    }                                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(DECODE_MAX_WARPS * 32, 1) decode_##name##_d##d##_wide(const __grid_constant__ decode_params p) { \
        decode<tk, tv, d, block_shape<tk, tv, d>::WIDE>(p);                                                                                        \
    }

#define KVASIR_DECODE_TYPES(d)                 \
    KVASIR_DECODE(f16_f16, F16, F16, d)        \
    KVASIR_DECODE(f16_q8_0, F16, Q8_0, d)      \
    KVASIR_DECODE(q8_0_f16, Q8_0, F16, d)      \
    KVASIR_DECODE(q8_0_q8_0, Q8_0, Q8_0, d)

#ifdef KVASIR_DECODE_ONLY // a quick build while tuning
KVASIR_DECODE(f16_f16, F16, F16, 128)
#else
KVASIR_DECODE_TYPES(64)
KVASIR_DECODE(f16_f16, F16, F16, 80)
KVASIR_DECODE_TYPES(96)
KVASIR_DECODE_TYPES(128)
KVASIR_DECODE_TYPES(256)
#endif

} // namespace kvasir::cuda
