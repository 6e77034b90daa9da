// Kvasir's own declarations of NVIDIA's driver API against cuda.h. What can be compared is compared while this is compiled.
#include "platform/cuda_driver.h"

#include <cuda.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>

using namespace kvasir::cuda;

// one parameter after another of the same size, and as many
template <class Ours, class Theirs> struct same_parameters;
template <class... A, class... B> struct same_parameters<result (*)(A...), CUresult (*)(B...)> {
    template <class T, class U> static constexpr bool sizes() {
        if constexpr (std::tuple_size_v<T> != std::tuple_size_v<U>) {
            return false;
        } else {
            return sizes_at<T, U>(std::make_index_sequence<std::tuple_size_v<T>>());
        }
    }
    template <class T, class U, size_t... I> static constexpr bool sizes_at(std::index_sequence<I...>) {
        return ((sizeof(std::tuple_element_t<I, T>) == sizeof(std::tuple_element_t<I, U>)) && ...);
    }
    static constexpr bool value = sizes<std::tuple<A...>, std::tuple<B...>>();
};

static_assert(sizeof(result) == sizeof(CUresult) && SUCCESS == CUDA_SUCCESS && kvasir::cuda::OUT_OF_MEMORY == CUDA_ERROR_OUT_OF_MEMORY);
static_assert((int) STREAM_NON_BLOCKING == (int) CU_STREAM_NON_BLOCKING && (int) EVENT_DISABLE_TIMING == (int) CU_EVENT_DISABLE_TIMING);
static_assert((int) CAPTURE_RELAXED == (int) CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert((int) ATTRIBUTE_MULTIPROCESSORS == (int) CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert((int) ATTRIBUTE_MAJOR == (int) CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR && (int) ATTRIBUTE_MINOR == (int) CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert((int) ATTRIBUTE_SHARED_PER_SM == (int) CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
static_assert((int) ATTRIBUTE_SHARED_OPTIN == (int) CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert((int) ATTRIBUTE_VIRTUAL_MEMORY == (int) CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert((int) FUNCTION_MAX_DYNAMIC_SHARED == (int) CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert((int) MEMORY_PINNED == (int) CU_MEM_ALLOCATION_TYPE_PINNED && (int) LOCATION_DEVICE == (int) CU_MEM_LOCATION_TYPE_DEVICE);
static_assert((int) ACCESS_READWRITE == (int) CU_MEM_ACCESS_FLAGS_PROT_READWRITE && (int) GRANULARITY_MINIMUM == (int) CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(sizeof(mem_location) == sizeof(CUmemLocation) && offsetof(mem_location, id) == offsetof(CUmemLocation, id));
static_assert(sizeof(mem_properties) == sizeof(CUmemAllocationProp) && offsetof(mem_properties, location) == offsetof(CUmemAllocationProp, location) &&
              offsetof(mem_properties, win32_metadata) == offsetof(CUmemAllocationProp, win32HandleMetaData) &&
              offsetof(mem_properties, flags) == offsetof(CUmemAllocationProp, allocFlags));
static_assert(sizeof(graph_update) == sizeof(CUgraphExecUpdateResultInfo));
static_assert((int) MEMORY_HOST == (int) CU_MEMORYTYPE_HOST && (int) MEMORY_DEVICE == (int) CU_MEMORYTYPE_DEVICE);
static_assert(sizeof(copy_2d) == sizeof(CUDA_MEMCPY2D) && offsetof(copy_2d, from.device) == offsetof(CUDA_MEMCPY2D, srcDevice) &&
              offsetof(copy_2d, from.pitch) == offsetof(CUDA_MEMCPY2D, srcPitch) && offsetof(copy_2d, to) == offsetof(CUDA_MEMCPY2D, dstXInBytes) &&
              offsetof(copy_2d, to.host) == offsetof(CUDA_MEMCPY2D, dstHost) && offsetof(copy_2d, to.pitch) == offsetof(CUDA_MEMCPY2D, dstPitch) &&
              offsetof(copy_2d, bytes) == offsetof(CUDA_MEMCPY2D, WidthInBytes) && offsetof(copy_2d, rows) == offsetof(CUDA_MEMCPY2D, Height));
static_assert(sizeof(mem_access) == sizeof(CUmemAccessDesc) && offsetof(mem_access, flags) == offsetof(CUmemAccessDesc, flags));

// cuda.h renames functions to their current versions by macros: what a name expands to is the symbol that the driver has
#define TEXT_OF(x) #x
#define EXPANDED(x) TEXT_OF(x)

int main() {
    int wrong = 0, functions = 0;
#define X(function, suffix, parameters)                                                                        \
    static_assert(same_parameters<result(*) parameters, decltype(&::function)>::value, "parameters of " #function); \
    functions++;                                                                                               \
    if (strcmp(#function suffix, EXPANDED(function)) != 0) {                                                   \
        printf("%s is called %s in cuda.h\n", #function suffix, EXPANDED(function));                           \
        wrong++;                                                                                               \
    }
    KVASIR_CUDA_FUNCTIONS(X)
#undef X
    printf("%d functions, %d under another name\n", functions, wrong);
    return wrong > 0 || functions == 0;
}
