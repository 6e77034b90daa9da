// What queries take once they are moved behind all that was read, in double precision, from Q, K and V of unmodified llama.cpp.
//
// llama.cpp's scheduler hands every node to a callback once it is computed. From the node that the queries of an attention come from
// llama.cpp's own way to it, ROPE and what follows, is computed once more for other positions: so a moved query is what llama.cpp
// would have made of the token there. K and V are read from its cache.
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace kvasir_test {

class moved_reference {
public:
    struct layer {
        int32_t n_head = 0, n_head_kv = 0, dk = 0, dv = 0, reach = 0; // reach: the largest distance that a query has seen
        float   scale = 1, softcap = 0, max_bias = 0;
        std::vector<float> sinks;
        std::vector<std::vector<float>> q, moved, k, v; // [position][head][dim]
        bool    turned = false, rotated = false; // by rotary positions; by a matrix of llama.cpp's
        double  replayed = 0; // how far the queries, computed once more for their own positions, are from what they were
    };
    std::map<int32_t, layer> layers; // by the model's layer index
    std::vector<int32_t>     moved_to; // [position]

    moved_reference() {
        ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        cpu_ = ggml_backend_dev_init(device, nullptr);
        ((ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"))(cpu_, 1);
    }
    ~moved_reference() { ggml_backend_free(cpu_); }
    moved_reference(const moved_reference &) = delete;

    static bool callback(ggml_tensor * node, bool ask, void * self) {
        if (!ask) {
            ((moved_reference *) self)->take(node);
        }
        return true;
    }

    // positions that a query of the layer sees; 0: all. From llama.cpp's masks.
    int32_t window(int32_t il) const {
        const layer & l = layers.at(il);
        return l.reach + 1 < (int32_t) l.q.size() ? l.reach + 1 : 0;
    }

private:
    ggml_backend_t cpu_;
    std::map<const ggml_tensor *, std::vector<char>> copies_; // what nodes were when they had been computed
    std::map<std::string, std::vector<int64_t>>      cells_;  // of the tokens written last, by the cache's name
    std::map<std::string, std::vector<int32_t>>      pos_of_cell_;
    std::set<std::string>                            unread_; // caches that have been written since an attention was over them

    static bool is_view(ggml_op op) {
        return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
    }
    static std::vector<char> bytes_of(const ggml_tensor * t) {
        std::vector<char> bytes(ggml_nbytes(t));
        ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
        return bytes;
    }
    static const ggml_tensor * root(const ggml_tensor * t) { return t->view_src ? t->view_src : t; }

    void take(const ggml_tensor * node) {
        if (is_view(node->op)) {
            return;
        }
        for (const ggml_tensor * src : node->src) {
            if (src && src->op == GGML_OP_NONE && (src->flags & GGML_TENSOR_FLAG_INPUT)) {
                copies_[src] = bytes_of(src);
            }
        }
        if (node->op == GGML_OP_SET_ROWS) {
            const std::vector<char> bytes = bytes_of(node->src[1]);
            std::vector<int64_t> &  cells = cells_[root(node)->name];
            cells.resize((size_t) node->src[1]->ne[0]);
            if (node->src[1]->type != GGML_TYPE_I64) {
                fprintf(stderr, "cells are numbered in %s\n", ggml_type_name(node->src[1]->type));
                exit(1);
            }
            memcpy(cells.data(), bytes.data(), bytes.size());
            unread_.insert(root(node)->name);
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            take_attention(node);
        } else if (!node->view_src) {
            copies_[node] = bytes_of(node);
        }
    }

    static float parameter(const ggml_tensor * node, int i) {
        float x;
        memcpy(&x, node->op_params + i, sizeof x);
        return x;
    }

    static std::vector<float> row(const ggml_tensor * t, int64_t cell, int64_t head) {
        std::vector<char>  bytes(ggml_row_size(t->type, t->ne[0]));
        std::vector<float> x((size_t) t->ne[0]);
        ggml_backend_tensor_get(t, bytes.data(), (size_t) cell * t->nb[1] + (size_t) head * t->nb[2], bytes.size());
        ggml_get_type_traits(t->type)->to_float(bytes.data(), x.data(), t->ne[0]);
        return x;
    }

    void take_attention(const ggml_tensor * node) {
        const ggml_tensor * q = node->src[0], * k = node->src[1], * v = node->src[2], * mask = node->src[3], * sinks = node->src[4];
        const char *        number = strstr(root(k)->name, "k_l");
        if (!number) {
            fprintf(stderr, "an attention over %s\n", root(k)->name);
            exit(1);
        }
        if (unread_.erase(root(k)->name) == 0) {
            return; // another layer's over the same rows: what counts is the first one
        }
        layer & l = layers[(int32_t) strtol(number + 3, nullptr, 10)];
        l.n_head    = (int32_t) q->ne[2];
        l.n_head_kv = (int32_t) k->ne[2];
        l.dk        = (int32_t) q->ne[0];
        l.dv        = (int32_t) v->ne[0];
        l.scale     = parameter(node, 0);
        l.max_bias  = parameter(node, 1);
        l.softcap   = parameter(node, 2);
        if (sinks) {
            l.sinks.resize((size_t) l.n_head);
            ggml_backend_tensor_get(sinks, l.sinks.data(), 0, l.sinks.size() * sizeof(float));
        }
        l.turned  = turned(q);
        l.rotated = rotated(q);
        const auto n     = (int32_t) q->ne[1];
        const auto first = (int32_t) l.q.size();
        std::vector<int32_t> at, to;
        for (int32_t i = 0; i < n; i++) {
            at.push_back(first + i);
            to.push_back((size_t) (first + i) < moved_to.size() ? moved_to[(size_t) (first + i)] : first + i);
        }
        const std::vector<float> own = queries(q, at), moved = queries(q, to), were = strided(q, bytes_of(root(q)));
        for (size_t i = 0; i < own.size(); i++) {
            l.replayed = std::max(l.replayed, (double) std::abs(own[i] - were[i]));
        }
        const auto by_token = [&](const std::vector<float> & x, int32_t i) {
            std::vector<float> token;
            for (int32_t h = 0; h < l.n_head; h++) {
                const auto from = x.begin() + ((ptrdiff_t) h * n + i) * l.dk;
                token.insert(token.end(), from, from + l.dk);
            }
            return token;
        };
        const std::vector<int64_t> & cells = cells_.at(root(k)->name);
        std::vector<int32_t> &       pos_of = pos_of_cell_[root(k)->name];
        for (int32_t i = 0; i < n; i++) {
            std::vector<float> ks, vs;
            for (int32_t h = 0; h < l.n_head_kv; h++) {
                const auto kr = row(k, cells[(size_t) i], h), vr = row(v, cells[(size_t) i], h);
                ks.insert(ks.end(), kr.begin(), kr.end());
                vs.insert(vs.end(), vr.begin(), vr.end());
            }
            l.q.push_back(by_token(were, i));
            l.moved.push_back(by_token(moved, i));
            l.k.push_back(ks);
            l.v.push_back(vs);
            pos_of.resize(std::max(pos_of.size(), (size_t) cells[(size_t) i] + 1), -1);
            pos_of[(size_t) cells[(size_t) i]] = first + i;
        }
        const std::vector<char> bytes = bytes_of(root(mask));
        for (int32_t i = 0; i < n; i++) {
            for (size_t c = 0; c < pos_of.size() && (int64_t) c < mask->ne[0]; c++) {
                ggml_fp16_t x;
                memcpy(&x, bytes.data() + mask->view_offs + (size_t) i * mask->nb[1] + c * sizeof x, sizeof x);
                if (pos_of[c] >= 0 && pos_of[c] <= first + i && ggml_fp16_to_fp32(x) != -INFINITY) {
                    l.reach = std::max(l.reach, first + i - pos_of[c]);
                }
            }
        }
    }

    // [head][token][dim]
    static std::vector<float> strided(const ggml_tensor * t, const std::vector<char> & bytes) {
        std::vector<float> x;
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
                for (int64_t i0 = 0; i0 < t->ne[0]; i0++) {
                    float value;
                    memcpy(&value, bytes.data() + t->view_offs + (size_t) i0 * t->nb[0] + (size_t) i1 * t->nb[1] + (size_t) i2 * t->nb[2], sizeof value);
                    x.push_back(value);
                }
            }
        }
        return x;
    }

    // whether a ROPE is on the way from the layer's projections to t
    static bool turned(const ggml_tensor * t) {
        if (t->op == GGML_OP_NONE || t->op == GGML_OP_GET_ROWS || (t->op == GGML_OP_MUL_MAT && !is_matrix_of_rows(t->src[0]))) {
            return false;
        }
        if (t->op == GGML_OP_ROPE) {
            return true;
        }
        for (const ggml_tensor * src : t->src) {
            if (src && turned(src)) {
                return true;
            }
        }
        return false;
    }

    // llama.cpp's rotation of quantised rows; a scheduler of several backends has copies of inputs, with the name in theirs
    static bool is_matrix_of_rows(const ggml_tensor * t) { return strstr(t->name, "attn_inp_k_rot") != nullptr; }

    static bool rotated(const ggml_tensor * t) {
        return t && t->op != GGML_OP_NONE && t->op != GGML_OP_ROPE && (t->op == GGML_OP_MUL_MAT ? is_matrix_of_rows(t->src[0]) : rotated(t->src[0]));
    }

    struct replay {
        ggml_context * context;
        std::map<const ggml_tensor *, ggml_tensor *>             clones;
        std::vector<std::pair<ggml_tensor *, std::vector<char>>> leaves;
    };

    ggml_tensor * clone(const ggml_tensor * t, replay & r, const std::vector<int32_t> & pos) const {
        ggml_tensor *& c = r.clones[t];
        if (c) {
            return c;
        }
        if (is_view(t->op)) {
            c = ggml_view_4d(r.context, clone(root(t), r, pos), t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], t->view_offs);
            return r.clones[t] = with_steps(c, t);
        }
        ggml_tensor * own = ggml_new_tensor(r.context, t->type, GGML_MAX_DIMS, t->ne);
        r.clones[t] = own;
        if (!turned(t)) {
            const auto copied = copies_.find(t);
            r.leaves.push_back({own, copied != copies_.end() ? copied->second : bytes_of(t)});
            return own;
        }
        own->op = t->op;
        memcpy(own->op_params, t->op_params, sizeof own->op_params);
        for (int i = 0; i < GGML_MAX_SRC && t->src[i]; i++) {
            own->src[i] = clone(t->src[i], r, pos);
        }
        if (t->op == GGML_OP_ROPE) { // a multi-axis position has one number an axis, the last of which is 0 for text
            ggml_tensor *        at = ggml_new_tensor_1d(r.context, GGML_TYPE_I32, t->src[1]->ne[0]);
            std::vector<int32_t> axes;
            for (size_t i = 0; i < (size_t) at->ne[0]; i++) {
                axes.push_back(i / pos.size() == 3 ? 0 : pos[i % pos.size()]);
            }
            r.leaves.push_back({at, std::vector<char>((char *) axes.data(), (char *) (axes.data() + axes.size()))});
            own->src[1] = at;
        }
        return own;
    }

    static ggml_tensor * with_steps(ggml_tensor * view, const ggml_tensor * like) {
        std::copy(like->nb, like->nb + GGML_MAX_DIMS, view->nb);
        return view;
    }

    // the queries of an attention, had their tokens been at these positions: [head][token][dim]
    std::vector<float> queries(const ggml_tensor * q, const std::vector<int32_t> & pos) const {
        if (!turned(q)) {
            return strided(q, bytes_of(root(q)));
        }
        replay r{ggml_init({256 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}), {}, {}};
        ggml_tensor * out   = ggml_cont(r.context, clone(q, r, pos));
        ggml_cgraph * graph = ggml_new_graph(r.context);
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(r.context, cpu_);
        for (const auto & [leaf, bytes] : r.leaves) {
            ggml_backend_tensor_set(leaf, bytes.data(), 0, std::min(bytes.size(), ggml_nbytes(leaf)));
        }
        if (ggml_backend_graph_compute(cpu_, graph) != GGML_STATUS_SUCCESS) {
            fprintf(stderr, "the queries' graph failed\n");
            exit(1);
        }
        std::vector<float> x((size_t) ggml_nelements(out));
        ggml_backend_tensor_get(out, x.data(), 0, x.size() * sizeof(float));
        ggml_backend_buffer_free(buffer);
        ggml_free(r.context);
        return x;
    }
};

