// The C ABI: argument checks, and a wall for C++ exceptions around what the other files do.
#include "kvasir.h"

#include "attention/cpu/cpu_attention.h"
#include "device/accept.h"
#include "device/compute_threads.h"
#include "device/construction.h"
#include "device/cuda/cuda_device.h"
#include "device/kv_buffer.h"
#include "device/proxy.h"
#include "error.h"
#include "llama/api.h"
#include "llama/assertion.h"
#include "llama/batch.h"
#include "llama/chat_template.h"
#include "llama/model_memory.h"
#include "platform/library.h"
#include "platform/processors.h"
#include "store/cache.h"
#include "store/cuda_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

using namespace kvasir;

namespace {

void require(bool condition, const char * what) {
    if (!condition) {
        throw error(KVASIR_INVALID_ARGUMENT, what);
    }
}

// The threads of every context that was made here.
std::mutex                                                       threads_mutex;
std::map<const llama_context *, std::unique_ptr<compute_threads>> threads_of;

// What the batches of these contexts must be like.
std::mutex                                    batch_limits_mutex;
std::map<const llama_context *, batch_limits> batch_limits_by_context;

void forget_limits(const llama_context * context) {
    std::lock_guard<std::mutex> lock(batch_limits_mutex);
    batch_limits_by_context.erase(context);
}

batch_limits limits_for(const llama_context * context) {
    std::lock_guard<std::mutex> lock(batch_limits_mutex);
    const auto found = batch_limits_by_context.find(context);
    return found == batch_limits_by_context.end() ? batch_limits_of(context) : found->second;
}

compute_threads * find_threads(const llama_context * context) {
    std::lock_guard<std::mutex> lock(threads_mutex);
    auto found = threads_of.find(context);
    return found == threads_of.end() ? nullptr : found->second.get();
}

void attach_threads(llama_context * context, const llama_context_params & params, const construction * made) {
    const bool governed = made && std::any_of(made->cache->layers.begin(), made->cache->layers.end(), [](const auto & l) { return l->device == llama().cpu; }) &&
                          std::all_of(made->cache->layers.begin(), made->cache->layers.end(), [](const auto & l) {
                              return l->device != llama().cpu || l->attention == KVASIR_ATTENTION_NATIVE;
                          });
    auto threads = std::make_unique<compute_threads>(context, params, made ? made->backends : std::vector<proxy_backend *>(),
                                                     made ? made->cache : nullptr, governed);
    std::lock_guard<std::mutex> lock(threads_mutex);
    threads_of[context] = std::move(threads);
}

// llama.cpp does not ask a proxy about layers that are on another device. They stand in the whole graph, which it builds once more here.
void find_missed(llama_context * context, const batch_limits & limits, construction & made) {
    const api & a = llama();
    if (!a.llama_graph_reserve) {
        return; // then only what is asked for shows
    }
    // as large as the last of llama.cpp's own, so that what it has reserved stays as it is
    const uint32_t      n_seqs = a.llama_n_seq_max(context), n_tokens = std::max(std::min(a.llama_n_ctx(context), a.llama_n_ubatch(context)), n_seqs);
    const ggml_cgraph * graph  = a.llama_graph_reserve(context, n_tokens, n_seqs, std::min(n_tokens, (uint32_t) limits.n_outputs));
    if (!graph) {
        throw error(KVASIR_OUT_OF_MEMORY, "llama.cpp found no memory for the graphs of the context");
    }
    for (int i = 0; i < graph->n_nodes; i++) {
        for (const ggml_tensor * src : graph->nodes[i]->src) {
            const cache_name name = src ? parse_cache_name(root_of(src)->name) : cache_name();
            if (name.valid && !side_of(src)) {
                made.missed.insert(name.il);
            }
        }
    }
}
std::atomic<bool> abandoned{false};

void require_intercepted(const construction & made) {
    const kvasir_cache & cache = *made.cache;
    if (!made.unsupported.empty()) {
        throw error(KVASIR_UNSUPPORTED, "the adaptive cache has no path for " + made.unsupported);
    }
    if (!made.missed.empty()) {
        throw error(KVASIR_NOT_INTERCEPTED, format("layer %d keeps its KV cache outside of the store: the model must be loaded onto the device of kvasir_device",
                                                   *made.missed.begin()));
    }
    if (cache.layers.empty()) {
        throw error(KVASIR_NOT_INTERCEPTED, "the context has no KV cache in the store: load the model onto the device of kvasir_device, all layers of it; "
                                            "a model without attention has no KV cache at all");
    }
    for (const auto & l : cache.layers) {
        if (!l->k.tensor || (!l->v.tensor && !l->v.format.part)) {
            throw error(KVASIR_UNSUPPORTED, format("layer %d has %s cache only", l->il, l->k.tensor ? "a K" : "a V"));
        }
        if (!l->configured()) {
            throw error(KVASIR_NOT_INTERCEPTED, format("no attention over the cache of layer %d was seen", l->il));
        }
    }
}

// What llama.cpp cannot run at all, and what the store has no path for.
void check_model(const llama_model * model, bool with_store) {
    std::string why = why_no_memory(model);
    if (why.empty() && with_store) {
        why = why_no_store(model);
    }
    if (!why.empty()) {
        throw error(KVASIR_UNSUPPORTED, why);
    }
}

void require_recurrent(llama_context * context, int32_t seq) {
    const api & a = llama();
    require(context, "context is NULL");
    require(seq >= 0 && seq < (int32_t) a.llama_n_seq_max(context), "seq is not a sequence of the context");
    const llama_model * model = a.llama_get_model(context);
    if (!a.llama_model_is_recurrent(model) && !a.llama_model_is_hybrid(model)) {
        throw error(KVASIR_UNSUPPORTED, "the model has no recurrent state");
    }
    if (a.llama_model_n_swa(model) > 0) {
        throw error(KVASIR_UNSUPPORTED, "llama.cpp saves the recurrent state of a model with a sliding window together with the window's cells only");
    }
}

void check_params(const llama_context_params & params) {
    require(params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_ENABLED, "the adaptive cache needs flash_attn_type = enabled");
    require(params.offload_kqv, "the adaptive cache needs offload_kqv = true");
    for (ggml_type type : {params.type_k, params.type_v}) {
        if (!rows_supports(type, 32)) {
            throw error(KVASIR_UNSUPPORTED, "KV types of the adaptive cache are f16, bf16, q8_0, q4_0, q4_1, q5_0 and q5_1");
        }
    }
}

layer & checked_layer(const kvasir_cache * cache, int32_t index) {
    require(cache != nullptr, "cache is NULL");
    return cache->layer_at(index);
}

void require_slots(const layer & l, int head, const int32_t * slots, int32_t n_slots) {
    require(n_slots >= 0 && (slots || n_slots == 0), "slots is NULL or n_slots is negative");
    for (int32_t s = 0; s < n_slots; s++) {
        if (slots[s] <= (s == 0 ? -1 : slots[s - 1]) || slots[s] >= l.heads[(size_t) head].n) {
            throw error(KVASIR_INVALID_ARGUMENT, format("slots must ascend and be below %d: slots[%d] = %d", l.heads[(size_t) head].n, s, slots[s]));
        }
    }
}

// rows [first, first + n) of one side of a head as floats; to may be NULL
void read_floats(const layer & l, bool is_k, int index, int32_t first, int32_t n, float * to) {
    if (!to || n == 0) {
        return;
    }
    row_format f = is_k ? l.k.format : l.v.format;
    f.tiled = false;
    std::vector<char> rows((size_t) n * f.row_bytes);
    l.rows->read(is_k, index, first, n, rows.data());
    for (int32_t i = 0; i < n; i++) {
        rows_read(f, rows.data(), i, to + (size_t) i * f.dim);
    }
}

void value_norms(const layer & l, int index, int32_t first, int32_t n, float * norms) {
    if (n == 0 || l.rows->value_norms(index, first, n, norms)) {
        return;
    }
    std::vector<char> rows((size_t) n * l.v.format.row_bytes);
    l.rows->read(false, index, first, n, rows.data());
    rows_norms(l.v.format, rows.data(), n, norms);
}

// what kvasir_cache_fetch has to bring of layers whose scores and sums are the host's
void fetch_on_host(kvasir_cache & cache, int32_t stream, kvasir_fetch * items, int32_t n) {
    std::vector<std::vector<float>> & data = cache.fetched[stream];
    data.clear();
    for (kvasir_fetch * item = items; item < items + n; item++) {
        const layer & l = *cache.layers[(size_t) item->layer];
        if (l.rows->accumulates()) {
            continue;
        }
        const int          i = l.index(stream, item->head);
        const head_store & h = l.heads[(size_t) i];
        data.emplace_back((size_t) item->n_slots);
        if (item->what == KVASIR_READ_SCORES) {
            std::copy_n(h.score + item->first_slot, item->n_slots, data.back().begin());
        } else if (item->what == KVASIR_READ_VALUE_NORMS) {
            value_norms(l, i, item->first_slot, item->n_slots, data.back().data());
        } else {
            const statistic s = cache.statistic_of(l);
            data.back().resize((size_t) item->n_slots * (size_t) (s.rows * (s.n_bounds + 1)));
            l.read_sums(i, s, false, data.back().data());
        }
        item->data = data.back().data();
    }
}

} // namespace

