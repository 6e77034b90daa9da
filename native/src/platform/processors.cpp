#include "processors.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <sys/resource.h>
#endif

namespace kvasir {

int32_t usable_processors() {
#if defined(__linux__)
    // The mask that the kernel fills may be longer than cpu_set_t; then the call fails, and the count of all processors is near enough.
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return std::max(1, CPU_COUNT(&set));
    }
#endif
    return std::max(1, (int32_t) std::thread::hardware_concurrency());
}

int64_t preemptions() {
#if defined(_WIN32)
    return 0;
#else
    rusage usage{};
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t) usage.ru_nivcsw : 0;
#endif
}

} // namespace kvasir
