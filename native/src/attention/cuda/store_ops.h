// What is done to the store besides attention: one launch each for a list of items in device memory.
//
// Items name a layer of an array of layers, so that a list may span all of them. Lengths (layer_pages::n) are the
// host's to change afterwards; pages must be in the tables already.
#pragma once

#include "prefill.h"

namespace kvasir::cuda {

// writes rows of new tokens; converts as ggml's SET_ROWS does on CUDA
struct append_params {
    layer_pages         pages;
    const char *        k;      // f32, rows aligned to 16 bytes
    const char *        v;
    int64_t             k_token_bytes, k_head_bytes, v_token_bytes, v_head_bytes;
    const int32_t *     slots;  // [n_tokens][n_head_kv]; -1: this head does not take the token
    const token_label * tokens; // [n_tokens]
    int32_t             n_tokens;
};

// per head sums of a layer's statistic, as statistic_params has them; buckets none: there is no statistic
struct statistic_columns {
    float * buckets;
    float * recent;
    int32_t n_bounds, rows;
    int64_t capacity;
};

struct keep_item {
    int32_t layer, head; // of the layer's [n_stream][n_head_kv]
    int32_t n;           // slots kept
    int32_t pad;
    int64_t first;       // of keep_params::slots: they ascend
};
struct keep_params {
    const layer_pages *       layers;
    const statistic_columns * columns; // [layer], or none
    const keep_item *         items;
    const int32_t *           slots;
};

struct move_item {
    int32_t layer, head, from, to;
};
struct move_params {
    const layer_pages *       layers;
    const statistic_columns * columns; // [layer], or none
    const move_item *         items;
};

// slots [from, to) of heads: their sums begin at zero again
struct clear_params {
    const statistic_columns * columns; // [layer]
    const move_item *         items;
    int32_t                   n_items;
};

enum span_side : int32_t { SIDE_K = 0, SIDE_V = 1 };

// slots [first, first + n) of a head, and where their data lie in the flat buffer
struct span_item {
    int32_t layer, head, first, n;
    int32_t side; // gather, scatter
    int32_t pad;
    int64_t at;   // gather, scatter: bytes; value_norms, scores, labels: elements; put_scores: negative for zeros
};
struct span_params {
    const layer_pages * layers;
    const span_item *   items;
    char *              data; // gather, scatter: rows as ggml has them, even offsets; value_norms, scores, put_scores: float; labels: token_label
};

struct page_list_params {
    char *          pool;
    const int32_t * pages; // zero_pages: page numbers; move_pages: pairs from, to (no page may be in two pairs)
    uint32_t        bytes; // of a page
};

constexpr int32_t APPEND_TOKENS = 32, STORE_THREADS = 256, CLEAR_ITEMS = 4; // of a CTA

inline launch append_launch(const append_params & p) {
    return {"store_append", (uint32_t) ((p.n_tokens + APPEND_TOKENS - 1) / APPEND_TOKENS), (uint32_t) p.pages.n_head_kv, (uint32_t) STORE_THREADS,
            (uint32_t) (APPEND_TOKENS * (p.pages.format.dim_v + 1) * 4)};
}
// 32 slots at a time; the largest of the layers' formats
constexpr uint32_t keep_shared(const page_format & f) { return f.cell / 2 + 3 * BLOCK_SLOTS * 4; }
inline launch keep_launch(int32_t n_items, uint32_t largest_keep_shared) { return {"store_keep", (uint32_t) n_items, 1, (uint32_t) STORE_THREADS, largest_keep_shared}; }
inline launch move_launch(int32_t n_items) { return {"store_move", (uint32_t) n_items, 1, 128, 0}; }
inline launch clear_sums_launch(int32_t n_items) { return {"store_clear_sums", (uint32_t) ((n_items + CLEAR_ITEMS - 1) / CLEAR_ITEMS), 1, (uint32_t) (CLEAR_ITEMS * 32), 0}; }
inline launch span_launch(const char * kernel, int32_t n_items, int32_t longest) { // store_gather, _scatter, _value_norms, _scores, _put_scores or _labels
    return {kernel, (uint32_t) ((longest + BLOCK_SLOTS - 1) / BLOCK_SLOTS), (uint32_t) n_items, (uint32_t) STORE_THREADS, 0};
}
inline launch zero_pages_launch(int32_t n_pages) { return {"store_zero_pages", (uint32_t) n_pages, 1, (uint32_t) STORE_THREADS, 0}; }
inline launch move_pages_launch(int32_t n_pairs) { return {"store_move_pages", (uint32_t) n_pairs, 1, (uint32_t) STORE_THREADS, 0}; }

} // namespace kvasir::cuda
