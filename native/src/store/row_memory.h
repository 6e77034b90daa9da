// Where the K and V rows of one layer lie: host memory, or memory of a device. The layer itself keeps the books (which
// cell, position and score a slot has) on the host and tells its row memory what to do with the rows.
//
// A head is an index [stream][KV head]. Rows that are handed in or out are in ggml's layout of the type, one after another. Where V is a
// part of K's rows there is only K's memory: V's rows are read as these, and what is said of K serves both.
#pragma once

#include "../attention/attention.h"
#include "memory_limit.h"

#include <cstddef>
#include <cstdint>

#include <memory>

namespace kvasir {

struct layer;
class moved_memory;

enum class row_kind {
    HOST,   // host_rows, for the CPU's kernels
    PAGES,  // cuda::cuda_rows, for the kernels of NVIDIA GPUs
    BUFFERS // device_rows, for the portable path
};

class row_memory {
public:
    explicit row_memory(memory_limit & limit) : limit_(limit) {}
    virtual ~row_memory() { set_row_bytes(0); }
    virtual row_kind kind() const = 0;
    row_memory(const row_memory &) = delete;
    row_memory & operator=(const row_memory &) = delete;

    // Room for slots [0, n[head]) of every head. Throws kvasir::error (KVASIR_OUT_OF_MEMORY), also where the cache's limit
    // leaves none, and then leaves all as it was.
    virtual void reserve(const int32_t * n) = 0;
    // The bytes that reserve(n) would add to row_bytes().
    virtual size_t growth(const int32_t * n) = 0;
    // Gives back what is held in reserve, when the limit leaves room for nothing else.
    virtual void trim() {}
    // Keeps the given slots (ascending) of n_before, in their order. Memory goes back with the release that follows.
    virtual void keep(int head, const int32_t * slots, int32_t n, int32_t n_before) = 0;
    // slot from, the last one, replaces slot to
    virtual void move(int head, int32_t from, int32_t to) = 0;
    // slots >= n hold nothing any more
    virtual void release(int head, int32_t n) = 0;
    // no head holds anything
    virtual void clear() = 0;
    // the first n rows of one side of a head become those of another
    virtual void copy(int from, int to, int32_t n, bool is_k) = 0;
    // once both sides and the books are copied: scores and sums that a device accumulates; before: slots that the other head had
    virtual void copy_counts(int from, int to, int32_t n, int32_t before) {}
    virtual void read(bool is_k, int head, int32_t first, int32_t n, char * rows) = 0;
    virtual void write(bool is_k, int head, int32_t first, int32_t n, const char * rows) = 0;
    // Carries out what keep, move and release may have put off; everything else does so by itself.
    virtual void flush() = 0;
    size_t row_bytes() const { return row_bytes_; }                  // of memory that K and V occupy
    virtual size_t resident_bytes() const { return row_bytes_; }     // and the statistic, where it lies here

    // What a device accumulates by itself. false: the layer does it, on the host.
    virtual bool start_sums(const statistic & stat) { return false; } // throws, and then none are started
    virtual void reset_sums(int head, int32_t slot) {}                          // the slot has been given to another token
    virtual void read_sums(int head, int32_t first, int32_t count, int32_t n, float * sums) {} // columns [rows][n_bounds + 1], then recent's [rows]
    virtual void stop_sums() {}                                                 // the totals become the scores
    virtual void drop_sums() {}
    virtual void set_sums_aside() {}                                            // layer's functions of the same names
    virtual void bring_sums_back() {}
    virtual void drop_sums_aside() {}
    virtual void mark_counts() {}
    virtual void take_back_counts() {}
    virtual void end_mark() {}
    virtual bool accumulates() const { return false; }                          // that it does, sums and scores
    virtual bool read_scores(int head, int32_t n, float * scores) { return false; }
    virtual bool value_norms(int head, int32_t first, int32_t n, float * norms) { return false; }

    // where queries are recorded and moved (store/moved_queries.h); nullptr: there is no path for them
    virtual std::unique_ptr<moved_memory> moved(layer & l);

    // the rows of a head where the host can address them in the layer's row_format, else nullptr; never changes
    virtual char * host(bool is_k, int head) const { return nullptr; }

protected:
    const memory_limit & limit() const { return limit_; }
    void set_row_bytes(size_t bytes) {
        limit_.changed(row_bytes_, bytes);
        row_bytes_ = bytes;
    }

private:
    memory_limit & limit_;
    size_t         row_bytes_ = 0;
};

} // namespace kvasir
