// Sums of moved queries by ggml's own operations, on any backend: graphs of their own, between those of llama.cpp.
#pragma once

#include "../../device/graph_builder.h"
#include "../../store/device_rows.h"
#include "../cpu/moved_sums.h"

#include <vector>

namespace kvasir {

class portable_moved {
public:
    // node: as for moved_sums, but for the rows, which are those of the device
    portable_moved(ggml_backend_t backend, device_rows & rows, const moved_sums_node & node, int n_threads);

    // Adds to the node's sums, once everything is computed. false: the device lacks an operation, or a graph failed, and nothing was added. Throws
    // KVASIR_OUT_OF_MEMORY, likewise.
    bool run();

private:
    struct query {
        int32_t entry, begin; // its block's
        bool    outputs;
    };
    // what is known of a KV head before its graphs
    struct head_state {
        int32_t              n = 0, n_rows = 0;  // slots; rows that are read
        int32_t              first_own = 0;      // slot of the first of own_k
        bool                 ascending = true;   // these slots stand by position
        std::vector<float>   own_k, own_v;       // rows of slots that may be in a block's copy
    };
    // a graph's results, on their way into the sums
    struct pending {
        int32_t       head, first, n; // queries
        int32_t       n_outputs;      // those of them that outputs are of, the first ones
        const float * p, * squares;   // [query head of the group][column]
        const float * copies;         // [query][query head of the group] what the column of the copies took
        const float * outputs;        // [query of n_outputs][query head of the group][dim of V] of the slots
    };

    device_rows &           rows_;
    const moved_sums_node & node_;
    graph_builder           graph_;
    int                     n_threads_;
    int32_t                 group_, dk_, dv_;
    std::vector<query>      queries_; // those that outputs are of come first
    int32_t                 n_outputs_ = 0;
    std::vector<head_state> heads_;
    std::vector<std::vector<float>>  p_, squares_;     // [KV head] [query head of the group][slot]
    std::vector<double>              output_, length2_;
    std::vector<std::vector<float>>  own_logits_;      // [KV head] [query][query head of the group] log of the sum of exp, of the copy and the sink
    std::vector<pending>             pending_;
    bool                             repeats_back_ = true;

    int32_t at(const query & q) const { return node_.pos[q.entry] + node_.end - q.begin; } // where it is moved to
    bool  sees(int32_t at, int32_t pos) const { return node_.window == 0 || pos > at - node_.window; }
    float logit(const float * q, const float * k, int32_t h, int32_t distance) const;
    void  read_own(int32_t h);
    void  weigh_copies(int32_t h);
    template <typename F> void for_each_own(int32_t h, const query & q, F && f) const;
    template <typename F> void in_parallel(F && f) const;
    std::vector<float> query_of(int32_t entry, int32_t head) const;
    void  build(int32_t h, int32_t first, int32_t n);
    ggml_tensor * mask(int32_t h, int32_t first, int32_t n);
    ggml_tensor * sum_over_queries(ggml_tensor * x, int32_t columns, int32_t n, const float ** host);
    bool  compute();
    void  take_in(const pending & x);
    void  add_to_node();
};

} // namespace kvasir
