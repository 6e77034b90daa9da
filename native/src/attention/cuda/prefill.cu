#include "tile.cuh"

namespace kvasir::cuda {
namespace {

constexpr float no_score   = -1e30f; // the running maximum before the first score: finite, so that -inf - no_score is -inf
constexpr float rescale_at = 8.0f;   // the running maximum may lag by this much: weights stay below 2^8 and rescaling is rare

constexpr uint32_t LIST_MIXED = 1; // beside the slot in an entry of the list

// ---- how the work is cut ----

// One item per tile; its weight is the number of key blocks it is expected to look at.
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

// the CTA that does unit x of the work: the last whose first unit is <= x
__device__ __forceinline__ int32_t cta_of(const schedule & s, int32_t x) { return (int32_t) (((int64_t) (x + 1) * s.ctas - 1) / s.total); }
__device__ __forceinline__ int32_t first_unit(const schedule & s, int32_t cta) { return (int32_t) ((int64_t) cta * s.total / s.ctas); }

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

// ---- the kernel ----

template <int D, int WM> struct shape {
    static constexpr int ROWS = 64 * WM, KEYS = key_block(D);
    static constexpr int Q_ROW = D * 2 + 16, K_ROW = D * 2 + 16, V_ROW = KEYS * 2 + 16; // bytes in shared memory: 16 more than a multiple of 32
    static constexpr int K_RAW = KEYS * D, SCALES = KEYS * (D / Q8_BLOCK) * 2;
    static constexpr int PARTIAL = ROWS * (D + 2); // floats
};

template <int D, int WM> __device__ __forceinline__ void run(const prefill_params & p) {
    using S = shape<D, WM>;
    constexpr int ROWS = S::ROWS, KEYS = S::KEYS, NB = KEYS / 8, DB = D / 8;
    const attention_params & a = p.a;
    const page_format & f = a.pages.format;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int32_t group = a.n_head / a.pages.n_head_kv, rows = a.n_tokens * group;
    const bool raw_k = D % Q8_BLOCK == 0 && f.type_k == Q8_0, raw_v = D % Q8_BLOCK == 0 && f.type_v == Q8_0;

    extern __shared__ __align__(128) char shared[];
    __shared__ int32_t list_page[PREFILL_LIST], list_slot[PREFILL_LIST];
    __shared__ __align__(16) int32_t key_cell[2][KEYS], key_pos[2][KEYS];
    __shared__ int32_t row_pos[ROWS];
    __shared__ int32_t scan[PREFILL_THREADS / 32], start_item, start_unit, flag;
    __shared__ schedule s;
    __shared__ piece pc;
    __shared__ uint32_t hits[PREFILL_LIST / 32];

    char * const q_tile = shared, * const k_tile = q_tile + ROWS * S::Q_ROW, * const v_tile = k_tile + KEYS * S::K_ROW;
    char * const k_raw = v_tile + D * S::V_ROW, * const k_scale = k_raw + S::K_RAW, * const v_raw = k_scale + S::SCALES, * const v_scale = v_raw + S::K_RAW;

    // where this CTA starts
    {
        const int32_t tiles = (rows + ROWS - 1) / ROWS, items = tiles * a.n_stream * a.pages.n_head_kv, per_thread = (items + PREFILL_THREADS - 1) / PREFILL_THREADS;
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
        for (int w = 0; w < PREFILL_THREADS / 32; w++) {
            to += w < warp ? scan[w] : 0;
            total += scan[w];
        }
        // no piece without a block, and no more than about 16 pieces a tile
        const int32_t ctas = min((int32_t) gridDim.x, min(total, items * 16));
        if ((int32_t) blockIdx.x >= ctas) {
            return;
        }
        const schedule cut{tiles, items, total, ctas};
        const int32_t unit = first_unit(cut, blockIdx.x);
        if (unit >= to - own && unit < to) {
            int32_t at = to - own, i = i0;
            for (int32_t w; at + (w = item_weight<ROWS, KEYS>(a, group, tiles, i)) <= unit; i++) {
                at += w;
            }
            start_item = i;
            start_unit = at;
        }
        if (tid == 0) {
            s = cut;
        }
        __syncthreads();
    }
    int32_t item = start_item, at = start_unit; // the item's first unit
    const float scale = query_scale(a);

    for (;; item++) {
        __syncthreads(); // nobody uses the last tile's shared memory any more
        if (tid == 0) {
            const int32_t head = item / s.tiles, weight = item_weight<ROWS, KEYS>(a, group, s.tiles, item);
            pc.row0       = item % s.tiles * ROWS;
            pc.n          = a.pages.n[head];
            pc.stream     = head / a.pages.n_head_kv;
            pc.first_head = head % a.pages.n_head_kv * group;
            pc.u0         = max(0, first_unit(s, blockIdx.x) - at);
            pc.u1         = min(weight, first_unit(s, blockIdx.x + 1) - at);
            pc.weight     = weight;
        }
        __syncthreads();
        const int32_t b1 = pc.u1 == pc.weight ? (pc.n + KEYS - 1) / KEYS : min(pc.u1, (pc.n + KEYS - 1) / KEYS);
        int32_t pos_lo = INT32_MAX - 1, pos_hi = INT32_MAX - 1;
        {
        const int32_t row0 = pc.row0, stream = pc.stream, first_head = pc.first_head;
        for (int i = tid; i < ROWS * D / 4; i += PREFILL_THREADS) {
            const int r = i / (D / 4), c = i % (D / 4), row = row0 + r;
            uint2 h = make_uint2(0, 0);
            if (row < rows) {
                const float4 x = *(const float4 *) (a.q + row / group * a.q_token_bytes + (first_head + row % group) * a.q_head_bytes + stream * a.q_stream_bytes + c * 16);
                h = make_uint2(pack(x.x * scale, x.y * scale), pack(x.z * scale, x.w * scale));
            }
            *(uint2 *) (q_tile + r * S::Q_ROW + c * 8) = h;
        }
        if (a.causal) {
            const int32_t t0 = row0 / group, t1 = min(a.n_tokens, (row0 + ROWS - 1) / group + 1);
            const int32_t * pos = a.query_pos + stream * a.n_tokens;
            for (int r = tid; r < ROWS; r += PREFILL_THREADS) {
                row_pos[r] = pos[min(a.n_tokens - 1, (row0 + r) / group)];
            }
            int32_t lo = INT32_MAX, hi = INT32_MIN;
            for (int32_t i = t0 + lane; i < t1; i += 32) {
                lo = min(lo, pos[i]);
                hi = max(hi, pos[i]);
            }
            pos_lo = __reduce_min_sync(~0u, lo);
            pos_hi = __reduce_max_sync(~0u, hi);
        } else {
            for (int r = tid; r < ROWS; r += PREFILL_THREADS) {
                row_pos[r] = INT32_MAX - 1;
            }
        }
        }
        const bool active = pc.row0 + warp * 16 * WM < rows;

        float o[WM][DB][4], row_max[WM][2], row_sum[WM][2];
        #pragma unroll
        for (int m = 0; m < WM; m++) {
            row_max[m][0] = row_max[m][1] = no_score;
            row_sum[m][0] = row_sum[m][1] = 0.0f;
            #pragma unroll
            for (int i = 0; i < DB; i++) {
                o[m][i][0] = o[m][i][1] = o[m][i][2] = o[m][i][3] = 0.0f;
            }
        }

        const auto copy_k = [&](int32_t entry) {
            const int32_t slot = list_slot[entry] >> 1, half = slot % PAGE_SLOTS / KEYS;
            const char * page = a.pages.pool + (size_t) list_page[entry] * f.bytes;
            if (!raw_k) {
                const char * from = page + half * (KEYS * D * 2) + tid * 16;
                #pragma unroll
                for (int i = 0; i < KEYS * DB / PREFILL_THREADS; i++) {
                    const int x = tid + i * PREFILL_THREADS;
                    copy_16(shared_address(k_tile) + x / DB * S::K_ROW + x % DB * 16, from + i * (PREFILL_THREADS * 16));
                }
            } else {
                const char * from = page + half * S::K_RAW;
                for (int x = tid; x < S::K_RAW / 16; x += PREFILL_THREADS) {
                    copy_16(shared_address(k_raw) + x * 16, from + x * 16);
                }
                if (tid < S::SCALES / 16) {
                    copy_16(shared_address(k_scale) + tid * 16, page + f.k_scale + half * S::SCALES + tid * 16);
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
            if (!raw_v) {
                const char * from = page + f.v + half * (KEYS * D * 2) + tid * 16;
                #pragma unroll
                for (int i = 0; i < KEYS * DB / PREFILL_THREADS; i++) {
                    const int x = tid + i * PREFILL_THREADS;
                    copy_16(shared_address(v_tile) + x / 4 % D * S::V_ROW + x / (4 * D) * 64 + x % 4 * 16, from + i * (PREFILL_THREADS * 16));
                }
            } else {
                const char * from = page + f.v + half * S::K_RAW;
                for (int x = tid; x < S::K_RAW / 16; x += PREFILL_THREADS) {
                    copy_16(shared_address(v_raw) + x * 16, from + x * 16);
                }
                if (tid < S::SCALES / 16) {
                    copy_16(shared_address(v_scale) + tid * 16, page + f.v_scale + half * S::SCALES + tid * 16);
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
            __syncthreads();
            for (int32_t i = warp; i < n_look; i += PREFILL_THREADS / 32) {
                const int32_t slot = (b0 + i) * KEYS, left = pc.n - slot;
                const int32_t page = a.pages.table[(size_t) (pc.stream * a.pages.n_head_kv + pc.first_head / group) * a.pages.table_stride + slot / PAGE_SLOTS];
                bool seen = true, mixed = left < KEYS;
                if (a.causal || a.mask.data) {
                    const int32_t * labels = (const int32_t *) (a.pages.pool + (size_t) page * f.bytes + (a.causal ? f.pos : f.cell)) + slot % PAGE_SLOTS;
                    int32_t lo = INT32_MAX, hi = INT32_MIN;
                    #pragma unroll
                    for (int c = 0; c < KEYS; c += 32) {
                        if (c + lane < left) {
                            const int32_t x = labels[c + lane];
                            lo = min(lo, x);
                            hi = max(hi, x);
                        }
                    }
                    lo = __reduce_min_sync(~0u, lo);
                    hi = __reduce_max_sync(~0u, hi);
                    if (a.causal) {
                        seen = lo <= pos_hi;
                        mixed |= hi > pos_lo;
                    } else {
                        const uint32_t view = view_of(a, pc.stream, pc.first_head, group, pc.row0 / group, min(a.n_tokens, (pc.row0 + ROWS - 1) / group + 1), lo, hi, lane);
                        seen = view != VIEW_HIDDEN;
                        mixed |= view != VIEW_OPEN;
                    }
                }
                if (lane == 0) {
                    list_page[i] = page;
                    list_slot[i] = slot << 1 | (mixed ? LIST_MIXED : 0);
                    if (seen) {
                        atomicOr(&hits[i / 32], 1u << i % 32);
                    }
                }
            }
            __syncthreads();
            // close the gaps: entries only move down, and every one is read before any is written
            int32_t n_list = 0, to[PREFILL_LIST / PREFILL_THREADS], page[PREFILL_LIST / PREFILL_THREADS], slot[PREFILL_LIST / PREFILL_THREADS];
            #pragma unroll
            for (int c = 0; c < PREFILL_LIST / PREFILL_THREADS; c++) {
                const int i = c * PREFILL_THREADS + tid;
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
            for (int c = 0; c < PREFILL_LIST / PREFILL_THREADS; c++) {
                if (to[c] >= 0) {
                    list_page[to[c]] = page[c];
                    list_slot[to[c]] = slot[c];
                }
            }
            __syncthreads();

            if (n_list) {
                copy_k(0);
            }
            copy_commit();
            for (int32_t i = 0; i < n_list; i++) {
                copy_wait<0>();
                __syncthreads(); // K has come; nobody reads the last V any more
                copy_v(i);
                copy_commit();
                if constexpr (D % Q8_BLOCK == 0) {
                    if (raw_k) {
                        for (int x = tid; x < KEYS * DB; x += PREFILL_THREADS) {
                            const int r = x / DB, c = x % DB;
                            const __half d = *(const __half *) (k_scale + r * (D / Q8_BLOCK * 2) + c / 4 * 2);
                            *(uint4 *) (k_tile + r * S::K_ROW + c * 16) = unpack_8(*(const uint2 *) (k_raw + x * 8), __half2half2(d));
                        }
                        __syncthreads();
                    }
                }

                float sc[WM][NB][4];
                if (active) {
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int j = 0; j < NB; j++) {
                            sc[m][j][0] = sc[m][j][1] = sc[m][j][2] = sc[m][j][3] = 0.0f;
                        }
                    }
                    const uint32_t q_from = shared_address(q_tile) + (warp * 16 * WM + (lane & 15)) * S::Q_ROW + (lane >> 4) * 16;
                    const uint32_t k_from = shared_address(k_tile) + ((lane & 7) + (lane >> 4) * 8) * S::K_ROW + (lane >> 3 & 1) * 16;
                    #pragma unroll
                    for (int k = 0; k < D / 16; k++) {
                        uint32_t qf[WM][4];
                        #pragma unroll
                        for (int m = 0; m < WM; m++) {
                            load_fragments(qf[m], q_from + m * (16 * S::Q_ROW) + k * 32);
                        }
                        #pragma unroll
                        for (int j = 0; j < NB; j += 2) {
                            uint32_t kf[4];
                            load_fragments(kf, k_from + j * (8 * S::K_ROW) + k * 32);
                            #pragma unroll
                            for (int m = 0; m < WM; m++) {
                                multiply(sc[m][j], qf[m], kf[0], kf[1]);
                                multiply(sc[m][j + 1], qf[m], kf[2], kf[3]);
                            }
                        }
                    }
                }

                copy_wait<0>();
                __syncthreads(); // V has come; nobody reads this K any more
                if (i + 1 < n_list) {
                    copy_k(i + 1);
                }
                copy_commit();
                if constexpr (D % Q8_BLOCK == 0) {
                    if (raw_v) {
                        for (int x = tid; x < KEYS * DB / 4; x += PREFILL_THREADS) { // 8 slots of 4 rows of V^T
                            const int c = x % (KEYS / 8), d0 = x / (KEYS / 8) * 4;
                            __half2 d[4];
                            #pragma unroll
                            for (int j = 0; j < 4; j++) {
                                const __half * from = (const __half *) v_scale + (c * 8 + j * 2) * (D / Q8_BLOCK) + d0 / Q8_BLOCK;
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
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int j = 0; j < NB; j++) {
                            #pragma unroll
                            for (int e = 0; e < 4; e++) {
                                sc[m][j][e] = softcapped(sc[m][j][e], a.softcap);
                            }
                        }
                    }
                }
                if (list_slot[i] & LIST_MIXED) {
                    const int32_t left = pc.n - (list_slot[i] >> 1), row0 = pc.row0, stream = pc.stream, first_head = pc.first_head;
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const int r = warp * 16 * WM + m * 16 + h * 8 + g, row = min(row0 + r, rows - 1);
                            const int32_t query = row_pos[r];
                            const __half * mask = nullptr;
                            float slope = 0.0f;
                            if (a.mask.data) {
                                mask  = mask_row(a.mask, stream, first_head + row % group, row / group);
                                slope = mask_slope(a, first_head + row % group);
                            }
                            #pragma unroll
                            for (int j = 0; j < NB; j++) {
                                #pragma unroll
                                for (int e = 0; e < 2; e++) {
                                    const int c = j * 8 + t * 2 + e;
                                    float & x = sc[m][j][h * 2 + e];
                                    if (c >= left || (a.causal && key_pos[i & 1][c] > query)) {
                                        x = -INFINITY;
                                    } else if (mask) {
                                        const int32_t cell = key_cell[i & 1][c];
                                        x = cell < a.mask.n_kv ? x + slope * __half2float(mask[cell]) : -INFINITY;
                                    }
                                }
                            }
                        }
                    }
                }

                float top[WM][2];
                bool rises = false;
                #pragma unroll
                for (int m = 0; m < WM; m++) {
                    #pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float x = fmaxf(sc[m][0][h * 2], sc[m][0][h * 2 + 1]);
                        #pragma unroll
                        for (int j = 1; j < NB; j++) {
                            x = fmaxf(x, fmaxf(sc[m][j][h * 2], sc[m][j][h * 2 + 1]));
                        }
                        x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
                        x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
                        top[m][h] = x;
                        rises |= x > row_max[m][h] + rescale_at;
                    }
                }
                if (__any_sync(~0u, rises)) {
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const float x = fmaxf(row_max[m][h], top[m][h]), y = exp2_fast(row_max[m][h] - x);
                            row_max[m][h] = x;
                            row_sum[m][h] *= y;
                            #pragma unroll
                            for (int j = 0; j < DB; j++) {
                                o[m][j][h * 2] *= y;
                                o[m][j][h * 2 + 1] *= y;
                            }
                        }
                    }
                }

                const uint32_t v_from = shared_address(v_tile) + ((lane & 7) + (lane >> 4) * 8) * S::V_ROW + (lane >> 3 & 1) * 16;
                #pragma unroll
                for (int k = 0; k < KEYS / 16; k++) {
                    uint32_t pf[WM][4];
                    #pragma unroll
                    for (int m = 0; m < WM; m++) {
                        #pragma unroll
                        for (int j = 0; j < 2; j++) {
                            float (&x)[4] = sc[m][2 * k + j];
                            x[0] = exp2_fast(x[0] - row_max[m][0]);
                            x[1] = exp2_fast(x[1] - row_max[m][0]);
                            x[2] = exp2_fast(x[2] - row_max[m][1]);
                            x[3] = exp2_fast(x[3] - row_max[m][1]);
                            row_sum[m][0] += x[0] + x[1];
                            row_sum[m][1] += x[2] + x[3];
                            pf[m][2 * j]     = pack(x[0], x[1]);
                            pf[m][2 * j + 1] = pack(x[2], x[3]);
                        }
                    }
                    #pragma unroll
                    for (int j = 0; j < DB; j += 2) {
                        uint32_t vf[4];
                        load_fragments(vf, v_from + j * (8 * S::V_ROW) + k * 32);
                        #pragma unroll
                        for (int m = 0; m < WM; m++) {
                            multiply(o[m][j], pf[m], vf[0], vf[1]);
                            multiply(o[m][j + 1], pf[m], vf[2], vf[3]);
                        }
                    }
                }
            }
        }

        #pragma unroll
        for (int m = 0; m < WM; m++) {
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                row_sum[m][h] += __shfl_xor_sync(~0u, row_sum[m][h], 1);
                row_sum[m][h] += __shfl_xor_sync(~0u, row_sum[m][h], 2);
            }
        }
        const int32_t row0 = pc.row0, stream = pc.stream, first_head = pc.first_head;
        const bool has_first = pc.u0 == 0, has_last = pc.u1 == pc.weight;
        const auto write = [&](int32_t row, int32_t d, float x, float y) {
            *(float2 *) ((char *) p.out + (first_head + row % group) * p.out_head_bytes + row / group * p.out_token_bytes + stream * p.out_stream_bytes + d * 4) = make_float2(x, y);
        };
        const auto write_lse = [&](int32_t row, float m, float l) {
            p.lse[((size_t) stream * a.n_head + first_head + row % group) * a.n_tokens + row / group] = l > 0.0f ? m + log2f(l) : INFINITY;
        };
        float * const mine = p.partial + ((size_t) blockIdx.x * 2 + (has_first ? 1 : 0)) * S::PARTIAL;
        #pragma unroll
        for (int m = 0; m < WM; m++) {
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = warp * 16 * WM + m * 16 + h * 8 + g;
                if (row0 + r >= rows) {
                    continue;
                }
                if (has_first && has_last) {
                    const float y = to_row_scale(a.sinks, first_head + (row0 + r) % group, row_max[m][h], row_sum[m][h]);
                    #pragma unroll
                    for (int j = 0; j < DB; j++) {
                        write(row0 + r, j * 8 + t * 2, o[m][j][h * 2] * y, o[m][j][h * 2 + 1] * y);
                    }
                    if (p.lse && t == 0) {
                        write_lse(row0 + r, row_max[m][h], row_sum[m][h]);
                    }
                } else {
                    #pragma unroll
                    for (int j = 0; j < DB; j++) {
                        *(float2 *) (mine + r * D + j * 8 + t * 2) = make_float2(o[m][j][h * 2], o[m][j][h * 2 + 1]);
                    }
                    if (t == 0) {
                        *(float2 *) (mine + ROWS * D + r * 2) = make_float2(row_max[m][h], row_sum[m][h]);
                    }
                }
            }
        }
        if (!has_first || !has_last) {
            const int32_t first = cta_of(s, at), last = cta_of(s, at + pc.weight - 1);
            __threadfence();
            __syncthreads();
            if (tid == 0) {
                flag = atomicAdd(p.arrived + item, 1) == last - first;
            }
            __syncthreads();
            if (flag) {
                __threadfence();
                for (int x = tid; x < min(ROWS, rows - row0) * (D / 2); x += PREFILL_THREADS) {
                    const int r = x / (D / 2), d = x % (D / 2) * 2;
                    float m = no_score, l = 0.0f, y0 = 0.0f, y1 = 0.0f;
                    #pragma unroll 4
                    for (int32_t c = first; c <= last; c++) {
                        const float * part = p.partial + ((size_t) c * 2 + (c == first ? 1 : 0)) * S::PARTIAL;
                        const float2 ml = __ldcg((const float2 *) (part + ROWS * D + r * 2)), y = __ldcg((const float2 *) (part + r * D + d));
                        const float top = fmaxf(m, ml.x), e0 = exp2f(m - top), e1 = exp2f(ml.x - top);
                        m  = top;
                        l  = l * e0 + ml.y * e1;
                        y0 = y0 * e0 + y.x * e1;
                        y1 = y1 * e0 + y.y * e1;
                    }
                    const float y = to_row_scale(a.sinks, first_head + (row0 + r) % group, m, l);
                    write(row0 + r, d, y0 * y, y1 * y);
                    if (p.lse && d == 0) {
                        write_lse(row0 + r, m, l);
                    }
                }
                if (tid == 0) {
                    p.arrived[item] = 0;
                }
            }
        }
        at += pc.weight;
        if (at >= first_unit(s, blockIdx.x + 1)) {
            return;
        }
    }
}

} // namespace
} // namespace kvasir::cuda

#define KVASIR_PREFILL(D, WM, ROWS, CTAS) \
    extern "C" __global__ void __launch_bounds__(kvasir::cuda::PREFILL_THREADS, CTAS) prefill_##D##_##ROWS(const __grid_constant__ kvasir::cuda::prefill_params p) { \
        kvasir::cuda::run<D, WM>(p); \
    }

KVASIR_PREFILL(64, 2, 128, 2)
KVASIR_PREFILL(80, 2, 128, 2)
KVASIR_PREFILL(96, 2, 128, 2)
KVASIR_PREFILL(128, 2, 128, 2)
KVASIR_PREFILL(64, 1, 64, 3)
KVASIR_PREFILL(80, 1, 64, 3)
KVASIR_PREFILL(96, 1, 64, 3)
KVASIR_PREFILL(128, 1, 64, 3)
KVASIR_PREFILL(256, 1, 64, 2)

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
    bits = __reduce_or_sync(~0u, bits);
    if (lane == 0) {
        p.views[(size_t) blockIdx.y * cell_blocks + block] = (uint8_t) bits;
    }
}
