// FLASH_ATTN_EXT over ragged heads on the CPU: decode (few query rows share every K/V row) and prefill (tiles of queries).
//
// Use, per graph:
//   calling thread   for every node: attention[i].plan(node, n_threads, workspace)
//   ggml's threads   GGML_OP_CUSTOM callback of node i: attention[i].run(ith, nth)
//
// plan() must precede every run of the node: it cuts the work into units and resets their counters. Of the heads it reads
// n and track only, which must already be what they are when the node runs; K, V, cells, positions, Q, the mask, the
// bounds of the statistic are read by run(). Nodes that share a workspace must run one after another, as the nodes of one
// graph do. Neither function allocates once the buffers have grown to the size of the largest graph.
//
// Scores and statistic: every unit adds to a head in an order that only depends on the plan, so results are the same
// from run to run for the same number of threads.
#pragma once

#include "../attention.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvasir {

// Scratch memory of the nodes of one graph: partial results, kept softmax weights and a piece for every thread.
class cpu_workspace {
public:
    cpu_workspace() = default;
    ~cpu_workspace();
    cpu_workspace(const cpu_workspace &) = delete;
    cpu_workspace & operator=(const cpu_workspace &) = delete;

    // contents are lost when it grows; throws std::bad_alloc; never while a node runs
    void   reserve(size_t bytes);
    char * data() const { return data_; }

private:
    char * data_ = nullptr;
    size_t size_ = 0;
};

struct cpu_unit;

class cpu_attention {
public:
    cpu_attention();
    ~cpu_attention();
    cpu_attention(cpu_attention &&) noexcept;
    cpu_attention & operator=(cpu_attention &&) noexcept;

    // n_threads: the largest nth of the runs that follow. The node is copied; what it points to must stay.
    void plan(const attention_node & node, int n_threads, cpu_workspace & workspace);
    // called by threads 0 <= ith < nth at the same time; returns when no unit is left to take
    void run(int ith, int nth) noexcept;

private:
    struct state;
    std::unique_ptr<state> s_;
};

// Whether the kernels take this pair of rows (types f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1; K of f16/bf16 tiled or not).
bool cpu_attention_supports(const row_format & k, const row_format & v);

// "avx512", "avx2", "neon" or "baseline": what run() and the row conversions use on this machine.
const char * cpu_kernels_name();
// Chooses another set (tests and benchmarks); false when this machine or this build lacks it. Not while a node runs.
bool cpu_kernels_select(const char * name);

} // namespace kvasir
