#include "statistic.h"
#include "keys.cuh"

namespace kvasir::cuda {
namespace {

// how many bounds are <= distance; bound: the lane's own of the first 32
__device__ __forceinline__ int32_t bucket_of(const statistic_params & p, int32_t n_bounds, int32_t bound, int32_t distance, int32_t lane) {
    int32_t b = __popc(__ballot_sync(~0u, bound <= distance));
    for (int32_t i = 32; i < n_bounds; i += 32) {
        b += __popc(__ballot_sync(~0u, i + lane < n_bounds && p.bounds[i + lane] <= distance));
    }
    return b;
}

// WM: fragments of 16 slots of a warp
template <int D, int WM> __device__ __forceinline__ void run(const statistic_params & p) {
    constexpr int SLOTS = 64 * WM, ROW = D * 2 + 16, QUERIES = STATISTIC_QUERIES, CHUNK = STATISTIC_CHUNK, CHUNKS = QUERIES / CHUNK, NJ = CHUNK / 8;
    const attention_params & a = p.a;
    const page_format & f = a.pages.format;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int32_t group = a.n_head / a.pages.n_head_kv, n_heads = a.n_stream * a.pages.n_head_kv;
    const int32_t tokens = statistic_tokens(a.n_tokens), tiles = tokens / QUERIES;
    const statistic_layout at = statistic_workspace(a);
    const bool per_head = p.buckets && p.rows > 1;

    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(16) float   q_lse[2][QUERIES];
    __shared__ __align__(16) int32_t q_pos[2][QUERIES];
    __shared__ __align__(16) int32_t q_span[2][CHUNKS * 2];

    const int32_t n_bounds = p.buckets ? p.n_bounds : 0, bound = lane < n_bounds ? p.bounds[lane] : INT32_MAX;

    // items, head after head, go round the CTAs
    int32_t item = blockIdx.x;
    for (int32_t head = 0; head < n_heads; head++) {
        const int32_t n = a.pages.n[head], n_items = (n + SLOTS - 1) / SLOTS;
        if (item >= n_items) {
            item -= n_items;
            continue;
        }
        const int32_t stream = head / a.pages.n_head_kv, first_head = head % a.pages.n_head_kv * group;
        const bool wanted = p.buckets || !p.track || p.track[head];
        for (; item < n_items; item += gridDim.x) {
            if (!wanted) {
                continue;
            }
            const int32_t slot0 = item * SLOTS, own0 = slot0 + warp * 16 * WM; // of the CTA, of the warp
            __syncthreads();
            load_keys<D, SLOTS, ROW, STATISTIC_THREADS>(a.pages, head, slot0, n, shared);
            const bool any = own0 < n;
            char * const page = any ? a.pages.pool + (size_t) a.pages.table[(size_t) head * a.pages.table_stride + own0 / PAGE_SLOTS] * f.bytes : nullptr; // all of a warp's slots lie in it
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
            int32_t key[WM][2], cell[WM][2], key_lo = INT32_MAX, key_hi = INT32_MIN, cell_lo = INT32_MAX, cell_hi = INT32_MIN;
            #pragma unroll
            for (int m = 0; m < WM; m++) {
                #pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int32_t slot = own0 + m * 16 + h * 8 + g;
                    const int32_t pos = any ? ((const int32_t *) (page + f.pos))[slot % PAGE_SLOTS] : 0; // a page is always whole
                    const int32_t label = any ? ((const int32_t *) (page + f.cell))[slot % PAGE_SLOTS] : 0;
                    key[m][h]  = slot < n ? pos : INT32_MAX;
                    cell[m][h] = slot < n ? label : INT32_MAX;
                    key_lo  = min(key_lo, key[m][h]);
                    key_hi  = max(key_hi, slot < n ? pos : INT32_MIN);
                    cell_lo = min(cell_lo, cell[m][h]);
                    cell_hi = max(cell_hi, slot < n ? label : INT32_MIN);
                }
            }
            key_lo = __reduce_min_sync(~0u, key_lo);
            key_hi = __reduce_max_sync(~0u, key_hi);
            cell_lo = __reduce_min_sync(~0u, cell_lo);
            cell_hi = __reduce_max_sync(~0u, cell_hi);
            const bool full = own0 + 16 * WM <= n;

            float sum[WM][2], late[WM][2];
            #pragma unroll
            for (int m = 0; m < WM; m++) {
                sum[m][0] = sum[m][1] = late[m][0] = late[m][1] = 0.0f;
            }
            // adds sums over the four threads of a row to the warp's part of a column, and begins anew
            const auto flush = [&](float (&x)[WM][2], float * to) {
                #pragma unroll
                for (int m = 0; m < WM; m++) {
                    #pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float y = x[m][h];
                        y += __shfl_xor_sync(~0u, y, 1);
                        y += __shfl_xor_sync(~0u, y, 2);
                        x[m][h] = 0.0f;
                        const int32_t slot = m * 16 + h * 8 + g;
                        if (t == 0 && own0 + slot < n) {
                            atomicAdd(to + slot, per_head ? y : y / (float) group); // nobody else adds to it: only so as not to wait for it
                        }
                    }
                }
            };
            const auto column = [&](int32_t row, int32_t bucket) {
                return p.buckets ? p.buckets + (((size_t) head * p.rows + row) * (p.n_bounds + 1) + bucket) * p.capacity + own0 : (float *) (page + f.score) + own0 % PAGE_SLOTS;
            };
            const auto recent = [&](int32_t row) { return p.recent + ((size_t) head * p.rows + row) * p.capacity + own0; };
            const bool keep_recent = p.buckets && p.recent && p.recent_from >= 0;

            const int32_t n_steps = tiles * group;
            const auto copy_queries = [&](int32_t step) {
                const int32_t tile = per_head ? step % tiles : step / group, member = per_head ? step / tiles : step % group;
                const size_t row = ((size_t) stream * a.n_head + first_head + member) * tokens + tile * QUERIES;
                const char * from = p.workspace + row * (D * 2);
                const uint32_t to = shared_address(shared) + (step & 1) * (QUERIES * ROW);
                #pragma unroll
                for (int i = 0; i < QUERIES * (D / 8) / STATISTIC_THREADS; i++) {
                    const int x = tid + i * STATISTIC_THREADS;
                    copy_16(to + x / (D / 8) * ROW + x % (D / 8) * 16, from + x * 16);
                }
                if (tid < QUERIES / 4) {
                    copy_16(shared_address(q_lse[step & 1]) + tid * 16, p.workspace + at.lse + row * 4 + tid * 16);
                } else if (tid < QUERIES / 2) {
                    const int x = tid - QUERIES / 4;
                    copy_16(shared_address(q_pos[step & 1]) + x * 16, p.workspace + at.pos + ((size_t) stream * tokens + tile * QUERIES) * 4 + x * 16);
                } else if (tid < QUERIES / 2 + CHUNKS / 2) { // two spans are 16 bytes
                    const int x = tid - QUERIES / 2;
                    copy_16(shared_address(q_span[step & 1]) + x * 16, p.workspace + at.span + ((size_t) stream * tokens + tile * QUERIES) / CHUNK * 8 + x * 16);
                }
            };

            int32_t bucket = 0, row = 0;
            int32_t views_from = -1, views_member = 0; // a lane has what chunk views_from + lane sees of the warp's slots
            uint32_t views = 0;
            __syncthreads(); // the keys are in registers
            copy_queries(0);
            copy_commit();
            for (int32_t step = 0; step < n_steps; step++) {
                copy_wait<0>();
                __syncthreads();
                if (step + 1 < n_steps) {
                    copy_queries(step + 1);
                }
                copy_commit();
                if (!any) {
                    continue;
                }
                const int buffer = step & 1;
                const int32_t tile = per_head ? step % tiles : step / group, member = per_head ? step / tiles : step % group;
                if (per_head && member != row) {
                    flush(sum, column(row, bucket));
                    if (keep_recent) {
                        flush(late, recent(row));
                    }
                    row    = member;
                    bucket = 0;
                }
                const uint32_t from = shared_address(shared) + buffer * (QUERIES * ROW) + ((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 16;
                #pragma unroll 1
                for (int c = 0; c < CHUNKS; c++) {
                    const int32_t token0 = tile * QUERIES + c * CHUNK;
                    if (token0 >= a.n_tokens) {
                        break;
                    }
                    const int32_t query_lo = q_span[buffer][c * 2], query_hi = q_span[buffer][c * 2 + 1];
                    bool mixed = !full;
                    if (a.causal) {
                        if (key_lo > query_hi) {
                            continue;
                        }
                        mixed |= key_hi > query_lo;
                    } else if (a.mask.data) {
                        const int32_t chunk = tile * CHUNKS + c;
                        if (chunk / 32 * 32 != views_from || (a.mask.n_head > 1 && member != views_member)) {
                            views_from   = chunk / 32 * 32;
                            views_member = member;
                            const int32_t t0 = (views_from + lane) * CHUNK;
                            views = t0 < a.n_tokens ? view_by_thread(a, stream, first_head + member, t0, min(a.n_tokens, t0 + CHUNK), cell_lo, cell_hi) : VIEW_HIDDEN;
                            __syncwarp();
                        }
                        const uint32_t view = __shfl_sync(~0u, views, chunk % 32);
                        if (view == VIEW_HIDDEN) {
                            continue;
                        }
                        mixed |= view != VIEW_OPEN;
                    }
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
                    if (a.softcap != 0.0f) {
                        #pragma unroll
                        for (int m = 0; m < WM; m++) {
                            #pragma unroll
                            for (int j = 0; j < NJ; j++) {
                                #pragma unroll
                                for (int e = 0; e < 4; e++) {
                                    s[m][j][e] = softcapped(s[m][j][e], a.softcap);
                                }
                            }
                        }
                    }
                    // element e of s[m][j]: slot g + e / 2 * 8, query j * 8 + 2 t + e % 2; slots that are not there have the largest position and cell
                    if (mixed && (a.causal || !a.mask.data)) {
                        #pragma unroll
                        for (int j = 0; j < NJ; j++) {
                            int2 query = *(const int2 *) &q_pos[buffer][c * CHUNK + j * 8 + t * 2];
                            if (!a.causal) {
                                query = make_int2(INT32_MAX - 1, INT32_MAX - 1);
                            }
                            #pragma unroll
                            for (int m = 0; m < WM; m++) {
                                #pragma unroll
                                for (int h = 0; h < 2; h++) {
                                    s[m][j][h * 2]     = key[m][h] > query.x ? -INFINITY : s[m][j][h * 2];
                                    s[m][j][h * 2 + 1] = key[m][h] > query.y ? -INFINITY : s[m][j][h * 2 + 1];
                                }
                            }
                        }
                    } else if (mixed) {
                        const float slope = mask_slope(a, first_head + member);
                        const char * const mask = (const char *) mask_row(a.mask, stream, first_head + member, 0);
                        #pragma unroll
                        for (int j = 0; j < NJ; j++) {
                            #pragma unroll
                            for (int e = 0; e < 2; e++) {
                                const int32_t token = min(a.n_tokens - 1, token0 + j * 8 + t * 2 + e);
                                const __half * row = (const __half *) (mask + token * a.mask.token_bytes);
                                #pragma unroll
                                for (int m = 0; m < WM; m++) {
                                    #pragma unroll
                                    for (int h = 0; h < 2; h++) {
                                        float & x = s[m][j][h * 2 + e];
                                        x = cell[m][h] < a.mask.n_kv ? x + slope * __half2float(row[cell[m][h]]) : -INFINITY;
                                    }
                                }
                            }
                        }
                        __syncwarp(); // lanes may have parted
                    }
                    #pragma unroll
                    for (int j = 0; j < NJ; j++) {
                        const float2 lse = *(const float2 *) &q_lse[buffer][c * CHUNK + j * 8 + t * 2];
                        #pragma unroll
                        for (int m = 0; m < WM; m++) {
                            s[m][j][0] = exp2_fast(s[m][j][0] - lse.x);
                            s[m][j][1] = exp2_fast(s[m][j][1] - lse.y);
                            s[m][j][2] = exp2_fast(s[m][j][2] - lse.x);
                            s[m][j][3] = exp2_fast(s[m][j][3] - lse.y);
                        }
                    }
                    if (keep_recent && query_hi >= p.recent_from) {
                        #pragma unroll
                        for (int j = 0; j < NJ; j++) {
                            const int2 query = *(const int2 *) &q_pos[buffer][c * CHUNK + j * 8 + t * 2];
                            const float x = query.x >= p.recent_from ? 1.0f : 0.0f, y = query.y >= p.recent_from ? 1.0f : 0.0f;
                            #pragma unroll
                            for (int m = 0; m < WM; m++) {
                                late[m][0] += s[m][j][0] * x + s[m][j][1] * y;
                                late[m][1] += s[m][j][2] * x + s[m][j][3] * y;
                            }
                        }
                    }
                    const int32_t b0 = bucket_of(p, n_bounds, bound, query_lo - key_hi, lane), b1 = bucket_of(p, n_bounds, bound, query_hi - key_lo, lane);
                    if (b0 == b1) {
                        if (b0 != bucket) {
                            flush(sum, column(row, bucket));
                            bucket = b0;
                        }
                        #pragma unroll
                        for (int m = 0; m < WM; m++) {
                            #pragma unroll
                            for (int h = 0; h < 2; h++) {
                                #pragma unroll
                                for (int j = 0; j < NJ; j++) {
                                    sum[m][h] += s[m][j][h * 2] + s[m][j][h * 2 + 1];
                                }
                            }
                        }
                        continue;
                    }
                    for (int32_t b = b0; b <= b1; b++) { // a bound lies among the distances
                        const auto bound_at = [&](int32_t i) { return i < 32 ? __shfl_sync(~0u, bound, i) : p.bounds[i]; };
                        const uint32_t lo = (uint32_t) (b == 0 ? INT32_MIN : bound_at(b - 1)), width = (uint32_t) (b == n_bounds ? INT32_MAX : bound_at(b)) - lo;
                        if (b != bucket) {
                            flush(sum, column(row, bucket));
                            bucket = b;
                        }
                        #pragma unroll
                        for (int j = 0; j < NJ; j++) {
                            const int2 query = *(const int2 *) &q_pos[buffer][c * CHUNK + j * 8 + t * 2];
                            #pragma unroll
                            for (int m = 0; m < WM; m++) {
                                #pragma unroll
                                for (int h = 0; h < 2; h++) {
                                    const uint32_t from = (uint32_t) key[m][h] + lo; // lo <= distance < lo + width
                                    if ((uint32_t) query.x - from < width) {
                                        sum[m][h] += s[m][j][h * 2];
                                    }
                                    if ((uint32_t) query.y - from < width) {
                                        sum[m][h] += s[m][j][h * 2 + 1];
                                    }
                                }
                            }
                        }
                    }
                }
            }
            if (any) {
                flush(sum, column(row, bucket));
                if (keep_recent) {
                    flush(late, recent(row));
                }
            }
        }
        item -= n_items;
    }
}

} // namespace
} // namespace kvasir::cuda

