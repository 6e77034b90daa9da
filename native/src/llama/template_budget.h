// What rendering one chat template may cost. The engine is llama.cpp's and knows no limits; it allocates at every step, so that
// the check is where it allocates.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvasir {

constexpr size_t  TEMPLATE_BYTES         = 256u << 10; // of a template's text
constexpr size_t  TEMPLATE_CONTENT_BYTES = 256u << 10; // of all messages that it is rendered with
constexpr int     TEMPLATE_NESTING       = 200;        // brackets within brackets
constexpr size_t  TEMPLATE_STRING_BYTES  = 512u << 10; // of a string that an operation takes: some are quadratic, and cannot be stopped
constexpr size_t  TEMPLATE_MEMORY        = 32u << 20;
constexpr size_t  TEMPLATE_DEPTH         = 32u << 20; // bytes of stack
constexpr size_t  TEMPLATE_STACK         = 256u << 20; // address space: values and syntax trees are freed by a recursion that nothing checks
constexpr int64_t TEMPLATE_NANOSECONDS   = 2'000'000'000; // of the thread's own processor time

// While one lives, every allocation that libkvasir makes on its thread is counted, and throws std::bad_alloc when a limit is
// reached; so does every later one, as the engine catches what it should not.
class template_budget {
public:
    template_budget();
    ~template_budget();
    template_budget(const template_budget &) = delete;

    // which limit was reached; NULL as long as none was
    const char * reached() const { return reached_; }

    void allocated(size_t bytes);
    void freed(size_t bytes) { bytes_ -= (int64_t) bytes; }

private:
    const char * base_;
    int64_t      deadline_;
    int64_t      bytes_   = 0;
    uint32_t     calls_   = 0;
    const char * reached_ = nullptr;
};

} // namespace kvasir
