#include "memory.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace kvasir {

#if defined(_WIN32)

size_t page_size() {
    static const size_t size = [] {
        SYSTEM_INFO info;
        GetSystemInfo(&info);
        return (size_t) info.dwPageSize;
    }();
    return size;
}

void * memory_reserve(size_t size) {
    // committed pages cost commit charge but no memory until they are touched
    return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void * memory_reserve_inaccessible(size_t size) {
    return VirtualAlloc(nullptr, size, MEM_RESERVE, PAGE_NOACCESS);
}

void * memory_reserve_uncommitted(size_t size) { return memory_reserve_inaccessible(size); }
static bool commit_pages(void * begin, size_t size) { return VirtualAlloc(begin, size, MEM_COMMIT, PAGE_READWRITE) != nullptr; }
static void decommit_pages(void * begin, size_t size) { VirtualFree(begin, size, MEM_DECOMMIT); }

void memory_unmap(void * address, size_t) {
    VirtualFree(address, 0, MEM_RELEASE);
}

bool memory_protect(void * address, size_t size) {
    DWORD before;
    return VirtualProtect(address, size, PAGE_NOACCESS, &before) != 0;
}

static void release_pages(void * begin, size_t size) {
    // decommit and commit again: the pages go and come back as zeros
    if (VirtualFree(begin, size, MEM_DECOMMIT)) {
        VirtualAlloc(begin, size, MEM_COMMIT, PAGE_READWRITE);
    }
}

#else

size_t page_size() {
    static const size_t size = (size_t) sysconf(_SC_PAGESIZE);
    return size;
}

static void * map_pages(size_t size, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    void * address = mmap(nullptr, size, protection, flags, -1, 0);
    if (address == MAP_FAILED) {
        return nullptr;
    }
#if defined(MADV_NOHUGEPAGE)
    // A huge page is given back only as a whole: a head that keeps a few slots would hold two megabytes.
    madvise(address, size, MADV_NOHUGEPAGE);
#endif
    return address;
}

void * memory_reserve(size_t size) {
    return map_pages(size, PROT_READ | PROT_WRITE);
}

void * memory_reserve_inaccessible(size_t size) {
    return map_pages(size, PROT_NONE);
}

void memory_unmap(void * address, size_t size) {
    munmap(address, size);
}

bool memory_protect(void * address, size_t size) {
    return mprotect(address, size, PROT_NONE) == 0;
}

static void release_pages(void * begin, size_t size) {
#if defined(__linux__)
    madvise(begin, size, MADV_DONTNEED);
#else
    // elsewhere MADV_DONTNEED is only a hint: a fresh mapping in the same place is not
    if (mmap(begin, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
        memset(begin, 0, size); // the pages stay, but they hold nothing
    }
#endif
}

#if defined(KVASIR_STRICT_COMMIT) // as on Windows, for tests: a page that was not committed cannot be touched
void * memory_reserve_uncommitted(size_t size) { return memory_reserve_inaccessible(size); }
static bool commit_pages(void * begin, size_t size) { return mprotect(begin, size, PROT_READ | PROT_WRITE) == 0; }
static void decommit_pages(void * begin, size_t size) {
    release_pages(begin, size);
    mprotect(begin, size, PROT_NONE);
}
#else
void * memory_reserve_uncommitted(size_t size) { return memory_reserve(size); }
static bool commit_pages(void *, size_t) { return true; }
static void decommit_pages(void * begin, size_t size) { release_pages(begin, size); }
#endif

#endif

size_t whole_pages(size_t size) { return (size + page_size() - 1) / page_size() * page_size(); }

// f(address, size) of the whole pages inside
template <typename F> static void whole_pages_inside(void * begin, void * end, F && f) {
    const uintptr_t page  = page_size();
    const uintptr_t first = ((uintptr_t) begin + page - 1) / page * page;
    const uintptr_t last  = (uintptr_t) end / page * page;
    if (first < last) {
        f((void *) first, last - first);
    }
}

void memory_release(void * begin, void * end) { whole_pages_inside(begin, end, release_pages); }
void memory_decommit(void * begin, void * end) { whole_pages_inside(begin, end, decommit_pages); }

void memory_commit(void * begin, void * end) {
    const uintptr_t first = (uintptr_t) begin / page_size() * page_size();
    if (begin < end && !commit_pages((void *) first, whole_pages((uintptr_t) end - first))) {
        throw std::bad_alloc();
    }
}

mapping::mapping(size_t size, bool committed) : size_(size) {
    if (size == 0) {
        return;
    }
    data_ = (char *) (committed ? memory_reserve(size) : memory_reserve_uncommitted(size));
    if (!data_) {
        throw std::bad_alloc();
    }
}

mapping::mapping(mapping && other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

mapping & mapping::operator=(mapping && other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

mapping::~mapping() {
    if (data_) {
        memory_unmap(data_, size_);
    }
}

} // namespace kvasir
