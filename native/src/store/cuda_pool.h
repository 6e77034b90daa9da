// Device memory in pages of one size, numbered in one range of addresses: page p lies at base() + p * page_bytes().
// Memory is mapped behind the pages in chunks as they are needed, and unmapped again when the pages in use have been moved
// to the low end. What the driver reports as used follows what the store keeps.
#pragma once

#include "../platform/cuda_driver.h"

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

namespace kvasir::cuda {

class page_pool {
public:
    // max_pages: size of the address range
    page_pool(device device, size_t page_bytes, int32_t max_pages);
    ~page_pool();
    page_pool(const page_pool &) = delete;
    page_pool & operator=(const page_pool &) = delete;

    device_ptr base() const { return base_; }
    size_t     page_bytes() const { return page_bytes_; }
    size_t     mapped_bytes() const { return chunks_.size() * chunk_bytes_; }
    int32_t    used() const { return used_; }
    // ggml has the memory that it needs for itself
    void       settle() { settled_ = true; }

    // Maps some of the memory that so many pages more would need, where there is any: a part at each call, so that calls
    // between the tokens before they are taken find the time.
    void map_ahead(int32_t pages);

    // The lowest free page, its contents undefined. Throws kvasir::error (KVASIR_OUT_OF_MEMORY).
    int32_t take();
    void    give_back(int32_t page);

    // Packs the pages in use into the low end. moved(from, to) is called for each page whose contents have to be copied
    // (to has been free); the copies must be done on the device before unmap_free() is called.
    void compact(const std::function<void(int32_t from, int32_t to)> & moved);
    // whether compacting would let a chunk or more go
    bool worth_compacting() const;
    // Returns the memory behind the last page in use. No kernel may be using pages beyond it.
    void unmap_free();

private:
    device                  device_;
    size_t                  page_bytes_, chunk_bytes_ = 0, range_bytes_ = 0;
    int32_t                 max_pages_;
    device_ptr              base_ = 0;
    std::vector<allocation> chunks_;  // mapped, from the low end
    std::vector<bool>       in_use_;  // by page, of the mapped ones
    std::priority_queue<int32_t, std::vector<int32_t>, std::greater<int32_t>> free_;
    int32_t                 used_ = 0;
    bool                    settled_ = false;

    void           map_chunk();
    mem_properties properties() const;
    int32_t        mapped_pages() const { return (int32_t) (mapped_bytes() / page_bytes_); }
};

} // namespace kvasir::cuda
