#include "library.h"

#include <algorithm>
#include <mutex>
#include <new>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <psapi.h>
#else
#include <dlfcn.h>
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif
#endif

namespace kvasir {

static std::string folder_of_path(const std::string & path) {
    const size_t end = path.find_last_of("/\\");
    return end == std::string::npos ? std::string() : path.substr(0, end);
}

static bool is_llama_library(const std::string & path) {
    const size_t begin = path.find_last_of("/\\");
    const auto   name  = path.substr(begin == std::string::npos ? 0 : begin + 1);
    return name.find("ggml") != std::string::npos || name.find("llama") != std::string::npos;
}

static std::mutex     used_mutex;
static loaded_library used; // all that find_symbol finds belongs to it

void use_library(const loaded_library & library) {
    std::lock_guard<std::mutex> lock(used_mutex);
    used = library;
}

static loaded_library library_in_use() {
    std::lock_guard<std::mutex> lock(used_mutex);
    return used;
}

#if defined(_WIN32)

static std::string path_of(HMODULE module) {
    char        path[MAX_PATH];
    const DWORD n = GetModuleFileNameA(module, path, sizeof path);
    return std::string(path, n);
}

static std::vector<HMODULE> llama_modules() {
    HMODULE modules[1024];
    DWORD   bytes = 0;
    std::vector<HMODULE> found;
    if (EnumProcessModules(GetCurrentProcess(), modules, sizeof modules, &bytes)) {
        for (DWORD i = 0; i < bytes / sizeof(HMODULE) && i < 1024; i++) {
            if (is_llama_library(path_of(modules[i]))) {
                found.push_back(modules[i]);
            }
        }
    }
    return found;
}

std::vector<loaded_library> libraries_with(const char * function) {
    std::vector<loaded_library> found;
    for (HMODULE module : llama_modules()) {
        if (void * symbol = (void *) GetProcAddress(module, function)) {
            found.push_back({path_of(module), (void *) module, symbol});
        }
    }
    return found;
}

std::string preferred_to(const loaded_library &, const char *) { return {}; } // a library names those that it is linked to

std::string folder_of(const void * function) {
    HMODULE module = nullptr;
    const auto flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    return GetModuleHandleExA(flags, (LPCSTR) function, &module) ? folder_of_path(path_of(module)) : std::string();
}

// A module has only its own functions: those of one folder belong together.
void * find_symbol(const char * name) {
    const loaded_library library = library_in_use();
    for (HMODULE module : llama_modules()) {
        void * symbol = folder_of_path(path_of(module)) == folder_of_path(library.path) ? (void *) GetProcAddress(module, name) : nullptr;
        if (symbol) {
            return symbol;
        }
    }
    return nullptr;
}

void * find_symbol_beside(const void * function, const char * name) {
    HMODULE module = nullptr;
    if (!GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, (LPCSTR) function, &module)) {
        return nullptr;
    }
    return (void *) GetProcAddress(module, name);
}

void * open_library(const char * name) { return (void *) LoadLibraryA(name); }
void * library_symbol(void * library, const char * name) { return (void *) GetProcAddress((HMODULE) library, name); }

std::string library_problem(const char * path) {
    HMODULE library = LoadLibraryA(path);
    if (!library) {
        return "error " + std::to_string(GetLastError());
    }
    FreeLibrary(library);
    return "";
}

#else

static std::string path_of(const void * function) {
    Dl_info info;
    return function && dladdr(function, &info) && info.dli_fname ? info.dli_fname : std::string();
}

// Paths first, and nothing else: what lists them holds a lock of the loader, and another thread's dlopen holds one that dlopen wants.
static std::vector<std::string> llama_paths() {
    std::vector<std::string> paths;
#if defined(__APPLE__)
    for (uint32_t i = 0; i < _dyld_image_count(); i++) {
        if (const char * path = _dyld_get_image_name(i)) {
            paths.push_back(path);
        }
    }
#else
    struct list {
        std::vector<std::string> & paths;
        bool                       complete;
    } wanted{paths, true};
    dl_iterate_phdr(
        [](dl_phdr_info * info, size_t, void * data) -> int {
            auto * l = (list *) data;
            try {
                l->paths.push_back(info->dlpi_name ? info->dlpi_name : "");
            } catch (...) { // not through the loader
                l->complete = false;
            }
            return !l->complete;
        },
        &wanted);
    if (!wanted.complete) {
        throw std::bad_alloc();
    }
#endif
    paths.erase(std::remove_if(paths.begin(), paths.end(), [](const std::string & path) { return !is_llama_library(path); }), paths.end());
    return paths;
}

std::vector<loaded_library> libraries_with(const char * function) {
    std::vector<loaded_library> found;
    for (const std::string & path : llama_paths()) {
        if (void * library = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY)) { // for good
            void * symbol = dlsym(library, function); // its own, or one of a library that it is linked to
            if (path_of(symbol) == path) {
                found.push_back({path, library, symbol});
            }
        }
    }
    void *            global = dlsym(RTLD_DEFAULT, function);
    const std::string path   = path_of(global);
    if (global && std::none_of(found.begin(), found.end(), [&](const loaded_library & l) { return l.path == path; })) {
        found.push_back({path, dlopen(nullptr, RTLD_LAZY), global}); // the program has it built in
    }
    return found;
}

std::string preferred_to(const loaded_library & library, const char * function) {
#if defined(__APPLE__)
    return {}; // a library names those that it is linked to
#else
    void * global = dlsym(RTLD_DEFAULT, function);
    return global && global != dlsym(library.handle, function) ? path_of(global) : std::string();
#endif
}

std::string folder_of(const void * function) { return folder_of_path(path_of(function)); }

void * find_symbol(const char * name) {
    const loaded_library library = library_in_use();
    if (!library.handle) {
        return nullptr;
    }
    if (void * symbol = dlsym(library.handle, name)) {
        return symbol;
    }
    for (const std::string & path : llama_paths()) { // libllama-common is linked to libllama
        void * other = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
        void * own   = other ? dlsym(other, "llama_version") : nullptr;
        if (own && own == library.function) {
            if (void * symbol = dlsym(other, name)) {
                return symbol;
            }
        }
    }
    return nullptr;
}

void * find_symbol_beside(const void * function, const char * name) {
    void * library = dlopen(path_of(function).c_str(), RTLD_NOLOAD | RTLD_LAZY);
    return library ? dlsym(library, name) : nullptr;
}

void * open_library(const char * name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void * library_symbol(void * library, const char * name) { return dlsym(library, name); }

std::string library_problem(const char * path) {
    void * library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char * why = dlerror();
        return why ? why : "unknown";
    }
    dlclose(library);
    return "";
}

#endif

} // namespace kvasir
