// The proxy's backend: runs llama.cpp's graphs on the inner backend, with the nodes over the KV cache as ours.
#pragma once

#include "../llama/api.h"

namespace kvasir {

struct proxy_backend;
class compute_threads;

ggml_backend_t proxy_backend_new(ggml_backend_dev_t device, ggml_backend_dev_t inner, const char * params);
void           proxy_backend_set_n_threads(ggml_backend_t backend, int n_threads);
void           proxy_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data);
ggml_backend_t proxy_backend_inner(const proxy_backend * backend);
// the threads that an inner CPU backend computes with: llama.cpp attaches its own only to its own CPU backend
void           proxy_backend_set_threadpool(proxy_backend * backend, ggml_threadpool_t threadpool);
// whose they are: they outlive every graph
void           proxy_backend_set_threads(proxy_backend * backend, const compute_threads * threads);

} // namespace kvasir