extern "C" {

uint32_t kvasir_abi_version(void) noexcept { return KVASIR_ABI_VERSION; }

const char * kvasir_last_error(void) noexcept { return last_error().c_str(); }

const char * kvasir_llama_version(void) noexcept { return KVASIR_LLAMA_VERSION; }

const char * kvasir_kernels(const char * device_name) noexcept {
    const char * kernels = "";
    guarded([&] {
        require(device_name, "device_name is NULL");
        const api & a = llama();
        std::string why_not;
        for (size_t i = 0; i < a.ggml_backend_dev_count(); i++) {
            ggml_backend_dev_t device = a.ggml_backend_dev_get(i);
            if (strcmp(device->iface.get_name(device), device_name) == 0) {
                const bool cpu = device->iface.get_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
                kernels = cpu ? cpu_kernels_name() : cuda::gpu::of(device, why_not) ? "cuda" : "";
            }
        }
    });
    return kernels;
}

const char * kvasir_library_problem(const char * path) noexcept {
    static thread_local std::string problem;
    const kvasir_status status = guarded([&] {
        require(path, "path is NULL");
        problem = library_problem(path);
    });
    return status != KVASIR_OK ? kvasir_last_error() : problem.empty() ? nullptr : problem.c_str();
}

kvasir_status kvasir_init(void) noexcept {
    return guarded([] { llama().llama_backend_init(); });
}

kvasir_status kvasir_device(const char * inner_name, ggml_backend_device ** device) noexcept {
    return guarded([&] {
        require(inner_name && device, "inner_name or device is NULL");
        *device = proxy_for(inner_name);
    });
}

kvasir_status kvasir_model_load(const char * path, const llama_model_params * params, llama_model ** model) noexcept {
    return guarded([&] {
        require(path && params && model, "path, params or model is NULL");
        const api &            a = llama();
        const assertions_throw no_abort; // what a file says may break them
        *model = a.llama_model_load_from_file(path, *params);
        if (!*model) {
            throw error(KVASIR_FAILED, format("llama.cpp could not load %s", path));
        }
    });
}

kvasir_status kvasir_model_check(const llama_model * model, int32_t with_store) noexcept {
    return guarded([&] {
        require(model, "model is NULL");
        check_model(model, with_store != 0);
    });
}

kvasir_status kvasir_context_new(llama_model * model, const llama_context_params * params, kvasir_attention attention, llama_context ** context,
                                 kvasir_cache ** cache) noexcept {
    return guarded([&] {
        require(model && params && context, "model, params or context is NULL");
        require(attention == KVASIR_ATTENTION_NATIVE || attention == KVASIR_ATTENTION_PORTABLE, "attention is not one of enum kvasir_attention");
        const api & a = llama();
        check_outputs(model, *params);
        if (cache) {
            check_params(*params);
        }
        check_model(model, cache != nullptr);
        std::unique_ptr<kvasir_cache> store;
        std::unique_ptr<construction> made;
        if (cache) {
            store            = std::make_unique<kvasir_cache>();
            store->attention = attention;
            store->n_swa     = a.llama_model_n_swa(model);
            made             = std::make_unique<construction>(store.get());
        }
        // more threads than processors wait for each other
        llama_context_params with_usable_threads = *params;
        with_usable_threads.n_threads            = std::min(params->n_threads, usable_processors());
        with_usable_threads.n_threads_batch      = std::min(params->n_threads_batch, usable_processors());
        struct context_owner {
            llama_context * context;
            ~context_owner() {
                if (context) {
                    forget_limits(context);
                    const std::unique_lock<std::shared_mutex> none(cuda::captures());
                    llama().llama_free(context);
                }
            }
        };
        const auto init = [&] {
            const assertions_throw no_abort; // graphs are built here, and none is computed
            return a.llama_init_from_model(model, with_usable_threads);
        };
        context_owner owner{init()};
        if (!owner.context) {
            throw error(KVASIR_FAILED, made && !made->unsupported.empty() ? "the adaptive cache has no path for " + made->unsupported
                                                                          : "llama.cpp could not make the context");
        }
        if (!a.llama_get_memory(owner.context)) {
            throw error(KVASIR_UNSUPPORTED, "a model that llama.cpp gives no memory: it cannot continue a text");
        }
        const batch_limits limits = batch_limits_of(owner.context, *params);
        {
            std::lock_guard<std::mutex> lock(batch_limits_mutex);
            batch_limits_by_context[owner.context] = limits;
        }
        if (cache) {
            {
                const assertions_throw no_abort;
                find_missed(owner.context, limits, *made);
            }
            require_intercepted(*made);
            std::sort(store->layers.begin(), store->layers.end(), [](const auto & x, const auto & y) { return x->il < y->il; });
        }
        attach_threads(owner.context, with_usable_threads, made.get());
        *context      = owner.context;
        owner.context = nullptr;
        if (cache) {
            *cache = store.release();
        }
    });
}

void kvasir_context_free(llama_context * context, kvasir_cache * cache) noexcept {
    guarded([&] {
        if (context) {
            forget_limits(context);
            {
                const std::unique_lock<std::shared_mutex> none(cuda::captures());
                llama().llama_free(context);
            }
            std::lock_guard<std::mutex> lock(threads_mutex);
            threads_of.erase(context);
        }
        delete cache;
    });
}

kvasir_status kvasir_decode(llama_context * context, const llama_batch * batch, int32_t * result) noexcept {
    return guarded([&] {
        require(context && batch && result, "context, batch or result is NULL");
        *result = -1; // also where llama.cpp throws
        check_batch(*batch, limits_for(context));
        last_error().clear();
        refused_graph() = {};
        compute_threads * threads = find_threads(context);
        if (threads) {
            threads->begin(batch->n_tokens);
        }
        *result = llama().llama_decode(context, *batch);
        if (threads) {
            threads->end();
        }
        if (*result < 0) { // what went wrong in the backend was left by it, on this thread
            throw last_error().empty() ? error(KVASIR_FAILED, format("llama_decode returned %d", *result)) : error(last_status(), last_error());
        }
        if (refused_graph().cache) { // llama.cpp went on without it
            *result = -1;
            throw error(KVASIR_UNSUPPORTED, refused_graph().reason);
        }
    });
}

kvasir_status kvasir_recurrent_size(llama_context * context, int32_t seq, size_t * bytes) noexcept {
    return guarded([&] {
        require(bytes, "bytes is NULL");
        require_recurrent(context, seq);
        *bytes = llama().llama_state_seq_get_size_ext(context, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    });
}

kvasir_status kvasir_recurrent_save(llama_context * context, int32_t seq, void * to, size_t bytes) noexcept {
    return guarded([&] {
        require(to, "to is NULL");
        require_recurrent(context, seq);
        if (llama().llama_state_seq_get_data_ext(context, (uint8_t *) to, bytes, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != bytes) {
            throw error(KVASIR_FAILED, format("llama.cpp did not save the recurrent state of sequence %d in %zu bytes", seq, bytes));
        }
    });
}

kvasir_status kvasir_recurrent_restore(llama_context * context, int32_t seq, const void * from, size_t bytes) noexcept {
    return guarded([&] {
        require(from, "from is NULL");
        require_recurrent(context, seq);
        const api & a = llama();
        const bool  restored = a.llama_state_seq_set_data_ext(context, (const uint8_t *) from, bytes, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == bytes;
        // the state of an empty sequence is restored by emptying it
        const llama_pos last = a.llama_memory_seq_pos_max(a.llama_get_memory(context), seq);
        if (!restored || !a.llama_memory_seq_rm(a.llama_get_memory(context), seq, last + 1, -1)) {
            throw error(KVASIR_FAILED, format("llama.cpp did not restore the recurrent state of sequence %d", seq));
        }
    });
}

void kvasir_abandon(int32_t on) noexcept { abandoned = on != 0; }

bool kvasir_abandoned(void *) noexcept { return abandoned.load(std::memory_order_relaxed); }

kvasir_status kvasir_chat_render(const char * source, const char * bos, const char * eos, const kvasir_chat_message * messages, size_t n_messages, int32_t flags,
                                 char * buffer, size_t size, size_t * length) noexcept {
    return guarded([&] {
        require(source && bos && eos && (messages || n_messages == 0) && (buffer || size == 0) && length, "source, bos, eos, messages, buffer or length is NULL");
        for (size_t i = 0; i < n_messages; i++) {
            require(messages[i].role && messages[i].content, "a message has no role or no content");
        }
        const std::string text = chat_render(source, bos, eos, messages, n_messages, flags);
        *length = text.size();
        std::copy_n(text.data(), std::min(size, text.size()), buffer);
    });
}

int32_t kvasir_cache_n_layers(const kvasir_cache * cache) noexcept { return cache ? (int32_t) cache->layers.size() : 0; }

kvasir_status kvasir_cache_layer(const kvasir_cache * cache, int32_t index, kvasir_layer_info * info) noexcept {
    return guarded([&] {
        const layer & l = checked_layer(cache, index);
        require(info != nullptr, "info is NULL");
        *info = {l.il, l.n_stream, l.n_cells, l.n_head, l.n_head_kv, l.k.format.dim, l.v.format.dim, l.k.format.type, l.v.format.type, l.swa ? 1 : 0,
                 (int64_t) l.slot_bytes(), l.device->iface.get_name(l.device), l.attention, l.rows->accumulates() ? 0 : 1};
    });
}

kvasir_status kvasir_cache_head(const kvasir_cache * cache, int32_t index, int32_t stream, int32_t head, kvasir_head_view * view) noexcept {
    return guarded([&] {
        const layer & l = checked_layer(cache, index);
        require(view != nullptr, "view is NULL");
        const int          i = cache->head_at(l, stream, head);
        const head_store & h = l.heads[(size_t) i];
        *view = {&h.n, h.cell, h.pos, h.score, l.slot_plus_1[(size_t) i]};
    });
}

kvasir_status kvasir_cache_bytes(const kvasir_cache * cache, kvasir_bytes * bytes) noexcept {
    return guarded([&] {
        require(cache && bytes, "cache or bytes is NULL");
        *bytes = {};
        for (const auto & l : cache->layers) {
            for (const head_store & h : l->heads) {
                bytes->slots += h.n;
                bytes->kept_bytes += h.n * (int64_t) l->slot_bytes();
            }
            l->rows->flush();
            bytes->resident_bytes += (int64_t) l->resident_bytes();
            bytes->row_bytes += (int64_t) l->rows->row_bytes();
            bytes->full_bytes += (int64_t) l->heads.size() * l->n_cells * (int64_t) l->slot_bytes();
        }
    });
}

kvasir_status kvasir_cache_failure(kvasir_cache * cache) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        cache->report_failure();
    });
}

kvasir_status kvasir_cache_limit(kvasir_cache * cache, int64_t bytes) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        if (bytes < 0) {
            throw error(KVASIR_INVALID_ARGUMENT, format("a limit of %lld bytes: it must not be negative; 0 is none", (long long) bytes));
        }
        cache->limit.set((size_t) bytes);
    });
}

