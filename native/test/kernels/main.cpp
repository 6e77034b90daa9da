#include "support.h"

namespace kvasir_test {

uint64_t seed     = 0;
bool     quick    = false;
int      failures = 0;

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const char * n : { "baseline", "avx2", "avx512", "neon" }) {
        if (cpu_kernels_select(n)) {
            names.push_back(n);
        }
    }
    return names;
}

} // namespace kvasir_test

using namespace kvasir_test;

// usage: kvasir_kernels_test [rows|decode|prefill|statistic|moved] [--quick] [--seed N]
int main(int argc, char ** argv) {
    std::string part;
    seed = std::random_device{}();
#if defined(__SANITIZE_ADDRESS__)
    quick = true;
#endif
    for (int i = 1; i < argc; i++) {
        const std::string a = argv[i];
        if (a == "--quick") {
            quick = true;
        } else if (a == "--seed" && i + 1 < argc) {
            seed = strtoull(argv[++i], nullptr, 10);
        } else {
            part = a;
        }
    }
    printf("seed %llu\n", (unsigned long long) seed);
    const struct { const char * name; void (*run)(); } parts[] = {
        { "rows", test_rows }, { "decode", test_decode }, { "prefill", test_prefill }, { "statistic", test_statistic }, { "moved", test_moved },
    };
    bool known = false;
    for (const auto & p : parts) {
        if (part.empty() || part == p.name) {
            known = true;
            p.run();
        }
    }
    if (!known) {
        printf("no part %s\n", part.c_str());
        return 2;
    }
    printf(failures ? "%d failures\n" : "passed\n", failures);
    return failures ? 1 : 0;
}
