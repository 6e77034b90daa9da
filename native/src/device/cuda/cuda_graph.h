// A graph of llama.cpp on a GPU, with the nodes over the KV cache computed by Kvasir's kernels.
//
// SET_ROWS of K and of V and FLASH_ATTN_EXT of a layer stand side by side but for views: one cut a layer. ggml computes
// the segments between the cuts on its stream, Kvasir's kernels run on the store's stream, events order the two. Decode steps
// are captured: when llama.cpp reuses a graph, its second run is recorded as one CUDA graph, ggml's segments
// included, and from then on the whole token is one launch. What changes from token to token (lengths, slots, page tables)
// is read from device memory, where it is put before the launch.
#pragma once

#include "../../attention/cuda/decode.h"
#include "../../attention/cuda/statistic.h"
#include "../../store/cache.h"
#include "../../store/cuda_store.h"
#include "../accept.h"

#include <deque>
#include <functional>
#include <map>
#include <vector>

namespace kvasir::cuda {

// whether there are kernels for the rows of a layer
bool supports(const gpu & device, ggml_type type_k, ggml_type type_v, int32_t dim_k, int32_t dim_v, int32_t n_head, int32_t n_head_kv, page_format & format);

class cuda_graph {
public:
    explicit cuda_graph(ggml_backend_t inner);
    ~cuda_graph();
    cuda_graph(const cuda_graph &) = delete;
    cuda_graph & operator=(const cuda_graph &) = delete;

    using inputs = std::function<const void *(const ggml_tensor *)>; // the values of an input of the graph, where the host can read them

    // Computes nodes between two layers of ours in another way than ggml would; none: ggml does.
    using between = std::function<ggml_status(const std::vector<ggml_tensor *> &)>;

    // Before compute: of a graph that was computed before, ggml computes what comes before the first attention while the host
    // prepares the rest.
    ggml_status begin(ggml_cgraph * graph);

    // found: the nodes over the store that are no views, in their order; the store's books already count what they append.
    // Throws kvasir::error.
    ggml_status compute(ggml_cgraph * graph, const std::vector<found_node> & found, const inputs & host, const between & compute_between);

    // Keeps the rows that are appended alive until the attention of their layer has read them.
    static void optimize(ggml_cgraph * graph, ggml_backend_graph_optimize_params * params);

private:
    // One layer's nodes [first, last]
    struct operation {
        int           first = 0, last = 0;
        ggml_tensor * k = nullptr; // SET_ROWS; none when the layer attends to rows that another one wrote
        ggml_tensor * v = nullptr;
        ggml_tensor * node = nullptr; // FLASH_ATTN_EXT
        layer *       l = nullptr;
        cuda_rows *   rows = nullptr;
        int32_t       first_stream = 0, n_append = 0;
        bool          fused = false;  // the decode kernel appends
        ggml_tensor * rope_q = nullptr, * rope_k = nullptr; // left out, as the decode kernel turns what they would
        int32_t       rotary = -1;    // of rotaries_, theirs
        decode_shape  shape{};        // kernel "": many queries
        attention_params attention{};
        size_t        tokens_at = 0, slots_at = 0, pos_at = 0, open_at = 0, record_at = 0; // in the step
        int32_t       n_record = 0;   // tokens whose queries a kernel of its own records
        int32_t       first_entry = 0;
        int32_t       mask = -1;      // of masks_
        bool          mask_stays = true; // a later operation has the same one, or there is none
        size_t        segments_at = 0, scores_at = 0, lse_at = 0;
        int64_t       score_stride = 0;
    };
    // cosines and sines of the batch's tokens
    struct rotary {
        const ggml_tensor * rope;     // the first of those that have these
        rotary_params       params;   // without addresses that change
        size_t              pos_at, table_at; // in the step, in turns_
    };
    // where a placement stands in the step
    struct placed_tokens {
        const placement * placed;
        int32_t           first_stream;
        size_t            at;
    };
    struct seen_mask {
        const ggml_tensor *  tensor;
        int32_t              n_tokens;
        std::vector<int32_t> open; // [stream] cells below this are seen by every query; empty: not known
        size_t               views_at;
        bool                 viewed;
    };

    ggml_backend_t         inner_;
    gpu *                  gpu_ = nullptr;
    cuda_store *           store_ = nullptr; // of the graph that was computed last
    ggml_backend_event_t   to_us_ = nullptr, to_ggml_ = nullptr, captured_to_us_ = nullptr, captured_to_ggml_ = nullptr;
    std::deque<operation>  operations_;
    std::vector<placed_tokens> placed_;
    std::vector<seen_mask> masks_;
    std::vector<rotary>    rotaries_;
    std::vector<std::vector<ggml_tensor *>> segments_nodes_; // what ggml computes before each operation, and after the last
    std::vector<char>      step_;            // uploaded before the graph runs
    size_t                 track_at_ = 0;
    bool                   tracking_ = false, statistic_ = false, recording_ = false;

    const between * between_ = nullptr;       // of the graph that is computed
    bool       begun_ = false;                // the first segment of this graph is on its way
    uint64_t   uid_ = 0;                      // of the graph that operations_ and masks_ describe
    uint64_t   described_ = 0;                // graphs so far
    uint64_t   settled_addresses_ = 0;        // those that operations_ were given
    uint64_t   captured_uid_ = 0, captured_addresses_ = 0, refused_uid_ = 0;
    graph_exec ready_ = nullptr;              // the graph captured_uid_, unless that is 0
    std::vector<std::vector<ggml_tensor *>> captured_nodes_; // of its segments
    std::deque<ggml_tensor>                 captured_keys_;
    uint64_t                                segments_captured_ = 0;

    std::vector<char> plan_;                 // decode_layer of the layers, as on the device
    std::map<const layer *, int64_t> score_strides_;
    device_buffer     plan_memory_, segments_, exchange_, epoch_, scores_, turns_, partial_, arrived_, lse_, views_, statistic_memory_;

    void find_operations(ggml_cgraph * graph, const std::vector<found_node> & found);
    void describe(operation & op);
    void describe(ggml_cgraph * graph, const std::vector<found_node> & found);
    void find_ropes(const ggml_cgraph * graph);
    bool share_rotary(operation & op, const ggml_tensor * rope);
    static void read(seen_mask & mask, const inputs & host);
    void fill_step(const inputs & host);
    void fill_record(operation & op);
    size_t add(size_t bytes);                // room in the step
    bool grow(device_buffer & buffer, size_t bytes, bool zero = false);
    void settle_addresses();
    void prepare_few();
    void prepare_many();
    ggml_status run(ggml_cgraph * graph, bool capture);
    ggml_status run_segment(ggml_cgraph * graph, size_t index, bool capture);
    bool capture(ggml_cgraph * graph);
    void drop_capture();
    bool make_ready(cuda::graph recorded);
    void launch_plan();
    void launch(operation & op);
    void launch_few(operation & op);
    void launch_many(operation & op);
    bool scored(const operation & op) const; // its weights are added up by a kernel of its own
    statistic_params statistic_of(const operation & op) const;
    void launch_statistic(const operation & op);
    template <typename P> void start(const kvasir::cuda::launch & l, const P & p) { gpu_->launch(store_->queue(), l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p); }
};

} // namespace kvasir::cuda
