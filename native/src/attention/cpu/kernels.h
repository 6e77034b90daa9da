// Between the scheduler (cpu_attention.cpp) and the kernels (kernels_isa.h, compiled once per instruction set): the work
// of one node, its units, and the layout of the scratch memory. Inline functions here are static on purpose, see vec.h.
#pragma once

#include "../attention.h"

#include <cstddef>
#include <cstdint>

namespace kvasir {

constexpr int32_t slot_block  = 64; // slots that a kernel takes at once
constexpr int32_t query_tile  = 64; // queries of a prefill unit, at most
constexpr int32_t decode_tokens = 8; // up to here a node counts as decode
constexpr float   log2_e      = 1.4426950408889634f;

static inline int32_t round_up(int32_t x, int32_t to) { return (x + to - 1) / to * to; }

// Decode: slots [begin, end) of a head for all R = group * n_tokens query rows; the last unit of a head merges them.
// Prefill: tokens [token, token + n_tokens) of the query heads [group, group + n_group) of a KV head, all slots.
struct cpu_unit {
    int32_t head;              // stream * n_head_kv + KV head
    int32_t begin, end;
    int32_t token, n_tokens;
    int32_t group, n_group;
    int32_t ticket, turn;      // prefill: units with the same ticket add to the head in the order of turn
};

struct cpu_head_work {
    int32_t first_unit, n_units;
    size_t  kept;              // decode: offset in floats of the head's kept weights
};

struct cpu_job {
    attention_node node;
    int32_t group;             // query heads per KV head
    int32_t dkp, dvp;          // head dims, rounded up to whole vectors of 16
    int32_t tile;              // prefill: lanes of a unit's query tile (16, 32 or 64)
    bool    keep;              // some head wants its weights: they are kept until the log-sum-exp is known
    const cpu_unit * units;
    const cpu_head_work * work;
    float * parts;             // decode: [unit][R][2 + dvp]: maximum, sum, accumulator
    uint8_t * views;           // prefill, mask shared by the heads: [stream][tile][n_view] what a tile sees of 64 aligned cells
    int32_t n_view, n_tiles;   //   (0: not looked at yet); every thread that looks writes the same
    float * kept;              // decode: per head [block][R][slot_block] weights, then [block][R] the maximum they refer to
};

// Weights are kept relative to the running maximum of their block; all logarithms are to base 2.

// ---- scratch of one thread, in floats ----
struct decode_scratch {
    size_t q, s, acc, max, sum, k, v, mask, total;
};
static inline decode_scratch decode_scratch_of(int32_t rows, int32_t dkp, int32_t dvp) {
    decode_scratch l{};
    size_t n = 0;
    l.q    = n; n += (size_t) rows * dkp;
    l.s    = n; n += (size_t) rows * slot_block;
    l.acc  = n; n += (size_t) rows * dvp;
    l.max  = n; n += (size_t) round_up(rows, 16);
    l.sum  = n; n += (size_t) rows * 16;
    l.k    = n; n += (size_t) slot_block * dkp;
    l.v    = n; n += (size_t) slot_block * dvp;
    l.mask = n; n += slot_block * 2;
    l.total = (n + 15) / 16 * 16;
    return l;
}
struct prefill_scratch {
    size_t q, o, max, sum, s, s_max, mask, k, v, total;
};
// kept_blocks: blocks of slots whose weights stay until the end of the unit (1: none)
static inline prefill_scratch prefill_scratch_of(int32_t tile, int32_t n_group, int32_t dkp, int32_t dvp, int32_t kept_blocks) {
    prefill_scratch l{};
    size_t n = 0;
    l.q     = n; n += (size_t) n_group * dkp * tile;
    l.o     = n; n += (size_t) n_group * dvp * tile;
    l.max   = n; n += (size_t) n_group * tile;
    l.sum   = n; n += (size_t) n_group * tile;
    l.s     = n; n += (size_t) kept_blocks * slot_block * tile;
    l.s_max = n; n += (size_t) kept_blocks * tile;
    l.mask  = n; n += (size_t) slot_block * tile;
    l.k     = n; n += (size_t) slot_block * dkp;
    l.v     = n; n += (size_t) slot_block * dvp;
    l.total = (n + 15) / 16 * 16;
    return l;
}

// ---- moved queries (moved_sums.h) ----

// Queries [first, first + n) of the record, of block number block, for the query heads [group, group + n_group) of a KV head.
struct moved_unit {
    int32_t head, group, n_group;
    int32_t block, begin, first, n;
    bool    outputs;
    int32_t ticket, turn;      // units with the same ticket add to the sums in the order of turn
};

struct moved_job {
    row_format k, v;
    const head_store * heads;
    int32_t group, n_head;     // query heads per KV head, and in all
    int32_t dkp, dvp;          // head dims, rounded up to whole vectors of 16
    int32_t tile, n_group;     // queries and query heads of a unit, at most
    int32_t n_slots;           // of any head, rounded up to whole blocks
    const uint16_t * queries;  // as in moved_sums_node, to the end
    const int32_t *  pos;
    int32_t end, window;
    float   scale, softcap;
    int32_t pairs, offset, hadamard;
    bool    halves;
    const float * turns;       // [block][2][pairs]: cosines and sines
    const float * slopes;      // ALiBi: [n_head], or none
    const float * sinks;
    float * const * p, * const * squares;
    const size_t *  capacity;
    double * output, * length2;
};

struct moved_scratch {
    size_t q, own, o, max, sum, s, s_max, own_s, k, v, moments, output, total;
};
static inline moved_scratch moved_scratch_of(int32_t tile, int32_t n_group, int32_t dkp, int32_t dvp, int32_t n_slots) {
    moved_scratch l{};
    size_t n = 0;
    l.q       = n; n += (size_t) n_group * dkp * tile;
    l.own     = n; n += (size_t) n_group * dkp * tile;
    l.o       = n; n += (size_t) n_group * dvp * tile;
    l.max     = n; n += (size_t) n_group * tile;
    l.sum     = n; n += (size_t) n_group * tile;
    l.s       = n; n += (size_t) n_group * n_slots * tile;
    l.s_max   = n; n += (size_t) n_group * (n_slots / slot_block) * tile;
    l.own_s   = n; n += (size_t) slot_block * tile;
    l.k       = n; n += (size_t) slot_block * dkp;
    l.v       = n; n += (size_t) slot_block * dvp;
    l.moments = n; n += (size_t) n_group * n_slots * 2;
    l.output  = n; n += (size_t) n_group * (dvp + 16); // and the squared length
    l.total = (n + 15) / 16 * 16;
    return l;
}

// floats of scratch for moved_losses
static inline size_t moved_losses_scratch(int32_t dv, int32_t group) { return (size_t) (slot_block + group) * round_up(dv, 16); }

struct cpu_kernels {
    const char * name;
    void (*decode)(const cpu_job & job, const cpu_unit & unit, int32_t unit_index, float * scratch);
    void (*decode_merge)(const cpu_job & job, int32_t head, float * scratch);
    void (*prefill)(const cpu_job & job, const cpu_unit & unit, float * scratch);
    // adds the kept weights of the unit just computed to the head's scores or statistic
    void (*prefill_accumulate)(const cpu_job & job, const cpu_unit & unit, float * scratch);
    void (*f32_to_f16)(const float * x, uint16_t * y, int64_t n);
    void (*f32_to_bf16)(const float * x, uint16_t * y, int64_t n);
    // n rows in ggml's layout, row_bytes apart, to floats, ld apart
    void (*rows_to_f32)(ggml_type type, const char * src, size_t row_bytes, int32_t n, int32_t dim, float * dst, int32_t ld);
    void (*moved)(const moved_job & job, const moved_unit & unit, float * scratch);
    // adds what the unit just computed to the sums
    void (*moved_add)(const moved_job & job, const moved_unit & unit, const float * scratch);
    // of slots [begin, end) of a head
    void (*moved_losses)(const row_format & v, const head_store & head, int32_t begin, int32_t end, int32_t group, const float * squares, size_t capacity,
                         const float * output, const float * weights, float * scores, float * scratch);
};

const cpu_kernels & cpu_kernels_active();

} // namespace kvasir
