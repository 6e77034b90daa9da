// A layer of the paged store, made and read on the host.
#pragma once

#include "../../src/attention/cuda/prefill.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace kvasir::cuda {

inline void check(cudaError_t e, const char * what) {
    if (e != cudaSuccess) {
        printf("%s: %s\n", what, cudaGetErrorString(e));
        exit(2);
    }
}
#define CHECK(call) check(call, #call)

// device memory of a test; freed with it
template <class T> struct device_array {
    T *    data = nullptr;
    size_t n    = 0;
    explicit device_array(size_t n) : n(n) {
        CHECK(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)));
        CHECK(cudaMemset(data, 0, std::max<size_t>(n, 1) * sizeof(T)));
    }
    explicit device_array(const std::vector<T> & x) : device_array(x.size()) { set(x); }
    device_array(const device_array &) = delete;
    ~device_array() { cudaFree(data); }
    void set(const std::vector<T> & x) { CHECK(cudaMemcpy(data, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice)); }
    std::vector<T> get() const {
        std::vector<T> x(n);
        CHECK(cudaMemcpy(x.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost));
        return x;
    }
};

// kernels by name, as the driver API finds them
inline std::map<std::string, const void *> & kernels() {
    static std::map<std::string, const void *> all;
    return all;
}
template <class P> void start(const launch & l, const P & params) {
    const auto kernel = kernels().find(l.kernel ? l.kernel : "none");
    if (kernel == kernels().end()) {
        printf("there is no kernel %s\n", l.kernel ? l.kernel : "for this shape");
        exit(2);
    }
    if (l.shared > 40 * 1024) {
        CHECK(cudaFuncSetAttribute(kernel->second, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) l.shared));
    }
    P copy = params;
    void * args[] = {&copy};
    CHECK(cudaLaunchKernel(kernel->second, dim3(l.grid_x, l.grid_y), dim3(l.block), args, l.shared, nullptr));
}

struct paged_store {
    page_format          format;
    int32_t              n_heads, stride; // heads of all streams, pages of a head
    std::vector<char>    pool;
    std::vector<int32_t> table, n;

    paged_store(const page_format & format, const std::vector<int32_t> & n, std::mt19937 & random, int32_t spare_pages = 1) : format(format), n_heads((int32_t) n.size()), n(n) {
        stride = (*std::max_element(n.begin(), n.end()) + PAGE_SLOTS - 1) / PAGE_SLOTS + spare_pages;
        std::vector<int32_t> pages((size_t) n_heads * (size_t) stride);
        std::iota(pages.begin(), pages.end(), 0);
        std::shuffle(pages.begin(), pages.end(), random);
        table = pages;
        pool.resize(pages.size() * format.bytes);
    }
    char * page(int32_t head, int32_t slot) { return pool.data() + (size_t) table[(size_t) head * stride + slot / PAGE_SLOTS] * format.bytes; }
    static uint16_t & half_at(char * p, size_t i) { return ((uint16_t *) p)[i]; }

    uint16_t & f16(bool value, int32_t head, int32_t slot, int32_t d) {
        char * p = page(head, slot);
        slot %= PAGE_SLOTS;
        return value ? half_at(p + format.v, (size_t) (slot / 32 * format.dim_v + d) * 32 + slot % 32) : half_at(p, (size_t) slot * format.dim_k + d);
    }
    int8_t & q8(bool value, int32_t head, int32_t slot, int32_t d) {
        char * p = page(head, slot);
        slot %= PAGE_SLOTS;
        return value ? ((int8_t *) p + format.v)[(slot / 32 * format.dim_v + d) * 32 + slot % 32] : ((int8_t *) p)[slot * format.dim_k + d];
    }
    uint16_t & q8_scale(bool value, int32_t head, int32_t slot, int32_t d) {
        char * p = page(head, slot) + (value ? format.v_scale : format.k_scale);
        return half_at(p, (size_t) (slot % PAGE_SLOTS) * ((value ? format.dim_v : format.dim_k) / 32) + d / 32);
    }
    int32_t & cell(int32_t head, int32_t slot) { return ((int32_t *) (page(head, slot) + format.cell))[slot % PAGE_SLOTS]; }
    int32_t & pos(int32_t head, int32_t slot) { return ((int32_t *) (page(head, slot) + format.pos))[slot % PAGE_SLOTS]; }
    float & score(int32_t head, int32_t slot) { return ((float *) (page(head, slot) + format.score))[slot % PAGE_SLOTS]; }
    float get(bool value, int32_t head, int32_t slot, int32_t d) {
        if ((value ? format.type_v : format.type_k) == F16) {
            return __half2float(__ushort_as_half(f16(value, head, slot, d)));
        }
        return (float) q8(value, head, slot, d) * __half2float(__ushort_as_half(q8_scale(value, head, slot, d)));
    }
    // random contents of a slot
    void fill(int32_t head, int32_t slot, std::mt19937 & random, float amplitude) {
        const float unit = 1.7320508f * amplitude;
        std::uniform_real_distribution<float> uniform(-unit, unit);
        std::uniform_int_distribution<int> byte(-127, 127);
        for (int value = 0; value < 2; value++) {
            const int32_t dim = value ? format.dim_v : format.dim_k;
            for (int32_t d = 0; d < dim; d++) {
                if ((value ? format.type_v : format.type_k) == F16) {
                    f16(value, head, slot, d) = __half_as_ushort(__float2half(uniform(random)));
                    continue;
                }
                q8(value, head, slot, d) = (int8_t) byte(random);
                if (d % 32 == 0) {
                    q8_scale(value, head, slot, d) = __half_as_ushort(__float2half(amplitude * (0.5f + 0.01f * (float) (byte(random) & 63)) / 73.0f));
                }
            }
        }
    }
};

// the same on the device
struct device_store {
    device_array<char>    pool;
    device_array<int32_t> table, n;
    layer_pages           pages;
    device_store(const paged_store & s, int32_t n_head_kv) : pool(s.pool), table(s.table), n(s.n) {
        pages = {s.format, pool.data, table.data, n.data, s.stride, n_head_kv};
    }
};

inline bool same_bits(const std::vector<float> & a, const std::vector<float> & b) { return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

struct error_sum {
    double error = 0, reference = 0, worst = 0, got = 0, want = 0; // got, want: where it is worst
    void add(double x, double y) {
        if (x == y) { // infinities, too
            reference += std::isinf(x) ? 0 : y * y;
            return;
        }
        const double d = std::isfinite(x) ? x - y : 1e30;
        error += d * d;
        reference += y * y;
        if (std::fabs(d) > worst) {
            worst = std::fabs(d);
            got   = x;
            want  = y;
        }
    }
    double nmse() const { return error == 0 ? 0 : error / std::max(reference, 1e-30); }
};

} // namespace kvasir::cuda
