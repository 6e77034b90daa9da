// One graph of llama.cpp, with the nodes over the KV cache taken over.
#pragma once

#include "../attention/cpu/cpu_attention.h"
#include "../attention/portable/portable_attention.h"
#include "../llama/api.h"
#include "../store/cache.h"
#include "cuda/cuda_graph.h"

#include <atomic>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

namespace kvasir {

// A SET_ROWS into the store or a FLASH_ATTN_EXT over it.
struct store_node {
    ggml_tensor * node = nullptr;
    ggml_op       op   = GGML_OP_NONE;
    int32_t       params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    side *        rows = nullptr;        // SET_ROWS: what is written
    layer *       l    = nullptr;
    attention_node attention;            // FLASH_ATTN_EXT
    statistic      stat;
    cpu_attention  cpu;
    std::atomic<int64_t> begin_ns{0}, end_ns{0};
};

class store_graph {
public:
    // Computes the graph on the inner backend. The nodes over the store become GGML_OP_CUSTOM for as long as it runs
    // (llama.cpp reuses its graphs), so that ggml's own threads run them. Throws kvasir::error for a node without a path.
    ggml_status compute(ggml_backend_t inner, ggml_cgraph * graph, int n_threads);

private:
    std::deque<store_node> nodes_; // addresses must stay: userdata of the custom nodes
    size_t                 used_ = 0;
    cpu_workspace          workspace_;
    portable_attention     portable_;
    uint64_t               uid_ = 0;             // the graph that over_store_ was found in; llama.cpp reuses its graphs
    std::vector<int>       over_store_;          // indices of its nodes over the store
    const void *           open_mask_ = nullptr; // the mask that open_cells_ was counted for
    int32_t                open_cells_ = 0;
    std::unique_ptr<cuda::cuda_graph> gpu_;
    ggml_backend_t         inner_ = nullptr;     // of the graph that is computed
    std::deque<std::pair<const void *, std::vector<char>>> copies_; // inputs that were brought from the device
    std::vector<int32_t>   wanted_;              // slots of each head of a layer after an append

    const void * host(const ggml_tensor * t);
    void find_nodes(const ggml_cgraph * graph);
    store_node & next();
    void prepare_append(ggml_tensor * node);
    void prepare_attention(ggml_tensor * node, int n_threads);
    ggml_status compute_portable(ggml_backend_t inner, ggml_cgraph * graph);
};

int64_t now_ns();

} // namespace kvasir
