// The portable path: appends to and attention over device_rows by ggml's own operations, on any backend. As long as the KV
// heads of a layer keep the same tokens they share a FLASH_ATTN_EXT, as they do in llama.cpp; when they part each gets its own.
// llama.cpp's mask is gathered by cell.
#pragma once

#include "../../device/attention_op.h"
#include "../../device/graph_builder.h"
#include "../../store/device_rows.h"
#include "../attention.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace kvasir {

class portable_attention {
public:
    explicit portable_attention(ggml_backend_t inner) : graph_(inner) {}

    // Nodes in their order; nothing runs before finish, unless what is to be sent or fetched for it grows too large.
    void begin(const ggml_cgraph * graph);
    void pass(ggml_tensor * node) { graph_.pass(node); }
    // a SET_ROWS of src [elements of all heads, tokens] f32; targets: [token][KV head] rows of the matrix of all heads
    void append(const ggml_tensor * src, const device_rows & rows, bool is_k, int32_t n_head_kv, const std::vector<int64_t> & targets);
    // a.q, a.out and a.sinks are addresses of the device and are taken from op; a.mask is the host's copy. head: the
    // index of a.heads[0] in rows.
    void attend(const attention_node & a, const attention_op & op, const device_rows & rows, int head);
    // copies the queries of these tokens, as f16, to [token][query head][dim] behind each other from to on
    void record(const attention_node & a, const attention_op & op, const std::vector<int32_t> & tokens, const place & to);
    // Computes what has been built so far, and waits for nothing: what follows may need what another stream computes first.
    ggml_status run();
    ggml_status finish();

private:
    // KV heads side by side that share a node: one mask for all, or, apart, each its own
    struct together {
        int32_t n     = 1;
        bool    apart = false;
    };
    // gathered masks that have been built for this graph already
    struct known_mask {
        const char *                 source;
        const head_store *           head;  // the first one
        const std::vector<int32_t> * order; // its
        int32_t                      stream, first, n_tokens, n; // n: of heads that are apart, else 1
        ggml_tensor *                tensor;
    };
    // softmax weights that the graph leaves for the sums of a head
    struct weights {
        attention_node               a;
        head_store *                 head;
        const std::vector<int32_t> * order; // of its rows
        int32_t                      stream, first, n_tokens, n_rows, n_heads; // n_heads: the query group's, or 1: their sum
        const float *                values; // [n_heads][token][row]
    };
    graph_builder           graph_;
    std::vector<known_mask> masks_;
    std::optional<bool>     supports_apart_, sums_groups_; // once asked
    std::vector<weights>    weights_;
    ggml_status             status_ = GGML_STATUS_SUCCESS;
    std::vector<int64_t>    targets_;             // of the tensor below
    ggml_tensor *           targets_tensor_ = nullptr;

    void          cut();
    void          take_in_weights();
    together      heads_together(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head);
    bool          supports_apart(const attention_node & a, const device_rows & rows, int index, together t);
    bool          sums_groups(const attention_node & a, const device_rows & rows, int index);
    void          attend_heads(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head, together t);
    void          weigh_heads(const attention_node & a, const attention_op & op, const device_rows & rows, int index, int32_t stream, int32_t kv_head, together t);
    ggml_tensor * mask(const attention_node & a, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t first, int32_t n_tokens, int32_t n_rows, together t);
    ggml_tensor * batch(ggml_tensor * t, together heads);
    int32_t       rows_read(const attention_node & a, const device_rows & rows, int index, int32_t stream, int32_t kv_head, int32_t n_kv_heads);
    ggml_tensor * keys_or_values(bool is_k, const device_rows & rows, int index, int32_t n_rows, int32_t n_kv_heads);
    ggml_tensor * queries(const attention_node & a, const attention_op & op, int32_t stream, int32_t kv_head, int32_t n_kv_heads, int32_t first, int32_t n_tokens);
    ggml_tensor * sinks(const attention_op & op, int32_t first, int32_t n);
};

} // namespace kvasir
