// Attention in double precision over the tokens that each head keeps, put into unmodified llama.cpp.
//
// llama.cpp without flash attention has nodes for Q.K ("kq"), the weights ("kq_soft_max") and the weighted sum of V ("kqv").
// Its scheduler hands them to this callback when they are computed. At the first two queries and mask are copied, whose memory
// ggml may use again from there on; at the third products, weights and the sum are computed in double precision, over the kept
// tokens alone, and overwrite what ggml has computed.
#pragma once

#include "ggml.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

namespace kvasir_test {

class reference_attention {
public:
    // whether the KV head of the layer that a cache tensor belongs to still has the token at a position
    std::function<bool(int32_t il, int32_t head, int32_t pos)> keeps;
    int64_t calls = 0;

    static bool callback(ggml_tensor * node, bool ask, void * self) {
        auto * r = (reference_attention *) self;
        const bool products = is(node, GGML_OP_MUL_MAT, "kq-"), weights = is(node, GGML_OP_SOFT_MAX, "kq_soft_max-"), sum = is(node, GGML_OP_MUL_MAT, "kqv-");
        if (ask) {
            return products || weights || sum;
        }
        if (products) {
            copy(node->src[1], r->queries_[node]);
        } else if (weights && node->src[1]) {
            copy(node->src[1], r->mask_);
        } else if (sum) {
            r->attend(node);
        }
        return true;
    }

private:
    std::map<const ggml_tensor *, std::vector<float>> queries_; // by kq: [stream][query head][token][dim]
    std::vector<float> mask_; // [stream or 1][query head or 1][token][cell]

    static bool is(const ggml_tensor * node, ggml_op op, const char * name) { return node->op == op && strncmp(node->name, name, strlen(name)) == 0; }

    static float parameter(const ggml_tensor * node, int i) {
        float value;
        memcpy(&value, node->op_params + i, sizeof value);
        return value;
    }

    static float at(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
        const char * p = (const char *) t->data + i0 * (int64_t) t->nb[0] + i1 * (int64_t) t->nb[1] + i2 * (int64_t) t->nb[2] + i3 * (int64_t) t->nb[3];
        return t->type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(*(const ggml_fp16_t *) p) : *(const float *) p;
    }

    static void copy(const ggml_tensor * t, std::vector<float> & to) {
        to.clear();
        for (int64_t i3 = 0; i3 < t->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
                for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
                    for (int64_t i0 = 0; i0 < t->ne[0]; i0++) {
                        to.push_back(at(t, i0, i1, i2, i3));
                    }
                }
            }
        }
    }

    // What lies between kq and the softmax: soft-capping.
    static double scores(const ggml_tensor * node, const ggml_tensor * kq, double product) {
        if (node == kq) {
            return product;
        }
        const double x = scores(node->src[0], kq, product);
        if (node->op == GGML_OP_SCALE) {
            return x * parameter(node, 0) + parameter(node, 1);
        }
        if (node->op == GGML_OP_UNARY && ggml_get_unary_op(node) == GGML_UNARY_OP_TANH) {
            return std::tanh(x);
        }
        fprintf(stderr, "the reference knows no %s between kq and its softmax\n", ggml_op_name(node->op));
        exit(1);
    }

    void attend(ggml_tensor * kqv) {
        const ggml_tensor * v = kqv->src[0], * softmax = kqv->src[1];
        if (softmax->op != GGML_OP_SOFT_MAX) {
            return;
        }
        const ggml_tensor * kq = softmax->src[0], * mask = softmax->src[1], * sinks = softmax->src[2];
        while (queries_.count(kq) == 0) {
            kq = kq->src[0];
        }
        calls++;
        const ggml_tensor * k = kq->src[0], * cache = k;
        while (cache->view_src) {
            cache = cache->view_src;
        }
        const char *  number    = strstr(cache->name, "k_l");
        const int32_t il        = number ? (int32_t) strtol(number + 3, nullptr, 10) : -1;
        const int64_t n_kv      = kq->ne[0], n_tokens = kq->ne[1], n_head = kq->ne[2], group = n_head / k->ne[2], dim = k->ne[0], dim_v = v->ne[1];
        const float   scale     = parameter(softmax, 0), max_bias = parameter(softmax, 1);
        const double  n_log2    = std::pow(2, std::floor(std::log2((double) n_head)));
        std::vector<double> weights((size_t) n_kv);
        std::vector<float>  keys((size_t) (n_kv * dim)), values((size_t) (n_kv * dim_v));
        for (int64_t s = 0; s < kq->ne[3]; s++) {
            for (int64_t h = 0; h < n_head; h++) {
                const int64_t kv_head = h / group;
                for (int64_t cell = 0; h % group == 0 && cell < n_kv; cell++) {
                    for (int64_t d = 0; d < dim; d++) {
                        keys[(size_t) (cell * dim + d)] = at(k, d, cell, kv_head, s);
                    }
                    for (int64_t d = 0; d < dim_v; d++) {
                        values[(size_t) (cell * dim_v + d)] = at(v, cell, d, kv_head, s);
                    }
                }
                // ALiBi's slopes, as ggml_soft_max_ext describes them
                const double slope = max_bias == 0 ? 1
                                   : (double) h < n_log2 ? std::pow(std::pow(2, -max_bias / n_log2), (double) h + 1)
                                                         : std::pow(std::pow(2, -max_bias / 2 / n_log2), 2 * ((double) h - n_log2) + 1);
                const double sink  = sinks ? (double) ((const float *) sinks->data)[h] : -INFINITY;
                for (int64_t t = 0; t < n_tokens; t++) {
                    const float * query = queries_[kq].data() + ((s * n_head + h) * n_tokens + t) * dim;
                    double largest = sink;
                    for (int64_t cell = 0; cell < n_kv; cell++) {
                        const double bias = mask ? (double) mask_[(size_t) (((s % mask->ne[3] * mask->ne[2] + h % mask->ne[2]) * mask->ne[1] + t) * n_kv + cell)] : 0;
                        double &     x    = weights[(size_t) cell];
                        x = -INFINITY;
                        if (bias != -INFINITY && (!keeps || keeps(il, (int32_t) kv_head, (int32_t) cell))) {
                            double product = 0;
                            for (int64_t d = 0; d < dim; d++) {
                                product += (double) query[d] * (double) keys[(size_t) (cell * dim + d)];
                            }
                            x = scale * scores(softmax->src[0], kq, product) + slope * bias;
                        }
                        largest = std::max(largest, x);
                    }
                    std::vector<double> sums((size_t) dim_v);
                    double total = std::exp(sink - largest);
                    for (int64_t cell = 0; cell < n_kv; cell++) {
                        if (weights[(size_t) cell] == -INFINITY) {
                            continue; // a cell that was never written may hold anything
                        }
                        const double weight = std::exp(weights[(size_t) cell] - largest);
                        total += weight;
                        for (int64_t d = 0; d < dim_v; d++) {
                            sums[(size_t) d] += weight * (double) values[(size_t) (cell * dim_v + d)];
                        }
                    }
                    for (int64_t d = 0; d < dim_v; d++) {
                        *(float *) ((char *) kqv->data + d * (int64_t) kqv->nb[0] + t * (int64_t) kqv->nb[1] + h * (int64_t) kqv->nb[2] + s * (int64_t) kqv->nb[3]) =
                            (float) (sums[(size_t) d] / total);
                    }
                }
            }
        }
        queries_.erase(kq);
    }
};

} // namespace kvasir_test
