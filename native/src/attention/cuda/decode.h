// Attention of a few queries over one layer of the store, for a host compiler and for nvcc.
//
// `plan` runs once per token for all layers: it cuts the blocks of all heads of a layer into pieces, one per CTA: whole CTAs
// for each head where that comes out nearly even, else the heads are laid one after another and cut into equal pieces. The
// decode kernel then runs once per layer, and `accumulate_scores` once per token if any head is tracked. Lengths, page tables
// and flags are read on the device, so a captured graph of these launches stays valid while they change. `plan` has to run again before a layer's decode kernel does.
//
// Parts of a cut head meet through `exchange`: CTAs wait for one another, so all CTAs of the grid have to be
// resident. Each fills a multiprocessor and there are no more than multiprocessors; other kernels may run beside it as long as
// they end by themselves. Two decode kernels must not run at once, unless both are launched as cooperative.
#pragma once

#include "prefill.h"

namespace kvasir::cuda {

constexpr int32_t SEGMENT_PAGES = 16;

// Some blocks of one head: what a CTA works on. Written by `plan`.
struct decode_segment {
    int32_t  head;          // (stream * n_head_kv + KV head) * n_pass + pass; -1: nothing to do
    int32_t  begin, end;    // blocks
    int32_t  slots;         // held by the head
    int32_t  more;          // segments of this CTA after this one; they are of the heads that follow
    int32_t  where;         // sign: every slot is seen; stream << 20 | KV head << 8 | pass
    int32_t  track;         // region of scores + 1; 0: the head is not tracked
    int32_t  row;           // appended to one of these blocks; -1: none, -2: several are appended to the head
    int32_t  parts;         // of the head, << 16 | which of them this is
    int32_t  share;         // of the head's pairs of elements, that this part puts together: end << 16 | begin
    int32_t  exchange;      // place of part 0; part i > 0 has place 2 * (exchange / 2 + i)
    uint32_t epoch;         // of this plan and layer: marks what is exchanged
    int32_t  row_slot, row_page, row_cell, row_pos;
    int32_t  page[SEGMENT_PAGES]; // the first ones
};
static_assert(sizeof(decode_segment) == 128, "a warp reads a segment, a word per lane");

// Rotary positions (ggml's ROPE), when the decode kernel turns queries and the rows to append: `plan` computes cosines and sines, once for
// all layers that have the same ones.
struct rotary_params {
    float *         table;          // [n_tokens][dim]: pairs of a cosine and a sine (rotary_place); none: nothing to do
    const int32_t * pos;            // [n_tokens]
    const float *   factors;        // [n_dims / 2] divide the frequencies; or none
    int32_t         n_tokens, dim, n_dims;
    int32_t         halves;         // elements i and i + dim / 2 are a pair (NEOX), else 2 * i and 2 * i + 1
    float           theta_scale, freq_scale, ext_factor, attn_factor, low, high; // as in ggml's CUDA kernel; low, high: ggml_rope_yarn_corr_dims
};

// Where the cosine of a pair stands in a token's row of the table; its sine follows. A lane reads the cosines and sines for 4 elements, or for 4
// and those dim / 2 after them, at the places of these elements.
KVASIR_BOTH constexpr int32_t rotary_place(int32_t pair, int32_t dim, bool halves) {
    return halves ? pair / 4 * 4 + pair % 4 / 2 * (dim / 2) + pair % 2 * 2 : pair * 2;
}

// elements of a row of K that a lane reads at once; neighbouring lanes read on
KVASIR_BOTH constexpr int32_t decode_step(int32_t type_k, int32_t dim) { return type_k == Q8_0 ? (dim % 64 == 0 ? 16 : 8) : (dim % 32 == 0 ? 8 : 4); }

// whether a lane that has one element of each pair has the other
KVASIR_BOTH constexpr bool decode_turns(int32_t type_k, int32_t dim, bool halves) { return !halves || dim % (8 * decode_step(type_k, dim)) == 0; }

// What `plan` and `accumulate_scores` know of a layer; they take an array in device memory.
struct decode_layer {
    layer_pages      pages;
    int32_t          n_stream;
    int32_t          n_pass;        // decode_shape
    int32_t          n_column;      // query heads of a group * tokens of a stream
    int32_t          columns;       // decode_shape
    int32_t          group;
    const int32_t *  open;          // there != 0: every slot is seen by every query, and the mask is not read; or none
    const int32_t *  track;         // [head] region of scores + 1, or 0; or none
    const int32_t *  slot;          // decode_params
    const token_label * token;
    int32_t          n_append;
    decode_segment * segments;      // decode_segments
    float *          scores;        // [region][n_column][score_stride] exponents of 2
    float *          lse;           // [region][n_column] log2 of the sum of weights (+inf: nothing is seen)
    int64_t          score_stride;
    rotary_params    rotary;
};

struct plan_params {
    const decode_layer * layers;    // [gridDim.x]; gridDim.y CTAs share the work on one
    uint32_t *           epoch;     // [2], of the exchange; zero at first
    void *               exchange;  // cleared when epochs start again from one
    uint64_t             exchange_bytes;
    int32_t              n_cta;     // of the decode kernel
    int32_t              min_blocks, head_blocks; // the least of a piece; what a change of head costs, in blocks
};

struct decode_params {
    const decode_segment * segments;
    int32_t                stages, ring; // decode_shape
    int32_t                group;   // query heads of a KV head
    uint32_t               by_group; // reciprocal(group)
    attention_params       a;       // causal and query_pos are not read
    float *                out;     // [dv][n_head][n_tokens][n_stream]
    int64_t                out_head_bytes, out_token_bytes, out_stream_bytes;
    // rows to append, before they are read; f32, aligned to 16 bytes as queries are
    const char *           k;
    const char *           v;
    int64_t                k_token_bytes, k_head_bytes, v_token_bytes, v_head_bytes;
    const int32_t *        slot;    // [n_append][n_head_kv]; pages.n counts them already. -1: the head does not hold the row
    const token_label *   token;   // [n_append]
    int32_t                n_append;
    const float *          turn_q;  // rotary_params' table for queries, [n_stream][n_tokens], and for rows of K, [n_append]; none: they are turned already
    const float *          turn_k;
    int32_t                halves;
    const uint64_t *       record;  // [n_tokens] addresses where queries go, f16 [n_head][dim], turned; 0: a token's do not; none: nobody's. One stream
    void *                 exchange;
    float *                scores;  // as in decode_layer
    float *                lse;
    int64_t                score_stride;
};

struct decode_shape {
    char     kernel[40];            // "": there is none
    int32_t  columns;               // query rows that a pass takes
    int32_t  n_pass;
    int32_t  stages;                // blocks in flight per warp
    int32_t  ring;                  // where they begin in shared memory
    int32_t  min_blocks, head_blocks; // plan_params
    uint32_t grid, block, shared;
};

// column / group without a division, for less than 8 * group columns: quotient(column, reciprocal(group))
constexpr int32_t  DECODE_MAX_GROUP = 256;
constexpr uint32_t reciprocal(int32_t group) { return (1u << 20) / (uint32_t) group + 1; }
KVASIR_BOTH constexpr int32_t quotient(int32_t column, uint32_t by) { return (int32_t) ((uint32_t) column * by >> 20); }

constexpr int32_t decode_wide_tiles(int32_t dim) { return dim > 128 ? 2 : 4; } // tiles of 8 query rows

constexpr uint32_t decode_stage_bytes(int32_t type_k, int32_t type_v, int32_t dim) {
    return (uint32_t) (BLOCK_SLOTS * dim * ((type_k == Q8_0 ? 1 : 2) + (type_v == Q8_0 ? 1 : 2)) +
                       BLOCK_SLOTS * (dim / Q8_BLOCK) * 2 * ((type_k == Q8_0) + (type_v == Q8_0)) + BLOCK_SLOTS * 4);
}

constexpr int32_t DECODE_MAX_WARPS   = 8; // of a CTA; their number is a power of two
constexpr int32_t DECODE_HEAD_BLOCKS = 8;

// shared memory beside the stages: barriers, queries (wide only), columns, accumulators of all warps with their maxima and sums
constexpr uint32_t decode_fixed_bytes(int32_t dim, int32_t tiles, int32_t warps, int32_t stages) {
    const uint32_t bytes = (uint32_t) (warps * stages * 16 + 16 + (tiles > 1 ? tiles * 8 * dim * 4 + dim / 16 * tiles * 32 * 8 : 0) + tiles * 8 * 16 +
                                       warps * 8 * dim * 4 + warps * 4 * 16);
    return (bytes + 127) / 128 * 128;
}

// shared_limit: what a block may opt in to
inline decode_shape make_decode_shape(const page_format & f, int32_t group, int32_t n_tokens, int32_t n_sm, uint32_t shared_limit) {
    decode_shape s{};
    const int32_t d = f.dim_k, columns = group * n_tokens;
    const bool quantized = f.type_k == Q8_0 || f.type_v == Q8_0;
    if (f.dim_v != d || group > DECODE_MAX_GROUP || !(d == 64 || d == 96 || d == 128 || d == 256 || (d == 80 && !quantized))) {
        return s;
    }
    const int32_t tiles = columns > 8 ? decode_wide_tiles(d) : 1;
    const uint32_t stage = decode_stage_bytes(f.type_k, f.type_v, d);
    // Every load waits behind those that are on their way: no more than keeps the memory busy.
    constexpr uint32_t in_flight = 144 * 1024;
    int32_t warps = DECODE_MAX_WARPS;
    while (warps > 1 && decode_fixed_bytes(d, tiles, warps, 1) + (uint32_t) warps * stage > shared_limit) {
        warps /= 2;
    }
    int32_t stages = 0;
    while (stages < 4 && (stages == 0 || (uint32_t) (warps * (stages + 1)) * stage <= in_flight) && decode_fixed_bytes(d, tiles, warps, stages + 1) + (uint32_t) (warps * (stages + 1)) * stage <= shared_limit) {
        stages++;
    }
    if (stages == 0) {
        return s;
    }
    char * c = s.kernel;
    const auto add = [&](const char * text) {
        while (*text) {
            *c++ = *text++;
        }
    };
    add("decode_");
    add(f.type_k == Q8_0 ? "q8_0_" : "f16_");
    add(f.type_v == Q8_0 ? "q8_0_d" : "f16_d");
    add(d == 64 ? "64" : d == 80 ? "80" : d == 96 ? "96" : d == 128 ? "128" : "256");
    add(tiles > 1 ? "_wide" : "");
    s.columns = tiles * 8;
    s.n_pass  = (columns + s.columns - 1) / s.columns;
    s.stages  = stages;
    s.min_blocks = warps;
    s.head_blocks = DECODE_HEAD_BLOCKS;
    s.grid    = (uint32_t) n_sm;
    s.block   = (uint32_t) (warps * 32);
    s.ring    = (int32_t) decode_fixed_bytes(d, tiles, warps, stages);
    s.shared  = (uint32_t) s.ring + (uint32_t) (warps * stages) * stage;
    return s;
}

inline size_t decode_segments(const decode_shape & s, int32_t n_head) { return s.grid + (size_t) n_head * (size_t) s.n_pass; } // n_head: of all streams

// two places per CTA: only its first and its last segment can share a head with others
inline size_t decode_exchange_bytes(const decode_shape & s, int32_t dim) { return (size_t) s.grid * 2 * (size_t) s.columns * (size_t) (dim / 2 + 1) * 16; }

constexpr uint32_t PLAN_THREADS = 1024, PLAN_CTAS = 4; // of a layer

// n_head: heads of the layer that has most, times its passes
inline uint32_t plan_shared(int32_t n_cta, int32_t n_head) { return (uint32_t) (n_cta + 1) * 8 + (uint32_t) (n_head + 1) * 4; }

constexpr uint32_t SCORE_THREADS = 256; // grid: any, heads of the layer that has most, layers

} // namespace kvasir::cuda
