// The statistic of moved queries (native/README.md, "Moved queries"): recorded queries are turned to stand behind all that is held, and the columns of
// their softmax weights and of the squares of these are summed up.
//
// moved_turn turns the queries; moved_attend finds the largest score and the sum of weights of each, and where outputs are wanted these, in pieces
// of a head's slots; moved_merge puts the pieces together; moved_outputs sums up outputs; moved_columns computes the scores once more and sums up the
// columns. All in a fixed order: results are always the same ones.
#pragma once

#include "store_ops.h"

namespace kvasir::cuda {

constexpr int32_t MOVED_ENTRIES = 1024; // of the record that are summed up at a time
constexpr int32_t MOVED_TILE    = 64;   // queries with outputs are padded to a multiple of this, and so are the others
constexpr int32_t MOVED_ROWS    = MOVED_ENTRIES + 2 * MOVED_TILE;

// A recorded query.
struct moved_row {
    int32_t entry;      // of the record; -1: none, for padding
    int32_t begin, pos; // positions of the first token of its block, and its own
    int32_t pad;
};

// of a mask, n_stream, n_tokens, causal, q and query_pos of the attention nothing is read; lengths are below
struct moved_params {
    attention_params  a;        // pages of one stream
    const int32_t *   n;        // [KV head] slots held
    const moved_row * rows;     // [n_rows], those with outputs first
    const uint16_t *  record;   // f16 [entry][n_head][dim]
    int32_t           n_rows, n_outputs; // with outputs; both multiples of MOVED_TILE
    int32_t           end;      // a block is moved to begin here; slots of positions from here on are not looked at
    int32_t           window;   // positions that a query sees; 0: all
    const double *    omega;    // [n_pairs] radians a position; none: the layer has no rotary positions
    int32_t           n_pairs, offset, halves, hadamard; // as in kvasir::rotation
    int32_t           n_split;  // pieces of a head's slots
    char *            scratch;  // moved_scratch_bytes
    // added to
    float *           p;        // [n_head][capacity]
    float *           squares;  // likewise
    int64_t           capacity;
    double *          output;   // [n_head][dim]
    double *          length2;  // [n_head]
};

// queries f16 [n_head][n_rows][dim]; maxima and sums float2 [n_split][n_head][n_rows]; logarithms of sums f32 [n_head][n_rows]; positions that queries are
// moved to [n_rows]; outputs f32 [n_split][n_head][n_outputs][dim]
struct moved_layout {
    size_t sums, lse, at, outputs, bytes;
};
KVASIR_BOTH inline moved_layout moved_scratch(int32_t n_head, int32_t dim, int32_t n_rows, int32_t n_outputs, int32_t n_split) {
    const size_t rows = (size_t) n_head * (size_t) n_rows;
    moved_layout l{};
    l.sums    = rows * (size_t) dim * 2;
    l.lse     = l.sums + (size_t) n_split * rows * 8;
    l.at      = l.lse + rows * 4;
    l.outputs = l.at + (size_t) n_rows * 4;
    l.bytes   = l.outputs + (size_t) n_split * (size_t) n_head * (size_t) n_outputs * (size_t) dim * 4;
    return l;
}

constexpr int32_t moved_attend_warps(int32_t dim, bool outputs) { return dim > 128 ? 2 : outputs ? 4 : 8; } // of 16 queries

constexpr uint32_t moved_attend_shared(int32_t dim, bool outputs, bool raw_k, bool raw_v) {
    const int32_t keys = key_block(dim), row = dim * 2 + 16, raw = keys * (dim + dim / Q8_BLOCK * 2), queries = moved_attend_warps(dim, outputs) * 16 * row;
    return (uint32_t) ((dim > 128 ? 2 : 1) * queries + keys * row + (raw_k ? 2 * raw : keys * row) + (outputs ? dim * (keys * 2 + 16) + (raw_v ? raw : 0) : 0));
}

// pieces that keep the multiprocessors busy
inline int32_t moved_split(int32_t n_head, int32_t n_rows, int32_t longest, int32_t n_sm) {
    const int32_t tiles = n_head * ((n_rows + 127) / 128), most = longest / (4 * PAGE_SLOTS);
    int32_t split = 2 * n_sm / (tiles > 0 ? tiles : 1);
    split = split < most ? split : most;
    return split < 1 ? 1 : split > 16 ? 16 : split;
}

inline const char * moved_kernel(int32_t dim, const char * const (&names)[5]) {
    return dim == 64 ? names[0] : dim == 80 ? names[1] : dim == 96 ? names[2] : dim == 128 ? names[3] : dim == 256 ? names[4] : nullptr;
}

inline launch moved_turn_launch(const moved_params & p) { return {"moved_turn", (uint32_t) (p.n_rows / 8), (uint32_t) p.a.n_head, 256, 0}; }

// outputs: of the queries that have some, else of the others. grid_x 0: there are none.
inline launch moved_attend_launch(const moved_params & p, bool outputs) {
    static const char * const with[5] = {"moved_outputs_64", "moved_outputs_80", "moved_outputs_96", "moved_outputs_128", "moved_outputs_256"};
    static const char * const without[5] = {"moved_weights_64", "moved_weights_80", "moved_weights_96", "moved_weights_128", "moved_weights_256"};
    const page_format & f = p.a.pages.format;
    const int32_t warps = moved_attend_warps(f.dim_k, outputs), tile = warps * 16, rows = outputs ? p.n_outputs : p.n_rows - p.n_outputs;
    return {f.dim_k == f.dim_v ? moved_kernel(f.dim_k, outputs ? with : without) : nullptr, (uint32_t) ((rows + tile - 1) / tile), (uint32_t) (p.a.n_head * p.n_split),
            (uint32_t) (warps * 32), moved_attend_shared(f.dim_k, outputs, f.type_k == Q8_0, f.type_v == Q8_0)};
}

inline launch moved_merge_launch(const moved_params & p) { return {"moved_merge", (uint32_t) (p.n_rows / MOVED_TILE), (uint32_t) p.a.n_head, (uint32_t) MOVED_TILE, 0}; }

constexpr int32_t moved_output_groups(int32_t dim) { return dim > 128 ? 4 : 8; } // of threads, a dimension each
inline launch moved_outputs_launch(const moved_params & p) {
    const int32_t dim = p.a.pages.format.dim_v;
    return {"moved_output_sums", (uint32_t) p.a.n_head, 1, (uint32_t) (moved_output_groups(dim) * dim), (uint32_t) (moved_output_groups(dim) * dim) * 8};
}

constexpr int32_t MOVED_COLUMNS_THREADS = 128, MOVED_QUERIES = 64;
constexpr int32_t moved_columns_slots(int32_t dim) { return dim > 128 ? 64 : 128; } // of a CTA
inline launch moved_columns_launch(const moved_params & p, int32_t longest) {
    static const char * const names[5] = {"moved_columns_64", "moved_columns_80", "moved_columns_96", "moved_columns_128", "moved_columns_256"};
    const int32_t dim = p.a.pages.format.dim_k, slots = moved_columns_slots(dim), row = dim * 2 + 16;
    return {moved_kernel(dim, names), (uint32_t) ((longest + slots - 1) / slots), (uint32_t) p.a.n_head, (uint32_t) MOVED_COLUMNS_THREADS,
            (uint32_t) ((slots > 2 * MOVED_QUERIES ? slots : 2 * MOVED_QUERIES) * row)};
}

// ---- the record ----

// queries of some of a batch's tokens become entries
struct moved_record_params {
    const char *    q;      // f32, rows aligned to 16 bytes
    int64_t         token_bytes, head_bytes;
    const int32_t * tokens; // [gridDim.x]
    uint16_t *      to;     // f16 [gridDim.x][n_head][dim]
    int32_t         n_head, dim;
};
inline launch moved_record_launch(int32_t n_tokens) { return {"moved_record", (uint32_t) n_tokens, 1, 256, 0}; }

// ---- what slots are worth ----

// mean outputs and weights of the query heads; sums become folded ones
struct moved_means_params {
    double *      output;        // [n_head][dim], [n_head]: cleared
    double *      length2;
    double *      folded_output; // added to
    double *      folded_length2;
    const float * given;         // [n_head] weights, or none: 1 / mean squared length
    double        n;             // queries
    int32_t       dim;
    float *       mean;          // [n_head][dim]
    float *       weight;        // [n_head]
};
inline launch moved_means_launch(int32_t n_head) { return {"moved_means", (uint32_t) n_head, 1, 256, 0}; }

// adds to the scores of slots
struct moved_fold_params {
    layer_pages     pages;
    const int32_t * n;       // [KV head] slots
    const float *   squares; // [n_head][capacity]
    int64_t         capacity;
    const float *   mean;
    const float *   weight;
    int32_t         group, reach; // squares are means over so many slots on either side
};
inline launch moved_fold_launch(const layer_pages & pages, int32_t longest) {
    return {"moved_fold", (uint32_t) ((longest + BLOCK_SLOTS - 1) / BLOCK_SLOTS), (uint32_t) pages.n_head_kv, 256, (uint32_t) (pages.format.dim_v * BLOCK_SLOTS * 4)};
}

// sums of slots [from, to) of the query heads of KV heads are 0 again
struct moved_reset_params {
    float *           p;
    float *           squares;
    int64_t           capacity;
    const move_item * items;
    int32_t           n_items, group;
};
inline launch moved_reset_launch(int32_t n_items) { return {"moved_reset", (uint32_t) ((n_items + 7) / 8), 1, 256, 0}; }

} // namespace kvasir::cuda
