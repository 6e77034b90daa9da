// Attention over ragged heads: what a device's kernels read and write. The store owns all the memory named here.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvasir {

// How the rows of one side (K or V) of a head lie in memory; see store/rows.h for the two layouts.
struct row_format {
    ggml_type type;
    int32_t   dim;       // elements of a row
    size_t    row_bytes; // from one row to the next: ggml_row_size(type, dim), or that of the whole row of which this is a part
    bool      tiled;     // K of f16 and bf16: tiles of 16 slots, element (slot, d) at [slot / 16][d][slot % 16]; else row after row
    bool      part = false; // V of latent attention: the first dim elements of K's rows, which have the memory (rows_part)
};

// of memory that a slot takes (static: the kernels are compiled for several instruction sets)
static inline size_t own_bytes(const row_format & f) { return f.part ? 0 : f.row_bytes; }

// Where a head's score or sums go before a query is added to them that may be taken back (layer::mark_counts).
struct saved_counts {
    const float * from    = nullptr;
    size_t        stride  = 0;       // floats from one column to the next
    int32_t       columns = 0, n = 0;
    float *       to      = nullptr; // [columns][n]
    bool          wanted  = false;   // they have not been saved yet

    // By the thread that is about to add to them; one at a time.
    void save() {
        for (int32_t c = 0; wanted && c < columns; c++) {
            memcpy(to + (size_t) c * (size_t) n, from + (size_t) c * stride, (size_t) n * sizeof(float));
        }
        wanted = false;
    }
};

// One (layer, stream, KV head).
struct head_store {
    char *    k = nullptr;
    char *    v = nullptr;
    int32_t   n = 0;               // slots held
    int32_t * cell = nullptr;      // [slot]
    int32_t * pos = nullptr;       // [slot]
    float *   score = nullptr;     // [slot]; accumulated while track is set
    bool      track = false;
    int32_t   max_cell = -1;       // no slot has a larger cell (an upper bound)
    bool      ascending = true;    // cells ascend with the slots (true until single evictions)
    // the statistic, while it runs: [row][bucket][capacity] and [row][capacity]
    float *   buckets = nullptr;
    float *   recent = nullptr;
    saved_counts saved;
};

struct statistic {
    const int32_t * bounds = nullptr; // see kvasir_statistic_params
    int32_t n_bounds = 0;
    int32_t recent_from = -1;
    int32_t rows = 1;                 // 1, or the size of the query group
    size_t  capacity = 0;             // stride of head_store::buckets / recent
};

// One attention over the store. Shapes follow ggml_flash_attn_ext: q [dk, n_tokens, n_head, n_stream] f32,
// mask [n_kv, >= n_tokens, 1 or n_head, 1 or n_stream] f16 or none, out [dv, n_head, n_tokens, n_stream] f32.
struct attention_node {
    row_format    k, v;
    head_store *  heads = nullptr;    // [n_stream][n_head_kv] of the streams of this node
    int32_t       n_stream = 1, n_head_kv = 1, n_head = 1, n_tokens = 1;
    const char *  q = nullptr;        size_t q_nb[4] = {};     // bytes: [1] token, [2] head, [3] stream
    const char *  mask = nullptr;     size_t mask_nb[4] = {};  // bytes: [1] token, [2] head, [3] stream
    int32_t       mask_n_kv = 0, mask_n_head = 1, mask_n_stream = 1;
    // cells below this have a mask of exactly 0 for every token of the node (0: unknown); decode only
    int32_t       mask_open = 0;
    char *        out = nullptr;      size_t out_nb[4] = {};   // bytes: [1] head, [2] token, [3] stream
    const float * sinks = nullptr;    // [n_head] or none
    float         scale = 1, max_bias = 0, softcap = 0;
    const int32_t * query_pos = nullptr; // [n_stream][n_tokens] positions of the queries
    const statistic * stat = nullptr; // none: only tracked scores are accumulated
};

} // namespace kvasir