kvasir_status kvasir_cache_room(kvasir_cache * cache, int32_t stream, int32_t n_tokens) noexcept {
    return guarded([&] {
        require(cache != nullptr && n_tokens >= 0, "cache is NULL or n_tokens is negative");
        cache->require_room([&] {
            size_t more = 0;
            for (const auto & l : cache->layers) {
                std::vector<int32_t> wanted = l->lengths;
                for (int i = 0; i < (int) wanted.size(); i++) {
                    wanted[(size_t) i] += stream < 0 || i / l->n_head_kv == stream ? n_tokens : 0;
                }
                more += l->rows->growth(wanted.data());
            }
            return more;
        });
    });
}

kvasir_status kvasir_cache_keep(kvasir_cache * cache, int32_t index, int32_t stream, int32_t head, const int32_t * slots, int32_t n_slots) noexcept {
    return guarded([&] {
        layer &   l = checked_layer(cache, index);
        const int i = cache->head_at(l, stream, head);
        require_slots(l, i, slots, n_slots);
        l.keep(i, slots, n_slots);
    });
}

kvasir_status kvasir_cache_evict(kvasir_cache * cache, const kvasir_eviction * evictions, int32_t n_evictions) noexcept {
    return guarded([&] {
        require(cache && n_evictions >= 0 && (evictions || n_evictions == 0), "cache or evictions is NULL, or n_evictions is negative");
        for (int32_t e = 0; e < n_evictions; e++) {
            const kvasir_eviction & x = evictions[e];
            layer &                 l = cache->layer_at(x.layer);
            const int               i = cache->head_at(l, x.stream, x.head);
            if (x.slot < 0 || x.slot >= l.heads[(size_t) i].n) {
                throw error(KVASIR_INVALID_ARGUMENT, format("evictions[%d]: slot %d of layer %d, head %d, which holds %d slots (the evictions before it were carried out)",
                                                            e, x.slot, x.layer, x.head, l.heads[(size_t) i].n));
            }
            l.evict(i, x.slot);
        }
    });
}

