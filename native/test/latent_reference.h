// A synthetic deepseek2 in double precision, written from the definition of multi-head latent attention (DeepSeek-V2, section 2.1, with
// the up-projections absorbed into query and output). Only the latent rows are rounded, to f16 as the cache does.
#pragma once

#include "synthetic_model.h"

#include "ggml.h"
#include "gguf.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace kvasir_test {

class latent_reference {
public:
    latent_reference(const synthetic_model & m, const std::string & path) : m_(m) {
        gguf_ = gguf_init_from_file(path.c_str(), {/*.no_alloc =*/ false, &context_});
        if (!gguf_) {
            fprintf(stderr, "cannot read %s\n", path.c_str());
            exit(1);
        }
    }
    ~latent_reference() {
        gguf_free(gguf_);
        ggml_free(context_);
    }
    latent_reference(const latent_reference &) = delete;

    // whether the query at a position sees the key of a layer at another one; asked for keys that are not behind the query
    std::function<bool(int32_t layer, int32_t query, int32_t key)> sees = [](int32_t, int32_t, int32_t) { return true; };
    std::vector<int32_t> bounds; // of distances

    std::vector<std::vector<double>> rows; // [layer][position][latent + rope], as they are cached
    std::vector<std::vector<double>> sums; // [layer][bucket][position] weights, mean over the query heads

    // logits [token][vocabulary]
    std::vector<float> logits(const std::vector<int32_t> & tokens) {
        const size_t n = tokens.size();
        std::vector<std::vector<double>> x;
        for (int32_t t : tokens) {
            const float * row = (const float *) tensor("token_embd.weight")->data + (size_t) t * (size_t) m_.n_embd;
            x.emplace_back(row, row + m_.n_embd);
        }
        rows.clear();
        sums.clear();
        for (int32_t l = 0; l < m_.n_layer; l++) {
            const std::string b = "blk." + std::to_string(l) + ".";
            attend(l, b, x);
            for (size_t t = 0; t < n; t++) {
                const auto h = norm(x[t], b + "ffn_norm.weight");
                auto gate = product(b + "ffn_gate.weight", h);
                const auto up = product(b + "ffn_up.weight", h);
                for (size_t i = 0; i < gate.size(); i++) {
                    gate[i] *= up[i] / (1 + std::exp(-gate[i]));
                }
                add(x[t], product(b + "ffn_down.weight", gate));
            }
        }
        std::vector<float> all;
        for (size_t t = 0; t < n; t++) {
            const auto y = product("output.weight", norm(x[t], "output_norm.weight"));
            all.insert(all.end(), y.begin(), y.end());
        }
        return all;
    }

private:
    using vec = std::vector<double>;

    const synthetic_model m_;
    gguf_context *        gguf_    = nullptr;
    ggml_context *        context_ = nullptr;

    const ggml_tensor * tensor(const std::string & name) const { return ggml_get_tensor(context_, name.c_str()); }

    static void add(vec & x, const vec & y) {
        for (size_t i = 0; i < x.size(); i++) {
            x[i] += y[i];
        }
    }

    // the matrix of a plane of a tensor [n0, n1, planes] times x
    vec product(const std::string & name, const vec & x, int64_t plane = 0) const {
        const ggml_tensor * t = tensor(name);
        const float *       w = (const float *) t->data + plane * t->ne[0] * t->ne[1];
        vec y((size_t) t->ne[1]);
        for (double & sum : y) {
            for (size_t i = 0; i < x.size(); i++) {
                sum += (double) *w++ * x[i];
            }
        }
        return y;
    }

    vec norm(vec x, const std::string & name) const {
        const float * w = (const float *) tensor(name)->data;
        double squares = 0;
        for (double v : x) {
            squares += v * v;
        }
        const double scale = 1 / std::sqrt(squares / (double) x.size() + 1e-5);
        for (size_t i = 0; i < x.size(); i++) {
            x[i] *= scale * w[i];
        }
        return x;
    }

    // neighbouring elements are a pair
    static void turn(double * x, int32_t n, size_t pos) {
        for (int32_t i = 0; i < n; i += 2) {
            const double angle = (double) pos * std::pow(10000.0, -(double) i / n), c = std::cos(angle), s = std::sin(angle), a = x[i], b = x[i + 1];
            x[i]     = a * c - b * s;
            x[i + 1] = a * s + b * c;
        }
    }

    void attend(int32_t l, const std::string & b, std::vector<vec> & x) {
        const size_t  n = x.size(), width = (size_t) (m_.latent + m_.rope_dim);
        const int32_t rope = m_.rope_dim, n_buckets = (int32_t) bounds.size() + 1;
        vec & kv = rows.emplace_back(), & sum = sums.emplace_back((size_t) n_buckets * n);
        for (size_t t = 0; t < n; t++) {
            const vec h = norm(x[t], b + "attn_norm.weight"), both = product(b + "attn_kv_a_mqa.weight", h);
            vec row = norm(vec(both.begin(), both.begin() + m_.latent), b + "attn_kv_a_norm.weight");
            row.insert(row.end(), both.begin() + m_.latent, both.end());
            turn(row.data() + m_.latent, rope, t);
            for (double & v : row) {
                kv.push_back((double) ggml_fp16_to_fp32(ggml_fp32_to_fp16((float) v)));
            }
        }
        for (size_t t = 0; t < n; t++) {
            const vec h = norm(x[t], b + "attn_norm.weight");
            const vec q = product(b + "attn_q_b.weight", norm(product(b + "attn_q_a.weight", h), b + "attn_q_a_norm.weight"));
            const size_t per_head = q.size() / (size_t) m_.n_head, nope = per_head - (size_t) rope;
            vec heads;
            for (int32_t head = 0; head < m_.n_head; head++) {
                const auto from = q.begin() + (ptrdiff_t) ((size_t) head * per_head);
                vec query = product(b + "attn_k_b.weight", vec(from, from + (ptrdiff_t) nope), head);
                query.insert(query.end(), from + (ptrdiff_t) nope, from + (ptrdiff_t) per_head);
                turn(query.data() + m_.latent, rope, t);
                vec    weight(t + 1), out((size_t) m_.latent);
                double top = -INFINITY, total = 0;
                for (size_t k = 0; k <= t; k++) {
                    double dot = 0;
                    for (size_t i = 0; i < width; i++) {
                        dot += query[i] * kv[k * width + i];
                    }
                    weight[k] = sees(l, (int32_t) t, (int32_t) k) ? dot / std::sqrt((double) per_head) : -INFINITY;
                    top = std::max(top, weight[k]);
                }
                for (double & w : weight) {
                    w = std::exp(w - top);
                    total += w;
                }
                for (size_t k = 0; k <= t; k++) {
                    int32_t bucket = 0;
                    while (bucket < n_buckets - 1 && bounds[(size_t) bucket] <= (int32_t) (t - k)) {
                        bucket++;
                    }
                    sum[(size_t) bucket * n + k] += weight[k] / total / m_.n_head;
                    for (size_t i = 0; i < out.size(); i++) {
                        out[i] += weight[k] / total * kv[k * width + i];
                    }
                }
                const vec value = product(b + "attn_v_b.weight", out, head);
                heads.insert(heads.end(), value.begin(), value.end());
            }
            add(x[t], product(b + "attn_output.weight", heads));
        }
    }
};

} // namespace kvasir_test
