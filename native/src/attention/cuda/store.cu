#include "store_ops.h"
#include "tile.cuh"

using namespace kvasir::cuda;

namespace {

__device__ __forceinline__ char * page_of(const layer_pages & l, int32_t head, int32_t slot) {
    return l.pool + (size_t) l.table[(size_t) head * l.table_stride + slot / PAGE_SLOTS] * l.format.bytes;
}

__device__ __forceinline__ int32_t element_bytes(int32_t type) { return type == Q8_0 ? 1 : 2; }

// byte of element (slot, 0) of V^T in a page; the next dimension is 32 elements on
__device__ __forceinline__ uint32_t value_at(const page_format & f, int32_t slot) {
    return f.v + (slot % PAGE_SLOTS / BLOCK_SLOTS * f.dim_v * BLOCK_SLOTS + slot % BLOCK_SLOTS) * element_bytes(f.type_v);
}

// ---- q8_0, with ggml's arithmetic: its CUDA code is compiled with approximate division and without denormals ----

__device__ __forceinline__ float scale_of(float largest) {
    float d;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(d) : "f"(largest), "f"(127.0f));
    return d;
}

__device__ __forceinline__ float inverse_of(float d) {
    float id;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(id) : "f"(d));
    return d != 0.0f ? id : 0.0f;
}

__device__ __forceinline__ int8_t quantized(float x, float id) {
    float y;
    asm("mul.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(id));
    return (int8_t) roundf(y);
}

__device__ __forceinline__ float largest_of(float x) { // over a warp
    x = fabsf(x);
    for (int o = 16; o; o /= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    }
    return x;
}

// ---- single slots ----

// content of a slot to another one of the same head, by the threads of a CTA or of a warp
__device__ __forceinline__ void copy_slot(const page_format & f, const char * from, int32_t a, char * to, int32_t b, int32_t thread, int32_t threads) {
    a %= PAGE_SLOTS;
    b %= PAGE_SLOTS;
    const int32_t row = f.dim_k * element_bytes(f.type_k);
    for (int32_t x = thread; x < row / 16; x += threads) {
        ((uint4 *) (to + b * row))[x] = ((const uint4 *) (from + a * row))[x];
    }
    if (f.type_k == Q8_0) {
        const int32_t n = f.dim_k / Q8_BLOCK;
        for (int32_t x = thread; x < n; x += threads) {
            ((uint16_t *) (to + f.k_scale))[b * n + x] = ((const uint16_t *) (from + f.k_scale))[a * n + x];
        }
    }
    const char * v = from + value_at(f, a);
    char * w = to + value_at(f, b);
    for (int32_t d = thread; d < f.dim_v; d += threads) {
        if (f.type_v == Q8_0) {
            w[d * BLOCK_SLOTS] = v[d * BLOCK_SLOTS];
        } else {
            ((uint16_t *) w)[d * BLOCK_SLOTS] = ((const uint16_t *) v)[d * BLOCK_SLOTS];
        }
    }
    if (f.type_v == Q8_0) {
        const int32_t n = f.dim_v / Q8_BLOCK;
        for (int32_t x = thread; x < n; x += threads) {
            ((uint16_t *) (to + f.v_scale))[b * n + x] = ((const uint16_t *) (from + f.v_scale))[a * n + x];
        }
    }
    if (thread < 3) { // cell, pos and score follow each other
        ((int32_t *) (to + f.cell))[thread * PAGE_SLOTS + b] = ((const int32_t *) (from + f.cell))[thread * PAGE_SLOTS + a];
    }
}

// rows of sums of a head
struct sums {
    float * buckets;
    float * recent;
    int32_t n_buckets, n_recent;
    int64_t capacity;
    __device__ __forceinline__ float * row(int32_t i) const { return i < n_buckets ? buckets + i * capacity : recent + (i - n_buckets) * capacity; }
};
__device__ __forceinline__ sums sums_of(const statistic_columns * columns, int32_t layer, int32_t head) {
    sums s{nullptr, nullptr, 0, 0, 0};
    if (!columns || !columns[layer].buckets) {
        return s;
    }
    const statistic_columns & c = columns[layer];
    s.n_buckets = c.rows * (c.n_bounds + 1);
    s.capacity  = c.capacity;
    s.buckets   = c.buckets + (size_t) head * s.n_buckets * c.capacity;
    if (c.recent) {
        s.n_recent = c.rows;
        s.recent   = c.recent + (size_t) head * c.rows * c.capacity;
    }
    return s;
}

} // namespace

