// Rows in host memory: every head has address space for all cells of the context, and pages only for its slots.
#pragma once

#include "../platform/memory.h"
#include "row_memory.h"

#include <vector>

namespace kvasir {

class host_rows : public row_memory {
public:
    host_rows(memory_limit & limit, const row_format & k, const row_format & v, int n_heads, int32_t n_cells); // throws std::bad_alloc

    row_kind kind() const override { return row_kind::HOST; }
    void   reserve(const int32_t * n) override;
    size_t growth(const int32_t * n) override;
    void   keep(int head, const int32_t * slots, int32_t n, int32_t n_before) override;
    void   move(int head, int32_t from, int32_t to) override;
    void   release(int head, int32_t n) override;
    void   clear() override;
    void   copy(int from, int to, int32_t n, bool is_k) override;
    void   read(bool is_k, int head, int32_t first, int32_t n, char * rows) override;
    void   write(bool is_k, int head, int32_t first, int32_t n, const char * rows) override;
    void   flush() override {}
    std::unique_ptr<moved_memory> moved(layer & l) override;
    char * host(bool is_k, int head) const override;

private:
    struct side_memory {
        row_format format{};
        size_t     head_bytes = 0; // address space of one head, whole pages
        mapping    memory;
    };
    side_memory          k_, v_;
    std::vector<int32_t> touched_; // [head] slots whose memory is in use, held or not
    std::vector<int32_t> room_;    // [head] slots that fit into the pages of these

    const side_memory & of(bool is_k) const { return is_k || v_.format.part ? k_ : v_; } // where the rows are
    size_t bytes(int32_t n) const; // whole pages
    void   commit(size_t head, int32_t n);
    void   touch(size_t head, int32_t n);
};

} // namespace kvasir
