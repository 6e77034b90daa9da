// One NVIDIA GPU as Kvasir's own kernels see it: its context, their code, and what a launch needs.
#pragma once

#include "../../llama/api.h"
#include "../../platform/cuda_driver.h"

#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>

namespace kvasir::cuda {

constexpr size_t MODULES = 6; // files of kernels

// Makes a device's context the calling thread's for as long as it lives. It is the primary context, which ggml uses too.
class current_context {
public:
    explicit current_context(context c);
    ~current_context();
    current_context(const current_context &) = delete;
    current_context & operator=(const current_context &) = delete;

private:
    context before_ = nullptr;
};

// Whether the current context's device would have so many bytes and still a reserve after them. ggml's CUDA backend takes memory
// of its own while it computes (for converted weights and cuBLAS), and ends the process where there is none. Most of it is taken by
// the first prompt (settled: that has been computed) and stays.
bool leaves_reserve(size_t bytes, bool settled);

// Held shared while a graph is recorded, and alone while a context is freed: ggml destroys its cuBLAS handle then, which fails
// while any stream of the device is recorded, and ends the process. ggml's own lock for that does not know of our recordings.
std::shared_mutex & captures();

class gpu {
public:
    // The GPU of a device of ggml's CUDA backend; nullptr when it is none, or when there are no kernels for it: reason says why.
    static gpu * of(ggml_backend_dev_t device, std::string & reason);

    static bool is_cuda(ggml_backend_dev_t device); // a device of ggml's CUDA backend

    device  id() const { return id_; }
    context primary() const { return context_; }
    int     multiprocessors() const { return multiprocessors_; }
    uint32_t shared_per_multiprocessor() const { return shared_per_multiprocessor_; }
    // bytes of shared memory that a block may ask for
    uint32_t shared_limit() const { return shared_limit_; }
    size_t   total_memory() const { return total_memory_; }

    // Launches a kernel whose only parameter is the struct p. The context must be current.
    template <typename P> void launch(stream s, const char * kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t block, uint32_t shared, const P & p) {
        void * arguments[] = {const_cast<P *>(&p)};
        check(cu().cuLaunchKernel(find(kernel, shared), grid_x, grid_y, grid_z, block, 1, 1, shared, s, arguments, nullptr), kernel);
    }

    // Launches one whose blocks wait for one another: the driver starts it only when all of them find a place.
    template <typename P> void launch_together(stream s, const char * kernel, uint32_t grid, uint32_t block, uint32_t shared, const P & p) {
        void * arguments[] = {const_cast<P *>(&p)};
        check(cu().cuLaunchCooperativeKernel(find(kernel, shared), grid, 1, 1, block, 1, 1, shared, s, arguments), kernel);
    }

private:
    struct kernel_entry {
        function f      = nullptr;
        uint32_t shared = 0; // dynamic shared memory that it has been allowed
    };

    device   id_ = 0;
    context  context_ = nullptr;
    module   modules_[MODULES] = {};
    int      multiprocessors_ = 0;
    uint32_t shared_limit_ = 0, shared_per_multiprocessor_ = 0;
    size_t   total_memory_ = 0;
    std::map<std::string, kernel_entry> kernels_;
    std::mutex mutex_;

    explicit gpu(int index);
    function find(const char * kernel, uint32_t shared);
};

} // namespace kvasir::cuda
