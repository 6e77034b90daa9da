// Attention of many queries over one layer of the store, for a host compiler and for nvcc.
//
// Rows: the query heads of a KV head's group are laid side by side, row = token * group + head in group, and cut into
// tiles of 128 or 64 rows. The key blocks of all tiles, one after another, are cut into equal pieces, one per CTA, on the
// device: lengths may change between two launches of a captured graph. A tile that is cut is merged, in a fixed
// order, by the CTA that finishes it last: the result does not depend on who that is.
#pragma once

#include "pages.h"

#ifdef __CUDACC__
#define KVASIR_BOTH __host__ __device__
#else
#define KVASIR_BOTH
#endif

namespace kvasir::cuda {

// llama.cpp's mask, f16 [n_kv][tokens][1 or n_head][1 or n_stream], looked up by a slot's cell; strides in bytes
struct mask_params {
    const char * data; // none: every slot is seen, or see attention_params::causal
    int64_t      token_bytes, head_bytes, stream_bytes;
    int32_t      n_kv, n_head, n_stream;
    // What mask_views found in each block of 64 cells x 16 tokens, [n_stream][n_head][token blocks][cell blocks] of enum
    // view bits; none: every block is looked at
    const uint8_t * views;
};

enum view : uint8_t { VIEW_HIDDEN = 1, VIEW_OPEN = 2, VIEW_BIASED = 4 }; // some -inf, some exactly 0, some other value

constexpr int32_t VIEW_CELLS = 64, VIEW_TOKENS = 16;

inline size_t mask_view_bytes(const mask_params & m, int32_t n_tokens) {
    return (size_t) m.n_stream * (size_t) m.n_head * (size_t) ((n_tokens + VIEW_TOKENS - 1) / VIEW_TOKENS) *
           (size_t) ((m.n_kv + VIEW_CELLS - 1) / VIEW_CELLS);
}

// Where a token goes: which stream of the launch, llama.cpp's cell, the position in its sequence.
struct token_label {
    int32_t stream, cell, pos, pad;
};

struct attention_params {
    layer_pages     pages;     // [n_stream][n_head_kv] heads; they already hold the queries' own tokens
    mask_params     mask;
    const char *    q;         // f32, rows aligned to 16 bytes
    int64_t         q_token_bytes, q_head_bytes, q_stream_bytes;
    const int32_t * query_pos; // [n_stream][n_tokens]; read with causal, and by the statistic
    const float *   sinks;     // [n_head], or none
    int32_t         n_stream, n_head, n_tokens;
    int32_t         causal;    // a slot is seen iff its position <= the query's: instead of a mask that says just that, which is not read then
    float           scale, softcap, max_bias;
};

struct prefill_params {
    attention_params a;
    float *   out;             // [dv][n_head][n_tokens][n_stream]
    int64_t   out_head_bytes, out_token_bytes, out_stream_bytes;
    float *   lse;             // [n_stream][n_head][n_tokens]: log2 of a row's sum of weights (+inf: it sees nothing); or none
    int32_t   stages;          // prefill_stages
    float *   partial;         // prefill_workspace_bytes
    int32_t * arrived;         // [prefill_tiles], zero before the first launch; every launch leaves it zero
};

// shared: dynamic, beside what a kernel has of its own; above 40 KiB it must be allowed (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
struct launch {
    const char * kernel; // none: there is no kernel for this shape
    uint32_t     grid_x, grid_y, block, shared;
};

constexpr int32_t PREFILL_LIST    = 256; // key blocks that are looked through at a time

// 16 rows a warp: 8 warps or 4; head dim 256 leaves room for 4
inline int32_t prefill_rows(const attention_params & a) {
    const int64_t rows = (int64_t) a.n_tokens * (a.n_head / a.pages.n_head_kv);
    return a.pages.format.dim_k <= 128 && rows > 64 ? 128 : 64;
}

inline int32_t prefill_tiles(const attention_params & a) {
    const int32_t rows = prefill_rows(a);
    return a.n_stream * a.pages.n_head_kv * ((a.n_tokens * (a.n_head / a.pages.n_head_kv) + rows - 1) / rows);
}

// what matters of a device: cudaDevAttrMultiProcessorCount and cudaDevAttrMaxSharedMemoryPerMultiprocessor
struct device_limits {
    int32_t  n_sm;
    uint32_t shared_per_sm;
};

constexpr int32_t key_block(int32_t dim) { return dim > 128 ? 32 : 64; }

// q8_0 is brought in as it lies and unpacked in shared memory
constexpr uint32_t prefill_shared(int32_t dim, int32_t rows, bool raw_k, bool raw_v, int32_t stages) {
    const int32_t keys = key_block(dim), raw = keys * (dim + dim / Q8_BLOCK * 2), k = keys * (dim * 2 + 16), v = dim * (keys * 2 + 16);
    return (uint32_t) (rows * (dim * 2 + 16) + k + v + (raw_k ? stages * raw : (stages - 1) * k) + (raw_v ? stages * raw : (stages - 1) * v));
}
inline uint32_t prefill_shared(const attention_params & a, int32_t stages) {
    return prefill_shared(a.pages.format.dim_k, prefill_rows(a), a.pages.format.type_k == Q8_0, a.pages.format.type_v == Q8_0, stages);
}

constexpr uint32_t PREFILL_STATIC_SHARED = 6 * 1024; // of a CTA, at most, with what the driver keeps

// of a multiprocessor: all that its registers hold
inline int32_t prefill_resident(const attention_params & a) { return prefill_rows(a) == 128 ? 1 : 2; }

// two key blocks at a time where they fit: prefill_params::stages
inline int32_t prefill_stages(const attention_params & a, const device_limits & device) {
    return (uint32_t) prefill_resident(a) * (prefill_shared(a, 2) + PREFILL_STATIC_SHARED) <= device.shared_per_sm ? 2 : 1;
}

inline uint32_t prefill_ctas(const attention_params & a, const device_limits & device) { return (uint32_t) (device.n_sm * prefill_resident(a)); }

inline size_t prefill_workspace_bytes(const attention_params & a, const device_limits & device) {
    return (size_t) prefill_ctas(a, device) * 2 * (size_t) prefill_rows(a) * (size_t) (a.pages.format.dim_v + 2) * sizeof(float);
}

inline launch prefill_launch(const attention_params & a, const device_limits & device) {
    const page_format & f = a.pages.format;
    const bool wide = prefill_rows(a) == 128, quantized = f.type_k == Q8_0 || f.type_v == Q8_0;
    const char * name = nullptr;
    if (f.dim_k == f.dim_v) {
        switch (f.dim_k) {
            case 64:  name = wide ? "prefill_64_128" : "prefill_64_64"; break;
            case 80:  name = quantized ? nullptr : wide ? "prefill_80_128" : "prefill_80_64"; break;
            case 96:  name = wide ? "prefill_96_128" : "prefill_96_64"; break;
            case 128: name = wide ? "prefill_128_128" : "prefill_128_64"; break;
            case 256: name = "prefill_256_64"; break;
            default:  break;
        }
    }
    return {name, prefill_ctas(a, device), 1, (uint32_t) prefill_rows(a) * 2, prefill_shared(a, prefill_stages(a, device))};
}

struct mask_views_params {
    mask_params mask; // views is not read
    uint8_t *   views;
    int32_t     n_tokens;
};

// once per mask and graph
inline launch mask_views_launch(const mask_params & m, int32_t n_tokens) {
    const uint32_t blocks = (uint32_t) ((m.n_kv + VIEW_CELLS - 1) / VIEW_CELLS);
    return {"mask_views", (blocks + 3) / 4, (uint32_t) ((n_tokens + VIEW_TOKENS - 1) / VIEW_TOKENS * m.n_head * m.n_stream), 128, 0};
}

} // namespace kvasir::cuda
