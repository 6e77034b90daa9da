#include "rotation.h"

#include <cmath>

namespace kvasir {

turn turn_by(const rotation & r, double positions) {
    turn t;
    t.cosine.resize(r.omega.size());
    t.sine.resize(r.omega.size());
    for (size_t i = 0; i < r.omega.size(); i++) {
        t.cosine[i] = (float) std::cos(positions * r.omega[i]);
        t.sine[i]   = (float) std::sin(positions * r.omega[i]);
    }
    return t;
}

void turn_query(const rotation & r, const turn & by, int32_t dim, float * q) {
    if (r.omega.empty()) {
        return;
    }
    hadamard_blocks(q, dim, r.hadamard);
    const auto pairs = (int32_t) r.omega.size();
    for (int32_t i = 0; i < pairs; i++) {
        float &     x = q[r.offset + (r.halves ? i : 2 * i)], & y = q[r.offset + (r.halves ? i + pairs : 2 * i + 1)];
        const float c = by.cosine[(size_t) i], s = by.sine[(size_t) i], x0 = x;
        x = x0 * c - y * s;
        y = x0 * s + y * c;
    }
    hadamard_blocks(q, dim, r.hadamard);
}

void hadamard_blocks(float * x, int32_t dim, int32_t block) {
    if (block <= 1) {
        return;
    }
    const float scale = 1.0f / std::sqrt((float) block);
    for (float * end = x + dim; x + block <= end; x += block) {
        for (int32_t step = 1; step < block; step *= 2) {
            for (int32_t i = 0; i < block; i += 2 * step) {
                for (int32_t j = i; j < i + step; j++) {
                    const float a = x[j], b = x[j + step];
                    x[j]        = a + b;
                    x[j + step] = a - b;
                }
            }
        }
        for (int32_t i = 0; i < block; i++) {
            x[i] *= scale;
        }
    }
}

} // namespace kvasir
