#include "memory_limit.h"

#include "../error.h"

namespace kvasir {

void memory_limit::require(size_t more) const {
    if (!allows(more)) {
        const auto mib = [](size_t bytes) { return (double) bytes / (1 << 20); };
        throw error(KVASIR_OUT_OF_MEMORY, format("the KV cache holds %.2f MiB of rows and of what is counted for its policy, and the %.2f MiB more that these tokens need would exceed the limit of %.2f MiB: "
                                                 "keep less, decode fewer tokens, or raise the limit", mib(held_), mib(more), mib(limit_)));
    }
}

} // namespace kvasir
