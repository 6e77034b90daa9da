// Rows in memory of a ggml device: one buffer for the K rows of a layer and one for its V rows, unless these are a part of K's; every
// head in one piece (FLASH_ATTN_EXT needs that) with room for a multiple of 256 slots. What no slot uses is zero or an old row, never a NaN.
//
// A slot that moves leaves its row where it is: a head has an order of its rows, and the row that became free is the next slot's.
// A keep is put off until all heads of the layer have said what they keep.
#pragma once

#include "../device/graph_builder.h"
#include "row_memory.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace kvasir {

class device_rows : public row_memory {
public:
    // mover: computes what moves rows, on the backend that they are for, which must live as long as anything but the destructor is
    // called. il: the model's layer, for messages.
    device_rows(memory_limit & limit, std::shared_ptr<graph_builder> mover, const row_format & k, const row_format & v, int n_heads, int32_t n_cells, int32_t il);

    row_kind kind() const override { return row_kind::BUFFERS; }
    void   reserve(const int32_t * n) override;
    size_t growth(const int32_t * n) override;
    void   trim() override;
    void   keep(int head, const int32_t * slots, int32_t n, int32_t n_before) override;
    void   move(int head, int32_t from, int32_t to) override;
    void   release(int head, int32_t n) override;
    void   clear() override;
    void   copy(int from, int to, int32_t n, bool is_k) override;
    void   read(bool is_k, int head, int32_t first, int32_t n, char * rows) override;
    void   write(bool is_k, int head, int32_t first, int32_t n, const char * rows) override;
    void   flush() override;
    bool   value_norms(int head, int32_t first, int32_t n, float * norms) override;
    std::unique_ptr<moved_memory> moved(layer & l) override; // device_moved.cpp

    // whether V's elements are in rows of this side: in K's, where V is a part of them
    bool   has_values(bool is_k) const { return is_k == v_.format.part; }
    // a graph is about to write the V row of a slot
    void   forget_norm(int head, int32_t slot);

    place   rows(bool is_k, int head) const { return of(is_k).head((size_t) head); }
    // The row of each slot; a slot behind the end has the row of its own number.
    const std::vector<int32_t> & order(int head) const { return rows_[(size_t) head].order; }
    int32_t row(int head, int32_t slot) const { return (size_t) slot < order(head).size() ? order(head)[(size_t) slot] : slot; }
    // so many rows hold the first slots
    int32_t extent(int head, int32_t slots) const { return std::max(slots, (int32_t) order(head).size()); }
    // f(slot, row) for the first slots
    template <typename F> static void for_each_row(const std::vector<int32_t> & order, int32_t slots, F && f) {
        int32_t slot = 0;
        for (const int32_t in_order = std::min(slots, (int32_t) order.size()); slot < in_order; slot++) {
            f(slot, order[(size_t) slot]);
        }
        for (; slot < slots; slot++) {
            f(slot, slot);
        }
    }
    // The rows of all heads are one matrix: where a head's begin in it, and how many there are.
    place   all(bool is_k) const { return of(is_k).head(0); }
    int64_t first_row(bool is_k, int head) const;
    int64_t n_rows(bool is_k) const;
    int32_t capacity(int head) const { return capacity_[(size_t) head]; } // slots that there is room for
    // from one of these heads to the next; 0 where that differs
    size_t  head_bytes(bool is_k, int first, int n) const;
    const row_format & format(bool is_k) const { return is_k ? k_.format : v_.format; }

private:
    struct side_memory {
        row_format          format{};
        device_buffer       buffer;
        std::vector<size_t> offset; // [head]

        place head(size_t i) const;
    };
    struct head_rows {
        std::vector<int32_t> order;
        bool                 kept = false; // only the rows in order are, and they wait to be gathered; else order has every row once
    };
    std::shared_ptr<graph_builder> mover_;
    ggml_backend_t       backend_;
    int32_t              il_, n_cells_;
    side_memory          k_, v_;
    std::vector<int32_t> capacity_; // [head] slots
    std::vector<int32_t> used_;     // [head] slots that hold something, once what is kept is gathered
    std::vector<head_rows> rows_;   // [head]
    // [head][slot] Norms of V rows, NaN or beyond the end where they are not known. A policy asks for one slot of each head after
    // every token, and a read waits for the device.
    std::vector<std::vector<float>> norms_;

    const side_memory & of(bool is_k) const { return is_k || v_.format.part ? k_ : v_; } // where the rows are
    bool    any_kept() const;
    size_t  lay_out(const row_format & format, const std::vector<int32_t> & capacity, std::vector<size_t> * offset) const; // bytes of the buffer
    side_memory allocate(const row_format & format, const std::vector<int32_t> & capacity) const; // throws
    std::vector<int32_t> capacity_for(const int32_t * n) const;
    void    rebuild(const std::vector<int32_t> & capacity);
    void    shrink(const std::vector<int32_t> & fitting);
    void    gather(const side_memory & k, const side_memory & v);
    void    gather_on_host(const row_format & format, const place & from, const place & to, const std::vector<int32_t> & order) const;
    void    gather_in_place();
    bool    wasteful(std::vector<int32_t> & fitting) const;
    void    synchronize() const;
};

} // namespace kvasir