#define KVASIR_STATISTIC(D, WM, CTAS) \
    extern "C" __global__ void __launch_bounds__(kvasir::cuda::STATISTIC_THREADS, CTAS) statistic_##D(const __grid_constant__ kvasir::cuda::statistic_params p) { \
        kvasir::cuda::run<D, WM>(p); \
    }

KVASIR_STATISTIC(64, 2, 2)
KVASIR_STATISTIC(80, 2, 2)
KVASIR_STATISTIC(96, 2, 2)
KVASIR_STATISTIC(128, 2, 2)
KVASIR_STATISTIC(256, 1, 2)

// 32 tokens of one query head
extern "C" __global__ void __launch_bounds__(128) statistic_queries(const __grid_constant__ kvasir::cuda::statistic_params p) {
    using namespace kvasir::cuda;
    const attention_params & a = p.a;
    const int32_t tokens = statistic_tokens(a.n_tokens), token0 = blockIdx.x * STATISTIC_CHUNK, stream = blockIdx.y / a.n_head, head = blockIdx.y % a.n_head;
    const int32_t dim = a.pages.format.dim_k, lane = threadIdx.x & 31;
    const statistic_layout at = statistic_workspace(a);
    const float scale = query_scale(a);
    const size_t row0 = (size_t) blockIdx.y * tokens + token0;
    for (int32_t x = threadIdx.x; x < STATISTIC_CHUNK * dim / 4; x += 128) {
        const int32_t r = x / (dim / 4), c = x % (dim / 4), token = token0 + r;
        uint2 h = make_uint2(0, 0);
        if (token < a.n_tokens) {
            const float4 q = *(const float4 *) (a.q + token * a.q_token_bytes + head * a.q_head_bytes + stream * a.q_stream_bytes + c * 16);
            h = make_uint2(pack(q.x * scale, q.y * scale), pack(q.z * scale, q.w * scale));
        }
        *(uint2 *) (p.workspace + (row0 + r) * dim * 2 + c * 8) = h;
    }
    if (threadIdx.x < STATISTIC_CHUNK) {
        const int32_t token = token0 + lane;
        ((float *) (p.workspace + at.lse))[row0 + lane] = token < a.n_tokens ? p.lse[(size_t) blockIdx.y * a.n_tokens + token] : INFINITY;
    }
    if (head == 0 && threadIdx.x >= 96) { // the last warp, once per stream
        const int32_t token = min(a.n_tokens - 1, token0 + lane), pos = a.query_pos[stream * a.n_tokens + token];
        const int32_t lo = __reduce_min_sync(~0u, pos), hi = __reduce_max_sync(~0u, pos);
        ((int32_t *) (p.workspace + at.pos))[stream * tokens + token0 + lane] = pos;
        if (lane == 0) {
            ((int2 *) (p.workspace + at.span))[(stream * tokens + token0) / STATISTIC_CHUNK] = make_int2(lo, hi);
        }
    }
}

extern "C" __global__ void __launch_bounds__(64) statistic_totals(const __grid_constant__ kvasir::cuda::statistic_totals_params p) {
    using namespace kvasir::cuda;
    const int32_t head = blockIdx.y, slot = blockIdx.x * PAGE_SLOTS + threadIdx.x;
    if (slot >= p.pages.n[head]) {
        return;
    }
    float total = 0.0f;
    for (int32_t row = 0; row < p.rows; row++) {
        float sum = 0.0f;
        for (int32_t b = 0; b <= p.n_bounds; b++) {
            sum += p.buckets[(((size_t) head * p.rows + row) * (p.n_bounds + 1) + b) * p.capacity + slot];
        }
        total += sum;
    }
    char * page = p.pages.pool + (size_t) p.pages.table[(size_t) head * p.pages.table_stride + blockIdx.x] * p.pages.format.bytes;
    ((float *) (page + p.pages.format.score))[threadIdx.x] = total / (float) p.rows;
}
