// What the proxy device learns while llama.cpp makes one context: the buffers it asks for, the backends it opens and the
// attention nodes of the graphs it reserves. llama.cpp does all of that on the calling thread.
#pragma once

#include "../store/cache.h"

#include <set>
#include <string>
#include <vector>

namespace kvasir {

struct proxy_backend;

struct construction {
    kvasir_cache *               cache;
    std::vector<proxy_backend *> backends;
    std::set<int32_t>            missed;      // layers with attention over a cache that is not in the store
    std::string                  unsupported; // the first operation over the store that it has no path for
    int32_t                      n_caches = 0; // KV caches that llama.cpp has begun to allocate: a sliding-window model has a second one
    bool                         layers_listed = false; // since the last buffer of a cache, the devices of layers were asked for buffers

    explicit construction(kvasir_cache * cache);
    ~construction();
    construction(const construction &) = delete;
    construction & operator=(const construction &) = delete;

    static construction * current(); // of this thread, or nullptr
};

} // namespace kvasir