// 32 tokens of one KV head
extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_append(const __grid_constant__ append_params p) {
    extern __shared__ float tile[]; // [32][dim_v + 1]: V is read by rows and written by columns
    __shared__ char *  pages[APPEND_TOKENS];
    __shared__ int32_t slots[APPEND_TOKENS];
    const page_format & f = p.pages.format;
    const int32_t token0 = blockIdx.x * APPEND_TOKENS, n = min(APPEND_TOKENS, p.n_tokens - token0), kv_head = blockIdx.y;
    const int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, ld = f.dim_v + 1;
    if (warp == 0) {
        int32_t slot = -1;
        if (lane < n) {
            const token_label label = p.tokens[token0 + lane];
            slot = p.slots[(size_t) (token0 + lane) * p.pages.n_head_kv + kv_head];
            if (slot >= 0) {
                char * page = page_of(p.pages, label.stream * p.pages.n_head_kv + kv_head, slot);
                const int32_t at = slot % PAGE_SLOTS;
                ((int32_t *) (page + f.cell))[at] = label.cell;
                ((int32_t *) (page + f.pos))[at]  = label.pos;
                ((float *) (page + f.score))[at]  = 0.0f;
                pages[lane] = page;
            }
        }
        slots[lane] = slot;
    }
    __syncthreads();

    for (int32_t r = warp; r < n; r += STORE_THREADS / 32) {
        const int32_t slot = slots[r];
        if (slot < 0) {
            continue;
        }
        const int32_t at = slot % PAGE_SLOTS;
        const float * k = (const float *) (p.k + (token0 + r) * p.k_token_bytes + kv_head * p.k_head_bytes);
        const float * v = (const float *) (p.v + (token0 + r) * p.v_token_bytes + kv_head * p.v_head_bytes);
        if (f.type_k == F16) {
            for (int32_t c = lane; c < f.dim_k / 4; c += 32) {
                const float4 x = ((const float4 *) k)[c];
                ((uint2 *) (pages[r] + at * f.dim_k * 2))[c] = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
            }
        } else {
            for (int32_t b = 0; b < f.dim_k / Q8_BLOCK; b++) {
                const float x = k[b * Q8_BLOCK + lane], d = scale_of(largest_of(x));
                pages[r][at * f.dim_k + b * Q8_BLOCK + lane] = quantized(x, inverse_of(d));
                if (lane == 0) {
                    ((__half *) (pages[r] + f.k_scale))[at * (f.dim_k / Q8_BLOCK) + b] = __float2half_rn(d);
                }
            }
        }
        for (int32_t b = 0; b < f.dim_v; b += 32) {
            const float x = b + lane < f.dim_v ? v[b + lane] : 0.0f;
            float y = x;
            if (f.type_v == Q8_0) {
                const float d = scale_of(largest_of(x));
                y = (float) quantized(x, inverse_of(d));
                if (lane == 0) {
                    ((__half *) (pages[r] + f.v_scale))[at * (f.dim_v / Q8_BLOCK) + b / Q8_BLOCK] = __float2half_rn(d);
                }
            }
            if (b + lane < f.dim_v) {
                tile[r * ld + b + lane] = y;
            }
        }
    }
    __syncthreads();
    if (slots[lane] < 0) { // a lane is a token from here on
        return;
    }
    char * to = pages[lane] + value_at(f, slots[lane]);
    for (int32_t d = warp; d < f.dim_v; d += STORE_THREADS / 32) {
        const float x = tile[lane * ld + d];
        if (f.type_v == F16) {
            ((__half *) to)[d * BLOCK_SLOTS] = __float2half_rn(x);
        } else {
            ((int8_t *) to)[d * BLOCK_SLOTS] = (int8_t) x;
        }
    }
}

