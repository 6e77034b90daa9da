// Rows in pages of device memory (attention/cuda/pages.h), and what the layers of one context on one GPU share: a stream, the
// pages, and a way for small data to get to the device.
//
// Everything that touches the pages runs on the store's stream, in order, so nothing here waits but what brings data to
// the host and what returns memory. keep and move are put off until flush(), and then take one launch each for all heads.
#pragma once

#include "../attention/cuda/statistic.h"
#include "../attention/cuda/store_ops.h"
#include "../attention/cuda/words.h"
#include "../device/cuda/cuda_device.h"
#include "cuda_pool.h"
#include "row_memory.h"

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

struct kvasir_cache;
struct kvasir_fetch;

namespace kvasir {
struct layer;
}

namespace kvasir::cuda {

class cuda_rows;
class moved_books;

// Device memory that grows; its contents are lost when it does.
class device_buffer {
public:
    device_buffer() = default;
    ~device_buffer();
    device_buffer(device_buffer && other) noexcept { swap(other); }
    device_buffer & operator=(device_buffer && other) noexcept {
        swap(other);
        return *this;
    }
    void swap(device_buffer & other) noexcept {
        std::swap(address_, other.address_);
        std::swap(size_, other.size_);
    }

    bool       reserve(size_t bytes); // true: the address has changed. The device must not be using the old memory
    void       allocate(size_t bytes); // just as much, in place of what there was
    void       free();
    device_ptr at(size_t offset = 0) const { return address_ + offset; }
    size_t     size() const { return size_; }

private:
    device_ptr address_ = 0;
    size_t     size_    = 0;
};

class cuda_store {
public:
    explicit cuda_store(gpu & device);
    ~cuda_store();
    cuda_store(const cuda_store &) = delete;
    cuda_store & operator=(const cuda_store &) = delete;

    gpu &  device() { return device_; }
    stream queue() const { return queue_; }
    void   synchronize();

    // Copies data into device memory that stays for what is launched until the third upload after this one.
    device_ptr upload(const void * data, size_t bytes);

    // What a graph reads: the lengths of all heads first, [heads of all layers] i32, then whatever the graph needs. The address
    // only changes when more is needed than ever before, and then addresses() does too.
    device_ptr step() const { return step_.at(); }
    void       put_step(const std::vector<char> & data);
    size_t     step_begin() const { return (size_t) n_heads_ * sizeof(int32_t); }

    uint64_t   addresses() const { return addresses_; } // a number for the addresses that kernels are given
    void       addresses_changed() { addresses_++; }
    device_ptr layers();                                // layer_pages of all layers
    const std::vector<cuda_rows *> & all() const { return rows_; }

    void flush();
    // Before a step: nothing waits for the device. Memory goes back one step after the pages in use have been moved, when that is done.
    void flush_for_step();

    // kvasir_cache_fetch, for those of the items that are of layers whose rows are here; stream is one of llama.cpp's
    void fetch(const kvasir_cache & cache, int32_t stream, kvasir_fetch * items, int32_t n);
    void fetched(int32_t stream);

    // ggml has computed a prompt on this device: what it takes for itself it has
    void settle();

    // Maps memory for the pages that the next tokens will take. Mapping takes a while: this is for when the GPU is busy.
    void map_ahead();

private:
    friend class cuda_rows;
    friend class cuda_moved;

    struct staging {
        void *        host = nullptr;
        size_t        size = 0;
        device_buffer memory;
        event         used = nullptr;
    };
    struct landing { // what is fetched for a stream of llama.cpp's: [spans] of what kernels write, then the data
        void * host = nullptr;
        size_t size = 0;
        event  done = nullptr;
    };
    struct page_owner {
        cuda_rows * rows;
        int32_t     head, index;
    };
    struct page_set {
        std::unique_ptr<page_pool> pool;
        std::vector<page_owner>    owners;  // by page
        std::vector<int32_t>       to_zero;
    };

    gpu &                        device_;
    stream                       queue_ = nullptr;
    std::vector<staging>         stagings_;
    size_t                       staging_ = 0;
    std::map<int32_t, landing>   landings_;
    std::map<uint32_t, page_set> pages_; // by the size of a page
    std::vector<cuda_rows *>     rows_;  // by layer of the store
    int32_t                      n_heads_ = 0;
    device_buffer                step_, layers_, scratch_;
    std::unique_ptr<moved_books> moved_books_; // of moved queries
    uint64_t                     addresses_ = 1, layers_of_ = 0;

    std::vector<word>      words_;
    std::vector<keep_item> keeps_;
    std::vector<int32_t>   keep_slots_;
    std::vector<int32_t>   kept_before_; // slots that the heads of keeps_ had
    bool                   kept_ = false; // since memory was returned last
    bool                   unmap_ = false; // pages are moved, behind what is queued: memory may go back
    bool                   settled_ = false;
    std::vector<std::pair<cuda_rows *, int32_t>> moved_; // heads with moves
    std::vector<move_item> moves_;                        // of all of them, for one launch
    std::vector<move_item> clears_;                       // [from, to) of a head's sums
    bool                   clears_held_ = false;          // slots among them hold something

