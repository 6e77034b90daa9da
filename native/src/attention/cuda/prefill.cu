#include "tile.cuh"

namespace kvasir::cuda {
namespace {

constexpr float no_score   = -1e30f; // the running maximum before the first score: finite, so that -inf - no_score is -inf
constexpr float rescale_at = 8.0f;   // the running maximum may lag by this much: weights stay below 2^8 and rescaling is rare

constexpr uint32_t LIST_MIXED = 1; // beside the slot in an entry of the list

// ---- how the work is cut ----

// One item per tile; its weight, in units, is the number of key blocks it is expected to look at. All units, laid end to
// end, are cut into equal pieces. A cut near a tile's edge goes there: to merge costs as much as some blocks.
struct schedule {
    int32_t tiles, items, total, ctas; // tiles of a head; items, units and CTAs of all
};

// what a CTA does to one tile: in shared memory, because the main loop needs all registers
struct piece {
    int32_t row0, n, stream, first_head; // the tile's first row, its head's slots, where it belongs
    int32_t u0, u1, weight;              // units of the item that are this CTA's, of how many
};

template <int ROWS, int KEYS> __device__ __forceinline__ int32_t item_weight(const attention_params & a, int32_t group, int32_t tiles, int32_t item) {
    int32_t n = a.pages.n[item / tiles];
    if (a.causal) { // the batch's own tokens are usually the last
        n -= a.n_tokens - min(a.n_tokens, ((item % tiles + 1) * ROWS - 1) / group + 1);
    }
    return max(1, (n + KEYS - 1) / KEYS);
}

// the cut before a CTA's piece, until it is moved to an edge
__device__ __forceinline__ int32_t raw_cut(const schedule & s, int32_t cta) { return (int32_t) ((int64_t) cta * s.total / s.ctas); }

template <int KEYS> __device__ __forceinline__ int32_t near_edge(int32_t weight) { return min(max(weight * KEYS / 512, 4), 8) * (64 / KEYS); }

// the cuts inside an item: first to last
template <int KEYS> __device__ __forceinline__ int2 inner_cuts(const schedule & s, int32_t at, int32_t weight) {
    const int32_t near = near_edge<KEYS>(weight);
    return make_int2((int32_t) (((int64_t) (at + near + 1) * s.ctas + s.total - 1) / s.total), (int32_t) (((int64_t) (at + weight - near) * s.ctas + s.total - 1) / s.total) - 1);
}

__device__ __forceinline__ float to_row_scale(const float * sinks, int32_t query_head, float & max, float & sum) {
    float f = 1.0f;
    if (sinks) {
        const float s = sinks[query_head] * LOG2_E, m = fmaxf(s, max);
        f   = exp2f(max - m);
        sum = sum * f + exp2f(s - m);
        max = m;
    }
    return sum > 0.0f ? f / sum : 0.0f;
}

__device__ __forceinline__ float * output_row(const prefill_params & p, const piece & pc, int32_t row, int32_t group) {
    return (float *) ((char *) p.out + (pc.first_head + row % group) * p.out_head_bytes + row / group * p.out_token_bytes + pc.stream * p.out_stream_bytes);
}

__device__ __forceinline__ void write_lse(const prefill_params & p, const piece & pc, int32_t row, int32_t group, float max, float sum) {
    p.lse[((size_t) pc.stream * p.a.n_head + pc.first_head + row % group) * p.a.n_tokens + row / group] = sum > 0.0f ? max + log2f(sum) : INFINITY;
}

// The pieces of a tile, by the CTAs first to last, to its output: n times four elements. A thread has BATCH of them, and
// PARTS pieces of each, under way at a time.
template <int D, int ROWS, int BATCH, int PARTS> __device__ __forceinline__ void merge(const prefill_params & p, const piece & pc, int32_t group, int n, int32_t first, int32_t last) {
    for (int x0 = threadIdx.x; x0 < n; x0 += (ROWS * 2) * BATCH) {
        float m[BATCH], l[BATCH];
        float4 y[BATCH];
        #pragma unroll
        for (int k = 0; k < BATCH; k++) {
            m[k] = no_score;
            l[k] = 0.0f;
            y[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        #pragma unroll 1
        for (int32_t c0 = first; c0 <= last; c0 += PARTS) {
            float2 ml[PARTS][BATCH];
            float4 z[PARTS][BATCH];
            #pragma unroll
            for (int j = 0; j < PARTS; j++) {
                const int32_t c = min(c0 + j, last);
                const float * part = p.partial + ((size_t) c * 2 + (c == first ? 1 : 0)) * (ROWS * (D + 2));
                #pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    const int x = min(x0 + k * (ROWS * 2), n - 1);
                    ml[j][k] = __ldcg((const float2 *) (part + ROWS * D + x / (D / 4) * 2));
                    z[j][k]  = __ldcg((const float4 *) part + x);
                }
            }
            #pragma unroll
            for (int j = 0; j < PARTS; j++) {
                #pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    if (c0 + j > last) {
                        continue;
                    }
                    const float top = fmaxf(m[k], ml[j][k].x), e0 = exp2_fast(m[k] - top), e1 = exp2_fast(ml[j][k].x - top);
                    m[k]   = top;
                    l[k]   = l[k] * e0 + ml[j][k].y * e1;
                    y[k].x = y[k].x * e0 + z[j][k].x * e1;
                    y[k].y = y[k].y * e0 + z[j][k].y * e1;
                    y[k].z = y[k].z * e0 + z[j][k].z * e1;
                    y[k].w = y[k].w * e0 + z[j][k].w * e1;
                }
            }
        }
        #pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int x = x0 + k * (ROWS * 2), row = pc.row0 + x / (D / 4), d = x % (D / 4) * 4;
            if (x < n) {
                const float f = to_row_scale(p.a.sinks, pc.first_head + row % group, m[k], l[k]);
                *(float4 *) (output_row(p, pc, row, group) + d) = make_float4(y[k].x * f, y[k].y * f, y[k].z * f, y[k].w * f);
                if (p.lse && d == 0) {
                    write_lse(p, pc, row, group, m[k], l[k]);
                }
            }
        }
    }
}

