#include "library.h"

#include <cstring>

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

static bool is_llama_library(const char * path) {
    const char * name = path;
    for (const char * p = path; *p; p++) {
        if (*p == '/' || *p == '\\') {
            name = p + 1;
        }
    }
    return strstr(name, "ggml") != nullptr || strstr(name, "llama") != nullptr;
}

#if defined(_WIN32)

void * find_symbol(const char * name) {
    HMODULE modules[1024];
    DWORD   bytes = 0;
    if (!EnumProcessModules(GetCurrentProcess(), modules, sizeof modules, &bytes)) {
        return nullptr;
    }
    for (DWORD i = 0; i < bytes / sizeof(HMODULE) && i < 1024; i++) {
        char path[MAX_PATH];
        if (GetModuleFileNameA(modules[i], path, sizeof path) && is_llama_library(path)) {
            if (void * symbol = (void *) GetProcAddress(modules[i], name)) {
                return symbol;
            }
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

static void * find_in(const char * path, const char * name) {
    if (!path || !is_llama_library(path)) {
        return nullptr;
    }
    void * library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
    if (!library) {
        return nullptr;
    }
    void * symbol = dlsym(library, name);
    dlclose(library);
    return symbol;
}

#if defined(__APPLE__)

static void * find_in_loaded(const char * name) {
    for (uint32_t i = 0; i < _dyld_image_count(); i++) {
        if (void * symbol = find_in(_dyld_get_image_name(i), name)) {
            return symbol;
        }
    }
    return nullptr;
}

#else

static void * find_in_loaded(const char * name) {
    struct request {
        const char * name;
        void *       symbol;
    } wanted{name, nullptr};
    dl_iterate_phdr(
        [](dl_phdr_info * info, size_t, void * data) -> int {
            auto * r  = (request *) data;
            r->symbol = find_in(info->dlpi_name, r->name);
            return r->symbol != nullptr;
        },
        &wanted);
    return wanted.symbol;
}

#endif

void * find_symbol(const char * name) {
    if (void * symbol = dlsym(RTLD_DEFAULT, name)) {
        return symbol;
    }
    return find_in_loaded(name);
}

void * find_symbol_beside(const void * function, const char * name) {
    Dl_info info;
    return dladdr(function, &info) ? find_in(info.dli_fname, name) : nullptr;
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
