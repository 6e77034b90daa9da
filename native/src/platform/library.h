// Functions of libraries that the process has already loaded.
#pragma once

#include <string>

#include <string>
#include <vector>

namespace kvasir {

// A library that defines a function itself.
struct loaded_library {
    std::string path;
    void *      handle;
    void *      function;
};

// The loaded libraries of llama.cpp and ggml that define it, and the program itself where it does. A process may have several builds
// of llama.cpp; they are usually loaded with local visibility, so the global scope alone does not find them.
std::vector<loaded_library> libraries_with(const char * function);
// Of another one with the same function, the path; empty where a library that needs the function finds it in this one: the global
// scope comes first.
std::string preferred_to(const loaded_library & library, const char * function);
// the folder of the library that contains a function
std::string folder_of(const void * function);

// From here on find_symbol looks in this library, in those that it is linked to, and in those that are linked to it.
void use_library(const loaded_library & library);
// The address of a symbol, or nullptr.
void * find_symbol(const char * name);

// The address of a symbol in the very library that contains the given function.
void * find_symbol_beside(const void * function, const char * name);

// A library of the system, loaded for good; nullptr when there is none of that name.
void * open_library(const char * name);
void * library_symbol(void * library, const char * name);

// Why a library cannot be loaded, in the loader's words; empty when it can. It is not kept.
std::string library_problem(const char * path);

} // namespace kvasir
