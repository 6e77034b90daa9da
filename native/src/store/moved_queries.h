// The statistic of moved queries of one layer (native/README.md, "Moved queries"): which queries are recorded, what is summed up of them, and how
// both are taken back. What lies in memory of a device is behind moved_memory.
#pragma once

#include "../attention/rotation.h"
#include "memory_limit.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvasir {

struct attention_node;
struct layer;
struct moved_block;

// What the layer's attention does besides K, V and Q; as in attention_node.
struct moved_attention {
    float        scale = 1, softcap = 0, max_bias = 0;
    const void * sinks = nullptr; // [n_head] f32 in memory of the layer's device, or none
};

// The record of queries and the sums, where the layer's rows lie. Entries are numbered as in the books. p and squares are per KV head
// [query heads of the group][slots]; slots that no query has seen are 0.
class moved_memory {
public:
    virtual ~moved_memory() = default;
    // Room for entries of the record; those there are stay. Throws, and then all is as it was.
    virtual void room(int32_t entries) = 0;
    // entries [first, first + n) go, those behind them come down
    virtual void drop_entries(int32_t first, int32_t n, int32_t entries) = 0;
    // Adds to the sums what blocks of entries take; pos [entry]. Throws, and then all is as it was.
    virtual void sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int n_threads) = 0;
    // p, squares [group][n_slots of the head], may be nullptr
    virtual void read(int head, float * p, float * squares) = 0;
    // sums of outputs [n_head][dim of V] and of their squared lengths [n_head]: those of the sums, and those of sums that were folded
    virtual void read_outputs(double * output, double * length2) = 0;
    // Adds to the scores sum_g w_g squares |v - mean output|^2; squares are means over smooth neighbours. Means of outputs and of squared lengths are the
    // above over n_outputs. weights [n_head], or nullptr: 1 / mean squared length. Then sums of outputs are folded ones, and the others are cleared.
    virtual void fold(int64_t n_outputs, const float * weights, int32_t smooth, int n_threads) = 0;
    virtual void clear_sums() = 0;                      // but for what is folded
    virtual void clear_folded() = 0;                    // there is no record, and there are no sums
    virtual void set_sums_aside() = 0;                  // they can be brought back
    virtual void bring_sums_back() = 0;
    virtual void drop_sums_aside() = 0;
    virtual void reset_slots(int head, int32_t first, int32_t n) = 0; // their sums are 0: other tokens come there
    virtual size_t bytes() const = 0;                   // of memory that it occupies
};

class moved_queries {
public:
    explicit moved_queries(layer & l) : layer_(l) {}

    rotation turned;
    int32_t  window = 0;
    moved_attention attention;

    void    set_stride(int32_t stride); // 0: nothing is left of record, sums and mean outputs
    bool    recording() const { return stride_ > 0; }

    void    begin_micro_batch();
    // The tokens of a micro-batch, at these positions, whose queries are to be recorded, as entries from first_entry() on. Makes the room. false:
    // none; of several attentions over one layer's rows the first one is recorded.
    bool    begin_record(const int32_t * pos, int32_t n);
    const std::vector<int32_t> & tokens() const { return tokens_; }
    int32_t first_entry() const { return first_entry_; }
    void    cancel_record(); // the micro-batch failed

    int32_t sum(int32_t end, int n_threads); // how many queries
    void    read(int head, float * p, float * squares, float * output, float * length2);
    void    fold(const float * weights, int32_t smooth, int n_threads);

    void    mark();
    void    end_mark();
    void    take_back();
    void    truncated(int32_t pos);  // tokens from this position on are gone
    void    slots_changed();         // slots have other numbers: the sums are of no use
    void    reset_slots(int head, int32_t first, int32_t n);
    void    clear();                 // the cache holds nothing
    size_t  bytes() const { return memory_ ? memory_->bytes() : 0; }
    moved_memory * memory() { return memory_.get(); } // while something is recorded

private:
    layer &                       layer_;
    std::unique_ptr<moved_memory> memory_;
    int32_t                       stride_ = 0;
    int32_t                       base_ = -1;    // position of the first token that has not been summed up, -1: that of the next one
    std::vector<int32_t>          pos_;          // [entry]
    std::vector<int32_t>          tokens_;
    int32_t                       first_entry_ = 0;
    bool                          begun_ = false; // the micro-batch is recorded
    int32_t                       base_before_ = -1;
    bool                          summed_ = false;  // there are sums
    int64_t                       n_outputs_ = 0;   // queries in the sums of outputs that are not folded yet
    int64_t                       n_folded_outputs_ = 0;

    struct at_mark {
        bool    on = false, set_aside = false;
        int32_t entries = 0, base = -1, stride = 0;
        bool    summed = false;
        int64_t n_outputs = 0;
    } mark_;

    int64_t n_means() const { return std::max<int64_t>(n_outputs_ + n_folded_outputs_, 1); }
    void  drop_sums();
    void  drop_from(int32_t pos);
};

// w_g of a query head's mean squared length
inline float moved_weight(double length2) { return length2 > 0 ? (float) (1 / length2) : 0; }

std::unique_ptr<moved_memory> host_moved_memory(layer & l);
// records the queries of moved.tokens() of a node on the host, thread ith of nth; the memory is the host's
void host_moved_record(moved_queries & moved, const attention_node & node, int ith, int nth);

} // namespace kvasir
