// Rows in memory of a ggml device: one buffer for the K rows of a layer and one for its V rows, every head in one piece
// (FLASH_ATTN_EXT needs that) with room for a multiple of 256 slots. What no slot uses is zero or an old row, never a NaN.
//
// What is decided between two tokens comes as many small calls. They are put off: single moves are carried out together in
// front of the next graph (add_moves), a keep for all heads of the layer at once.
#pragma once

#include "../device/graph_builder.h"
#include "row_memory.h"

#include <vector>

namespace kvasir {

class device_rows : public row_memory {
public:
    // il: the model's layer, for messages. The backend must live as long as anything but the destructor is called.
    device_rows(memory_limit & limit, ggml_backend_t backend, const row_format & k, const row_format & v, int n_heads, int32_t n_cells, int32_t il);

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

    // Single moves that are put off, as nodes; false where the backend has none for such rows. settle_moves(true) when
    // these were computed; settle_moves(false) carries the moves out one by one.
    bool    add_moves(graph_builder & graph) const;
    void    settle_moves(bool computed);
    bool    has_moves() const;
    place   rows(bool is_k, int head) const { return of(is_k).head((size_t) head); }
    // The rows of all heads are one matrix: where a head's begin in it, and how many there are.
    place   all(bool is_k) const { return of(is_k).head(0); }
    int64_t first_row(bool is_k, int head) const;
    int64_t n_rows(bool is_k) const;
    // from one of these heads to the next; 0 where that differs
    size_t  head_bytes(bool is_k, int first, int n) const;
    const row_format & format(bool is_k) const { return of(is_k).format; }

private:
    struct side_memory {
        row_format          format{};
        device_buffer       buffer;
        std::vector<size_t> offset; // [head]

        place head(size_t i) const;
    };
    struct row_move {
        int32_t to, from;
    };
    // what is put off for a head: either all its rows anew, or single moves that do not touch each other
    struct work {
        bool                  whole = false;
        std::vector<int32_t>  order; // whole: slot i is the row that now is at order[i]
        std::vector<row_move> moves;
    };
    ggml_backend_t       backend_;
    int32_t              il_, n_cells_;
    side_memory          k_, v_;
    std::vector<int32_t> capacity_; // [head] slots
    std::vector<int32_t> used_;     // [head] slots that hold something, when the work is done
    std::vector<work>    work_;     // [head]

    side_memory & of(bool is_k) { return is_k ? k_ : v_; }
    const side_memory & of(bool is_k) const { return is_k ? k_ : v_; }
    bool    any_whole() const;
    int32_t source(int head, int32_t slot) const;
    size_t  lay_out(const row_format & format, const std::vector<int32_t> & capacity, std::vector<size_t> * offset) const; // bytes of the buffer
    side_memory allocate(const row_format & format, const std::vector<int32_t> & capacity) const; // throws
    std::vector<int32_t> capacity_for(const int32_t * n) const;
    void    settle(); // all that is put off
    void    rebuild(const std::vector<int32_t> & capacity);
    void    shrink(const std::vector<int32_t> & fitting);
    void    gather(const side_memory & from, const side_memory & to) const;
    void    gather_on_host(const row_format & format, const place & from, const place & to, const std::vector<int32_t> & order) const;
    void    keep_in_place();
    bool    wasteful(std::vector<int32_t> & fitting) const;
    void    synchronize() const;
};

} // namespace kvasir
