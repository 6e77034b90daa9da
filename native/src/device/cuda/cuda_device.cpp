#include "cuda_device.h"

#include "../../error.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(KVASIR_CUDA)
// the fat binaries of attention/cuda
extern "C" const char kvasir_cuda_words[], kvasir_cuda_store[], kvasir_cuda_prefill[], kvasir_cuda_statistic[], kvasir_cuda_moved[], kvasir_cuda_decode[];
#endif

namespace kvasir::cuda {

// which kernels are in which module, by the beginnings of their names; the last one has all others
constexpr const char * MODULE_KERNELS[MODULES] = {"write_words", "store_", "prefill_ mask_views", "statistic_", "moved_", ""};

static bool starts_with_any(const char * name, const char * beginnings) {
    for (const char * b = beginnings; *b;) {
        const size_t n = strcspn(b, " ");
        if (strncmp(name, b, n) == 0) {
            return true;
        }
        b += n + (b[n] == ' ');
    }
    return false;
}

current_context::current_context(context c) {
    check(cu().cuCtxGetCurrent(&before_), "the thread's CUDA context");
    check(cu().cuCtxSetCurrent(c), "the device's CUDA context");
}

current_context::~current_context() { cu().cuCtxSetCurrent(before_); }

bool leaves_reserve(size_t bytes, bool settled) {
    constexpr size_t least = (size_t) 128 << 20, most = (size_t) 1 << 30, share = 64, always = (size_t) 32 << 20;
    size_t free = 0, total = 0;
    check(cu().cuMemGetInfo(&free, &total), "the free memory of the CUDA device");
    const size_t reserve = settled ? always : std::clamp(total / share, least, most);
    return free >= reserve && bytes <= free - reserve;
}

std::shared_mutex & captures() {
    static std::shared_mutex mutex;
    return mutex;
}

gpu::gpu(int index) {
#if !defined(KVASIR_CUDA)
    throw error(KVASIR_UNSUPPORTED, "this libkvasir was built without CUDA kernels");
#else
    const driver & d = cu();
    check(d.cuDeviceGet(&id_, index), "the CUDA device");
    const auto attribute = [&](int which) {
        int value = 0;
        check(d.cuDeviceGetAttribute(&value, which, id_), "an attribute of the CUDA device");
        return value;
    };
    const int major = attribute(ATTRIBUTE_MAJOR), minor = attribute(ATTRIBUTE_MINOR);
    if (major < 8) {
        throw error(KVASIR_UNSUPPORTED, format("Kvasir's kernels need compute capability 8.0, the device has %d.%d", major, minor));
    }
    if (!attribute(ATTRIBUTE_VIRTUAL_MEMORY)) {
        throw error(KVASIR_UNSUPPORTED, "the device has no virtual memory management");
    }
    multiprocessors_ = attribute(ATTRIBUTE_MULTIPROCESSORS);
    shared_limit_    = (uint32_t) attribute(ATTRIBUTE_SHARED_OPTIN);
    shared_per_multiprocessor_ = (uint32_t) attribute(ATTRIBUTE_SHARED_PER_SM);
    check(d.cuDeviceTotalMem(&total_memory_, id_), "the memory of the CUDA device");
    check(d.cuDevicePrimaryCtxRetain(&context_, id_), "the device's CUDA context");
    current_context current(context_);
    const char * binaries[MODULES] = {kvasir_cuda_words, kvasir_cuda_store, kvasir_cuda_prefill, kvasir_cuda_statistic, kvasir_cuda_moved, kvasir_cuda_decode};
    for (size_t m = 0; m < MODULES; m++) {
        check(d.cuModuleLoadData(&modules_[m], binaries[m]), "Kvasir's CUDA kernels");
    }
#endif
}

function gpu::find(const char * kernel, uint32_t shared) {
    std::lock_guard<std::mutex> lock(mutex_);
    kernel_entry & entry = kernels_[kernel];
    if (!entry.f) {
        size_t m = 0;
        while (m + 1 < MODULES && !starts_with_any(kernel, MODULE_KERNELS[m])) {
            m++;
        }
        check(cu().cuModuleGetFunction(&entry.f, modules_[m], kernel), kernel);
    }
    if (shared > entry.shared) {
        check(cu().cuFuncSetAttribute(entry.f, FUNCTION_MAX_DYNAMIC_SHARED, (int) shared), kernel);
        entry.shared = shared;
    }
    return entry.f;
}

bool gpu::is_cuda(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = device->reg;
    return reg && strcmp(reg->iface.get_name(reg), "CUDA") == 0;
}

gpu * gpu::of(ggml_backend_dev_t device, std::string & reason) {
    static std::mutex                              mutex;
    static std::map<int, std::unique_ptr<gpu>>     gpus;
    static std::map<int, std::string>              refused;
    if (!is_cuda(device)) {
        return nullptr;
    }
    const char * name = device->iface.get_name(device); // CUDA0, CUDA1, ...: the runtime's index, which is the driver's
    const int    index = strncmp(name, "CUDA", 4) == 0 ? atoi(name + 4) : 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (refused.count(index)) {
        reason = refused[index];
        return nullptr;
    }
    auto & entry = gpus[index];
    if (!entry && guarded([&] { entry.reset(new gpu(index)); }) != KVASIR_OK) {
        reason = refused[index] = last_error();
        return nullptr;
    }
    return entry.get();
}

} // namespace kvasir::cuda
