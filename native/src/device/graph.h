// One graph of llama.cpp, with the nodes over the KV cache taken over.
#pragma once

#include "../attention/cpu/cpu_attention.h"
#include "../attention/portable/portable_attention.h"
#include "../llama/api.h"
#include "../store/cache.h"
#include "accept.h"
#include "cuda/cuda_graph.h"

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

namespace kvasir {

// A SET_ROWS into the store or an attention over it.
struct store_node {
    ggml_tensor * node = nullptr;
    ggml_op       op   = GGML_OP_NONE;   // while ours runs in its place, llama.cpp's
    int32_t       params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    side *        rows = nullptr;        // SET_ROWS: what is written
    const void *  cells = nullptr;       // SET_ROWS: the host's copy of its indices, one a token
    int64_t       n_tokens = 0;          // SET_ROWS
    size_t        token_bytes = 0;       // SET_ROWS: from the elements of a token to those of the next
    layer *       l    = nullptr;
    int           first_head = 0;        // attention: the first of the layer's heads that it is over
    bool          records = false;       // attention: its queries go into the layer's record
    const attention_op * over = nullptr; // attention: what it is over
    attention_node attention;
    statistic      stat;
    cpu_attention  cpu;
    std::atomic<int64_t> begin_ns{0}, end_ns{0};
};

class store_graph {
public:
    store_graph() = default;
    ~store_graph();
    // Computes the graph on the inner backend, with the nodes over the store as ours; llama.cpp's graph is afterwards as it
    // was, because llama.cpp reuses it. Throws kvasir::error for a node without a path, and when there is no memory.
    ggml_status compute(ggml_backend_t inner, ggml_cgraph * graph, int n_threads);

private:
    ggml_backend_t         inner_ = nullptr;
    std::deque<store_node> nodes_; // addresses must stay: userdata of the custom nodes
    size_t                 used_ = 0;
    size_t                 built_ = 0;           // of nodes_, in the graph that is built for the portable path
    cpu_workspace          workspace_;
    std::unique_ptr<portable_attention> portable_;
    uint64_t               uid_ = 0;             // the graph that found_ belongs to; llama.cpp reuses its graphs
    std::vector<found_node> found_;              // its nodes over the store
    std::vector<found_node> paged_;              // those of them for the kernels of a GPU
    std::vector<const ggml_tensor *> left_out_;  // nodes of plain attentions that are not computed, sorted
    bool                   any_buffers_ = false; // some are for the portable path
    const void *           open_mask_ = nullptr; // the mask that open_cells_ was counted for
    int32_t                open_cells_ = 0;
    std::unique_ptr<cuda::cuda_graph> gpu_;
    std::vector<int32_t>   wanted_;              // slots of each head of a layer after an append
    std::deque<placement>  placements_;
    size_t                 n_placements_ = 0;
    std::vector<layer *>   unwritten_;           // layers whose slots are counted, but not written yet
    std::vector<layer *>   appended_;            // layers that this graph gives slots to
    std::vector<std::pair<const ggml_tensor *, const void *>> inputs_; // what host_data() has found
    std::map<const ggml_tensor *, std::vector<char>> fetched_; // inputs that had to be read from the device
    std::map<const ggml_tensor *, std::vector<int64_t>>  token_cells_; // of plain attentions: one index a token, of indices of elements
    std::map<const ggml_tensor *, std::vector<uint16_t>> half_masks_;  // of plain attentions: their masks in f16
    std::set<ggml_backend_buffer_t> noted_;      // buffers whose inputs the mirror was asked for
    int64_t                prepared_ns_ = 0;

    void find_nodes(const ggml_cgraph * graph);
    bool is_left_out(const ggml_tensor * node) const;
    void require_left_out(const ggml_cgraph * graph, const std::vector<ggml_tensor *> & products) const;
    store_node & next();
    const void * host_data(const ggml_tensor * t);
    const void * find_host_data(const ggml_tensor * t);
    const placement & place(const layer & l, ggml_type type, const void * cells, int64_t n);
    const void * cells_of(const found_node & f);
    const void * cells_of_elements(const found_node & f, const int64_t * indices);
    const char * half_mask(const ggml_tensor * mask);
    void require_room();
    void count_slots(const layer & l, const placement & p, bool in_order);
    void append(layer & l, const placement & p, bool is_k);
    void write_placed();
    void prepare_append(const found_node & f);
    void prepare_attention(const found_node & f, int n_threads);
    ggml_status compute_nodes(ggml_cgraph * graph);
    ggml_status compute_on_gpu(ggml_cgraph * graph);
    ggml_status compute_portable(ggml_cgraph * graph);
    portable_attention & portable();
    void build_portable(ggml_tensor * const * nodes, size_t n);
    void roll_back();
};

int64_t now_ns();

} // namespace kvasir
