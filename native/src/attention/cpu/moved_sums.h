// The statistic of moved queries on the CPU (native/README.md, "Moved queries"): blocks of recorded queries are put behind all that is held, and
// what each slot would get of their attention is summed up.
#pragma once

#include "../attention.h"
#include "../rotation.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvasir {

constexpr int32_t moved_block_tokens = 64;

// Queries of the tokens at positions [begin, begin + 64): entries [first, first + n) of the record.
struct moved_block {
    int32_t begin, first, n;
    bool    outputs; // these count for the mean outputs
};

struct moved_sums_node {
    row_format         k, v;
    const head_store * heads = nullptr;   // [n_head_kv]
    int32_t            n_head_kv = 1, n_head = 1;
    const uint16_t *   queries = nullptr; // f16 [entry][n_head][k.dim], as the attention got them
    const int32_t *    pos = nullptr;     // [entry]
    std::vector<moved_block> blocks;
    int32_t            end = 0;           // a block that begins at s is moved by end - s positions; slots of positions from end on are not looked at
    int32_t            window = 0;        // a query at position t sees positions from t - window + 1 on; 0: all
    const rotation *   turned = nullptr;
    float              scale = 1, softcap = 0, max_bias = 0;
    const float *      sinks = nullptr;   // [n_head] or none
    // added to: [n_head_kv] -> [query head of the group][capacity of the KV head]
    float * const *    p = nullptr;
    float * const *    squares = nullptr;
    const size_t *     capacity = nullptr;
    double *           output = nullptr;  // [n_head][v.dim] sums of outputs, the block's copy included
    double *           length2 = nullptr; // [n_head] sums of their squared lengths
};

// Neither's results depend on the number of threads. Both throw std::bad_alloc, before anything is added.
void moved_sums(const moved_sums_node & node, int n_threads);

struct moved_losses_node {
    row_format         v;
    const head_store * heads = nullptr;     // [n_head_kv]
    int32_t            n_head_kv = 1, group = 1;
    const float * const * squares = nullptr; // [n_head_kv] -> [query head of the group][capacity of the KV head]
    const size_t *     capacity = nullptr;  // [n_head_kv]
    const float *      output = nullptr;    // [n_head][v.dim] mean outputs
    const float *      weights = nullptr;   // [n_head]
};

// adds to the scores of the heads' slots sum_g weights[g] squares[g][slot] |v - output[g]|^2
void moved_losses(const moved_losses_node & node, int n_threads);

} // namespace kvasir