// ---- the kernel ----

template <int D, int WARPS> struct shape {
    static constexpr int ROWS = 16 * WARPS, THREADS = 32 * WARPS, KEYS = key_block(D);
    static constexpr int Q_ROW = D * 2 + 16, K_ROW = D * 2 + 16, V_ROW = KEYS * 2 + 16; // bytes in shared memory: 16 more than a multiple of 32
    static constexpr int K_RAW = KEYS * D, SCALES = KEYS * (D / Q8_BLOCK) * 2;
    static constexpr int PARTIAL = ROWS * (D + 2); // floats
};

template <int D, int WARPS> __device__ __forceinline__ void run(const prefill_params & p) {
    using S = shape<D, WARPS>;
    constexpr int ROWS = S::ROWS, THREADS = S::THREADS, KEYS = S::KEYS, NB = KEYS / 8, DB = D / 8;
    const attention_params & a = p.a;
    const page_format & f = a.pages.format;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int32_t group = a.n_head / a.pages.n_head_kv, rows = a.n_tokens * group;
    const bool raw_k = D % Q8_BLOCK == 0 && f.type_k == Q8_0, raw_v = D % Q8_BLOCK == 0 && f.type_v == Q8_0;

    extern __shared__ __align__(128) char shared[];
    __shared__ int32_t list_page[PREFILL_LIST], list_slot[PREFILL_LIST];
    __shared__ __align__(16) int32_t key_cell[2][KEYS], key_pos[2][KEYS];
    __shared__ int32_t row_pos[ROWS];
    __shared__ int32_t scan[THREADS / 32], cut_item[2], cut_item_at[2], cut_unit[2], flag;
    __shared__ schedule s;
    __shared__ piece pc;
    __shared__ uint32_t hits[PREFILL_LIST / 32];

    // f16 comes into the tiles themselves, q8_0 beside them; with two stages there are two of what it comes into
    char * const q_tile = shared, * const k_tile0 = q_tile + ROWS * S::Q_ROW, * const v_tile0 = k_tile0 + KEYS * S::K_ROW, * const k_more = v_tile0 + D * S::V_ROW;
    const uint32_t k_more_bytes = raw_k ? (S::K_RAW + S::SCALES) * p.stages : KEYS * S::K_ROW * (p.stages - 1);
    char * const v_more = k_more + k_more_bytes;
    const int stage_bit = p.stages - 1;
    const auto k_at = [&](int entry) { return raw_k ? k_more + (entry & stage_bit) * (S::K_RAW + S::SCALES) : entry & stage_bit ? k_more : k_tile0; };
    const auto v_at = [&](int entry) { return raw_v ? v_more + (entry & stage_bit) * (S::K_RAW + S::SCALES) : entry & stage_bit ? v_more : v_tile0; };

    // where this CTA starts
    {
        const int32_t tiles = (rows + ROWS - 1) / ROWS, items = tiles * a.n_stream * a.pages.n_head_kv, per_thread = (items + THREADS - 1) / THREADS;
        const int32_t i0 = min(items, tid * per_thread), i1 = min(items, i0 + per_thread);
        int32_t own = 0;
        for (int32_t i = i0; i < i1; i++) {
            own += item_weight<ROWS, KEYS>(a, group, tiles, i);
        }
        int32_t to = own;
        for (int o = 1; o < 32; o *= 2) {
            const int32_t x = __shfl_up_sync(~0u, to, o);
            to += lane >= o ? x : 0;
        }
        if (lane == 31) {
            scan[warp] = to;
        }
        __syncthreads();
        int32_t total = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            to += w < warp ? scan[w] : 0;
            total += scan[w];
        }
        // the same number of pieces for every tile, where there are few, and pieces of a few blocks
        int32_t ctas = items <= (int32_t) gridDim.x ? (int32_t) gridDim.x / items * items : (int32_t) gridDim.x;
        ctas = min(ctas, max(items, total / (4 * (64 / KEYS))));
        if ((int32_t) blockIdx.x >= ctas) {
            return;
        }
        const schedule whole{tiles, items, total, ctas};
        for (int e = 0; e < 2; e++) { // begin and end
            const int32_t raw = raw_cut(whole, blockIdx.x + e);
            if (raw >= to - own && raw < to) {
                int32_t at = to - own, i = i0, w;
                for (; at + (w = item_weight<ROWS, KEYS>(a, group, tiles, i)) <= raw; i++) {
                    at += w;
                }
                const int32_t left = raw - at, right = w - left, near = near_edge<KEYS>(w);
                const bool to_right = right < left && right <= near;
                cut_item[e]    = to_right ? i + 1 : i;
                cut_item_at[e] = to_right ? at + w : at;
                cut_unit[e]    = to_right ? at + w : left <= near ? at : raw;
            }
        }
        if (tid == 0) {
            s = whole;
            if ((int32_t) blockIdx.x + 1 == ctas) {
                cut_unit[1] = total;
            }
        }
        __syncthreads();
        if (cut_unit[0] >= cut_unit[1]) {
            return;
        }
    }
    int32_t item = cut_item[0], at = cut_item_at[0]; // the item's first unit
    const float scale = query_scale(a);

    for (;; item++) {
        __syncthreads(); // nobody uses the last tile's shared memory any more
        if (tid == 0) {
            const int32_t head = item / s.tiles, weight = item_weight<ROWS, KEYS>(a, group, s.tiles, item);
            pc.row0       = item % s.tiles * ROWS;
            pc.n          = a.pages.n[head];
            pc.stream     = head / a.pages.n_head_kv;
            pc.first_head = head % a.pages.n_head_kv * group;
            pc.u0         = max(0, cut_unit[0] - at);
            pc.u1         = min(weight, cut_unit[1] - at);
            pc.weight     = weight;
        }
        __syncthreads();
        const int32_t b1 = pc.u1 == pc.weight ? (pc.n + KEYS - 1) / KEYS : min(pc.u1, (pc.n + KEYS - 1) / KEYS);
        int32_t pos_lo = INT32_MAX - 1, pos_hi = INT32_MAX - 1;
        if (a.causal) {
            const int32_t row0 = pc.row0, t0 = row0 / group, t1 = min(a.n_tokens, (row0 + ROWS - 1) / group + 1);
            const int32_t * pos = a.query_pos + pc.stream * a.n_tokens;
            for (int r = tid; r < ROWS; r += THREADS) {
                row_pos[r] = pos[min(a.n_tokens - 1, (row0 + r) / group)];
            }
            int32_t lo = INT32_MAX, hi = INT32_MIN;
            for (int32_t i = t0 + lane; i < t1; i += 32) {
                lo = min(lo, pos[i]);
                hi = max(hi, pos[i]);
            }
            __syncwarp();
            pos_lo = __reduce_min_sync(~0u, lo);
            pos_hi = __reduce_max_sync(~0u, hi);
        } else {
            for (int r = tid; r < ROWS; r += THREADS) {
                row_pos[r] = INT32_MAX - 1;
            }
        }
        const bool active = pc.row0 + warp * 16 < rows;

        {
            const int32_t row0 = pc.row0;
            const char * q = a.q + pc.first_head * a.q_head_bytes + pc.stream * a.q_stream_bytes;
            #pragma unroll 16
            for (int x = tid; x < ROWS * D / 4; x += THREADS) {
                const int r = x / (D / 4), c = x % (D / 4), row = row0 + r;
                float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (row < rows) {
                    y = __ldg((const float4 *) (q + row / group * a.q_token_bytes + row % group * a.q_head_bytes + c * 16));
                }
                *(uint2 *) (q_tile + r * S::Q_ROW + c * 8) = make_uint2(pack(y.x * scale, y.y * scale), pack(y.z * scale, y.w * scale));
            }
        }

        // up to head dim 128 there are registers for the queries
        constexpr bool HELD = D <= 128;
        const uint32_t q_from = shared_address(q_tile) + (warp * 16 + (lane & 15)) * S::Q_ROW + (lane >> 4) * 16;
        uint32_t held[HELD ? D / 16 : 1][4];
        if constexpr (HELD) {
            __syncthreads();
            #pragma unroll
            for (int k = 0; k < D / 16; k++) {
                load_fragments(held[k], q_from + k * 32);
            }
        }

        float o[DB][4], row_max[2], row_sum[2];
        row_max[0] = row_max[1] = no_score;
        row_sum[0] = row_sum[1] = 0.0f;
        #pragma unroll
        for (int i = 0; i < DB; i++) {
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
        }

        const auto copy_k = [&](int32_t entry) {
            const int32_t slot = list_slot[entry] >> 1, half = slot % PAGE_SLOTS / KEYS;
            const char * page = a.pages.pool + (size_t) list_page[entry] * f.bytes;
            const uint32_t to = shared_address(k_at(entry));
            if (!raw_k) {
                const char * from = page + half * (KEYS * D * 2) + tid * 16;
                #pragma unroll
                for (int i = 0; i < (KEYS * DB + THREADS - 1) / THREADS; i++) {
                    const int x = tid + i * THREADS;
                    if (KEYS * DB % THREADS == 0 || x < KEYS * DB) {
                        copy_16(to + x / DB * S::K_ROW + x % DB * 16, from + i * (THREADS * 16));
                    }
                }
            } else {
                const char * from = page + half * S::K_RAW;
                for (int x = tid; x < S::K_RAW / 16; x += THREADS) {
                    copy_16(to + x * 16, from + x * 16);
                }
                if (tid < S::SCALES / 16) {
                    copy_16(to + S::K_RAW + tid * 16, page + f.k_scale + half * S::SCALES + tid * 16);
                }
            }
            if (tid < KEYS / 2) {
                const int x = tid % (KEYS / 4);
                const uint32_t section = tid < KEYS / 4 ? f.cell : f.pos;
                copy_16(shared_address(tid < KEYS / 4 ? key_cell[entry & 1] : key_pos[entry & 1]) + x * 16, page + section + half * KEYS * 4 + x * 16);
            }
        };
        const auto copy_v = [&](int32_t entry) {
            const int32_t slot = list_slot[entry] >> 1, half = slot % PAGE_SLOTS / KEYS;
            const char * page = a.pages.pool + (size_t) list_page[entry] * f.bytes;
            const uint32_t to = shared_address(v_at(entry));
            if (!raw_v) {
                const char * from = page + f.v + half * (KEYS * D * 2) + tid * 16;
                #pragma unroll
                for (int i = 0; i < (KEYS * DB + THREADS - 1) / THREADS; i++) {
                    const int x = tid + i * THREADS;
                    if (KEYS * DB % THREADS == 0 || x < KEYS * DB) {
                        copy_16(to + x / 4 % D * S::V_ROW + x / (4 * D) * 64 + x % 4 * 16, from + i * (THREADS * 16));
                    }
                }
            } else {
                const char * from = page + f.v + half * S::K_RAW;
                for (int x = tid; x < S::K_RAW / 16; x += THREADS) {
                    copy_16(to + x * 16, from + x * 16);
                }
                if (tid < S::SCALES / 16) {
                    copy_16(to + S::K_RAW + tid * 16, page + f.v_scale + half * S::SCALES + tid * 16);
                }
            }
        };

        for (int32_t b0 = pc.u0; b0 < b1; b0 += PREFILL_LIST) {
            // the blocks of which anything is seen
            const int32_t n_look = min(PREFILL_LIST, b1 - b0);
            __syncthreads();
            if (tid < PREFILL_LIST / 32) {
                hits[tid] = 0;
            }
            for (int x = tid; x < n_look; x += THREADS) {
                list_page[x] = a.pages.table[(size_t) (pc.stream * a.pages.n_head_kv + pc.first_head / group) * a.pages.table_stride + (b0 + x) * KEYS / PAGE_SLOTS];
            }
            __syncthreads();
            constexpr int BATCH = 4; // loads are under way together
            for (int32_t i0 = warp * BATCH; i0 < n_look; i0 += THREADS / 32 * BATCH) {
                int32_t lo[BATCH], hi[BATCH];
                #pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    lo[k] = INT32_MAX;
                    hi[k] = INT32_MIN;
                    if ((a.causal || a.mask.data) && i0 + k < n_look) {
                        const int32_t slot = (b0 + i0 + k) * KEYS;
                        const int32_t * labels = (const int32_t *) (a.pages.pool + (size_t) list_page[i0 + k] * f.bytes + (a.causal ? f.pos : f.cell)) + slot % PAGE_SLOTS;
                        #pragma unroll
                        for (int c = 0; c < KEYS; c += 32) {
                            const int32_t x = labels[c + lane]; // behind the last slot, too: a page is always whole
                            lo[k] = slot + c + lane < pc.n ? min(lo[k], x) : lo[k];
                            hi[k] = slot + c + lane < pc.n ? max(hi[k], x) : hi[k];
                        }
                    }
                }
                #pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    const int32_t i = i0 + k, slot = (b0 + i) * KEYS;
                    if (i >= n_look) {
                        break;
                    }
                    bool seen = true, mixed = pc.n - slot < KEYS;
                    const int32_t first = __reduce_min_sync(~0u, lo[k]), last = __reduce_max_sync(~0u, hi[k]);
                    if (a.causal) {
                        seen = first <= pos_hi;
                        mixed |= last > pos_lo;
                    } else if (a.mask.data) {
                        const uint32_t view = view_by_warp(a, pc.stream, pc.first_head, group, pc.row0 / group, min(a.n_tokens, (pc.row0 + ROWS - 1) / group + 1), first, last, lane);
                        seen = view != VIEW_HIDDEN;
                        mixed |= view != VIEW_OPEN;
                    }
                    if (lane == 0) {
                        list_slot[i] = slot << 1 | (mixed ? LIST_MIXED : 0);
                        if (seen) {
                            atomicOr(&hits[i / 32], 1u << i % 32);
                        }
                    }
                }
            }
            __syncthreads();
            // close the gaps: entries only move down, and every one is read before any is written
            int32_t n_list = 0, to[PREFILL_LIST / THREADS], page[PREFILL_LIST / THREADS], slot[PREFILL_LIST / THREADS];
            #pragma unroll
            for (int c = 0; c < PREFILL_LIST / THREADS; c++) {
                const int i = c * THREADS + tid;
                int32_t below = 0;
                for (int w = 0; w < i / 32; w++) {
                    below += __popc(hits[w]);
                }
                const bool hit = hits[i / 32] >> i % 32 & 1;
                to[c]   = hit ? below + __popc(hits[i / 32] & ((1u << i % 32) - 1)) : -1;
                page[c] = list_page[i];
                slot[c] = list_slot[i];
            }
            for (int w = 0; w < PREFILL_LIST / 32; w++) {
                n_list += __popc(hits[w]);
            }
            __syncthreads();
            #pragma unroll
            for (int c = 0; c < PREFILL_LIST / THREADS; c++) {
                if (to[c] >= 0) {
                    list_page[to[c]] = page[c];
                    list_slot[to[c]] = slot[c];
                }
            }
            __syncthreads();

            // Every step leaves two groups of copies, K's and V's. One stage: V of this block is brought in while scores are
            // computed, K of the next after them. Two: both of the next block, a whole step ahead.
            if (n_list) {
                copy_k(0);
                copy_commit();
                if (p.stages == 2) {
                    copy_v(0);
                    copy_commit();
                }
            }
            for (int32_t i = 0; i < n_list; i++) {
                if (p.stages == 2) {
                    copy_wait<1>();
                } else {
                    copy_wait<0>();
                }
                __syncthreads(); // K has come; nobody reads the last V any more, nor, with two stages, the last K
                if (p.stages == 2) {
                    if (i + 1 < n_list) {
                        copy_k(i + 1);
                    }
                    copy_commit();
                    if (i + 1 < n_list) {
                        copy_v(i + 1);
                    }
                    copy_commit();
                } else {
                    copy_v(i);
                    copy_commit();
                }
                char * const k_tile = raw_k ? k_tile0 : k_at(i), * const v_tile = raw_v ? v_tile0 : v_at(i);
                if constexpr (D % Q8_BLOCK == 0) {
                    if (raw_k) {
                        for (int x = tid; x < KEYS * DB; x += THREADS) {
                            const int r = x / DB, c = x % DB;
                            const char * k_raw = k_at(i);
                            const __half d = *(const __half *) (k_raw + S::K_RAW + r * (D / Q8_BLOCK * 2) + c / 4 * 2);
                            *(uint4 *) (k_tile + r * S::K_ROW + c * 16) = unpack_8(*(const uint2 *) (k_raw + x * 8), __half2half2(d));
                        }
                        __syncthreads();
                    }
                }

                float sc[NB][4];
                if (active) {
                    #pragma unroll
                    for (int j = 0; j < NB; j++) {
                        sc[j][0] = sc[j][1] = sc[j][2] = sc[j][3] = 0.0f;
                    }
                    const uint32_t k_from = shared_address(k_tile) + ((lane & 7) + (lane >> 4) * 8) * S::K_ROW + (lane >> 3 & 1) * 16;
                    // what is multiplied next is loaded first
                    uint32_t kf[2][NB / 2][4];
                    #pragma unroll
                    for (int j = 0; j < NB / 2; j++) {
                        load_fragments(kf[0][j], k_from + j * (16 * S::K_ROW));
                    }
                    #pragma unroll
                    for (int k = 0; k < D / 16; k++) {
                        uint32_t qf[4];
                        if constexpr (HELD) {
                            qf[0] = held[k][0], qf[1] = held[k][1], qf[2] = held[k][2], qf[3] = held[k][3];
                        } else {
                            load_fragments(qf, q_from + k * 32);
                        }
                        if (k + 1 < D / 16) {
                            #pragma unroll
                            for (int j = 0; j < NB / 2; j++) {
                                load_fragments(kf[(k + 1) & 1][j], k_from + j * (16 * S::K_ROW) + (k + 1) * 32);
                            }
                        }
                        #pragma unroll
                        for (int j = 0; j < NB; j++) {
                            multiply(sc[j], qf, kf[k & 1][j / 2][j % 2 * 2], kf[k & 1][j / 2][j % 2 * 2 + 1]);
                        }
                    }
                }

                if (p.stages == 2) {
                    copy_wait<2>();
                } else {
                    copy_wait<0>();
                }
                __syncthreads(); // V has come; nobody reads this K any more
                if (p.stages == 1) {
                    if (i + 1 < n_list) {
                        copy_k(i + 1);
                    }
                    copy_commit();
                }
                if constexpr (D % Q8_BLOCK == 0) {
                    if (raw_v) {
                        const char * v_raw = v_at(i);
                        for (int x = tid; x < KEYS * DB / 4; x += THREADS) { // 8 slots of 4 rows of V^T
                            const int c = x % (KEYS / 8), d0 = x / (KEYS / 8) * 4;
                            __half2 d[4];
                            #pragma unroll
                            for (int j = 0; j < 4; j++) {
                                const __half * from = (const __half *) (v_raw + S::K_RAW) + (c * 8 + j * 2) * (D / Q8_BLOCK) + d0 / Q8_BLOCK;
                                d[j] = __halves2half2(from[0], from[D / Q8_BLOCK]);
                            }
                            #pragma unroll
                            for (int r = 0; r < 4; r++) {
                                const uint2 q = *(const uint2 *) (v_raw + c / 4 * (D * 32) + (d0 + r) * 32 + c % 4 * 8);
                                const uint4 one = unpack_8(q, __float2half2_rn(1.0f));
                                *(uint4 *) (v_tile + (d0 + r) * S::V_ROW + c * 16) =
                                    make_uint4(bits_of(__hmul2(half2_of(one.x), d[0])), bits_of(__hmul2(half2_of(one.y), d[1])),
                                               bits_of(__hmul2(half2_of(one.z), d[2])), bits_of(__hmul2(half2_of(one.w), d[3])));
                            }
                        }
                        __syncthreads();
                    }
                }
                if (!active) {
                    continue;
                }

                if (a.softcap != 0.0f) {
                    #pragma unroll
                    for (int j = 0; j < NB; j++) {
                        #pragma unroll
                        for (int e = 0; e < 4; e++) {
                            sc[j][e] = softcapped(sc[j][e], a.softcap);
                        }
                    }
                }
                if (list_slot[i] & LIST_MIXED) {
                    const int32_t left = pc.n - (list_slot[i] >> 1);
                    if (a.causal || !a.mask.data) {
                        #pragma unroll
                        for (int j = 0; j < NB; j++) {
                            const int c = j * 8 + t * 2;
                            int2 key = *(const int2 *) &key_pos[i & 1][c];
                            key.x = c < left ? key.x : INT32_MAX;
                            key.y = c + 1 < left ? key.y : INT32_MAX;
                            #pragma unroll
                            for (int h = 0; h < 2; h++) {
                                const int32_t query = row_pos[warp * 16 + h * 8 + g];
                                sc[j][h * 2]     = key.x > query ? -INFINITY : sc[j][h * 2];
                                sc[j][h * 2 + 1] = key.y > query ? -INFINITY : sc[j][h * 2 + 1];
                            }
                        }
                    } else {
                        #pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const int row = min(pc.row0 + warp * 16 + h * 8 + g, rows - 1);
                            const __half * mask = mask_row(a.mask, pc.stream, pc.first_head + row % group, row / group);
                            const float slope = mask_slope(a, pc.first_head + row % group);
                            #pragma unroll
                            for (int j = 0; j < NB; j++) {
                                const int c = j * 8 + t * 2;
                                const int2 cell = *(const int2 *) &key_cell[i & 1][c];
                                float & x = sc[j][h * 2], & y = sc[j][h * 2 + 1];
                                x = c < left && cell.x < a.mask.n_kv ? x + slope * __half2float(mask[cell.x]) : -INFINITY;
                                y = c + 1 < left && cell.y < a.mask.n_kv ? y + slope * __half2float(mask[cell.y]) : -INFINITY;
                            }
                        }
                        __syncwarp(); // lanes may have parted
                    }
                }

                float top[2];
                bool rises = false;
                #pragma unroll
                for (int h = 0; h < 2; h++) {
                    float x = fmaxf(sc[0][h * 2], sc[0][h * 2 + 1]);
                    #pragma unroll
                    for (int j = 1; j < NB; j++) {
                        x = fmaxf(x, fmaxf(sc[j][h * 2], sc[j][h * 2 + 1]));
                    }
                    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
                    x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
                    top[h] = x;
                    rises |= x > row_max[h] + rescale_at;
                }
                if (__any_sync(~0u, rises)) {
                    #pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const float x = fmaxf(row_max[h], top[h]), y = exp2_fast(row_max[h] - x);
                        row_max[h] = x;
                        row_sum[h] *= y;
                        #pragma unroll
                        for (int j = 0; j < DB; j++) {
                            o[j][h * 2] *= y;
                            o[j][h * 2 + 1] *= y;
                        }
                    }
                }

                const uint32_t v_from = shared_address(v_tile) + ((lane & 7) + (lane >> 4) * 8) * S::V_ROW + (lane >> 3 & 1) * 16;
                #pragma unroll
                for (int k = 0; k < KEYS / 16; k++) {
                    uint32_t pf[4];
                    #pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float (&x)[4] = sc[2 * k + j];
                        x[0] = exp2_fast(x[0] - row_max[0]);
                        x[1] = exp2_fast(x[1] - row_max[0]);
                        x[2] = exp2_fast(x[2] - row_max[1]);
                        x[3] = exp2_fast(x[3] - row_max[1]);
                        row_sum[0] += x[0] + x[1];
                        row_sum[1] += x[2] + x[3];
                        pf[2 * j]     = pack(x[0], x[1]);
                        pf[2 * j + 1] = pack(x[2], x[3]);
                    }
                    #pragma unroll
                    for (int j = 0; j < DB; j += 2) {
                        uint32_t vf[4];
                        load_fragments(vf, v_from + j * (8 * S::V_ROW) + k * 32);
                        multiply(o[j], pf, vf[0], vf[1]);
                        multiply(o[j + 1], pf, vf[2], vf[3]);
                    }
                }
            }
        }

        #pragma unroll
        for (int h = 0; h < 2; h++) {
            row_sum[h] += __shfl_xor_sync(~0u, row_sum[h], 1);
            row_sum[h] += __shfl_xor_sync(~0u, row_sum[h], 2);
        }
        const int32_t row0 = pc.row0, first_head = pc.first_head;
        const bool has_first = pc.u0 == 0, has_last = pc.u1 == pc.weight;
        float * const mine = p.partial + ((size_t) blockIdx.x * 2 + (has_first ? 1 : 0)) * S::PARTIAL;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = warp * 16 + h * 8 + g;
            if (row0 + r >= rows) {
                continue;
            }
            if (has_first && has_last) {
                const float y = to_row_scale(a.sinks, first_head + (row0 + r) % group, row_max[h], row_sum[h]);
                #pragma unroll
                for (int j = 0; j < DB; j++) {
                    *(float2 *) (output_row(p, pc, row0 + r, group) + j * 8 + t * 2) = make_float2(o[j][h * 2] * y, o[j][h * 2 + 1] * y);
                }
                if (p.lse && t == 0) {
                    write_lse(p, pc, row0 + r, group, row_max[h], row_sum[h]);
                }
            } else {
                #pragma unroll
                for (int j = 0; j < DB; j++) {
                    *(float2 *) (mine + r * D + j * 8 + t * 2) = make_float2(o[j][h * 2], o[j][h * 2 + 1]);
                }
                if (t == 0) {
                    *(float2 *) (mine + ROWS * D + r * 2) = make_float2(row_max[h], row_sum[h]);
                }
            }
        }
        if (!has_first || !has_last) {
            const int2 cuts = inner_cuts<KEYS>(s, at, pc.weight);
            const int32_t first = cuts.x - 1, last = cuts.y;
            __threadfence();
            __syncthreads();
            if (tid == 0) {
                flag = atomicAdd(p.arrived + item, 1) == last - first;
            }
            __syncthreads();
            if (flag) {
                __threadfence();
                const int n_merge = min(ROWS, rows - row0) * (D / 4);
                if (n_merge > 2 * THREADS) {
                    merge<D, ROWS, 4, 2>(p, pc, group, n_merge, first, last);
                } else {
                    merge<D, ROWS, 1, 8>(p, pc, group, n_merge, first, last);
                }
                if (tid == 0) {
                    p.arrived[item] = 0;
                }
            }
        }
        at += pc.weight;
        if (at >= cut_unit[1]) {
            return;
        }
    }
}

} // namespace
} // namespace kvasir::cuda

