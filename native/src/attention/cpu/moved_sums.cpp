#include "moved_sums.h"

#include "../../store/rows.h"
#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

namespace kvasir {

namespace {

constexpr int32_t parts = 4; // of the blocks of a KV head; sums are added up part by part, whatever thread computed them

float to_float(uint16_t h) {
    float x;
    cpu_kernels_active().rows_to_f32(GGML_TYPE_F16, (const char *) &h, sizeof h, 1, 1, &x, 1);
    return x;
}

// One part of the blocks of one KV head.
struct part_sums {
    std::vector<float>  p, squares; // [group][slots]
    std::vector<double> output;     // [group][dv]
    std::vector<double> length2;    // [group]
};

float dot(const float * a, const float * b, int32_t n) {
    float s[8] = {};
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int32_t j = 0; j < 8; j++) {
            s[j] += a[i + j] * b[i + j];
        }
    }
    float sum = 0;
    for (; i < n; i++) {
        sum += a[i] * b[i];
    }
    for (float x : s) {
        sum += x;
    }
    return sum;
}

void compute_part(const moved_sums_node & node, int32_t kv_head, int32_t part, part_sums & sums) {
    const head_store & head = node.heads[kv_head];
    const int32_t n = head.n, dk = node.k.dim, dv = node.v.dim, group = node.n_head / node.n_head_kv;
    sums.p.assign((size_t) group * (size_t) n, 0);
    sums.squares.assign((size_t) group * (size_t) n, 0);
    sums.output.assign((size_t) group * (size_t) dv, 0);
    sums.length2.assign((size_t) group, 0);
    std::vector<float> k((size_t) n * (size_t) dk), v;
    for (int32_t s = 0; s < n; s++) {
        rows_read(node.k, head.k, s, &k[(size_t) s * (size_t) dk]);
    }
    std::vector<float> q((size_t) dk), moved((size_t) dk), logits((size_t) n), own_logits, o((size_t) dv);
    std::vector<int32_t> own; // slots of the block's tokens up to the query's
    for (size_t b = (size_t) part; b < node.blocks.size(); b += parts) {
        const moved_block & block = node.blocks[b];
        const int32_t by = node.end - block.begin;
        const turn t = turn_by(*node.turned, by);
        if (block.outputs && v.empty()) {
            v.resize((size_t) n * (size_t) dv);
            for (int32_t s = 0; s < n; s++) {
                rows_read(node.v, node.v.part ? head.k : head.v, s, &v[(size_t) s * (size_t) dv]);
            }
        }
        for (int32_t e = block.first; e < block.first + block.n; e++) {
            const int32_t at = node.pos[e] + by; // where the query is moved to
            own.clear();
            for (int32_t s = 0; s < n; s++) {
                if (head.pos[s] >= block.begin && head.pos[s] <= node.pos[e] && (node.window == 0 || head.pos[s] > node.pos[e] - node.window)) {
                    own.push_back(s);
                }
            }
            for (int32_t g = 0; g < group; g++) {
                const int32_t h = kv_head * group + g;
                const uint16_t * from = node.queries + ((size_t) e * (size_t) node.n_head + (size_t) h) * (size_t) dk;
                for (int32_t d = 0; d < dk; d++) {
                    moved[(size_t) d] = q[(size_t) d] = to_float(from[d]);
                }
                turn_query(*node.turned, t, dk, moved.data());
                const float slope = node.max_bias > 0 ? alibi_slope_of(node.max_bias, h, node.n_head) : 0;
                const auto logit = [&](const float * query, int32_t slot, int32_t distance) {
                    const float s = dot(query, &k[(size_t) slot * (size_t) dk], dk) * node.scale;
                    return (node.softcap != 0 ? node.softcap * std::tanh(s / node.softcap) : s) - slope * (float) distance;
                };
                float max = node.sinks ? node.sinks[h] : -INFINITY;
                for (int32_t s = 0; s < n; s++) {
                    const bool seen = head.pos[s] < node.end && (node.window == 0 || head.pos[s] > at - node.window);
                    logits[(size_t) s] = seen ? logit(moved.data(), s, at - head.pos[s]) : -INFINITY;
                    max = std::max(max, logits[(size_t) s]);
                }
                own_logits.clear();
                for (int32_t s : own) {
                    own_logits.push_back(logit(q.data(), s, node.pos[e] - head.pos[s]));
                    max = std::max(max, own_logits.back());
                }
                double sum = node.sinks ? std::exp(node.sinks[h] - max) : 0;
                for (float & x : logits) {
                    x = std::exp(x - max);
                    sum += x;
                }
                for (float & x : own_logits) {
                    x = std::exp(x - max);
                    sum += x;
                }
                if (!(sum > 0)) {
                    continue; // it sees nothing
                }
                const auto share = (float) (1 / sum);
                float * p = &sums.p[(size_t) g * (size_t) n], * squares = &sums.squares[(size_t) g * (size_t) n];
                for (int32_t s = 0; s < n; s++) {
                    const float x = logits[(size_t) s] *= share;
                    p[s] += x;
                    squares[s] += x * x;
                }
                if (!block.outputs) {
                    continue;
                }
                std::fill(o.begin(), o.end(), 0.0f);
                const auto add = [&](int32_t slot, float x) {
                    for (int32_t d = 0; d < dv; d++) {
                        o[(size_t) d] += x * v[(size_t) slot * (size_t) dv + (size_t) d];
                    }
                };
                for (int32_t s = 0; s < n; s++) {
                    add(s, logits[(size_t) s]);
                }
                for (size_t i = 0; i < own.size(); i++) {
                    add(own[i], own_logits[i] * share);
                }
                for (int32_t d = 0; d < dv; d++) {
                    sums.output[(size_t) g * (size_t) dv + (size_t) d] += o[(size_t) d];
                }
                sums.length2[(size_t) g] += dot(o.data(), o.data(), dv);
            }
        }
    }
}

} // namespace