kvasir_status kvasir_cache_truncate(kvasir_cache * cache, int32_t stream, int32_t first_cell) noexcept {
    return guarded([&] {
        require(cache && first_cell >= 0, "cache is NULL or first_cell is negative");
        for (auto & l : cache->layers) {
            cache->head_at(*l, stream, 0);
            l->truncate(stream, first_cell);
        }
        for (auto & l : cache->layers) {
            if (std::all_of(l->lengths.begin(), l->lengths.end(), [](int32_t n) { return n == 0; })) { // perhaps nothing comes after it
                l->rows->flush();
            }
        }
    });
}

kvasir_status kvasir_cache_read(const kvasir_cache * cache, int32_t index, int32_t stream, int32_t head, float * k, float * v) noexcept {
    return guarded([&] {
        const layer & l = checked_layer(cache, index);
        const int     i = cache->head_at(l, stream, head);
        read_floats(l, true, i, 0, l.heads[(size_t) i].n, k);
        read_floats(l, false, i, 0, l.heads[(size_t) i].n, v);
    });
}

kvasir_status kvasir_cache_value_norms(const kvasir_cache * cache, int32_t index, int32_t stream, int32_t head,
        int32_t first_slot, int32_t n_slots, float * norms) noexcept {
    return guarded([&] {
        const layer &      l = checked_layer(cache, index);
        const int          i = cache->head_at(l, stream, head);
        const head_store & h = l.heads[(size_t) i];
        require(first_slot >= 0 && n_slots >= 0 && first_slot <= h.n - n_slots, "no such slots");
        require(norms || n_slots == 0, "norms is NULL");
        value_norms(l, i, first_slot, n_slots, norms);
    });
}

