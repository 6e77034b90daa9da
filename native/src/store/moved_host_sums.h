// Sums of moved queries in memory of the host: all of them where the rows are the host's, and of the portable path what its graphs leave.
#pragma once

#include "../attention/cpu/moved_sums.h"
#include "cache.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace kvasir {

class moved_host_sums : public moved_memory {
public:
    explicit moved_host_sums(layer & l) : l_(l) {}

    void read(int head, float * p, float * squares) override {
        const head_sums & s = now_.heads[(size_t) head];
        const auto        n = (size_t) l_.heads[(size_t) head].n;
        for (size_t g = 0; g < group(); g++) {
            for (auto [from, to] : {std::pair(&s.p, p), std::pair(&s.squares, squares)}) {
                for (size_t i = 0; to && i < n; i++) {
                    to[g * n + i] = i < s.capacity ? (*from)[g * s.capacity + i] : 0;
                }
            }
        }
    }
    void read_outputs(double * output, double * length2) override {
        now_.output.resize(outputs());
        now_.length2.resize((size_t) l_.n_head);
        folded_output_.resize(outputs());
        folded_length2_.resize((size_t) l_.n_head);
        std::transform(now_.output.begin(), now_.output.end(), folded_output_.begin(), output, std::plus<>());
        std::transform(now_.length2.begin(), now_.length2.end(), folded_length2_.begin(), length2, std::plus<>());
    }
    void fold(int64_t n_outputs, const float * weights, int32_t smooth, int n_threads) override {
        std::vector<double> o(outputs()), l((size_t) l_.n_head);
        read_outputs(o.data(), l.data());
        std::vector<float> output(o.size()), w(l.size()), smoothed;
        std::transform(o.begin(), o.end(), output.begin(), [n_outputs](double x) { return (float) (x / (double) n_outputs); });
        std::transform(l.begin(), l.end(), w.begin(), [n_outputs](double x) { return moved_weight(x / (double) n_outputs); });
        std::vector<head_store>    heads(l_.heads.begin(), l_.heads.end());
        std::vector<const float *> squares;
        std::vector<size_t>        capacity;
        for (size_t h = 0; h < now_.heads.size(); h++) {
            head_sums & s = now_.heads[h];
            heads[h].n    = std::min(heads[h].n, (int32_t) s.capacity);
            smooth_over(s, heads[h].n, smooth, smoothed);
            squares.push_back(s.squares.data());
            capacity.push_back(s.capacity);
        }
        std::vector<std::vector<char>> rows;
        bring_values(heads, rows);
        moved_losses_node node;
        node.v         = l_.v.format;
        node.heads     = heads.data();
        node.n_head_kv = (int32_t) squares.size();
        node.group     = (int32_t) group();
        node.squares   = squares.data();
        node.capacity  = capacity.data();
        node.output    = output.data();
        node.weights   = weights ? weights : w.data();
        moved_losses(node, n_threads);
        folded_output_  = std::move(o);
        folded_length2_ = std::move(l);
        clear_sums();
    }
    void clear_sums() override {
        now_ = sums();
        account();
    }
    void clear_folded() override {
        folded_output_.clear();
        folded_length2_.clear();
    }
    void set_sums_aside() override {
        require(size_of(now_));
        aside_ = now_;
        account();
    }
    void bring_sums_back() override {
        now_ = std::move(aside_);
        drop_sums_aside();
    }
    void drop_sums_aside() override {
        aside_ = sums();
        account();
    }
    void reset_slots(int head, int32_t first, int32_t n) override {
        if (now_.heads.empty()) {
            return;
        }
        head_sums &  s    = now_.heads[(size_t) head];
        const size_t from = std::min((size_t) first, s.capacity), to = from + std::min((size_t) n, s.capacity - from);
        for (size_t g = 0; g < group(); g++) {
            for (std::vector<float> * x : {&s.p, &s.squares}) {
                std::fill(x->begin() + (ptrdiff_t) (g * s.capacity + from), x->begin() + (ptrdiff_t) (g * s.capacity + to), 0.0f);
            }
        }
    }
    size_t bytes() const override { return accounted_; }

protected:
    struct head_sums {
        std::vector<float> p, squares; // [group][capacity]
        size_t             capacity = 0;
    };
    struct sums {
        std::vector<head_sums> heads;
        std::vector<double>    output, length2;
    };
    layer & l_;
    sums    now_;

