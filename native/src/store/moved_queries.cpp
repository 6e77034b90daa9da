#include "moved_queries.h"

#include "../attention/cpu/kernels.h"
#include "../attention/cpu/moved_sums.h"
#include "../error.h"
#include "cache.h"
#include "moved_host_sums.h"

#include <algorithm>

namespace kvasir {

constexpr size_t outputs_every = 4; // blocks

std::unique_ptr<moved_memory> row_memory::moved(layer &) { return nullptr; }

void moved_queries::set_stride(int32_t stride) {
    if (stride == 0) {
        clear();
        memory_.reset();
    } else if (!memory_) {
        if (!turned.composes) {
            throw error(KVASIR_UNSUPPORTED, format("moved queries of layer %d: what its rotary positions make of a query is weighed element by element afterwards, so it cannot be turned further", layer_.il));
        }
        memory_ = layer_.rows->moved(layer_);
        if (!memory_) {
            throw error(KVASIR_UNSUPPORTED, format("moved queries of layer %d: there is no path for them on its device", layer_.il));
        }
    }
    stride_ = stride;
}

void moved_queries::begin_micro_batch() {
    tokens_.clear();
    begun_ = false;
}

bool moved_queries::begin_record(const int32_t * pos, int32_t n) {
    if (begun_ || n == 0 || stride_ == 0) {
        return false;
    }
    drop_from(pos[0]); // no head may have held these tokens when they were dropped
    first_entry_ = (int32_t) pos_.size();
    const int32_t base = base_ < 0 ? pos[0] : base_;
    for (int32_t i = 0; i < n; i++) {
        if ((pos[i] - base) % moved_block_tokens % stride_ == stride_ / 2) {
            tokens_.push_back(i);
        }
    }
    try {
        memory_->room(first_entry_ + (int32_t) tokens_.size());
        pos_.reserve(pos_.size() + tokens_.size());
    } catch (...) {
        tokens_.clear();
        throw;
    }
    for (int32_t i : tokens_) {
        pos_.push_back(pos[i]);
    }
    base_before_ = base_;
    base_        = base;
    begun_       = true;
    return !tokens_.empty();
}

void moved_queries::cancel_record() {
    if (begun_) {
        pos_.resize(std::min(pos_.size(), (size_t) first_entry_));
        base_ = base_before_;
    }
    begin_micro_batch();
}

// the record of tokens from this position on
void moved_queries::drop_from(int32_t pos) {
    while (!pos_.empty() && pos_.back() >= pos) {
        pos_.pop_back();
    }
    mark_.entries = std::min(mark_.entries, (int32_t) pos_.size());
    base_         = std::min(base_, pos);
}

int32_t moved_queries::sum(int32_t end, int n_threads) {
    begin_micro_batch();
    std::vector<moved_block> blocks;
    const int32_t from = mark_.on ? std::min(mark_.entries, (int32_t) pos_.size()) : 0; // those of the mark stay, and have been summed up if base_ says so
    int32_t n = 0;
    for (int32_t e = 0; e < (int32_t) pos_.size(); e++) {
        const int32_t pos = pos_[(size_t) e];
        if (pos < base_ || pos >= end) {
            continue;
        }
        const int32_t begin = base_ + (pos - base_) / moved_block_tokens * moved_block_tokens;
        if (blocks.empty() || blocks.back().begin != begin) {
            blocks.push_back({begin, e, 0, blocks.size() % outputs_every == 0});
        }
        blocks.back().n++;
        n++;
    }
    if (n > 0) {
        if (mark_.on && !mark_.set_aside) {
            memory_->set_sums_aside();
            mark_.set_aside = true;
            mark_.summed    = summed_;
            mark_.n_outputs = n_outputs_;
        }
        memory_->sum(blocks, pos_, end, n_threads);
        summed_ = true;
        for (const moved_block & b : blocks) {
            n_outputs_ += b.outputs ? b.n : 0;
        }
    }
    const auto last = std::find_if(pos_.begin() + from, pos_.end(), [end](int32_t pos) { return pos >= end; });
    const auto gone = (int32_t) (last - pos_.begin()) - from;
    if (gone > 0) {
        memory_->drop_entries(from, gone, (int32_t) pos_.size());
        pos_.erase(pos_.begin() + from, last);
    }
    base_ = std::max(base_, end);
    return n;
}

void moved_queries::read(int head, float * p, float * squares, float * output, float * length2) {
    const auto group = (size_t) (layer_.n_head / layer_.n_head_kv), n = (size_t) layer_.heads[(size_t) head].n, dv = (size_t) layer_.v.format.dim;
    if (summed_) {
        memory_->read(head, p, squares);
    } else {
        for (float * to : {p, squares}) {
            if (to) {
                std::fill(to, to + group * n, 0.0f);
            }
        }
    }
    if (output || length2) { // of all that was summed up, folded or not
        const double        of = (double) n_means();
        std::vector<double> o((size_t) layer_.n_head * dv), l((size_t) layer_.n_head);
        memory_->read_outputs(o.data(), l.data());
        for (size_t i = 0; output && i < group * dv; i++) {
            output[i] = (float) (o[(size_t) head * group * dv + i] / of);
        }
        for (size_t i = 0; length2 && i < group; i++) {
            length2[i] = (float) (l[(size_t) head * group + i] / of);
        }
    }
}

void moved_queries::fold(const float * weights, int32_t smooth, int n_threads) {
    if (!summed_) {
        return;
    }
    memory_->fold(n_means(), weights, smooth, n_threads);
    n_folded_outputs_ += n_outputs_;
    summed_    = false;
    n_outputs_ = 0;
}

void moved_queries::drop_sums() {
    if (memory_ && summed_) {
        memory_->clear_sums();
    }
    summed_    = false;
    n_outputs_ = 0;
}

void moved_queries::mark() {
    end_mark();
    mark_.on      = true;
    mark_.entries = (int32_t) pos_.size();
    mark_.base    = base_;
    mark_.stride  = stride_;
}

void moved_queries::end_mark() {
    if (!mark_.on) {
        return;
    }
    const at_mark m = mark_;
    mark_ = at_mark();
    if (m.set_aside && memory_) {
        memory_->drop_sums_aside();
    }
    const auto last = std::find_if(pos_.begin(), pos_.end(), [this](int32_t pos) { return pos >= base_; }); // those that were kept for the mark
    if (last != pos_.begin() && memory_) {
        memory_->drop_entries(0, (int32_t) (last - pos_.begin()), (int32_t) pos_.size());
        pos_.erase(pos_.begin(), last);
    }
}

void moved_queries::take_back() {
    begin_micro_batch();
    if (!mark_.on || !memory_) {
        return;
    }
    pos_.resize(std::min(pos_.size(), (size_t) mark_.entries));
    base_   = mark_.base;
    stride_ = mark_.stride > 0 ? mark_.stride : stride_;
    if (mark_.set_aside) {
        memory_->bring_sums_back();
        summed_         = mark_.summed;
        n_outputs_      = mark_.n_outputs;
        mark_.set_aside = false;
    }
}

void moved_queries::truncated(int32_t pos) {
    begin_micro_batch();
    drop_from(pos);
    for (size_t i = 0; summed_ && i < layer_.heads.size(); i++) {
        memory_->reset_slots((int) i, layer_.heads[i].n, INT32_MAX);
    }
}

void moved_queries::slots_changed() { drop_sums(); }

void moved_queries::reset_slots(int head, int32_t first, int32_t n) {
    if (summed_) {
        memory_->reset_slots(head, first, n);
    }
}

void moved_queries::clear() {
    if (mark_.on && mark_.set_aside && memory_) {
        memory_->drop_sums_aside();
    }
    mark_ = at_mark();
    drop_sums();
    base_ = -1;
    begin_micro_batch();
    if (memory_) {
        const auto n = (int32_t) pos_.size();
        pos_.clear();
        memory_->drop_entries(0, n, n);
        memory_->clear_folded();
    }
    n_folded_outputs_ = 0;
}

// ---- in memory of the host ----

namespace {

class host_moved : public moved_host_sums {
public:
    explicit host_moved(layer & l) : moved_host_sums(l) {}
    ~host_moved() override { account(0); }

