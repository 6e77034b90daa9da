// What the test and the benchmark of the CUDA kernels share: device memory, and kernels by name from a cubin.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CUDA(call)                                                                                        \
    do {                                                                                                  \
        const cudaError_t error_ = (call);                                                                \
        if (error_ != cudaSuccess) {                                                                      \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));    \
            exit(2);                                                                                      \
        }                                                                                                 \
    } while (0)

template <class T> class device_array {
public:
    explicit device_array(size_t n = 0) : n_(n) {
        CUDA(cudaMalloc((void **) &data_, n_ ? n_ * sizeof(T) : 1));
        CUDA(cudaMemset(data_, 0, n_ * sizeof(T)));
    }
    explicit device_array(const std::vector<T> & v) : device_array(v.size()) { set(v); }
    device_array(const device_array &) = delete;
    device_array & operator=(const device_array &) = delete;
    device_array(device_array && o) noexcept : data_(o.data_), n_(o.n_) { o.data_ = nullptr; }
    ~device_array() { cudaFree(data_); }

    T * data() const { return data_; }
    size_t size() const { return n_; }
    void set(const std::vector<T> & v) { CUDA(cudaMemcpy(data_, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice)); }
    std::vector<T> get() const {
        std::vector<T> v(n_);
        CUDA(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }

private:
    T *    data_ = nullptr;
    size_t n_;
};

class kernel_library {
public:
    explicit kernel_library(const char * file) {
        if (cudaLibraryLoadFromFile(&library_, file, nullptr, nullptr, 0, nullptr, nullptr, 0) != cudaSuccess) {
            fprintf(stderr, "%s: no cubin for this device\n", file);
            exit(2);
        }
    }
    template <class P> void launch(const std::string & name, dim3 grid, uint32_t block, uint32_t shared, const P & params, cudaStream_t stream = nullptr,
                                   bool cooperative = false) {
        cudaKernel_t kernel;
        CUDA(cudaLibraryGetKernel(&kernel, library_, name.c_str()));
        if (shared > 48 * 1024) {
            CUDA(cudaFuncSetAttribute((const void *) kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared));
        }
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = grid;
        config.blockDim = dim3(block);
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = cooperative ? 1 : 0;
        void * args[] = {(void *) &params};
        CUDA(cudaLaunchKernelExC(&config, (const void *) kernel, args));
    }

private:
    cudaLibrary_t library_;
};
