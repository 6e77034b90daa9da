// How queries of a layer are turned by further positions, once RoPE has turned them by theirs: a rotation composes with a rotation. Where llama.cpp
// multiplies queries and keys by a Hadamard matrix after RoPE (quantised K) that is undone first and done again.
#pragma once

#include <cstdint>
#include <vector>

namespace kvasir {

struct rotation {
    std::vector<double> omega;      // radians a position, of each pair of elements; empty: the layer has no rotary positions
    int32_t             offset = 0; // of the first element that is turned
    bool                halves = false; // pairs (i, i + pairs) as in NEOX, else (2i, 2i + 1)
    int32_t             hadamard = 0;   // size of the blocks that are multiplied by an orthonormal Walsh-Hadamard matrix; 0: none
    bool                composes = true; // false: weights behind RoPE stand between its turn and another one
};

// cosines and sines for a turn by so many positions
struct turn {
    std::vector<float> cosine, sine; // [pairs]
};
turn turn_by(const rotation & r, double positions);

// one query of dim elements, as the attention gets it
void turn_query(const rotation & r, const turn & by, int32_t dim, float * q);

// x becomes H x, in blocks; H is its own inverse
void hadamard_blocks(float * x, int32_t dim, int32_t block);

} // namespace kvasir