float alibi_slope_of(float max_bias, int32_t head, int32_t n_head) {
    const int32_t n = 1 << (int32_t) std::floor(std::log2((float) n_head));
    return head < n ? std::pow(std::pow(2.0f, -max_bias / (float) n), (float) (head + 1))
                    : std::pow(std::pow(2.0f, -(max_bias / 2.0f) / (float) n), (float) (2 * (head - n) + 1));
}

void moved_sums(const moved_sums_node & node, int n_threads) {
    const int32_t group = node.n_head / node.n_head_kv, dv = node.v.dim;
    std::vector<part_sums> sums((size_t) node.n_head_kv * parts);
    std::atomic<size_t> next{0};
    std::exception_ptr  failure;
    std::mutex          lock;
    const auto work = [&] {
        try {
            for (size_t u; (u = next.fetch_add(1)) < sums.size();) {
                compute_part(node, (int32_t) (u / parts), (int32_t) (u % parts), sums[u]);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> guard(lock);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads && (size_t) i < sums.size(); i++) {
        threads.emplace_back(work);
    }
    work();
    for (std::thread & t : threads) {
        t.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
    for (size_t u = 0; u < sums.size(); u++) {
        const size_t kv_head = u / parts;
        const auto   n = (size_t) node.heads[kv_head].n;
        for (int32_t g = 0; g < group; g++) {
            const size_t to = (size_t) g * node.capacity[kv_head], from = (size_t) g * n, h = kv_head * (size_t) group + (size_t) g;
            for (size_t s = 0; s < n; s++) {
                node.p[kv_head][to + s] += sums[u].p[from + s];
                node.squares[kv_head][to + s] += sums[u].squares[from + s];
            }
            for (size_t d = 0; d < (size_t) dv; d++) {
                node.output[h * (size_t) dv + d] += sums[u].output[(size_t) g * (size_t) dv + d];
            }
            node.length2[h] += sums[u].length2[(size_t) g];
        }
    }
}

void moved_losses(const row_format & v, const head_store & head, int32_t group, const float * squares, size_t capacity, const float * output,
                  const float * weights, float * scores) {
    std::vector<float> row((size_t) v.dim);
    for (int32_t s = 0; s < head.n; s++) {
        rows_read(v, v.part ? head.k : head.v, s, row.data());
        float loss = 0;
        for (int32_t g = 0; g < group; g++) {
            float distance = 0;
            for (int32_t d = 0; d < v.dim; d++) {
                const float x = row[(size_t) d] - output[(size_t) g * (size_t) v.dim + (size_t) d];
                distance += x * x;
            }
            loss += weights[g] * squares[(size_t) g * capacity + (size_t) s] * distance;
        }
        scores[s] += loss;
    }
}

} // namespace kvasir
