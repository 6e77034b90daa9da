// Address space and the pages behind it. The only place that talks to the operating system about memory.
#pragma once

#include <cstddef>

namespace kvasir {

size_t page_size();
size_t whole_pages(size_t size); // rounded up

// Address space for size bytes, zero-filled on first touch and without memory until then; nullptr when there is none.
void * memory_reserve(size_t size);

// Address space whose pages must be committed before they are touched. Where the system counts what a process may touch (Windows'
// commit charge) the rest costs nothing.
void * memory_reserve_uncommitted(size_t size);
// The whole pages that [begin, end) touches can be touched from here on, and read as zero at first; throws std::bad_alloc.
void   memory_commit(void * begin, void * end);
// Gives the whole pages inside [begin, end) back until they are committed again.
void   memory_decommit(void * begin, void * end);

// Address space that must never be read or written.
void * memory_reserve_inaccessible(size_t size);

void memory_unmap(void * address, size_t size);

// Whole pages that must not be touched any more: the end of a stack. False when the system refuses.
bool memory_protect(void * address, size_t size);

// Gives the whole pages inside [begin, end) back; they read as zero afterwards.
void memory_release(void * begin, void * end);

// An address range that is mapped on construction and unmapped on destruction.
class mapping {
public:
    mapping() = default;
    explicit mapping(size_t size, bool committed = true); // throws std::bad_alloc
    mapping(mapping && other) noexcept;
    mapping & operator=(mapping && other) noexcept;
    mapping(const mapping &) = delete;
    mapping & operator=(const mapping &) = delete;
    ~mapping();

    char * data() const { return data_; }
    size_t size() const { return size_; }

private:
    char * data_ = nullptr;
    size_t size_ = 0;
};

} // namespace kvasir
