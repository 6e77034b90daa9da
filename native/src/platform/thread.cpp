#include "thread.h"

#include "memory.h"

#include <exception>
#include <new>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace kvasir {

namespace {

struct call {
    const std::function<void()> & body;
    std::exception_ptr            thrown;

    void run() noexcept {
        try {
            body();
        } catch (...) {
            thrown = std::current_exception();
        }
    }
};

} // namespace

#if defined(_WIN32)

static DWORD WINAPI run_call(void * data) {
    ((call *) data)->run();
    return 0;
}

void run_on_stack(size_t size, const std::function<void()> & body) {
    call   c{body, nullptr};
    HANDLE thread = CreateThread(nullptr, size, run_call, &c, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!thread) {
        throw std::bad_alloc();
    }
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
    if (c.thrown) {
        std::rethrow_exception(c.thrown);
    }
}

size_t measure_stack(size_t size, const std::function<void()> & body) {
    run_on_stack(size, body);
    return 0;
}

#else

static void * run_call(void * data) {
    ((call *) data)->run();
    return nullptr;
}

// the first page of the mapping guards the stack
static void run_on(const mapping & stack, const std::function<void()> & body) {
    const size_t guard = page_size();
    if (!memory_protect(stack.data(), guard)) {
        throw std::bad_alloc();
    }
    call           c{body, nullptr};
    pthread_t      thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        throw std::bad_alloc();
    }
    const bool started = pthread_attr_setstack(&attributes, stack.data() + guard, stack.size() - guard) == 0 &&
                         pthread_create(&thread, &attributes, run_call, &c) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        throw std::bad_alloc();
    }
    pthread_join(thread, nullptr);
    if (c.thrown) {
        std::rethrow_exception(c.thrown);
    }
}

void run_on_stack(size_t size, const std::function<void()> & body) { run_on(mapping(whole_pages(size) + page_size()), body); }

size_t measure_stack(size_t size, const std::function<void()> & body) {
    const mapping stack(whole_pages(size) + page_size());
    run_on(stack, body);
    // a stack grows downwards from its end, and fresh pages read as zero
    const size_t * word = (const size_t *) (stack.data() + page_size());
    const size_t * end  = (const size_t *) (stack.data() + stack.size());
    while (word < end && *word == 0) {
        word++;
    }
    return (size_t) ((const char *) end - (const char *) word);
}

#endif

} // namespace kvasir
