// What the kernel tests share: guarded memory, random numbers with a printed seed, rows of every type and their values.
#pragma once

#include "attention/attention.h"
#include "attention/cpu/cpu_attention.h"
#include "store/rows.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace kvasir_test {

using namespace kvasir;

// Memory whose neighbouring pages cannot be touched. The bytes lie against the page behind them, or against the one in
// front of them.
class guarded {
public:
    guarded() = default;
    guarded(size_t bytes, bool at_end, size_t align = 1) {
        const size_t page = (size_t) sysconf(_SC_PAGESIZE), inner = (bytes + page - 1) / page * page;
        size_ = inner + 2 * page;
        map_ = (char *) mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map_ == MAP_FAILED || (inner && mprotect(map_ + page, inner, PROT_READ | PROT_WRITE) != 0)) {
            perror("mmap");
            exit(2);
        }
        data_ = map_ + page + (at_end ? (inner - bytes) / align * align : 0);
    }
    guarded(guarded && o) noexcept { *this = std::move(o); }
    guarded & operator=(guarded && o) noexcept {
        std::swap(map_, o.map_);
        std::swap(size_, o.size_);
        std::swap(data_, o.data_);
        return *this;
    }
    ~guarded() {
        if (map_) {
            munmap(map_, size_);
        }
    }
    char * data() const { return data_; }
    template <class T> T * as() const { return (T *) data_; }

private:
    char * map_ = nullptr;
    size_t size_ = 0;
    char * data_ = nullptr;
};

inline double half_value(uint16_t h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const double x = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -x : x;
}

inline double bf16_value(uint16_t h) {
    const uint32_t u = (uint32_t) h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// the element of a row in ggml's layout, from the definition of the types in ggml-common.h
inline double row_value(ggml_type type, const char * row, int32_t d) {
    const auto u16 = [&](size_t at) { uint16_t x; memcpy(&x, row + at, 2); return x; };
    const int b = d / 32, i = d % 32;
    const auto nibble = [&](size_t at) { return (unsigned char) row[at + i % 16] >> (i < 16 ? 0 : 4) & 15; };
    const auto fifth = [&](size_t at) { uint32_t x; memcpy(&x, row + at, 4); return (int) (x >> i & 1) << 4; };
    switch (type) {
        case GGML_TYPE_F16:  return half_value(u16((size_t) d * 2));
        case GGML_TYPE_BF16: return bf16_value(u16((size_t) d * 2));
        case GGML_TYPE_Q8_0: return half_value(u16((size_t) b * 34)) * (signed char) row[(size_t) b * 34 + 2 + i];
        case GGML_TYPE_Q4_0: return half_value(u16((size_t) b * 18)) * (nibble((size_t) b * 18 + 2) - 8);
        case GGML_TYPE_Q4_1: return half_value(u16((size_t) b * 20)) * nibble((size_t) b * 20 + 4) + half_value(u16((size_t) b * 20 + 2));
        case GGML_TYPE_Q5_0: return half_value(u16((size_t) b * 22)) * ((nibble((size_t) b * 22 + 6) | fifth((size_t) b * 22 + 2)) - 16);
        case GGML_TYPE_Q5_1: return half_value(u16((size_t) b * 24)) * (nibble((size_t) b * 24 + 8) | fifth((size_t) b * 24 + 4)) + half_value(u16((size_t) b * 24 + 2));
        default: abort();
    }
}

// a random row of a type in ggml's layout; values are of the order of one
template <class R> void random_row(ggml_type type, int32_t dim, char * row, R & rng) {
    std::normal_distribution<float> normal;
    const row_format f = rows_format(type, dim, false);
    if (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) {
        for (int32_t d = 0; d < dim; d++) {
            const float x = normal(rng);
            uint32_t u;
            memcpy(&u, &x, 4);
            const uint16_t h = type == GGML_TYPE_BF16 ? (uint16_t) (u >> 16) : (uint16_t) ((rng() & 1) << 15 | (11 + rng() % 6) << 10 | (rng() & 1023));
            memcpy(row + (size_t) d * 2, &h, 2);
        }
        return;
    }
    for (size_t i = 0; i < f.row_bytes; i++) {
        row[i] = (char) rng();
    }
    const size_t block = f.row_bytes / (size_t) (dim / 32);
    const bool min = type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1;
    for (int32_t b = 0; b < dim / 32; b++) { // scales around 2^-3 (a byte: 2^-7), minima around -1
        const uint16_t d = (uint16_t) ((type == GGML_TYPE_Q8_0 ? 8 : 12) << 10 | (rng() & 1023)), m = (uint16_t) (0x8000 | 15 << 10 | (rng() & 1023));
        memcpy(row + b * block, &d, 2);
        if (min) {
            memcpy(row + b * block + 2, &m, 2);
        }
    }
}

inline const char * type_name(ggml_type t) {
    switch (t) {
        case GGML_TYPE_F16:  return "f16";
        case GGML_TYPE_BF16: return "bf16";
        case GGML_TYPE_Q8_0: return "q8_0";
        case GGML_TYPE_Q4_0: return "q4_0";
        case GGML_TYPE_Q4_1: return "q4_1";
        case GGML_TYPE_Q5_0: return "q5_0";
        case GGML_TYPE_Q5_1: return "q5_1";
        default: return "?";
    }
}

constexpr ggml_type all_types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 };

std::vector<std::string> instruction_sets(); // those of this machine

extern uint64_t seed;
extern bool     quick;    // fewer cases, for sanitizers and emulation
extern int      failures;

#define CHECK(condition, ...)                                                    \
    do {                                                                         \
        if (!(condition)) {                                                      \
            printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition);        \
            printf(__VA_ARGS__);                                                 \
            printf("\n");                                                        \
            if (++failures > 20) {                                               \
                exit(1);                                                         \
            }                                                                    \
        }                                                                        \
    } while (0)

void test_rows();
void test_decode();
void test_prefill();
void test_statistic();
void test_moved();

} // namespace kvasir_test
