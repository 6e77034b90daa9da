#include "assertion.h"

#include "../error.h"
#include "api.h"

#include <cstdio>

namespace kvasir {

static thread_local bool throwing = false;

static ggml_abort_callback_t before = nullptr;

// ggml_abort calls this last, and ends the process when it returns.
static void failed(const char * message) {
    if (throwing) {
        throw error(KVASIR_FAILED, message);
    }
    if (before) {
        before(message);
    } else {
        fprintf(stderr, "%s\n", message); // as ggml does
    }
}

void assertions_install(const api & a) {
    const ggml_abort_callback_t found = a.ggml_set_abort_callback(failed);
    if (found != failed) {
        before = found;
    }
}

assertions_throw::assertions_throw() : outer(throwing) { throwing = true; }
assertions_throw::~assertions_throw() { throwing = outer; }

} // namespace kvasir
