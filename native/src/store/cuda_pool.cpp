#include "cuda_pool.h"

#include "../device/cuda/cuda_device.h"
#include "../error.h"

#include <algorithm>

namespace kvasir::cuda {

namespace {

// Small enough that the memory of a small model still falls by what is evicted, large enough that mapping is rare.
constexpr size_t CHUNK_BYTES = (size_t) 4 << 20;

size_t whole(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

} // namespace

mem_properties page_pool::properties() const {
    mem_properties p{};
    p.type     = MEMORY_PINNED;
    p.location = {LOCATION_DEVICE, device_};
    return p;
}

page_pool::page_pool(device device, size_t page_bytes, int32_t max_pages) : device_(device), page_bytes_(page_bytes), max_pages_(max_pages) {
    const mem_properties p = properties();
    size_t granularity = 0;
    check(cu().cuMemGetAllocationGranularity(&granularity, &p, GRANULARITY_MINIMUM), "granularity of device memory");
    chunk_bytes_ = whole(CHUNK_BYTES, granularity);
    range_bytes_ = whole(page_bytes * (size_t) max_pages, chunk_bytes_);
    check(cu().cuMemAddressReserve(&base_, range_bytes_, 0, 0, 0), "device addresses for the KV cache");
}

page_pool::~page_pool() {
    for (size_t i = 0; i < chunks_.size(); i++) {
        cu().cuMemUnmap(base_ + i * chunk_bytes_, chunk_bytes_);
        cu().cuMemRelease(chunks_[i]);
    }
    cu().cuMemAddressFree(base_, range_bytes_);
}

void page_pool::map_chunk() {
    const size_t at = mapped_bytes();
    if (at + chunk_bytes_ > range_bytes_) {
        throw error(KVASIR_FAILED, format("the KV cache has more than its %d pages", max_pages_));
    }
    const mem_properties p = properties();
    allocation           chunk = 0;
    result               r = leaves_reserve(chunk_bytes_, settled_) ? cu().cuMemCreate(&chunk, chunk_bytes_, &p, 0) : OUT_OF_MEMORY;
    if (r == OUT_OF_MEMORY) {
        throw error(KVASIR_OUT_OF_MEMORY, format("the device has no memory left for the KV cache, which holds %.1f MiB of it: use a policy that keeps "
                                                 "less, a smaller KV type, or a device with more memory", (double) at / (1 << 20)));
    }
    check(r, "device memory for the KV cache");
    const mem_access access{{LOCATION_DEVICE, device_}, ACCESS_READWRITE};
    r = cu().cuMemMap(base_ + at, chunk_bytes_, 0, chunk, 0);
    if (r == SUCCESS) {
        r = cu().cuMemSetAccess(base_ + at, chunk_bytes_, &access, 1);
        if (r != SUCCESS) {
            cu().cuMemUnmap(base_ + at, chunk_bytes_);
        }
    }
    if (r != SUCCESS) {
        cu().cuMemRelease(chunk);
        check(r, "mapping device memory for the KV cache");
    }
    const int32_t before = mapped_pages();
    chunks_.push_back(chunk);
    in_use_.resize((size_t) mapped_pages(), false);
    for (int32_t page = before; page < mapped_pages(); page++) {
        free_.push(page);
    }
}

void page_pool::map_ahead(int32_t pages) {
    const int32_t missing = pages - (int32_t) free_.size();
    if (missing <= 0) {
        return;
    }
    const size_t chunks = whole((size_t) missing * page_bytes_, chunk_bytes_) / chunk_bytes_;
    try {
        for (size_t i = 0; i < (chunks + 3) / 4; i++) {
            map_chunk();
        }
    } catch (const error &) {
        // take() tries again, and says so
    }
}

int32_t page_pool::take() {
    while (free_.empty()) { // a page may be larger than a chunk
        map_chunk();
    }
    const int32_t page = free_.top();
    free_.pop();
    in_use_[(size_t) page] = true;
    used_++;
    return page;
}

void page_pool::give_back(int32_t page) {
    in_use_[(size_t) page] = false;
    free_.push(page);
    used_--;
}

bool page_pool::worth_compacting() const { return mapped_bytes() >= whole((size_t) used_ * page_bytes_, chunk_bytes_) + chunk_bytes_; }

void page_pool::compact(const std::function<void(int32_t from, int32_t to)> & moved) {
    int32_t to = 0;
    for (int32_t from = mapped_pages() - 1; from >= used_; from--) {
        if (!in_use_[(size_t) from]) {
            continue;
        }
        while (in_use_[(size_t) to]) {
            to++;
        }
        moved(from, to);
        in_use_[(size_t) from] = false;
        in_use_[(size_t) to]   = true;
    }
    free_ = {};
    for (int32_t page = used_; page < mapped_pages(); page++) {
        free_.push(page);
    }
}

void page_pool::unmap_free() {
    int32_t end = mapped_pages();
    while (end > 0 && !in_use_[(size_t) end - 1]) {
        end--;
    }
    const size_t chunks = whole((size_t) end * page_bytes_, chunk_bytes_) / chunk_bytes_;
    if (chunks == chunks_.size()) {
        return;
    }
    while (chunks_.size() > chunks) {
        const size_t last = chunks_.size() - 1;
        check(cu().cuMemUnmap(base_ + last * chunk_bytes_, chunk_bytes_), "unmapping device memory");
        check(cu().cuMemRelease(chunks_[last]), "returning device memory");
        chunks_.pop_back();
    }
    in_use_.resize((size_t) mapped_pages());
    free_ = {};
    for (int32_t page = 0; page < mapped_pages(); page++) {
        if (!in_use_[(size_t) page]) {
            free_.push(page);
        }
    }
}

} // namespace kvasir::cuda
