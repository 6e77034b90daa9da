#include "kernels.h"

#include "cpu_attention.h"

#include <cstring>

namespace kvasir {

#if defined(__x86_64__) || defined(_M_X64)
extern const cpu_kernels cpu_kernels_baseline, cpu_kernels_avx2, cpu_kernels_avx512;

static bool has(const cpu_kernels & k) {
    if (&k == &cpu_kernels_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    }
    if (&k == &cpu_kernels_avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    }
    return true;
}
static const cpu_kernels * const all[] = { &cpu_kernels_avx512, &cpu_kernels_avx2, &cpu_kernels_baseline }; // best first
#else
extern const cpu_kernels cpu_kernels_neon;

static bool has(const cpu_kernels &) { return true; }
static const cpu_kernels * const all[] = { &cpu_kernels_neon };
#endif

static const cpu_kernels * best() {
    for (const cpu_kernels * k : all) {
        if (has(*k)) {
            return k;
        }
    }
    return nullptr;
}

static const cpu_kernels *& active() {
    static const cpu_kernels * k = best();
    return k;
}

const cpu_kernels & cpu_kernels_active() { return *active(); }
const char * cpu_kernels_name() { return active()->name; }

bool cpu_kernels_select(const char * name) {
    for (const cpu_kernels * k : all) {
        if (strcmp(k->name, name) == 0 && has(*k)) {
            active() = k;
            return true;
        }
    }
    return false;
}

} // namespace kvasir
