// Column sums of the attention weights, by distance: see kvasir_statistic_params. Runs after an attention whose rows'
// log-sum-exp is known: the weight of a query at a slot is 2^(score - lse), scores are computed once more.
//
// A CTA owns slots of a head and goes over the queries in order, so that sums need no atomics and always come out alike.
// Queries advance, so distances grow: a slot's sum stays in a register until the queries leave its bucket.
#pragma once

#include "prefill.h"

namespace kvasir::cuda {

constexpr int32_t STATISTIC_THREADS = 128, STATISTIC_QUERIES = 64, STATISTIC_CHUNK = 32;

struct statistic_params {
    attention_params a;
    const float *    lse;       // [n_stream][n_head][n_tokens], as attention wrote it
    char *           workspace; // statistic_workspace_bytes
    // per head of the layer; none: weights (mean over the query group) are added to the page's scores instead
    float *          buckets;   // [head][rows][n_bounds + 1][capacity]
    float *          recent;    // [head][rows][capacity], or none
    const int32_t *  track;     // [head], with scores: heads whose entry is 0 are left out; none: all take part
    const int32_t *  bounds;
    int32_t          n_bounds, rows, recent_from; // rows: 1, or the query heads of the group
    int64_t          capacity;
};

KVASIR_BOTH constexpr int32_t statistic_tokens(int32_t n_tokens) { return (n_tokens + STATISTIC_QUERIES - 1) / STATISTIC_QUERIES * STATISTIC_QUERIES; }

// scaled queries in f16 [stream][head][tokens][dim], their lse [stream][head][tokens], positions [stream][tokens] and the
// lowest and highest position of every 32 tokens [stream][tokens / 32][2]; tokens padded to a multiple of 64
struct statistic_layout {
    size_t lse, pos, span, bytes; // queries are at 0
};
KVASIR_BOTH inline statistic_layout statistic_workspace(const attention_params & a) {
    const size_t tokens = (size_t) statistic_tokens(a.n_tokens), rows = (size_t) a.n_stream * (size_t) a.n_head * tokens;
    statistic_layout l{};
    l.lse   = rows * (size_t) a.pages.format.dim_k * 2;
    l.pos   = l.lse + rows * 4;
    l.span  = l.pos + (size_t) a.n_stream * tokens * 4;
    l.bytes = l.span + (size_t) a.n_stream * tokens / STATISTIC_CHUNK * 8;
    return l;
}
inline size_t statistic_workspace_bytes(const attention_params & a) { return statistic_workspace(a).bytes; }

constexpr int32_t statistic_slots(int32_t dim) { return dim > 128 ? 64 : 128; } // of a CTA

// first this, then statistic_launch
inline launch statistic_queries_launch(const attention_params & a) {
    return {"statistic_queries", (uint32_t) (statistic_tokens(a.n_tokens) / STATISTIC_CHUNK), (uint32_t) (a.n_stream * a.n_head), 128, 0};
}

inline launch statistic_launch(const attention_params & a, int32_t n_sm) {
    const char * name = nullptr;
    switch (a.pages.format.dim_k) {
        case 64:  name = "statistic_64"; break;
        case 80:  name = "statistic_80"; break;
        case 96:  name = "statistic_96"; break;
        case 128: name = "statistic_128"; break;
        case 256: name = "statistic_256"; break;
        default:  break;
    }
    const uint32_t row = (uint32_t) a.pages.format.dim_k * 2 + 16;
    const uint32_t queries = 2 * STATISTIC_QUERIES * row, keys = (uint32_t) statistic_slots(a.pages.format.dim_k) * row;
    return {name, (uint32_t) n_sm * 4, 1, (uint32_t) STATISTIC_THREADS, queries > keys ? queries : keys};
}

// at the end: the columns' totals, mean over the rows, become the scores; a CTA per page
struct statistic_totals_params {
    layer_pages   pages;
    const float * buckets;
    int32_t       n_heads, n_bounds, rows;
    int64_t       capacity;
};
inline launch statistic_totals_launch(const layer_pages & p, int32_t n_heads) {
    return {"statistic_totals", (uint32_t) p.table_stride, (uint32_t) n_heads, (uint32_t) PAGE_SLOTS, 0};
}

} // namespace kvasir::cuda