kvasir_status kvasir_statistic_start(kvasir_cache * cache, const kvasir_statistic_params * params) noexcept {
    return guarded([&] {
        require(cache && params, "cache or params is NULL");
        cache->start_statistic(*params);
    });
}

kvasir_status kvasir_statistic_stop(kvasir_cache * cache) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        cache->stop_statistic();
    });
}

kvasir_status kvasir_statistic_read(const kvasir_cache * cache, int32_t index, int32_t stream, int32_t head, float * buckets, float * recent,
                                    int64_t * n_queries) noexcept {
    return guarded([&] {
        const layer & l = checked_layer(cache, index);
        const int     i = cache->head_at(l, stream, head);
        require(cache->statistic_on, "no statistic is running");
        const statistic s = cache->statistic_of(l);
        require(!recent || s.recent_from >= 0, "the statistic was started without recent_from");
        if (buckets) {
            l.read_sums(i, s, false, buckets);
        }
        if (recent) {
            l.read_sums(i, s, true, recent);
        }
        if (n_queries) {
            *n_queries = l.n_queries;
        }
    });
}

kvasir_status kvasir_cache_track(kvasir_cache * cache, int32_t index, int32_t stream, int32_t head, int32_t on) noexcept {
    return guarded([&] {
        layer & l = checked_layer(cache, index);
        l.track(cache->head_at(l, stream, head), on != 0);
    });
}