    int32_t  add(cuda_rows * rows, int n_heads, uint32_t page_bytes); // returns the first of its heads
    void     remove(cuda_rows * rows);
    staging & next_staging(size_t bytes);
    landing & next_landing(int32_t stream, size_t bytes);
    void     run_queued();      // keeps, moves, new pages, words
    void     compact_pages();
    void     unmap_pages();
    void     return_memory();
    void     label();
    device_ptr columns();       // statistic_columns of all layers, or 0
    device_ptr scratch(size_t bytes); // for what the next launches pass on to each other
};

class cuda_rows final : public row_memory {
public:
    // l: the layer whose rows these are; its books are read when cells have to be brought to the device
    cuda_rows(memory_limit & limit, std::shared_ptr<cuda_store> store, const page_format & format, const layer & l, int n_heads);
    ~cuda_rows() override;

    row_kind kind() const override { return row_kind::PAGES; }
    void   reserve(const int32_t * n) override;
    size_t growth(const int32_t * n) override;
    void   trim() override;
    void   keep(int head, const int32_t * slots, int32_t n, int32_t n_before) override;
    void   move(int head, int32_t from, int32_t to) override;
    void   release(int head, int32_t n) override;
    void   clear() override;
    void   copy(int from, int to, int32_t n, bool is_k) override;
    void   copy_counts(int from, int to, int32_t n, int32_t before) override;
    void   read(bool is_k, int head, int32_t first, int32_t n, char * rows) override;
    void   write(bool is_k, int head, int32_t first, int32_t n, const char * rows) override;
    void   flush() override;
    size_t resident_bytes() const override;

    bool   start_sums(const statistic & stat) override;
    void   reset_sums(int head, int32_t slot) override;
    void   read_sums(int head, int32_t first, int32_t count, int32_t n, float * sums) override;
    void   stop_sums() override;
    void   drop_sums() override;
    void   set_sums_aside() override;
    void   bring_sums_back() override;
    void   drop_sums_aside() override;
    void   mark_counts() override;
    void   take_back_counts() override;
    void   end_mark() override;
    bool   accumulates() const override { return true; }
    bool   read_scores(int head, int32_t n, float * scores) override;
    bool   value_norms(int head, int32_t first, int32_t n, float * norms) override;
    std::unique_ptr<moved_memory> moved(layer & l) override;

    const std::shared_ptr<cuda_store> & store() const { return store_; }
    layer_pages               pages() const;
    const page_format &       format() const { return format_; }
    int32_t                   first_head() const { return first_head_; }
    int32_t                   n_heads() const { return (int32_t) held_.size(); }
    const layer &             books() const { return layer_; }
    const statistic_columns & columns() const { return sums_.columns; }
    const int32_t *           bounds() const { return (const int32_t *) sums_.bounds.at(); } // of the statistic

    // A graph is about to add to scores or sums: see layer::mark_counts. Launches only.
    void save_counts();

private:
    friend class cuda_store;
    friend class cuda_moved;

    std::shared_ptr<cuda_store> store_;
    page_format                 format_;
    const layer &               layer_;
    int32_t                     index_ = 0, first_head_ = 0, stride_ = 0;
    std::vector<int32_t>        table_; // [head][stride_], as on the device once words are written
    device_buffer               device_table_;
    std::vector<int32_t>        held_;  // [head] pages
    enum queued : uint8_t { NOTHING, KEEP, MOVES };
    std::vector<queued>         queued_; // [head] what waits
    std::vector<std::vector<move_item>> moves_; // [head] that wait: from behind the last slot that stays, to slots that stay
    std::vector<uint8_t>        exact_;  // [head] after a keep no page may stay in reserve
    std::vector<uint8_t>        unlabelled_; // [head] cells and positions of its slots are not on the device
    bool                        any_unlabelled_ = false;
    // The statistic of all heads: columns of as many slots as are held, and some more.
    struct statistic_sums {
        device_buffer     memory, bounds;
        statistic_columns columns{};
    };
    statistic_sums              sums_, aside_;
    bool                        marked_ = false, saved_ = false;
    std::vector<int32_t>        marked_n_;    // [head] slots at the mark
    std::vector<span_item>      saved_spans_; // of tracked scores
    device_buffer               saved_memory_; // [head][column][longest of marked_n_], or scores

    void give_back(int head, int32_t pages);
    void span(const char * kernel, int head, int32_t side, int32_t first, int32_t n, device_ptr data);
    void fetch(const char * kernel, int head, int32_t side, int32_t first, int32_t n, void * to, size_t slot_bytes);
    void copy_sums(int head, int32_t first, int32_t count, int32_t n, float * sums);
    void label();
    void clear_sums(int head, int32_t first, int32_t n);
    int64_t sums_capacity(int32_t slots) const;
    void allocate_sums(statistic_sums & sums, const statistic_columns & shape, int64_t capacity) const;
    void widen_sums(const int32_t * n);
    void copy_columns(const statistic_sums & from, const statistic_sums & to, size_t bytes);
    int64_t longest_at_mark() const;
    void put_scores(const std::vector<span_item> & spans, device_ptr from);
};

} // namespace kvasir::cuda
