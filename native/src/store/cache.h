// The ragged store: for every (layer, stream, KV head) just the rows that the head keeps, and which cells they are.
#pragma once

#include "kvasir.h"

#include "../attention/attention.h"
#include "../platform/memory.h"
#include "ggml-backend.h"
#include "memory_limit.h"
#include "moved_queries.h"
#include "row_memory.h"
#include "rows.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace kvasir {

struct layer;
class graph_builder;

namespace cuda {
class cuda_store;
}

// K or V of a layer: llama.cpp's cache tensor, and how a head's rows of it look. With latent attention there is no tensor for V.
struct side {
    ggml_tensor * tensor = nullptr;
    layer *       owner  = nullptr;
    bool          is_k   = false;
    row_format    format{};
};

// Where the tokens of one graph go: the layers of one of llama.cpp's caches share it.
struct placement {
    std::vector<const void *> cells;       // the indices that llama.cpp gave, [n]: those of K, those of V
    int32_t              n_cells = 0;      // of one stream
    std::vector<int32_t> stream, cell;     // [n]
    std::vector<int32_t> rank;             // [n] among the tokens of the stream
    std::vector<int32_t> count, first, last; // [stream] tokens, and the cells of the first and the last one
    bool                 ascending = true; // the cells of each stream do
};

// A layer of the model that has KV heads. Their geometry is known when the first attention over the layer is seen,
// which happens while llama.cpp reserves its graphs, before any token is decoded.
struct layer {
    kvasir_cache * cache = nullptr;
    int32_t        il    = -1;    // the model's layer index
    bool           swa   = false; // in the second, smaller cache of a sliding-window model
    ggml_backend_dev_t device    = nullptr; // the ggml device that the layer runs on
    kvasir_attention   attention = KVASIR_ATTENTION_NATIVE; // the path that the device has
    bool           transposed = false; // V in llama.cpp's tensor, written element by element: the layer's attention is a plain one
    int32_t        n_stream = 1, n_cells = 0;
    int32_t        n_head = 0, n_head_kv = 0;
    side           k, v;
    std::unique_ptr<row_memory> rows;    // once the layer is configured
    std::vector<head_store> heads;       // [n_stream][n_head_kv]
    std::vector<int32_t>    lengths;     // [n_stream][n_head_kv] their slots, side by side
    std::vector<int32_t>    max_cell;    // [n_stream] no head of the stream holds a larger cell (an upper bound)
    int32_t                 n_tracked = 0; // heads whose scores are accumulated
    std::vector<int32_t *>  slot_plus_1; // [n_stream][n_head_kv][cell]
    std::vector<int32_t>    query_pos;   // positions of the tokens that were written last, in batch order
    const placement *       placed = nullptr;  // of the graph that is computed; V follows K into the same slots
    bool                    appended = false;  // by append(): slot = slots_before + rank
    int64_t                 n_queries = 0; // counted by the running statistic
    std::unique_ptr<moved_queries> moved; // once the layer is configured

    bool    configured() const { return n_head_kv > 0; }
    // k.format and v.format are those of the rows
    void    configure(int32_t n_head, int32_t n_head_kv, std::unique_ptr<row_memory> rows);
    int     index(int32_t stream, int32_t head) const { return stream * n_head_kv + head; }
    size_t  slot_bytes() const { return own_bytes(k.format) + own_bytes(v.format); }

    // The slot of a cell, a new one at the end when the head does not hold the cell. pos < 0 leaves the position of a
    // slot as it is: V follows K into the same slots.
    int32_t slot_for(int index, int32_t cell, int32_t pos);
    // All tokens go to the end of their heads, in cells that no head can hold. The slots are counted at once; what they
    // hold is written by write_placed(), which may come later.
    bool    in_order(const placement & p) const;
    void    append(const placement & p);
    void    write_placed();
    int32_t slots_before(int index) const { return before_[(size_t) index]; } // the graph that appends
    void    track(int index, bool on);
    // An append may fail: cancel_append takes back the slots that heads got since begin_append, and their memory.
    void    begin_append();
    void    cancel_append();
    void    keep(int index, const int32_t * slots, int32_t n_slots); // ascending, distinct, in range
    void    evict(int index, int32_t slot);
    void    truncate(int32_t stream, int32_t first_cell);
    void    clear();
    void    copy_stream(int32_t from, int32_t to);
    void    trim();                                          // returns memory that waits for slots to come
    size_t  resident_bytes() const;

    void    start_sums(const statistic & stat);
    void    read_sums(int index, const statistic & stat, bool recent, float * to) const; // [columns][slots]
    void    stop_sums(const statistic & stat); // its totals become the scores
    void    drop_sums();                       // as if it had never been started
    // The sums of the statistic that runs stay as they are while another one is started, until they are brought back or dropped.
    void    set_sums_aside();
    void    bring_sums_back();
    void    drop_sums_aside();

