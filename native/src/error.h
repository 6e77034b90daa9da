// Failures inside the library: thrown as kvasir::error, turned into a status and a text at the C boundary.
#pragma once

#include "kvasir.h"

#include <exception>
#include <new>
#include <string>
#include <utility>

namespace kvasir {

class error : public std::exception {
public:
    error(kvasir_status status, std::string text) : status_(status), text_(std::move(text)) {}
    kvasir_status status() const { return status_; }
    const char *  what() const noexcept override { return text_.c_str(); }

private:
    kvasir_status status_;
    std::string   text_;
};

std::string &   last_error();  // of the calling thread
kvasir_status & last_status(); // that belongs to the text

// printf into a std::string
std::string format(const char * pattern, ...) __attribute__((format(printf, 1, 2)));

// Runs body and translates every exception; nothing may leave the library as one.
template <typename F> kvasir_status guarded(F && body) noexcept {
    try {
        try {
            body();
            return KVASIR_OK;
        } catch (const error & e) {
            last_error() = e.what();
            return last_status() = e.status();
        } catch (const std::bad_alloc &) {
            last_error() = "out of memory";
            return last_status() = KVASIR_OUT_OF_MEMORY;
        } catch (const std::exception & e) {
            last_error() = e.what();
            return last_status() = KVASIR_FAILED;
        } catch (...) {
            last_error() = "unknown C++ exception";
            return last_status() = KVASIR_FAILED;
        }
    } catch (...) {
        return KVASIR_OUT_OF_MEMORY; // no memory even for the text
    }
}

} // namespace kvasir
