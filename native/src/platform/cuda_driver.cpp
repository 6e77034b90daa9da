#include "cuda_driver.h"

#include "../error.h"
#include "library.h"

namespace kvasir::cuda {

static driver load() {
#if defined(_WIN32)
    const char * name = "nvcuda.dll";
#else
    const char * name = "libcuda.so.1";
#endif
    void * library = open_library(name);
    if (!library) {
        throw error(KVASIR_UNSUPPORTED, format("there is no NVIDIA driver: %s cannot be loaded", name));
    }
    driver d{};
#define X(function, suffix, parameters)                                                                               \
    d.function = (decltype(d.function)) library_symbol(library, #function suffix);                                    \
    if (!d.function) {                                                                                                \
        throw error(KVASIR_UNSUPPORTED, "the NVIDIA driver is too old: it has no " #function suffix);                 \
    }
    KVASIR_CUDA_FUNCTIONS(X)
#undef X
    const result r = d.cuInit(0);
    if (r != SUCCESS) {
        const char * text = nullptr;
        d.cuGetErrorString(r, &text);
        throw error(KVASIR_UNSUPPORTED, format("the NVIDIA driver does not start: %s", text ? text : "unknown error"));
    }
    return d;
}

const driver & cu() {
    static const driver d = load(); // a failed attempt is tried again on the next call
    return d;
}

void check(result r, const char * what) {
    if (r == SUCCESS) {
        return;
    }
    const char * text = nullptr;
    cu().cuGetErrorString(r, &text);
    throw error(r == OUT_OF_MEMORY ? KVASIR_OUT_OF_MEMORY : KVASIR_FAILED, format("%s: %s", what, text ? text : "unknown error"));
}

} // namespace kvasir::cuda