    uint16_t * entry(int32_t i) { return queries_.data() + (size_t) i * entry_size(); }
    size_t     entry_size() const { return (size_t) l_.n_head * (size_t) l_.k.format.dim; }

    void room(int32_t entries) override {
        const size_t size = (size_t) entries * entry_size();
        if (size > queries_.size()) {
            std::vector<uint16_t> more;
            more.reserve(size + (queries_.empty() ? 0 : queries_.size() / 2));
            require((more.capacity() - queries_.capacity()) * sizeof(uint16_t));
            more.resize(size);
            std::copy(queries_.begin(), queries_.end(), more.begin());
            queries_ = std::move(more);
            account();
        }
    }
    void drop_entries(int32_t first, int32_t n, int32_t entries) override {
        std::copy(entry(first + n), entry(entries), entry(first));
        if (entries == n) { // a prompt's record is far longer than that of 64 steps
            queries_ = std::vector<uint16_t>();
            account();
        }
    }
    void sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int n_threads) override {
        reserve_sums();
        moved_sums_node node = node_of(blocks, pos, end);
        node.queries = queries_.data();
        node.sinks   = (const float *) l_.moved->attention.sinks;
        moved_sums(node, n_threads);
    }

private:
    std::vector<uint16_t> queries_; // f16 [entry][n_head][head dim of K]

    size_t record_bytes() const override { return queries_.capacity() * sizeof(uint16_t); }
};

} // namespace

void host_moved_record(moved_queries & moved, const attention_node & node, int ith, int nth) {
    const auto & tokens = moved.tokens();
    if (tokens.empty()) {
        return;
    }
    auto &       memory = static_cast<host_moved &>(*moved.memory());
    const auto & kernels = cpu_kernels_active();
    for (size_t i = (size_t) ith; i < tokens.size(); i += (size_t) nth) {
        uint16_t * to = memory.entry(moved.first_entry() + (int32_t) i);
        for (int32_t h = 0; h < node.n_head; h++) {
            kernels.f32_to_f16((const float *) (node.q + (size_t) tokens[i] * node.q_nb[1] + (size_t) h * node.q_nb[2]), to + (size_t) h * (size_t) node.k.dim, node.k.dim);
        }
    }
}

std::unique_ptr<moved_memory> host_moved_memory(layer & l) { return std::make_unique<host_moved>(l); }

} // namespace kvasir