kvasir_status kvasir_cache_mark(kvasir_cache * cache, int32_t on) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        on ? cache->mark_counts() : cache->end_mark();
    });
}

kvasir_status kvasir_cache_take_back(kvasir_cache * cache) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        cache->take_back_counts();
        cache->end_mark();
    });
}

kvasir_status kvasir_cache_scores(kvasir_cache * cache, int32_t index, int32_t stream, int32_t head) noexcept {
    return guarded([&] {
        layer &   l = checked_layer(cache, index);
        const int i = cache->head_at(l, stream, head);
        l.rows->read_scores(i, l.heads[(size_t) i].n, l.heads[(size_t) i].score);
    });
}

kvasir_status kvasir_cache_fetch(kvasir_cache * cache, int32_t stream, kvasir_fetch * items, int32_t n_items) noexcept {
    return guarded([&] {
        require(cache && n_items >= 0 && (items || n_items == 0), "cache or items is NULL, or n_items is negative");
        for (int32_t i = 0; i < n_items; i++) {
            kvasir_fetch & item = items[i];
            const layer &  l    = cache->layer_at(item.layer);
            const int32_t  n    = l.heads[(size_t) cache->head_at(l, stream, item.head)].n;
            item.data = nullptr;
            require(item.what >= KVASIR_READ_SCORES && item.what <= KVASIR_READ_STATISTIC, "what is not one of enum kvasir_read");
            require(item.first_slot >= 0 && item.n_slots >= 0 && item.first_slot <= n - item.n_slots, "no such slots");
            require(item.what != KVASIR_READ_STATISTIC || cache->statistic_on, "no statistic is running");
            require(item.what != KVASIR_READ_STATISTIC || item.n_slots == n, "the statistic is fetched of all slots");
        }
        fetch_on_host(*cache, stream, items, n_items);
        for (auto & [device, gpu] : cache->gpus) {
            gpu->fetch(*cache, stream, items, n_items);
        }
    });
}

