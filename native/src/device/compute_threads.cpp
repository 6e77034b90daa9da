#include "compute_threads.h"

#include "backend.h"
#include "graph.h"

#include "../error.h"
#include "../store/cache.h"
#include "../platform/processors.h"

#include <algorithm>

namespace kvasir {

static constexpr int32_t STEP_TOKENS  = 32;  // a batch of up to so many is a decode step, of many sequences perhaps
static constexpr int32_t SHORT_TOKENS = 128; // one of more computes for long between two barriers

compute_threads::compute_threads(llama_context * context, const llama_context_params & params, std::vector<proxy_backend *> backends, kvasir_cache * cache,
                                 bool governed)
    : context_(context), single_(std::max(1, params.n_threads)), batch_(std::max(1, params.n_threads_batch)), backends_(std::move(backends)),
      cache_(cache), governed_(governed), single_governor_(single_), batch_governor_(batch_) {
    for (proxy_backend * backend : backends_) {
        proxy_backend_set_threads(backend, this);
    }
    use(single_, batch_);
}

compute_threads::~compute_threads() {
    for (const auto & [n, pool] : pools_) {
        llama().threadpool_free(pool);
    }
}

void compute_threads::use(int n_threads, int n_threads_batch) {
    if (n_threads == n_threads_ && n_threads_batch == n_threads_batch_) {
        return; // llama.cpp would write a line of its log, and not only once
    }
    const api & a = llama();
    const int   n = std::max(n_threads, n_threads_batch);
    ggml_threadpool_t & pool = pools_[n];
    if (!pool) {
        ggml_threadpool_params params;
        a.ggml_threadpool_params_init(&params, n);
        // Workers spin between two graphs of a token, a few milliseconds: ggml's default spins long enough to take a core from
        // another context of the process.
        params.poll = 1;
        pool        = a.threadpool_new(&params);
    }
    if (!pool) {
        pools_.erase(n);
        throw error(KVASIR_OUT_OF_MEMORY, "no threads for the context");
    }
    a.llama_set_n_threads(context_, n_threads, n_threads_batch);
    n_threads_       = n_threads;
    n_threads_batch_ = n_threads_batch;
    if (pool != attached_) { // the other one's threads go to sleep
        a.llama_attach_threadpool(context_, pool, pool);
        for (proxy_backend * backend : backends_) {
            proxy_backend_set_threadpool(backend, pool);
        }
        attached_ = pool;
    }
}

void compute_threads::begin(int32_t n_tokens) {
    governor_ = !governed_ || n_tokens > STEP_TOKENS ? nullptr : n_tokens > 1 ? &batch_governor_ : &single_governor_;
    if (governor_) {
        if (n_tokens != n_tokens_) {
            governor_->restart();
        }
        n_tokens_ = n_tokens;
        use(std::min(single_, governor_->threads()), std::min(batch_, governor_->threads()));
    } else if (governed_ && n_tokens <= SHORT_TOKENS && single_governor_.threads() < single_) {
        use(single_governor_.threads(), std::min(batch_, single_governor_.threads()));
    } else {
        use(single_, batch_);
    }
    planned_ = n_tokens > 1 ? batch_ : single_;
    if (cache_) {
        cache_->threads = n_tokens > 1 ? n_threads_batch_ : n_threads_;
    }
    begun_ns_  = now_ns();
    preempted_ = governor_ ? preemptions() : 0;
}

void compute_threads::end() {
    if (governor_) {
        const int64_t now = now_ns();
        governor_->step(now, now - begun_ns_, preemptions() - preempted_);
        governor_ = nullptr;
    }
}

} // namespace kvasir
