// The store on a CUDA device: pages of 64 slots of one KV head, in one pool of equal pages per page size.
//
// A page holds, one section after another, each aligned to 256 bytes:
//   K         [64][dim_k]        row by row
//   K scales  [64][dim_k / 32]   f16, only for q8_0
//   V         2 x [dim_v][32]    transposed inside a block of 32 slots
//   V scales  [64][dim_v / 32]   f16, only for q8_0
//   cell      [64] i32           llama.cpp's cell of the slot: the mask is looked up by it
//   pos       [64] i32           the token's position
//   score     [64] f32           attention accumulated while the head is tracked
// Elements of K and V are f16, or i8 for q8_0. Slot s of a head lies in page table[s / 64], at s % 64.
// A page is zeroed before it is handed out, so that a slot that was never written multiplies as zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvasir::cuda {

constexpr int32_t PAGE_SLOTS  = 64;
constexpr int32_t BLOCK_SLOTS = 32;
constexpr int32_t Q8_BLOCK    = 32;

enum element : int32_t { F16 = 0, Q8_0 = 1 };

struct page_format {
    int32_t type_k, type_v; // enum element
    int32_t dim_k, dim_v;
    uint32_t k_scale, v, v_scale, cell, pos, score; // offsets of the sections; K is at 0
    uint32_t bytes;                                 // of a page
};

constexpr uint32_t section_end(uint32_t begin, uint32_t size) { return (begin + size + 255) / 256 * 256; }

constexpr page_format make_page_format(int32_t type_k, int32_t type_v, int32_t dim_k, int32_t dim_v) {
    page_format f{type_k, type_v, dim_k, dim_v, 0, 0, 0, 0, 0, 0, 0};
    f.k_scale = section_end(0, (uint32_t) (PAGE_SLOTS * dim_k * (type_k == Q8_0 ? 1 : 2)));
    f.v       = type_k == Q8_0 ? section_end(f.k_scale, (uint32_t) (PAGE_SLOTS * (dim_k / Q8_BLOCK) * 2)) : f.k_scale;
    f.v_scale = section_end(f.v, (uint32_t) (PAGE_SLOTS * dim_v * (type_v == Q8_0 ? 1 : 2)));
    f.cell    = type_v == Q8_0 ? section_end(f.v_scale, (uint32_t) (PAGE_SLOTS * (dim_v / Q8_BLOCK) * 2)) : f.v_scale;
    f.pos     = f.cell + PAGE_SLOTS * 4;
    f.score   = f.pos + PAGE_SLOTS * 4;
    f.bytes   = f.score + PAGE_SLOTS * 4;
    return f;
}

// The heads of one layer, [n_stream][n_head_kv], as a kernel sees them. All pointers are device memory.
struct layer_pages {
    page_format     format;
    char *          pool;         // page p lies at pool + p * format.bytes
    const int32_t * table;        // [head][table_stride] page numbers
    const int32_t * n;            // [head] slots held
    int32_t         table_stride;
    int32_t         n_head_kv;    // of one stream
};

} // namespace kvasir::cuda
