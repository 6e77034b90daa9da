// The codec of one side (K or V) of a head: where a slot's row lies and how it is written, read, moved and compacted.
//
// Two layouts (row_format::tiled). Rows: one row after another, each in ggml's layout of the type. Tiled (K of f16 and
// bf16): tiles of 16 slots, element (slot, d) at [slot / 16][d][slot % 16], so that a vector holds the same element of
// neighbouring slots and Q·K needs no sum across a vector. A tile always occupies its full 16 rows.
#pragma once

#include "../attention/attention.h"

#include <cstddef>
#include <cstdint>

namespace kvasir {

constexpr int32_t rows_tile = 16;

// ggml's functions for a quantised type, resolved at run time; f16 and bf16 need none.
struct row_functions {
    void (*from_float)(const float * x, void * y, int64_t k) = nullptr; // ggml_get_type_traits_cpu(type)->from_float
    void (*to_float)(const void * x, float * y, int64_t k)   = nullptr; // ggml_get_type_traits(type)->to_float
};

// set once per type, before any row of that type is written or read
void rows_set_functions(ggml_type type, const row_functions & functions);

// the types that the store takes: f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1
bool rows_supports(ggml_type type, int32_t dim);

// the layout of a side: tiled is only ever chosen for K (and not where V is a part of K's rows)
row_format rows_format(ggml_type type, int32_t dim, bool tiled);

// Multi-head latent attention: V is the first dim elements of each of K's rows, which are not tiled then. Rows of a part are read as
// K's whole rows; it has no memory, so there is nothing to write, move or keep.
row_format rows_part(const row_format & k, int32_t dim);

// bytes that n slots occupy (whole tiles when tiled; none of a part)
size_t rows_bytes(const row_format & f, int32_t n);
// slots that fit into so many bytes
int32_t rows_fitting(const row_format & f, size_t bytes);

// writes slot from dim floats
void rows_write(const row_format & f, char * base, int32_t slot, const float * src);
// the row of slot as dim floats
void rows_read(const row_format & f, const char * base, int32_t slot, float * dst);

// Euclidean norms of n rows in ggml's layout, one after another
void rows_norms(const row_format & f, const char * rows, int32_t n, float * norms);

// one row in ggml's layout (row_bytes), out of and into the store
void rows_get(const row_format & f, const char * base, int32_t slot, char * dst);
void rows_set(const row_format & f, char * base, int32_t slot, const char * src);
// rows of n slots in ggml's layout, one after another; slots == nullptr: slots first, first + 1, ...
void rows_gather(const row_format & f, const char * base, const int32_t * slots, int32_t first, int32_t n, char * dst);

// copies the row of slot from to slot to
void rows_move(const row_format & f, char * base, int32_t from, int32_t to);
// keeps the given slots (ascending, distinct) in their order: slots[i] becomes slot i
void rows_keep(const row_format & f, char * base, const int32_t * slots, int32_t n);

} // namespace kvasir
