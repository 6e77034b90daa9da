#include "error.h"

#include <cstdarg>
#include <cstdio>

namespace kvasir {

std::string & last_error() {
    static thread_local std::string text;
    return text;
}

kvasir_status & last_status() {
    static thread_local kvasir_status status = KVASIR_OK;
    return status;
}

std::string format(const char * pattern, ...) {
    va_list args, copy;
    va_start(args, pattern);
    va_copy(copy, args);
    const int length = vsnprintf(nullptr, 0, pattern, copy);
    va_end(copy);
    std::string text(length > 0 ? (size_t) length : 0, '\0');
    vsnprintf(text.data(), text.size() + 1, pattern, args);
    va_end(args);
    return text;
}

} // namespace kvasir