kvasir_status kvasir_cache_fetched(kvasir_cache * cache, int32_t stream) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        for (auto & [device, gpu] : cache->gpus) {
            gpu->fetched(stream);
        }
    });
}

kvasir_status kvasir_moved_record(kvasir_cache * cache, int32_t stride) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        require(stride >= 0 && stride <= 8 && (stride & (stride - 1)) == 0, "stride must be 0, 1, 2, 4 or 8");
        for (const auto & l : cache->layers) {
            if (l->n_stream > 1) {
                throw error(KVASIR_UNSUPPORTED, "moved queries are recorded for contexts of one sequence only");
            }
        }
        try {
            for (auto & l : cache->layers) {
                l->moved->set_stride(stride);
            }
        } catch (...) {
            for (auto & l : cache->layers) {
                l->moved->set_stride(0);
            }
            throw;
        }
    });
}

kvasir_status kvasir_moved_sum(kvasir_cache * cache, int32_t index, int32_t end, int32_t n_threads, int32_t * n_queries) noexcept {
    return guarded([&] {
        layer & l = checked_layer(cache, index);
        require(l.moved->recording(), "no queries are recorded");
        require(end >= 0 && n_threads >= 1 && n_queries, "end is negative, n_threads is not positive, or n_queries is NULL");
        *n_queries = l.moved->sum(end, n_threads);
    });
}

