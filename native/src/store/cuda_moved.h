// The record of queries and the sums of moved_queries in the memory of a GPU (attention/cuda/moved.h). All is queued behind what the store's stream
// computes; only what is read by the host waits for it.
#pragma once

#include "../attention/cuda/moved.h"
#include "cache.h"
#include "cuda_store.h"
#include "moved_queries.h"

namespace kvasir::cuda {

// Small tables from the host to kernels of many layers: one that the device has done with serves again. There are so many of them that nobody
// waits for one whose host is less than a few micro-batches ahead.
class moved_books {
public:
    static constexpr size_t COUNT = 256, ROWS = (size_t) MOVED_ROWS * sizeof(moved_row), MOST_HEADS = 1024, BYTES = ROWS + MOST_HEADS * sizeof(int32_t) * 2;
    explicit moved_books(bool settled); // throws
    ~moved_books();
    moved_books(const moved_books &) = delete;
    moved_books & operator=(const moved_books &) = delete;

    void       next();
    moved_row * rows() { return (moved_row *) host(0); }
    int32_t *  lengths() { return (int32_t *) host(ROWS); }
    float *    weights() { return (float *) host(ROWS + MOST_HEADS * sizeof(int32_t)); }
    void       send(stream queue);  // what was written comes to the device
    device_ptr rows_at() const { return memory_.at(now_ * BYTES); }
    device_ptr lengths_at() const { return memory_.at(now_ * BYTES + ROWS); }
    device_ptr weights_at() const { return memory_.at(now_ * BYTES + ROWS + MOST_HEADS * sizeof(int32_t)); }
    void       used(stream queue);  // all kernels that read it are launched

private:
    void *        host_ = nullptr;
    device_buffer memory_;
    event         used_[COUNT] = {};
    size_t        now_ = 0;

    char * host(size_t at) { return (char *) host_ + now_ * BYTES + at; }
};

class cuda_moved final : public moved_memory {
public:
    cuda_moved(cuda_rows & rows, layer & l); // throws
    ~cuda_moved() override;
    static bool supports(const gpu & device, const page_format & format, int32_t n_head);

    device_ptr entry(int32_t i) const { return record_.at((size_t) i * entry_bytes_); } // f16 [n_head][dim]

    void room(int32_t entries) override;
    void drop_entries(int32_t first, int32_t n, int32_t entries) override;
    void sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int n_threads) override;
    void read(int head, float * p, float * squares) override;
    void read_outputs(double * output, double * length2) override;
    void fold(int64_t n_outputs, const float * weights, int32_t smooth, int n_threads) override;
    void clear_sums() override;
    void clear_folded() override;
    void set_sums_aside() override;
    void bring_sums_back() override;
    void drop_sums_aside() override;
    void reset_slots(int head, int32_t first, int32_t n) override;
    size_t bytes() const override { return accounted_; }

private:
    struct sums { // p, then squares: f32 [n_head][capacity]
        device_buffer memory;
        int64_t       capacity = 0;
        bool          held = false; // else the memory waits for the next ones
    };
    struct chunk { // of blocks, that is summed up at a time
        size_t  first, last;
        int32_t n_outputs, n_rows;
    };
    enum part : size_t { NOW, FOLDED, ASIDE, PARTS }; // sums of outputs [n_head][dim of V] and of squared lengths [n_head]

    cuda_rows &                 rows_;
    layer &                     l_;
    std::shared_ptr<cuda_store> store_;
    const size_t                entry_bytes_;
    device_buffer               record_, omega_, outputs_;
    int32_t                     entries_ = 0;
    sums                        now_, aside_;
    std::vector<move_item>      resets_;  // slots of the sums that begin at 0 again, before these are used next
    std::vector<device_buffer>  retired_; // kernels that are queued may read them
    size_t                      accounted_ = 0;

    int32_t       dim() const { return rows_.format().dim_k; }
    int32_t       longest() const;
    device_buffer take(size_t bytes) const;
    void          retire(device_buffer & memory);
    void          free_retired();
    void          account();
    void          reserve_sums();
    void          run_resets();
    size_t        outputs_bytes() const { return (size_t) l_.n_head * (size_t) (dim() + 1) * sizeof(double); }
    device_ptr    outputs(part p) const { return outputs_.at(p * outputs_bytes()); }
    device_ptr    lengths(part p) const { return outputs(p) + (size_t) l_.n_head * (size_t) dim() * sizeof(double); }
    device_ptr    squares(const sums & s) const { return s.memory.at((size_t) l_.n_head * (size_t) s.capacity * sizeof(float)); }
    void          clear(part p);
    moved_books & books();
    moved_params  params(int32_t end) const;
    std::vector<chunk> chunks_of(const std::vector<moved_block> & blocks, size_t & scratch) const;
    template <typename P> void start(const kvasir::cuda::launch & l, const P & p);
};

} // namespace kvasir::cuda