// One CTA per head, 32 slots at a time: they are read before any is written, and what later ones are read from is not
// written yet, because slots only move down.
extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_keep(const __grid_constant__ keep_params p) {
    extern __shared__ __align__(16) char held[];
    const keep_item item = p.items[blockIdx.x];
    const layer_pages & l = p.layers[item.layer];
    const page_format f = l.format;
    const int32_t * slots = p.slots + item.first;
    const sums s = sums_of(p.columns, item.layer, item.head);
    const int32_t k_row = f.dim_k * element_bytes(f.type_k), k_scales = f.type_k == Q8_0 ? f.dim_k / Q8_BLOCK : 0, v_scales = f.type_v == Q8_0 ? f.dim_v / Q8_BLOCK : 0;
    // the sections of half a page, at half their offsets
    char * const k = held, * const v = held + f.v / 2, * const labels = held + f.cell / 2;
    uint16_t * const k_scale = (uint16_t *) (held + f.k_scale / 2), * const v_scale = (uint16_t *) (held + f.v_scale / 2);
    const int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    constexpr int32_t WARPS = STORE_THREADS / 32;

    for (int32_t base = 0; base < item.n; base += BLOCK_SLOTS) {
        const int32_t n = min(BLOCK_SLOTS, item.n - base);
        if (slots[base + n - 1] == base + n - 1) {
            continue; // they ascend: nothing has moved so far
        }
        const int32_t from = lane < n ? slots[base + lane] : 0; // a lane's own slot
        const char * const page = page_of(l, item.head, from);
        for (int32_t r = warp; r < n; r += WARPS) {
            const int32_t slot = __shfl_sync(~0u, from, r), at = slot % PAGE_SLOTS;
            const char * source = page_of(l, item.head, slot);
            for (int32_t x = lane; x < k_row / 16; x += 32) {
                ((uint4 *) (k + r * k_row))[x] = ((const uint4 *) (source + at * k_row))[x];
            }
            if (lane < k_scales) {
                k_scale[r * k_scales + lane] = ((const uint16_t *) (source + f.k_scale))[at * k_scales + lane];
            }
            if (lane < v_scales) {
                v_scale[r * v_scales + lane] = ((const uint16_t *) (source + f.v_scale))[at * v_scales + lane];
            }
        }
        if (lane < n) {
            const char * value = page + value_at(f, from);
            #pragma unroll 8
            for (int32_t d = warp; d < f.dim_v; d += WARPS) {
                if (f.type_v == Q8_0) {
                    v[d * BLOCK_SLOTS + lane] = value[d * BLOCK_SLOTS];
                } else {
                    ((uint16_t *) v)[d * BLOCK_SLOTS + lane] = ((const uint16_t *) value)[d * BLOCK_SLOTS];
                }
            }
            if (warp < 3) {
                ((int32_t *) labels)[warp * BLOCK_SLOTS + lane] = ((const int32_t *) (page + f.cell))[warp * PAGE_SLOTS + from % PAGE_SLOTS];
            }
        }
        __syncthreads();
        char * const to = page_of(l, item.head, base);
        const int32_t at = base % PAGE_SLOTS;
        for (int32_t x = threadIdx.x; x < n * k_row / 16; x += STORE_THREADS) {
            ((uint4 *) (to + at * k_row))[x] = ((const uint4 *) k)[x];
        }
        for (int32_t x = threadIdx.x; x < n * k_scales; x += STORE_THREADS) {
            ((uint16_t *) (to + f.k_scale))[at * k_scales + x] = k_scale[x];
        }
        for (int32_t x = threadIdx.x; x < n * v_scales; x += STORE_THREADS) {
            ((uint16_t *) (to + f.v_scale))[at * v_scales + x] = v_scale[x];
        }
        if (lane < n) {
            char * const value = to + value_at(f, base + lane);
            for (int32_t d = warp; d < f.dim_v; d += WARPS) {
                if (f.type_v == Q8_0) {
                    value[d * BLOCK_SLOTS] = v[d * BLOCK_SLOTS + lane];
                } else {
                    ((uint16_t *) value)[d * BLOCK_SLOTS] = ((const uint16_t *) v)[d * BLOCK_SLOTS + lane];
                }
            }
            if (warp < 3) {
                ((int32_t *) (to + f.cell))[warp * PAGE_SLOTS + at + lane] = ((const int32_t *) labels)[warp * BLOCK_SLOTS + lane];
            }
        }
        __syncthreads();
    }

    // a row of sums belongs to one warp
    for (int32_t i = warp; i < s.n_buckets + s.n_recent; i += WARPS) {
        float * row = s.row(i);
        for (int32_t base = 0; base < item.n; base += 128) {
            float x[4];
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                const int32_t to = base + j * 32 + lane;
                x[j] = to < item.n ? row[slots[to]] : 0.0f;
            }
            __syncwarp();
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                const int32_t to = base + j * 32 + lane;
                if (to < item.n) {
                    row[to] = x[j];
                }
            }
            __syncwarp();
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) store_move(const __grid_constant__ move_params p) {
    const move_item m = p.items[blockIdx.x];
    const layer_pages & l = p.layers[m.layer];
    copy_slot(l.format, page_of(l, m.head, m.from), m.from, page_of(l, m.head, m.to), m.to, threadIdx.x, 128);
    const sums s = sums_of(p.columns, m.layer, m.head);
    for (int32_t i = threadIdx.x; i < s.n_buckets + s.n_recent; i += 128) {
        s.row(i)[m.to] = s.row(i)[m.from];
    }
}

