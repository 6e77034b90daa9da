#include "api.h"

#include "../error.h"
#include "../platform/library.h"
#include "assertion.h"

#include <atomic>
#include <algorithm>
#include <cstring>
#include <iterator>

namespace kvasir {

void * device_function(ggml_backend_dev_t device, const char * name) {
    ggml_backend_reg_t reg = device->reg;
    return reg && reg->iface.get_proc_address ? reg->iface.get_proc_address(reg, name) : nullptr;
}

static void require(bool condition, const char * what) {
    if (!condition) {
        throw error(KVASIR_INCOMPATIBLE, format("the loaded llama.cpp is not the version that this libkvasir was built for (%s): "
                                                "%s differs; use the llama.cpp libraries that come with Kvasir", KVASIR_LLAMA_VERSION, what));
    }
}

static std::atomic<int> custom_calls{0};

static void count_custom_call(ggml_tensor *, int, int, void * userdata) {
    if (userdata == &custom_calls) {
        custom_calls++;
    }
}

// A one-node graph through the CPU device: its structs are read the way the proxy device reads them.
static void check_structs(const api & a) {
    ggml_context * ctx = a.ggml_init({(size_t) 1 << 16, nullptr, false});
    require(ctx != nullptr, "ggml_init");
    ggml_tensor * t = a.ggml_custom_4d(ctx, GGML_TYPE_F32, 2, 3, 4, 5, nullptr, 0, count_custom_call, 1, &custom_calls);
    a.ggml_set_name(t, "kvasir");
    ggml_cgraph * graph = a.ggml_new_graph_custom(ctx, 8, false);
    a.ggml_build_forward_expand(graph, t);

    ggml_custom_op_params params;
    memcpy(&params, t->op_params, sizeof params);
    const bool tensor_ok = t->op == GGML_OP_CUSTOM && t->type == GGML_TYPE_F32 && strcmp(t->name, "kvasir") == 0 && t->ne[3] == 5 &&
                           t->nb[3] == 2 * 3 * 4 * sizeof(float) && t->data != nullptr && t->view_src == nullptr;
    const bool params_ok = params.fun == count_custom_call && params.n_tasks == 1 && params.userdata == &custom_calls;
    const bool graph_ok  = a.ggml_graph_n_nodes(graph) == 1 && graph->n_nodes == 1 && graph->nodes[0] == t && a.ggml_graph_node(graph, 0) == t;
    const bool device_ok = strcmp(a.cpu->iface.get_name(a.cpu), a.ggml_backend_dev_name(a.cpu)) == 0 && a.cpu->reg &&
                           a.cpu->reg->api_version == GGML_BACKEND_API_VERSION;

    bool           backend_ok = false;
    ggml_backend_t backend    = device_ok ? a.ggml_backend_dev_init(a.cpu, nullptr) : nullptr;
    if (backend) {
        const int before = custom_calls;
        backend_ok = backend->device == a.cpu && tensor_ok && params_ok && graph_ok &&
                     backend->iface.graph_compute(backend, graph) == GGML_STATUS_SUCCESS && custom_calls > before;
        a.ggml_backend_free(backend);
    }
    a.ggml_free(ctx);

    require(tensor_ok, "struct ggml_tensor");
    require(params_ok, "struct ggml_custom_op_params");
    require(graph_ok, "struct ggml_cgraph");
    require(device_ok, "struct ggml_backend_device");
    require(backend_ok, "struct ggml_backend");
}

// "0.5.0" of "v0.5.0", and of "0.5.0-dev"
static std::string release(const char * version) {
    const std::string text = version && *version == 'v' ? version + 1 : version ? version : "";
    return text.substr(0, text.find('-'));
}

// Everything has to come from one build of llama.cpp, though the process may have loaded several: the one beside this library, or the
// only one of the right version.
static loaded_library choose_build() {
    std::vector<loaded_library> builds = libraries_with("llama_version");
    if (builds.empty()) {
        throw error(KVASIR_INCOMPATIBLE, "none of the loaded libraries has llama_version; load ggml and llama.cpp " KVASIR_LLAMA_VERSION " first");
    }
    std::string list;
    for (const loaded_library & b : builds) {
        list += format("%s%s (%s)", list.empty() ? "" : ", ", b.path.c_str(), ((decltype(&::llama_version)) b.function)());
    }
    const auto only = [&](auto && is_wanted) {
        std::vector<loaded_library> wanted;
        std::copy_if(builds.begin(), builds.end(), std::back_inserter(wanted), is_wanted);
        if (wanted.size() == 1) {
            builds = wanted;
        }
    };
    if (builds.size() > 1) {
        const std::string folder = folder_of((const void *) choose_build);
        only([&](const loaded_library & b) { return folder_of(b.function) == folder; });
    }
    if (builds.size() > 1) {
        only([](const loaded_library & b) { return release(((decltype(&::llama_version)) b.function)()) == KVASIR_LLAMA_SOURCE_VERSION; });
    }
    if (builds.size() > 1) {
        throw error(KVASIR_INCOMPATIBLE, format("this process has loaded several builds of llama.cpp, and which one is meant is not known: %s; load one, "
                                                "or libkvasir from the folder of the one that is meant", list.c_str()));
    }
    const char * version = ((decltype(&::llama_version)) builds[0].function)();
    if (release(version) != KVASIR_LLAMA_SOURCE_VERSION) {
        throw error(KVASIR_INCOMPATIBLE, format("llama.cpp is version %s (%s), this libkvasir was built for %s: use the llama.cpp libraries that come with Kvasir",
                                                version, builds[0].path.c_str(), KVASIR_LLAMA_SOURCE_VERSION));
    }
    for (const char * function : {"llama_version", "ggml_version", "ggml_backend_dev_count"}) {
        const std::string other = preferred_to(builds[0], function);
        if (!other.empty()) {
            throw error(KVASIR_INCOMPATIBLE, format("%s uses functions of another build, as %s is in the global scope: load one build of llama.cpp only",
                                                    builds[0].path.c_str(), other.c_str()));
        }
    }
    return builds[0];
}

void use_loaded_llama() { use_library(choose_build()); }

static api resolve() {
    use_loaded_llama();
    api a{};
#define X(function)                                                                                                              \
    a.function = (decltype(a.function)) find_symbol(#function);                                                                  \
    if (!a.function) {                                                                                                           \
        throw error(KVASIR_INCOMPATIBLE, "none of the loaded libraries has " #function "; load ggml and llama.cpp " KVASIR_LLAMA_VERSION " first"); \
    }
    KVASIR_GGML_FUNCTIONS(X)
    KVASIR_LLAMA_FUNCTIONS(X)
#undef X
    require(strcmp(a.ggml_version(), KVASIR_GGML_VERSION) == 0, "ggml's version");
    for (const char * name : {"_Z19llama_graph_reserveP13llama_contextjjj", "?llama_graph_reserve@@YAPEAUggml_cgraph@@PEAUllama_context@@III@Z"}) { // C++
        a.llama_graph_reserve = a.llama_graph_reserve ? a.llama_graph_reserve : (decltype(a.llama_graph_reserve)) find_symbol(name);
    }

    for (size_t i = 0; i < a.ggml_backend_dev_count() && !a.cpu; i++) {
        ggml_backend_dev_t device = a.ggml_backend_dev_get(i);
        if (device->iface.get_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            a.cpu = device;
        }
    }
    if (!a.cpu) {
        throw error(KVASIR_INCOMPATIBLE, "ggml has no CPU device: load its backends first (ggml_backend_load_all_from_path)");
    }
    a.threadpool_new  = (decltype(a.threadpool_new)) device_function(a.cpu, "ggml_threadpool_new");
    a.threadpool_free = (decltype(a.threadpool_free)) device_function(a.cpu, "ggml_threadpool_free");
    a.set_threadpool  = (decltype(a.set_threadpool)) device_function(a.cpu, "ggml_backend_cpu_set_threadpool");
    require(a.threadpool_new && a.threadpool_free && a.set_threadpool, "the CPU backend's thread pool");
    // not among the functions that a backend hands out, and several CPU modules may be loaded: it must be this device's
    a.type_traits_cpu = (decltype(a.type_traits_cpu)) find_symbol_beside((void *) a.cpu->iface.get_name, "ggml_get_type_traits_cpu");
    require(a.type_traits_cpu, "ggml_get_type_traits_cpu");
    check_structs(a);
    assertions_install(a);
    return a;
}

const api & llama() {
    static const api a = resolve(); // a failed attempt is tried again on the next call
    return a;
}

} // namespace kvasir
