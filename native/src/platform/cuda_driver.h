// NVIDIA's driver API, loaded at run time: one build of libkvasir serves machines with and without a GPU. The declarations
// are those of cuda.h (CUDA 12 and later), as far as they are used here; test/cuda/driver_test.cpp compares them with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvasir::cuda {

using result     = int; // CUresult
using device_ptr = unsigned long long;
using device     = int;
using context    = struct CUctx_st *;
using module     = struct CUmod_st *;
using function   = struct CUfunc_st *;
using stream     = struct CUstream_st *;
using event      = struct CUevent_st *;
using graph      = struct CUgraph_st *;
using graph_exec = struct CUgraphExec_st *;
using allocation = unsigned long long; // CUmemGenericAllocationHandle

constexpr result SUCCESS = 0, OUT_OF_MEMORY = 2;

enum {
    STREAM_NON_BLOCKING           = 1, // CU_STREAM_NON_BLOCKING
    EVENT_DISABLE_TIMING          = 2, // CU_EVENT_DISABLE_TIMING
    CAPTURE_RELAXED               = 2, // CU_STREAM_CAPTURE_MODE_RELAXED
    ATTRIBUTE_MULTIPROCESSORS     = 16,
    ATTRIBUTE_MAJOR               = 75,
    ATTRIBUTE_MINOR               = 76,
    ATTRIBUTE_SHARED_PER_SM       = 81,  // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    ATTRIBUTE_SHARED_OPTIN        = 97,  // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    ATTRIBUTE_VIRTUAL_MEMORY      = 102, // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    FUNCTION_MAX_DYNAMIC_SHARED   = 8,   // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    MEMORY_PINNED                 = 1,   // CU_MEM_ALLOCATION_TYPE_PINNED
    LOCATION_DEVICE               = 1,   // CU_MEM_LOCATION_TYPE_DEVICE
    ACCESS_READWRITE              = 3,   // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    GRANULARITY_MINIMUM           = 0
};

struct mem_location { // CUmemLocation
    int type;
    int id;
};

struct mem_properties { // CUmemAllocationProp
    int           type;
    int           handle_types;
    mem_location  location;
    void *        win32_metadata;
    unsigned char flags[8];
};

struct mem_access { // CUmemAccessDesc
    mem_location location;
    int          flags;
};

struct graph_update { // CUgraphExecUpdateResultInfo
    int    result;
    void * error_node;
    void * error_from_node;
};

// CUDA_MEMCPY2D
enum { MEMORY_HOST = 1, MEMORY_DEVICE = 2 };
struct copy_2d_side {
    size_t     x, y;
    int        memory;
    void *     host;
    device_ptr device;
    void *     array;
    size_t     pitch;
};
struct copy_2d {
    copy_2d_side from, to;
    size_t       bytes, rows;
};

// X(name, suffix of the symbol, parameters)
#define KVASIR_CUDA_FUNCTIONS(X)                                                                                       \
    X(cuInit, "", (unsigned))                                                                                          \
    X(cuGetErrorString, "", (result, const char **) )                                                                  \
    X(cuDeviceGet, "", (device *, int) )                                                                               \
    X(cuDeviceGetAttribute, "", (int *, int, device) )                                                                 \
    X(cuDeviceTotalMem, "_v2", (size_t *, device) )                                                                    \
    X(cuDevicePrimaryCtxRetain, "", (context *, device) )                                                              \
    X(cuCtxGetCurrent, "", (context *) )                                                                               \
    X(cuCtxSetCurrent, "", (context) )                                                                                 \
    X(cuModuleLoadData, "", (module *, const void *) )                                                                 \
    X(cuModuleGetFunction, "", (function *, module, const char *) )                                                    \
    X(cuFuncSetAttribute, "", (function, int, int) )                                                                   \
    X(cuLaunchKernel, "", (function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, stream, void **, void **) ) \
    X(cuLaunchCooperativeKernel, "", (function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, stream, void **) ) \
    X(cuStreamCreate, "", (stream *, unsigned) )                                                                       \
    X(cuStreamDestroy, "_v2", (stream) )                                                                               \
    X(cuStreamSynchronize, "", (stream) )                                                                              \
    X(cuStreamWaitEvent, "", (stream, event, unsigned) )                                                               \
    X(cuStreamBeginCapture, "_v2", (stream, int) )                                                                     \
    X(cuStreamEndCapture, "", (stream, graph *) )                                                                      \
    X(cuEventCreate, "", (event *, unsigned) )                                                                         \
    X(cuEventDestroy, "_v2", (event) )                                                                                 \
    X(cuEventRecord, "", (event, stream) )                                                                             \
    X(cuEventSynchronize, "", (event) )                                                                                \
    X(cuGraphInstantiateWithFlags, "", (graph_exec *, graph, unsigned long long) )                                     \
    X(cuGraphExecUpdate, "_v2", (graph_exec, graph, graph_update *) )                                                  \
    X(cuGraphLaunch, "", (graph_exec, stream) )                                                                        \
    X(cuGraphDestroy, "", (graph) )                                                                                    \
    X(cuGraphExecDestroy, "", (graph_exec) )                                                                           \
    X(cuMemGetInfo, "_v2", (size_t *, size_t *) )                                                                      \
    X(cuMemAlloc, "_v2", (device_ptr *, size_t) )                                                                      \
    X(cuMemFree, "_v2", (device_ptr) )                                                                                 \
    X(cuMemHostAlloc, "", (void **, size_t, unsigned) )                                                                \
    X(cuMemFreeHost, "", (void *) )                                                                                    \
    X(cuMemcpyHtoDAsync, "_v2", (device_ptr, const void *, size_t, stream) )                                           \
    X(cuMemcpyDtoHAsync, "_v2", (void *, device_ptr, size_t, stream) )                                                 \
    X(cuMemcpyDtoDAsync, "_v2", (device_ptr, device_ptr, size_t, stream) )                                             \
    X(cuMemcpy2DAsync, "_v2", (const copy_2d *, stream) )                                                              \
    X(cuMemsetD8Async, "", (device_ptr, unsigned char, size_t, stream) )                                               \
    X(cuMemAddressReserve, "", (device_ptr *, size_t, size_t, device_ptr, unsigned long long) )                        \
    X(cuMemAddressFree, "", (device_ptr, size_t) )                                                                     \
    X(cuMemCreate, "", (allocation *, size_t, const mem_properties *, unsigned long long) )                            \
    X(cuMemRelease, "", (allocation) )                                                                                 \
    X(cuMemMap, "", (device_ptr, size_t, size_t, allocation, unsigned long long) )                                     \
    X(cuMemUnmap, "", (device_ptr, size_t) )                                                                           \
    X(cuMemSetAccess, "", (device_ptr, size_t, const mem_access *, size_t) )                                           \
    X(cuMemGetAllocationGranularity, "", (size_t *, const mem_properties *, int) )

struct driver {
#define X(name, suffix, parameters) result(*name) parameters;
    KVASIR_CUDA_FUNCTIONS(X)
#undef X
};

// Loads libcuda and initialises it on the first call; throws kvasir::error (KVASIR_UNSUPPORTED) that says what is missing.
const driver & cu();

// throws kvasir::error: KVASIR_OUT_OF_MEMORY when the device has no memory left, else KVASIR_FAILED with the driver's text
void check(result r, const char * what);

} // namespace kvasir::cuda
