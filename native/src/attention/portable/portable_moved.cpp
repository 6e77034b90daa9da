#include "portable_moved.h"

#include "../../error.h"
#include "../../store/rows.h"
#include "../alibi.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <future>

namespace kvasir {

namespace {

constexpr size_t INPUT_BYTES = (size_t) 32 << 20, RESULT_BYTES = (size_t) 32 << 20; // of one graph
constexpr size_t WEIGHT_BYTES = (size_t) 16 << 20;                                  // of one node

// Behind the columns of the rows: one for what a block's copy and the sink take together, and none for the rest, which keeps rows aligned.
constexpr int32_t MORE_COLUMNS = 32;
constexpr int32_t ROWS_MULTIPLE = 256; // heads have room for a multiple of it

constexpr uint16_t MASKED = 0xfc00; // -infinity as f16

} // namespace

portable_moved::portable_moved(ggml_backend_t backend, device_rows & rows, const moved_sums_node & node, int n_threads)
    : rows_(rows), node_(node), graph_(backend), n_threads_(n_threads), group_(node.n_head / node.n_head_kv), dk_(node.k.dim), dv_(node.v.dim) {
    for (const bool outputs : {true, false}) {
        for (const moved_block & b : node.blocks) {
            for (int32_t e = b.first; b.outputs == outputs && e < b.first + b.n; e++) {
                queries_.push_back({e, b.begin, outputs});
            }
        }
        n_outputs_ = outputs ? (int32_t) queries_.size() : n_outputs_;
    }
    const auto n_kv = (size_t) node.n_head_kv;
    heads_.resize(n_kv);
    p_.resize(n_kv);
    squares_.resize(n_kv);
    own_logits_.resize(n_kv);
    output_.resize((size_t) node.n_head * (size_t) dv_);
    length2_.resize((size_t) node.n_head);
}

// f(KV head) by the threads; the first exception comes out
template <typename F> void portable_moved::in_parallel(F && f) const {
    std::atomic<int32_t> next{0};
    const auto work = [&] {
        for (int32_t h; (h = next.fetch_add(1)) < node_.n_head_kv;) {
            f(h);
        }
    };
    std::vector<std::future<void>> others;
    for (int i = 1; i < n_threads_ && i < node_.n_head_kv; i++) {
        others.push_back(std::async(std::launch::async, work));
    }
    std::exception_ptr failure;
    try {
        work();
    } catch (...) {
        failure = std::current_exception();
    }
    for (std::future<void> & other : others) {
        try {
            other.get();
        } catch (...) {
            failure = std::current_exception();
        }
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

std::vector<float> portable_moved::query_of(int32_t entry, int32_t head) const {
    const uint16_t *   from = node_.queries + ((size_t) entry * (size_t) node_.n_head + (size_t) head) * (size_t) dk_;
    std::vector<float> q((size_t) dk_);
    for (size_t d = 0; d < q.size(); d++) {
        q[d] = llama().ggml_fp16_to_fp32(from[d]);
    }
    return q;
}

float portable_moved::logit(const float * q, const float * k, int32_t h, int32_t distance) const {
    float s[8] = {};
    int32_t d = 0;
    for (; d + 8 <= dk_; d += 8) {
        for (int32_t j = 0; j < 8; j++) {
            s[j] += q[d + j] * k[d + j];
        }
    }
    float x = 0;
    for (; d < dk_; d++) {
        x += q[d] * k[d];
    }
    for (float part : s) {
        x += part;
    }
    x *= node_.scale;
    x = node_.softcap != 0 ? node_.softcap * std::tanh(x / node_.softcap) : x;
    return node_.max_bias > 0 ? x - alibi_slope(node_.max_bias, h, node_.n_head) * (float) distance : x;
}

// the rows of slots that a block's copy may have: those of the tokens that are summed up, mostly the last ones
void portable_moved::read_own(int32_t h) {
    const head_store & head  = node_.heads[h];
    head_state &       state = heads_[(size_t) h];
    state.n      = head.n;
    state.n_rows = std::min(rows_.capacity(h), (std::max(rows_.extent(h, head.n), 1) + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE);
    const int32_t begin = node_.blocks.front().begin;
    int32_t       first = head.n, last = -1;
    for (int32_t s = 0; s < head.n; s++) {
        if (head.pos[s] >= begin && head.pos[s] < node_.end) {
            first = std::min(first, s);
            last  = s;
        }
    }
    state.first_own = first;
    state.ascending = std::is_sorted(head.pos + first, head.pos + std::max(first, last + 1));
    const int32_t n = std::max(last + 1 - first, 0);
    const auto read = [&](const row_format & f, int32_t dim, std::vector<float> & to) {
        std::vector<char> bytes((size_t) n * f.row_bytes);
        rows_.read(&f == &node_.k, h, first, n, bytes.data());
        to.resize((size_t) n * (size_t) dim);
        for (int32_t s = 0; s < n; s++) {
            rows_read(f, bytes.data(), s, &to[(size_t) s * (size_t) dim]);
        }
    };
    read(node_.k, dk_, state.own_k);
    if (n_outputs_ > 0) {
        read(node_.v, dv_, state.own_v);
    }
}

// f(slot, its row in own_k and own_v) of what the query sees of its block's copy
template <typename F> void portable_moved::for_each_own(int32_t h, const query & q, F && f) const {
    const head_store & head  = node_.heads[h];
    const head_state & state = heads_[(size_t) h];
    const int32_t      pos   = node_.pos[q.entry];
    const int32_t *    own   = head.pos + state.first_own;
    const auto         n     = (int32_t) (state.own_k.size() / (size_t) dk_);
    for (int32_t i = state.ascending ? (int32_t) (std::lower_bound(own, own + n, q.begin) - own) : 0; i < n && !(state.ascending && own[i] > pos); i++) {
        const int32_t p = own[i];
        if (p >= q.begin && p <= pos && sees(pos, p)) {
            f(state.first_own + i, i);
        }
    }
}

void portable_moved::weigh_copies(int32_t kv_head) {
    const head_state &   state = heads_[(size_t) kv_head];
    std::vector<float> & to    = own_logits_[(size_t) kv_head];
    std::vector<float>   x;
    for (const query & q : queries_) {
        for (int32_t g = 0; g < group_; g++) {
            const int32_t h = kv_head * group_ + g;
            const std::vector<float> unmoved = query_of(q.entry, h);
            x.clear();
            if (node_.sinks) {
                x.push_back(node_.sinks[h]);
            }
            for_each_own(kv_head, q, [&](int32_t slot, int32_t i) {
                x.push_back(logit(unmoved.data(), &state.own_k[(size_t) i * (size_t) dk_], h, node_.pos[q.entry] - node_.heads[kv_head].pos[slot]));
            });
            float max = -INFINITY, sum = 0;
            for (float y : x) {
                max = std::max(max, y);
            }
            for (float y : x) {
                sum += std::exp(y - max);
            }
            to.push_back(x.empty() ? -INFINITY : max + std::log(sum));
        }
    }
}

// [columns][query head of the group][query, or 1 where all see the same]
ggml_tensor * portable_moved::mask(int32_t kv_head, int32_t first, int32_t n) {
    const head_store & head    = node_.heads[kv_head];
    const int32_t      columns = heads_[(size_t) kv_head].n_rows + MORE_COLUMNS;
    const bool         each    = node_.window > 0 || node_.max_bias > 0;
    const ggml_type    type    = node_.max_bias > 0 ? GGML_TYPE_F32 : GGML_TYPE_F16; // a bias is added to logits, and rounds as these do
    void *        host;
    ggml_tensor * t = graph_.input(type, columns, group_, each ? n : 1, &host);
    for (int32_t i = 0; i < (each ? n : 1); i++) {
        const query & q = queries_[(size_t) (first + i)];
        for (int32_t g = 0; g < group_; g++) {
            const size_t at_row = ((size_t) i * (size_t) group_ + (size_t) g) * (size_t) columns;
            if (type == GGML_TYPE_F16) {
                uint16_t * row = (uint16_t *) host + at_row;
                std::fill(row, row + columns, MASKED);
                row[columns - MORE_COLUMNS] = 0;
                device_rows::for_each_row(rows_.order(kv_head), head.n, [&](int32_t s, int32_t r) { row[r] = head.pos[s] < node_.end && (!each || sees(at(q), head.pos[s])) ? 0 : MASKED; });
            } else {
                const float slope = alibi_slope(node_.max_bias, kv_head * group_ + g, node_.n_head);
                float *     row   = (float *) host + at_row;
                std::fill(row, row + columns, -INFINITY);
                row[columns - MORE_COLUMNS] = 0;
                device_rows::for_each_row(rows_.order(kv_head), head.n, [&](int32_t s, int32_t r) {
                    row[r] = head.pos[s] < node_.end && sees(at(q), head.pos[s]) ? -slope * (float) (at(q) - head.pos[s]) : -INFINITY;
                });
            }
        }
    }
    return t;
}

// the sums over queries of x [columns][query head of the group][query]
ggml_tensor * portable_moved::sum_over_queries(ggml_tensor * x, int32_t columns, int32_t n, const float ** host) {
    const api & g = llama();
    void *        to;
    ggml_tensor * out = graph_.result(GGML_TYPE_F32, columns, group_, 1, &to);
    *host = (const float *) to;
    if (repeats_back_) {
        ggml_tensor * sum = g.ggml_repeat_back(graph_.context(), x, out);
        if (graph_.supports(sum)) {
            return graph_.add(sum, out);
        }
        repeats_back_ = false;
    }
    ggml_tensor * by_query = graph_.tensor(GGML_TYPE_F32, place(x), n, columns, group_);
    by_query->nb[0] = x->nb[2];
    by_query->nb[1] = x->nb[0];
    by_query->nb[2] = x->nb[1];
    by_query = graph_.copy(by_query, graph_.scratch(GGML_TYPE_F32, n, columns, group_));
    return graph_.add(g.ggml_sum_rows(graph_.context(), by_query), out);
}

// The weights of queries [first, first + n) over the rows of one head.
void portable_moved::build(int32_t kv_head, int32_t first, int32_t n) {
    const api &   g       = llama();
    const int32_t n_rows  = heads_[(size_t) kv_head].n_rows, columns = n_rows + MORE_COLUMNS;
    const float   factor  = node_.softcap != 0 ? node_.scale / node_.softcap : node_.scale;
    graph_.rewind_scratch();
    void *        host;
    ggml_tensor * q = graph_.input(GGML_TYPE_F32, dk_, group_ * n, 1, &host);
    turn by;
    for (int32_t i = 0, block = -1; i < n; i++) {
        const query & x = queries_[(size_t) (first + i)];
        if (block != x.begin) {
            by    = turn_by(*node_.turned, node_.end - x.begin);
            block = x.begin;
        }
        for (int32_t h = 0; h < group_; h++) {
            std::vector<float> moved = query_of(x.entry, kv_head * group_ + h);
            turn_query(*node_.turned, by, dk_, moved.data());
            std::transform(moved.begin(), moved.end(), (float *) host + ((size_t) i * (size_t) group_ + (size_t) h) * (size_t) dk_, [factor](float y) { return y * factor; });
        }
    }
    ggml_tensor * more = graph_.input(GGML_TYPE_F32, MORE_COLUMNS, group_ * n, 1, &host);
    const std::vector<float> & own = own_logits_[(size_t) kv_head];
    for (int32_t i = 0; i < group_ * n; i++) {
        float * row = (float *) host + (size_t) i * MORE_COLUMNS;
        const float x = own[(size_t) first * (size_t) group_ + (size_t) i];
        std::fill(row, row + MORE_COLUMNS, 0.0f); // they are masked
        row[0] = x == -INFINITY ? -1e30f : x;     // a query that sees nothing has no weights that count, and no NaN
    }
    // Rows as floats: what a backend multiplies with a quantised row it would round to 8 bits.
    const row_format & kf = node_.k, & vf = node_.v;
    ggml_tensor * k = graph_.tensor(kf.type, rows_.rows(true, kv_head), dk_, n_rows, 1, kf.row_bytes);
    k = graph_.copy(k, graph_.scratch(GGML_TYPE_F32, dk_, n_rows));
    ggml_tensor * kq = g.ggml_mul_mat(graph_.context(), k, q);
    kq->op_params[0] = GGML_PREC_F32;
    kq = graph_.add(kq, graph_.scratch(GGML_TYPE_F32, n_rows, group_ * n));
    if (node_.softcap != 0) {
        kq = graph_.add(g.ggml_tanh(graph_.context(), kq), graph_.scratch(GGML_TYPE_F32, n_rows, group_ * n));
        kq = graph_.add(g.ggml_scale(graph_.context(), kq, node_.softcap), graph_.scratch(GGML_TYPE_F32, n_rows, group_ * n));
    }
    ggml_tensor * all  = graph_.add(g.ggml_concat(graph_.context(), kq, more, 0), graph_.scratch(GGML_TYPE_F32, columns, group_ * n));
    ggml_tensor * soft = g.ggml_soft_max_ext(graph_.context(), graph_.tensor(GGML_TYPE_F32, place(all), columns, group_, n), mask(kv_head, first, n), 1.0f, 0.0f);
    soft = graph_.add(soft, graph_.scratch(GGML_TYPE_F32, columns, group_, n));
    ggml_tensor * square = graph_.add(g.ggml_sqr(graph_.context(), soft), graph_.scratch(GGML_TYPE_F32, columns, group_, n));
    pending x{kv_head, first, n, std::clamp(n_outputs_ - first, 0, n), nullptr, nullptr, nullptr, nullptr};
    sum_over_queries(soft, columns, n, &x.p);
    sum_over_queries(square, columns, n, &x.squares);
    if (x.n_outputs > 0) {
        ggml_tensor * copies = graph_.result(GGML_TYPE_F32, 1, group_ * x.n_outputs, 1, &host);
        x.copies = (const float *) host;
        graph_.copy(graph_.tensor(GGML_TYPE_F32, place(soft) + (size_t) n_rows * sizeof(float), 1, group_ * x.n_outputs, 1, (size_t) columns * sizeof(float)), copies);
        // V with a row of zeros for each of the other columns
        ggml_tensor * v = graph_.scratch(GGML_TYPE_F32, dv_, columns);
        ggml_tensor * zeros = graph_.input(GGML_TYPE_F32, dv_, MORE_COLUMNS, 1, &host);
        memset(host, 0, (size_t) dv_ * MORE_COLUMNS * sizeof(float));
        ggml_tensor * from = vf.part ? graph_.tensor(GGML_TYPE_F32, place(k), dv_, n_rows, 1, (size_t) dk_ * sizeof(float))
                                     : graph_.tensor(vf.type, rows_.rows(false, kv_head), dv_, n_rows, 1, vf.row_bytes);
        graph_.copy(from, graph_.tensor(GGML_TYPE_F32, place(v), dv_, n_rows));
        graph_.copy(zeros, graph_.tensor(GGML_TYPE_F32, place(v) + (size_t) n_rows * (size_t) dv_ * sizeof(float), dv_, MORE_COLUMNS));
        ggml_tensor * by_column = graph_.tensor(GGML_TYPE_F32, place(v), columns, dv_);
        by_column->nb[0] = (size_t) dv_ * sizeof(float);
        by_column->nb[1] = sizeof(float);
        by_column = graph_.copy(by_column, graph_.scratch(GGML_TYPE_F32, columns, dv_));
        ggml_tensor * o = g.ggml_mul_mat(graph_.context(), by_column, graph_.tensor(GGML_TYPE_F32, place(soft), columns, group_ * x.n_outputs));
        o->op_params[0] = GGML_PREC_F32;
        graph_.add(o, graph_.result(GGML_TYPE_F32, dv_, group_ * x.n_outputs, 1, &host));
        x.outputs = (const float *) host;
    }
    pending_.push_back(x);
}

bool portable_moved::compute() {
    if (pending_.empty()) {
        return true;
    }
    if (graph_.compute() != GGML_STATUS_SUCCESS) {
        graph_.synchronize();
        return false;
    }
    graph_.fetch_results();
    for (const pending & x : pending_) {
        take_in(x);
    }
    pending_.clear();
    graph_.begin();
    return true;
}

void portable_moved::take_in(const pending & x) {
    const head_store & head    = node_.heads[x.head];
    const head_state & state   = heads_[(size_t) x.head];
    const int32_t      columns = state.n_rows + MORE_COLUMNS;
    for (int32_t g = 0; g < group_; g++) {
        float *       p = &p_[(size_t) x.head][(size_t) g * (size_t) head.n], * squares = &squares_[(size_t) x.head][(size_t) g * (size_t) head.n];
        const float * from_p = x.p + (size_t) g * (size_t) columns, * from_squares = x.squares + (size_t) g * (size_t) columns;
        device_rows::for_each_row(rows_.order(x.head), head.n, [&](int32_t s, int32_t r) {
            p[s] += from_p[r];
            squares[s] += from_squares[r];
        });
    }
    std::vector<double> o((size_t) dv_);
    for (int32_t i = 0; i < x.n_outputs; i++) {
        const query & q = queries_[(size_t) (x.first + i)];
        for (int32_t g = 0; g < group_; g++) {
            const int32_t h   = x.head * group_ + g;
            const float * own = x.outputs + ((size_t) i * (size_t) group_ + (size_t) g) * (size_t) dv_;
            const float   log_sum = own_logits_[(size_t) x.head][(size_t) (x.first + i) * (size_t) group_ + (size_t) g];
            std::copy(own, own + dv_, o.begin());
            const std::vector<float> unmoved = query_of(q.entry, h);
            for_each_own(x.head, q, [&](int32_t slot, int32_t k) {
                const float y = logit(unmoved.data(), &state.own_k[(size_t) k * (size_t) dk_], h, node_.pos[q.entry] - head.pos[slot]);
                const float w = std::exp(y - log_sum) * x.copies[(size_t) i * (size_t) group_ + (size_t) g];
                for (int32_t d = 0; d < dv_; d++) {
                    o[(size_t) d] += (double) (w * state.own_v[(size_t) k * (size_t) dv_ + (size_t) d]);
                }
            });
            for (int32_t d = 0; d < dv_; d++) {
                output_[(size_t) h * (size_t) dv_ + (size_t) d] += o[(size_t) d];
                length2_[(size_t) h] += o[(size_t) d] * o[(size_t) d];
            }
        }
    }
}

void portable_moved::add_to_node() {
    for (int32_t h = 0; h < node_.n_head_kv; h++) {
        const auto n = (size_t) node_.heads[h].n;
        for (size_t g = 0; g < (size_t) group_; g++) {
            for (size_t s = 0; s < n; s++) {
                node_.p[h][g * node_.capacity[h] + s] += p_[(size_t) h][g * n + s];
                node_.squares[h][g * node_.capacity[h] + s] += squares_[(size_t) h][g * n + s];
            }
        }
    }
    for (size_t i = 0; i < output_.size(); i++) {
        node_.output[i] += output_[i];
    }
    for (size_t i = 0; i < length2_.size(); i++) {
        node_.length2[i] += length2_[i];
    }
}

bool portable_moved::run() {
    for (int32_t h = 0; h < node_.n_head_kv; h++) {
        const auto size = (size_t) group_ * (size_t) node_.heads[h].n;
        p_[(size_t) h].assign(size, 0);
        squares_[(size_t) h].assign(size, 0);
        read_own(h);
    }
    in_parallel([this](int32_t h) { weigh_copies(h); });
    try {
        graph_.begin();
        const auto n_queries = (int32_t) queries_.size();
        for (int32_t h = 0; h < node_.n_head_kv; h++) {
            if (node_.heads[h].n == 0) {
                continue;
            }
            const auto    columns = (size_t) (heads_[(size_t) h].n_rows + MORE_COLUMNS);
            const size_t  bytes   = columns * (size_t) group_ * sizeof(float);
            const auto    most    = (int32_t) std::clamp<size_t>(WEIGHT_BYTES / bytes, 1, 512);
            for (int32_t first = 0, n; first < n_queries; first += n) {
                n = std::min(most, n_queries - first);
                const size_t inputs  = (size_t) n * ((size_t) group_ * (size_t) (dk_ + MORE_COLUMNS) * sizeof(float) + (node_.window > 0 || node_.max_bias > 0 ? bytes : 0)) + bytes;
                const size_t results = 2 * bytes + (size_t) std::clamp(n_outputs_ - first, 0, n) * (size_t) group_ * (size_t) (dv_ + 1) * sizeof(float);
                if ((graph_.input_bytes() + inputs > INPUT_BYTES || graph_.result_bytes() + results > RESULT_BYTES) && !compute()) {
                    return false;
                }
                build(h, first, n);
            }
        }
        if (!compute()) {
            return false;
        }
    } catch (const error & e) {
        if (e.status() != KVASIR_UNSUPPORTED) {
            throw;
        }
        return false;
    }
    add_to_node();
    return true;
}

} // namespace kvasir
