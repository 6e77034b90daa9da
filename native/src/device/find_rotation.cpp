#include "find_rotation.h"

#include "rope.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvasir {

namespace {

// ggml_rope_cache_init and rope_yarn: the angle is linear in the position, so a pair has one frequency
std::vector<double> frequencies(const ggml_tensor * rope) {
    const int32_t n_dims = rope->op_params[1], n_ctx = rope->op_params[4];
    const float   base = rope_float(rope, 5), freq_scale = rope_float(rope, 6), ext_factor = rope_float(rope, 7);
    float         corr[2];
    llama().ggml_rope_yarn_corr_dims(n_dims, n_ctx, base, rope_float(rope, 9), rope_float(rope, 10), corr);
    std::vector<float> factors;
    if (const ggml_tensor * f = rope->src[2]; f && f->buffer && f->op == GGML_OP_NONE) {
        factors.resize((size_t) n_dims / 2);
        f->buffer->iface.get_tensor(f->buffer, f, factors.data(), 0, factors.size() * sizeof(float));
    }
    std::vector<double> omega((size_t) n_dims / 2);
    for (int32_t i = 0; i < n_dims / 2; i++) {
        const double extrapolated = std::pow((double) base, -2.0 * i / n_dims) / (factors.empty() ? 1.0 : (double) factors[(size_t) i]);
        const double interpolated = freq_scale * extrapolated;
        const double ramp = 1 - std::min(1.0, std::max(0.0, (i - (double) corr[0]) / std::max(0.001, (double) corr[1] - (double) corr[0])));
        const double mix  = ext_factor == 0.0f ? 0.0 : ramp * ext_factor;
        omega[(size_t) i] = interpolated * (1 - mix) + extrapolated * mix;
    }
    return omega;
}

bool find(const ggml_tensor * t, int depth, rotation & r) {
    if (!t || depth == 0) {
        return false;
    }
    switch (t->op) {
        case GGML_OP_ROPE:
            r.omega  = frequencies(t);
            r.halves = t->op_params[2] != GGML_ROPE_TYPE_NORMAL;
            return true;
        case GGML_OP_MUL_MAT: { // by llama.cpp's Hadamard matrix; by a weight nothing was turned before
            const ggml_tensor * m = t->src[0];
            if (m->op != GGML_OP_NONE || m->type != GGML_TYPE_F32 || m->ne[0] != m->ne[1] || !(m->flags & GGML_TENSOR_FLAG_INPUT)) {
                return false;
            }
            r.hadamard = (int32_t) m->ne[0];
            return find(t->src[1], depth - 1, r);
        }
        case GGML_OP_CONCAT: { // a part without positions beside one that has them
            rotation second;
            if (t->op_params[0] != 0) {
                return false;
            }
            if (find(t->src[0], depth - 1, r)) {
                return true;
            }
            if (!find(t->src[1], depth - 1, second)) {
                return false;
            }
            second.offset += (int32_t) t->src[0]->ne[0];
            second.hadamard = r.hadamard;
            r = second;
            return true;
        }
        case GGML_OP_MUL: // by a number a token; by weights of each element the pairs of a turn would not be what they were
            if (!find(t->src[0], depth - 1, r)) {
                return false;
            }
            r.composes = r.composes && t->src[1]->ne[0] == 1;
            return true;
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_SCALE:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
            return find(t->src[0], depth - 1, r);
        default:
            return false;
    }
}

} // namespace

rotation find_rotation(const ggml_tensor * q) {
    rotation r;
    find(q, 16, r);
    return r;
}

} // namespace kvasir