    virtual size_t record_bytes() const = 0;
    // the rows of V, for heads whose rows the host cannot address; rows: where they may be
    virtual void bring_values(std::vector<head_store> & heads, std::vector<std::vector<char>> & rows) {}

    size_t outputs() const { return (size_t) l_.n_head * (size_t) l_.v.format.dim; }
    size_t group() const { return (size_t) (l_.n_head / l_.n_head_kv); }
    void require(size_t more) const {
        l_.cache->require_room([more] { return more; });
    }
    void account() { account(record_bytes() + size_of(now_) + size_of(aside_)); }
    void account(size_t bytes) {
        l_.cache->limit.changed(accounted_, bytes);
        accounted_ = bytes;
    }
    void reserve_sums() {
        size_t more = 0;
        const auto wanted = [this](size_t h) { return ((size_t) l_.heads[h].n + 63) / 64 * 64; };
        now_.heads.resize((size_t) l_.n_head_kv);
        now_.output.resize((size_t) l_.n_head * (size_t) l_.v.format.dim);
        now_.length2.resize((size_t) l_.n_head);
        for (size_t h = 0; h < now_.heads.size(); h++) {
            const size_t capacity = now_.heads[h].capacity;
            more += (std::max(capacity, wanted(h)) - capacity) * group() * 2 * sizeof(float);
        }
        require(more);
        for (size_t h = 0; h < now_.heads.size(); h++) {
            head_sums &  s = now_.heads[h];
            const size_t capacity = wanted(h);
            if (capacity <= s.capacity) {
                continue;
            }
            head_sums larger{std::vector<float>(group() * capacity), std::vector<float>(group() * capacity), capacity};
            for (size_t g = 0; g < group(); g++) {
                std::copy_n(s.p.begin() + (ptrdiff_t) (g * s.capacity), s.capacity, larger.p.begin() + (ptrdiff_t) (g * capacity));
                std::copy_n(s.squares.begin() + (ptrdiff_t) (g * s.capacity), s.capacity, larger.squares.begin() + (ptrdiff_t) (g * capacity));
            }
            s = std::move(larger);
        }
        account();
    }
    // of the books and the sums; queries and sinks are to be set
    moved_sums_node node_of(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end) {
        moved_sums_node node;
        p_.clear();
        squares_.clear();
        capacity_.clear();
        for (head_sums & s : now_.heads) {
            p_.push_back(s.p.data());
            squares_.push_back(s.squares.data());
            capacity_.push_back(s.capacity);
        }
        node.k         = l_.k.format;
        node.v         = l_.v.format;
        node.heads     = l_.heads.data();
        node.n_head_kv = l_.n_head_kv;
        node.n_head    = l_.n_head;
        node.pos       = pos.data();
        node.blocks    = blocks;
        node.end       = end;
        node.window    = l_.moved->window;
        node.turned    = &l_.moved->turned;
        node.scale     = l_.moved->attention.scale;
        node.softcap   = l_.moved->attention.softcap;
        node.max_bias  = l_.moved->attention.max_bias;
        node.p         = p_.data();
        node.squares   = squares_.data();
        node.capacity  = capacity_.data();
        node.output    = now_.output.data();
        node.length2   = now_.length2.data();
        return node;
    }

private:
    sums                  aside_;
    std::vector<double>   folded_output_, folded_length2_;
    size_t                accounted_ = 0;
    std::vector<float *>  p_, squares_;
    std::vector<size_t>   capacity_;

    static size_t size_of(const sums & s) {
        size_t bytes = 0;
        for (const head_sums & h : s.heads) {
            bytes += (h.p.size() + h.squares.size()) * sizeof(float);
        }
        return bytes;
    }
    // squares become means over neighbouring slots
    void smooth_over(head_sums & s, int32_t n, int32_t smooth, std::vector<float> & mean) const {
        const int32_t reach = smooth / 2;
        mean.resize((size_t) n);
        for (size_t g = 0; reach > 0 && g < group(); g++) {
            float * x = &s.squares[g * s.capacity];
            for (int32_t i = 0; i < n; i++) {
                const int32_t first = std::max(i - reach, 0), last = std::min(i + reach, n - 1);
                float sum = 0;
                for (int32_t j = first; j <= last; j++) {
                    sum += x[j];
                }
                mean[(size_t) i] = sum / (float) (last - first + 1);
            }
            std::copy(mean.begin(), mean.end(), x);
        }
    }
};

} // namespace kvasir