// The sums of one KV head.
struct moved_expected {
    std::vector<double> p, squares;      // [query head of the group][slot]
    std::vector<double> output, length2; // [query head of the group][dim of V], [query head of the group]
    int64_t             n = 0, n_outputs = 0; // queries; those that outputs are of

    // Adds what the queries of positions [base, end) take, every stride-th of a block of 64, of the slots of these positions.
    void add(const moved_reference & reference, int32_t il, int32_t kv_head, const std::vector<int32_t> & held, int32_t base, int32_t end, int32_t stride) {
        const moved_reference::layer & l = reference.layers.at(il);
        const int32_t group = l.n_head / l.n_head_kv, window = reference.window(il);
        std::vector<double> old_p = p, old_squares = squares;
        const size_t before = p.size() / (size_t) group;
        p.assign((size_t) group * held.size(), 0);
        squares = p;
        for (size_t g = 0; g < (size_t) group; g++) {
            std::copy_n(old_p.begin() + (ptrdiff_t) (g * before), before, p.begin() + (ptrdiff_t) (g * held.size()));
            std::copy_n(old_squares.begin() + (ptrdiff_t) (g * before), before, squares.begin() + (ptrdiff_t) (g * held.size()));
            for (size_t s = 0; s < before; s++) {
                if (held[s] != held_[s]) { // another token has come there
                    p[g * held.size() + s] = squares[g * held.size() + s] = 0;
                }
            }
        }
        held_ = held;
        output.resize((size_t) group * (size_t) l.dv);
        length2.resize((size_t) group);
        for (int32_t pos = base; pos < end; pos++) {
            const int32_t block = (pos - base) / 64, begin = base + block * 64;
            if ((pos - begin) % stride != stride / 2) {
                continue;
            }
            const int32_t at = end + pos - begin;
            if (reference.moved_to.at((size_t) pos) != at) {
                fprintf(stderr, "position %d was to be moved to %d\n", pos, at);
                exit(1);
            }
            n++;
            n_outputs += block % 4 == 0;
            for (int32_t g = 0; g < group; g++) {
                add_query(l, kv_head, g, held, pos, begin, end, at, window, block % 4 == 0);
            }
        }
    }

private:
    std::vector<int32_t> held_; // when queries were added last