    // What queries add to scores and sums from a mark on can be taken back, bit for bit; slots that came after it are left with
    // zeros. Nothing is copied before a query is added: what the slots of the mark had is saved then, once. A keep, an eviction
    // or a cleared layer ends the mark.
    void    mark_counts();
    void    prepare_to_save(bool statistic_on); // before a graph adds to the layer's scores or sums; throws std::bad_alloc
    void    take_back_counts();
    void    end_mark();

private:
    mapping table_; // the slot tables of all heads
    size_t  column_bytes_ = 0;      // one array of one head's table, whole pages
    std::vector<int32_t> touched_;  // [n_stream][n_head_kv] slots whose part of the table is in use, held or not
    std::vector<int32_t> before_;   // [n_stream][n_head_kv] slots at begin_append
    // [n_stream][n_head_kv][page of slot_plus_1] cells that the head holds there: where it holds none the page goes back
    std::vector<int32_t> held_cells_;
    int32_t              cells_of_page_ = 1, table_pages_ = 0;
    struct statistic_sums { // of all heads, while it runs
        mapping memory;
        int32_t per_slot = 0;
        bool    on_host  = true;
    };
    struct saved_memory {
        std::unique_ptr<float[]> data;
        size_t                   size = 0; // floats
    };
    statistic_sums            sums_, sums_aside_;
    bool                      marked_ = false, may_be_saved_ = false; // may_be_saved_: heads know where their counts go
    std::vector<int32_t>      marked_n_;                              // [n_stream][n_head_kv] slots at the mark
    int64_t                   marked_queries_ = 0;
    std::vector<saved_memory> saved_;                                 // [n_stream][n_head_kv]

    float * sums(int index, int32_t column) const;
    void    point_to_sums(const statistic & stat);
    void    slots_change();
    void    hold_cell(int index, int32_t cell, int32_t slot);
    void    drop_cell(int index, int32_t cell);
    int32_t & held_cells(int index, int32_t cell) { return held_cells_[(size_t) index * (size_t) table_pages_ + (size_t) (cell / cells_of_page_)]; }
    void    set_length(int index, int32_t n) { heads[(size_t) index].n = lengths[(size_t) index] = n; }
    void    release_tail(int index); // returns the memory of slots >= n
};

} // namespace kvasir

// The store of one llama_context.
struct kvasir_cache {
    kvasir::memory_limit limit; // outlives the layers, which report to it
    std::vector<std::unique_ptr<kvasir::layer>> layers; // ascending by il once the context is made
    kvasir_attention attention = KVASIR_ATTENTION_NATIVE; // what was asked for

    // what went wrong where llama.cpp takes no error; the next graph reports it
    kvasir_status failure = KVASIR_OK;
    std::string   failure_text;

    // the statistic, while it runs
    bool                 statistic_on = false;
    bool                 per_query_head = false;
    int32_t              recent_from = -1;
    std::vector<int32_t> bounds;

    int32_t              n_swa = 0; // positions that the layers of a sliding window see

    // what it was at the mark, when it has been started since; its sums are set aside
    struct statistic_at_mark {
        bool                 on = false;
        bool                 per_query_head = false;
        int32_t              recent_from = -1;
        std::vector<int32_t> bounds;
    };
    std::optional<statistic_at_mark> replaced;

    bool                         marked = false;  // by kvasir_cache_mark; else every micro-batch has a mark of its own
    std::vector<kvasir::layer *> micro_batch;     // the layers that the one that is computed has given slots to, so far

    std::map<ggml_backend_dev_t, std::shared_ptr<kvasir::cuda::cuda_store>> gpus; // what its layers on one GPU share

    std::map<ggml_backend_dev_t, std::shared_ptr<kvasir::graph_builder>>    movers; // of rows, for its layers on one device

    std::map<int32_t, std::vector<std::vector<float>>> fetched; // by stream, what kvasir_cache_fetch has brought of layers on the host

    std::atomic<int64_t> attention_ns{0}, append_ns{0};
    int64_t graphs = 0, graph_ns = 0, prepare_ns = 0, captures = 0, threads = 0;

    kvasir::layer & layer_at(int32_t index) const;                              // checked
    int             head_at(const kvasir::layer & l, int32_t stream, int32_t head) const; // checked
    kvasir::layer & layer_of(int32_t il, bool swa, const ggml_tensor * tensor, ggml_backend_dev_t device); // found or made

    void            report_failure();                                           // throws it, once

    // Throws where the limit does not allow what growth() returns, the bytes by which several row memories are about to
    // grow; none of them has taken anything then. growth() is asked again after what is held in reserve has been returned.
    template <typename F> void require_room(F && growth) {
        if (!limit.is_set()) {
            return;
        }
        limit.tight = false;
        if (!limit.allows(growth())) {
            limit.tight = true;
            for (auto & l : layers) {
                l->trim();
            }
            limit.require(growth());
        }
    }

    kvasir::statistic statistic_of(const kvasir::layer & l) const;
    void start_statistic(const kvasir_statistic_params & params);
    void stop_statistic();

    void mark_counts();
    void take_back_counts(); // to the mark of kvasir_cache_mark
    void end_mark();

    // A micro-batch is one graph for each device, or several. first: the first layer that a graph gives slots to; where it has
    // got some from the micro-batch already, another one begins.
    void begin_graph(const kvasir::layer & first);
    void begin_append(kvasir::layer & l);
    void cancel_micro_batch();            // what it gave to the layers so far, and has counted

private:
    void start_sums();
    void drop_replaced();
};
