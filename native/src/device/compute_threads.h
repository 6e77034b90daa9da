// The threads that compute a context's graphs on the CPU. ggml would otherwise start new ones for every graph. Decode steps over
// the store use as many as their governor says; each number has a pool of its own, as a thread of a larger pool would spin before it sleeps.
#pragma once

#include "../llama/api.h"
#include "thread_governor.h"

#include <map>
#include <vector>

struct kvasir_cache;

namespace kvasir {

struct proxy_backend;

class compute_threads {
public:
    // governed: whether fewer threads may compute a decode step. The results are the same then only where no operation divides
    // its sums by the number of threads, as ggml's attention on the CPU does.
    compute_threads(llama_context * context, const llama_context_params & params, std::vector<proxy_backend *> backends, kvasir_cache * cache,
                    bool governed);
    ~compute_threads(); // after the context
    compute_threads(const compute_threads &) = delete;
    compute_threads & operator=(const compute_threads &) = delete;

    // around every llama_decode
    void begin(int32_t n_tokens);
    void end();

    // by how many the attention kernels divide their work: always what the context was made with, so that sums do not depend on the load
    int planned(int n_threads) const { return planned_ ? planned_ : n_threads; }

private:
    void use(int n_threads, int n_threads_batch);

    llama_context *              context_;
    int                          single_, batch_;
    std::vector<proxy_backend *> backends_;
    kvasir_cache *               cache_; // where the number is noted, or nullptr
    bool                         governed_;
    std::map<int, ggml_threadpool_t> pools_;
    ggml_threadpool_t            attached_ = nullptr;
    thread_governor              single_governor_, batch_governor_;
    thread_governor *            governor_ = nullptr; // of the decode that is going on
    int                          planned_  = 0;
    int                          n_threads_ = 0, n_threads_batch_ = 0; // what the context has now
    int32_t                      n_tokens_ = 0;
    int64_t                      begun_ns_ = 0, preempted_ = 0;
};

} // namespace kvasir
