#include "template_budget.h"

#include "../error.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>

#if defined(_WIN32)
#include <malloc.h>
#elif defined(__APPLE__)
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif

namespace kvasir {

namespace {

// Looked at first: threads that render nothing pay one load for an allocation.
std::atomic<int>               budgets{0};
thread_local template_budget * budget = nullptr;

size_t block_size(void * block) {
#if defined(_WIN32)
    return _msize(block);
#elif defined(__APPLE__)
    return malloc_size(block);
#else
    return malloc_usable_size(block);
#endif
}

// Processor time where the system tells it: a busy machine is no reason to fail.
int64_t thread_nanoseconds() {
#if defined(_WIN32)
    return (int64_t) clock() * (1'000'000'000 / CLOCKS_PER_SEC);
#else
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * (int64_t) 1'000'000'000 + now.tv_nsec;
#endif
}

} // namespace

template_budget::template_budget() : base_((const char *) __builtin_frame_address(0)), deadline_(thread_nanoseconds() + TEMPLATE_NANOSECONDS) {
    budget = this;
    budgets++;
}

template_budget::~template_budget() {
    budgets--;
    budget = nullptr;
}

void template_budget::allocated(size_t bytes) {
    bytes_ += (int64_t) bytes;
    if (!reached_) {
        if (bytes_ > (int64_t) TEMPLATE_MEMORY) {
            reached_ = "it takes more than 32 MiB of memory";
        } else if (base_ - (const char *) __builtin_frame_address(0) > (int64_t) TEMPLATE_DEPTH) {
            reached_ = "it calls itself without end, or is nested too deeply";
        } else if ((++calls_ & 0xff) == 0 && thread_nanoseconds() > deadline_) {
            reached_ = "it takes more than 2 seconds";
        }
    }
    if (reached_) {
        throw std::bad_alloc();
    }
}

// What was counted says so in its last bytes: this thread also frees what others allocated, within the C++ library's streams.
constexpr size_t    TAG_SIZE = sizeof(uintptr_t);
constexpr uintptr_t TAG      = (uintptr_t) 0x9d3f5a7c1e8b2461;

static char * tag_of(void * block) { return (char *) block + block_size(block) - TAG_SIZE; }

static void * allocate(size_t size) {
    const bool counted = budgets.load(std::memory_order_relaxed) != 0 && budget;
    if (!counted) {
        if (void * block = malloc(size ? size : 1)) {
            return block;
        }
        throw std::bad_alloc();
    }
    void * block = size < SIZE_MAX - TAG_SIZE ? malloc(size + TAG_SIZE) : nullptr;
    if (!block) {
        throw std::bad_alloc();
    }
    try {
        budget->allocated(block_size(block));
    } catch (...) {
        budget->freed(block_size(block));
        free(block);
        throw;
    }
    const uintptr_t tag = TAG ^ (uintptr_t) block;
    // Volatile: a compiler that checks sizes (_FORTIFY_SOURCE) knows the one that was asked for, and ends the process behind it.
    char * volatile last = tag_of(block);
    memcpy(last, &tag, TAG_SIZE);
    return block;
}

static void release(void * block) noexcept {
    if (block && budgets.load(std::memory_order_relaxed) != 0 && budget && block_size(block) >= TAG_SIZE) {
        const uintptr_t tag  = TAG ^ (uintptr_t) block;
        char * volatile last = tag_of(block);
        if (memcmp(last, &tag, TAG_SIZE) == 0) {
            memset(last, 0, TAG_SIZE);
            budget->freed(block_size(block));
        }
    }
    free(block);
}

} // namespace kvasir

// Of this library alone: exports.map keeps them inside. What it allocates others may free, and the other way round, as the
// standard library's are malloc and free too; a sanitizer's are not.
#if !defined(KVASIR_SANITIZED)
void * operator new(size_t size) { return kvasir::allocate(size); }
void * operator new[](size_t size) { return kvasir::allocate(size); }
void   operator delete(void * block) noexcept { kvasir::release(block); }
void   operator delete[](void * block) noexcept { kvasir::release(block); }
void   operator delete(void * block, size_t) noexcept { kvasir::release(block); }
void   operator delete[](void * block, size_t) noexcept { kvasir::release(block); }
#endif

// llama.cpp's JSON class, which the engine's values refer to, asserts by this.
extern "C" void ggml_abort(const char *, int, const char *, ...) { throw kvasir::error(KVASIR_FAILED, "an assertion of llama.cpp's JSON class failed"); }