#define KVASIR_PREFILL(D, ROWS, CTAS) \
    extern "C" __global__ void __launch_bounds__(ROWS * 2, CTAS) prefill_##D##_##ROWS(const __grid_constant__ kvasir::cuda::prefill_params p) { \
        kvasir::cuda::run<D, ROWS / 16>(p); \
    }

KVASIR_PREFILL(64, 128, 1)
KVASIR_PREFILL(80, 128, 1)
KVASIR_PREFILL(96, 128, 1)
KVASIR_PREFILL(128, 128, 1)
KVASIR_PREFILL(64, 64, 2)
KVASIR_PREFILL(80, 64, 2)
KVASIR_PREFILL(96, 64, 2)
KVASIR_PREFILL(128, 64, 2)
KVASIR_PREFILL(256, 64, 2)

// what each block of 16 tokens sees of each block of 64 cells: a warp each
extern "C" __global__ void __launch_bounds__(128) mask_views(const __grid_constant__ kvasir::cuda::mask_views_params p) {
    using namespace kvasir::cuda;
    const int32_t lane = threadIdx.x & 31, cell_blocks = (p.mask.n_kv + VIEW_CELLS - 1) / VIEW_CELLS, token_blocks = (p.n_tokens + VIEW_TOKENS - 1) / VIEW_TOKENS;
    const int32_t block = blockIdx.x * 4 + threadIdx.x / 32, plane = blockIdx.y / token_blocks, tokens = blockIdx.y % token_blocks;
    if (block >= cell_blocks) {
        return;
    }
    uint32_t bits = 0;
    #pragma unroll 4
    for (int32_t token = tokens * VIEW_TOKENS; token < min(p.n_tokens, (tokens + 1) * VIEW_TOKENS); token++) {
        const uint16_t * row = (const uint16_t *) mask_row(p.mask, plane / p.mask.n_head, plane % p.mask.n_head, token);
        for (int32_t c = block * VIEW_CELLS + lane; c < min(p.mask.n_kv, (block + 1) * VIEW_CELLS); c += 32) {
            const uint32_t x = row[c];
            bits |= x == 0xfc00 ? VIEW_HIDDEN : (x & 0x7fff) == 0 ? VIEW_OPEN : VIEW_BIASED;
        }
    }
    __syncwarp();
    bits = __reduce_or_sync(~0u, bits);
    if (lane == 0) {
        p.views[(size_t) blockIdx.y * cell_blocks + block] = (uint8_t) bits;
    }
}