    void add_query(const moved_reference::layer & l, int32_t kv_head, int32_t g, const std::vector<int32_t> & held, int32_t pos, int32_t begin, int32_t end, int32_t at,
                   int32_t window, bool outputs) {
        const auto   h = (size_t) (kv_head * (l.n_head / l.n_head_kv) + g), dk = (size_t) l.dk, dv = (size_t) l.dv;
        const double n_log2 = std::pow(2, std::floor(std::log2((double) l.n_head)));
        const double slope  = l.max_bias == 0 ? 0 // as ggml_soft_max_ext describes them
                            : (double) h < n_log2 ? std::pow(std::pow(2, -l.max_bias / n_log2), (double) h + 1)
                                                  : std::pow(std::pow(2, -l.max_bias / 2 / n_log2), 2 * ((double) h - n_log2) + 1);
        const auto logit = [&](const std::vector<float> & q, int32_t key, int32_t distance) {
            const std::vector<float> & k = l.k.at((size_t) key);
            double x = 0;
            for (size_t d = 0; d < dk; d++) {
                x += (double) q[h * dk + d] * (double) k[(size_t) kv_head * dk + d];
            }
            x *= l.scale;
            return (l.softcap != 0 ? l.softcap * std::tanh(x / l.softcap) : x) - slope * distance;
        };
        struct seen {
            size_t slot; // or none, of the block's copy
            int32_t key;
            double x;
        };
        constexpr size_t none = SIZE_MAX;
        std::vector<seen> all;
        for (size_t s = 0; s < held.size(); s++) {
            if (held[s] < end && (window == 0 || at - held[s] < window)) {
                all.push_back({s, held[s], logit(l.moved[(size_t) pos], held[s], at - held[s])});
            }
            if (held[s] >= begin && held[s] <= pos && (window == 0 || pos - held[s] < window)) {
                all.push_back({none, held[s], logit(l.q[(size_t) pos], held[s], pos - held[s])});
            }
        }
        double max = l.sinks.empty() ? -INFINITY : (double) l.sinks[h], sum = 0;
        for (const seen & s : all) {
            max = std::max(max, s.x);
        }
        sum = l.sinks.empty() ? 0 : std::exp((double) l.sinks[h] - max);
        for (const seen & s : all) {
            sum += std::exp(s.x - max);
        }
        std::vector<double> o(dv);
        for (const seen & s : all) {
            const double w = std::exp(s.x - max) / sum;
            if (s.slot != none) {
                p[(size_t) g * held.size() + s.slot] += w;
                squares[(size_t) g * held.size() + s.slot] += w * w;
            }
            for (size_t d = 0; d < dv; d++) {
                o[d] += w * (double) l.v[(size_t) s.key][(size_t) kv_head * dv + d];
            }
        }
        for (size_t d = 0; outputs && d < dv; d++) {
            output[(size_t) g * dv + d] += o[d];
            length2[(size_t) g] += o[d] * o[d];
        }
    }
};

} // namespace kvasir_test