kvasir_status kvasir_moved_read(kvasir_cache * cache, int32_t index, int32_t head, float * p, float * squares, float * output, float * length2) noexcept {
    return guarded([&] {
        layer & l = checked_layer(cache, index);
        require(l.moved->recording(), "no queries are recorded");
        l.moved->read(cache->head_at(l, 0, head), p, squares, output, length2);
    });
}

kvasir_status kvasir_moved_fold(kvasir_cache * cache, int32_t index, const float * weights, int32_t smooth, int32_t n_threads) noexcept {
    return guarded([&] {
        layer & l = checked_layer(cache, index);
        require(l.moved->recording(), "no queries are recorded");
        require(smooth >= 1 && smooth % 2 == 1 && n_threads >= 1, "smooth must be odd and positive, n_threads positive");
        require(!cache->marked, "scores cannot be taken back to the mark once sums are folded into them: end the mark first");
        require(l.n_tracked == 0, "a head of the layer is tracked");
        l.moved->fold(weights, smooth, n_threads);
    });
}

kvasir_status kvasir_moved_layer(kvasir_cache * cache, int32_t index, kvasir_moved_info * info) noexcept {
    return guarded([&] {
        const layer & l = checked_layer(cache, index);
        require(info != nullptr, "info is NULL");
        *info = {l.moved->turned.omega.empty() ? 0 : 1, l.moved->window, l.moved->turned.hadamard};
    });
}

kvasir_status kvasir_cache_keep_all(kvasir_cache * cache, int32_t stream, const int32_t * slots, const int32_t * n_slots) noexcept {
    return guarded([&] {
        require(cache && slots && n_slots, "cache, slots or n_slots is NULL");
        for (const bool checked : {false, true}) { // all of it is looked at before anything is dropped
            const int32_t * of_head = slots, * count = n_slots;
            for (auto & l : cache->layers) {
                for (int32_t head = 0; head < l->n_head_kv; head++, of_head += *count++) {
                    const int i = cache->head_at(*l, stream, head);
                    if (checked) {
                        l->keep(i, of_head, *count);
                    } else {
                        require_slots(*l, i, of_head, *count);
                    }
                }
            }
        }
    });
}

kvasir_status kvasir_cache_timings(kvasir_cache * cache, kvasir_timings * timings, int32_t reset) noexcept {
    return guarded([&] {
        require(cache != nullptr, "cache is NULL");
        if (timings) {
            *timings = {cache->graphs, cache->graph_ns, cache->attention_ns, cache->append_ns, cache->prepare_ns, cache->captures, cache->threads};
        }
        if (reset) {
            cache->graphs = cache->graph_ns = cache->prepare_ns = cache->captures = 0;
            cache->attention_ns = 0;
            cache->append_ns    = 0;
        }
    });
}

size_t kvasir_sizeof(const char * struct_name) noexcept {
#define KVASIR_STRUCT(name)                    \
    if (strcmp(struct_name, #name) == 0) {     \
        return sizeof(struct name);            \
    }
    if (!struct_name) {
        return 0;
    }
    KVASIR_STRUCT(kvasir_layer_info)
    KVASIR_STRUCT(kvasir_head_view)
    KVASIR_STRUCT(kvasir_bytes)
    KVASIR_STRUCT(kvasir_eviction)
    KVASIR_STRUCT(kvasir_statistic_params)
    KVASIR_STRUCT(kvasir_fetch)
    KVASIR_STRUCT(kvasir_moved_info)
    KVASIR_STRUCT(kvasir_timings)
    KVASIR_STRUCT(kvasir_chat_message)
    KVASIR_STRUCT(kvasir_sampling)
#undef KVASIR_STRUCT
    return 0;
}

} // extern "C"