// a warp has an item
extern "C" __global__ void __launch_bounds__(CLEAR_ITEMS * 32) store_clear_sums(const __grid_constant__ clear_params p) {
    const int32_t i = blockIdx.x * CLEAR_ITEMS + (int32_t) threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= p.n_items) {
        return;
    }
    const move_item item = p.items[i];
    const sums s = sums_of(p.columns, item.layer, item.head);
    const int32_t rows = s.n_buckets + s.n_recent, n = item.to - item.from;
    for (int64_t x = lane; x < (int64_t) rows * n; x += 32) { // one slot: a lane has a row
        s.row((int32_t) (x / n))[item.from + x % n] = 0.0f;
    }
}

namespace {

// Between a page and rows as ggml has them: [scale, 32 elements] of q8_0, or halves. 16-bit units; a block of q8_0 has 17.
template <bool GATHER> __device__ __forceinline__ void copy_rows(const span_params & p) {
    const span_item item = p.items[blockIdx.y];
    const layer_pages & l = p.layers[item.layer];
    const page_format & f = l.format;
    const int32_t end = min(item.n, (int32_t) (blockIdx.x + 1) * BLOCK_SLOTS);
    const bool value = item.side == SIDE_V, quantized = (value ? f.type_v : f.type_k) == Q8_0;
    const int32_t dim = value ? f.dim_v : f.dim_k, units = quantized ? dim / Q8_BLOCK * 17 : dim, scales = dim / Q8_BLOCK;
    for (int32_t r = blockIdx.x * BLOCK_SLOTS + threadIdx.x / 32; r < end; r += STORE_THREADS / 32) {
        const int32_t slot = item.first + r, at = slot % PAGE_SLOTS;
        char * const page = page_of(l, item.head, slot);
        uint16_t * const row = (uint16_t *) (p.data + item.at) + (size_t) r * units;
        for (int32_t x = threadIdx.x % 32; x < units; x += 32) {
            if (!quantized) {
                uint16_t * const y = value ? (uint16_t *) (page + value_at(f, slot)) + x * BLOCK_SLOTS : (uint16_t *) page + at * dim + x;
                GATHER ? row[x] = *y : *y = row[x];
                continue;
            }
            const int32_t block = x / 17, d = block * Q8_BLOCK + (x % 17 - 1) * 2;
            if (x % 17 == 0) {
                uint16_t * const y = (uint16_t *) (page + (value ? f.v_scale : f.k_scale)) + at * scales + block;
                GATHER ? row[x] = *y : *y = row[x];
                continue;
            }
            uint8_t * const y = value ? (uint8_t *) page + value_at(f, slot) + d * BLOCK_SLOTS : (uint8_t *) page + at * dim + d;
            const int32_t step = value ? BLOCK_SLOTS : 1;
            if (GATHER) {
                row[x] = (uint16_t) (y[0] | y[step] << 8);
            } else {
                y[0]    = (uint8_t) row[x];
                y[step] = (uint8_t) (row[x] >> 8);
            }
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_gather(const __grid_constant__ span_params p) { copy_rows<true>(p); }
extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_scatter(const __grid_constant__ span_params p) { copy_rows<false>(p); }

// a warp has 32 slots, the CTA's warps share the dimensions
extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_value_norms(const __grid_constant__ span_params p) {
    constexpr int32_t WARPS = STORE_THREADS / 32;
    __shared__ float part[WARPS][32];
    const span_item item = p.items[blockIdx.y];
    const layer_pages & l = p.layers[item.layer];
    const page_format & f = l.format;
    const int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = blockIdx.x * BLOCK_SLOTS + lane, slot = item.first + r;
    float sum = 0.0f;
    if (r < item.n) {
        const char * const page = page_of(l, item.head, slot), * const v = page + value_at(f, slot);
        for (int32_t d = warp; d < f.dim_v; d += WARPS) {
            float x;
            if (f.type_v == F16) {
                x = __half2float(((const __half *) v)[d * BLOCK_SLOTS]);
            } else {
                x = (float) ((const int8_t *) v)[d * BLOCK_SLOTS] * __half2float(((const __half *) (page + f.v_scale))[slot % PAGE_SLOTS * (f.dim_v / Q8_BLOCK) + d / Q8_BLOCK]);
            }
            sum += x * x;
        }
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && r < item.n) {
        float total = 0.0f;
        for (int32_t w = 0; w < WARPS; w++) {
            total += part[w][lane];
        }
        ((float *) p.data)[item.at + r] = sqrtf(total);
    }
}

extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_scores(const __grid_constant__ span_params p) {
    const span_item item = p.items[blockIdx.y];
    const layer_pages & l = p.layers[item.layer];
    const int32_t r = blockIdx.x * BLOCK_SLOTS + threadIdx.x, slot = item.first + r;
    if (threadIdx.x < BLOCK_SLOTS && r < item.n) {
        ((float *) p.data)[item.at + r] = ((const float *) (page_of(l, item.head, slot) + l.format.score))[slot % PAGE_SLOTS];
    }
}

extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_put_scores(const __grid_constant__ span_params p) {
    const span_item item = p.items[blockIdx.y];
    const layer_pages & l = p.layers[item.layer];
    const int32_t r = blockIdx.x * BLOCK_SLOTS + threadIdx.x, slot = item.first + r;
    if (threadIdx.x < BLOCK_SLOTS && r < item.n) {
        ((float *) (page_of(l, item.head, slot) + l.format.score))[slot % PAGE_SLOTS] = item.at < 0 ? 0.0f : ((const float *) p.data)[item.at + r];
    }
}

// cells and positions of slots that are there already; their scores begin at 0
extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_labels(const __grid_constant__ span_params p) {
    const span_item item = p.items[blockIdx.y];
    const layer_pages & l = p.layers[item.layer];
    const int32_t r = blockIdx.x * BLOCK_SLOTS + threadIdx.x, slot = item.first + r;
    if (threadIdx.x < BLOCK_SLOTS && r < item.n) {
        const token_label label = ((const token_label *) p.data)[item.at + r];
        char * const page = page_of(l, item.head, slot);
        ((int32_t *) (page + l.format.cell))[slot % PAGE_SLOTS] = label.cell;
        ((int32_t *) (page + l.format.pos))[slot % PAGE_SLOTS]  = label.pos;
        ((float *) (page + l.format.score))[slot % PAGE_SLOTS]  = 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_zero_pages(const __grid_constant__ page_list_params p) {
    uint4 * const page = (uint4 *) (p.pool + (size_t) p.pages[blockIdx.x] * p.bytes);
    for (uint32_t x = threadIdx.x; x < p.bytes / 16; x += STORE_THREADS) {
        page[x] = make_uint4(0, 0, 0, 0);
    }
}

extern "C" __global__ void __launch_bounds__(STORE_THREADS) store_move_pages(const __grid_constant__ page_list_params p) {
    const uint4 * const from = (const uint4 *) (p.pool + (size_t) p.pages[blockIdx.x * 2] * p.bytes);
    uint4 * const to = (uint4 *) (p.pool + (size_t) p.pages[blockIdx.x * 2 + 1] * p.bytes);
    for (uint32_t x = threadIdx.x; x < p.bytes / 16; x += STORE_THREADS) {
        to[x] = from[x];
    }
}
