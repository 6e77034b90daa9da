// Functions of libraries that the process has already loaded.
#pragma once

#include <string>

namespace kvasir {

// The address of a symbol in the loaded ggml and llama.cpp libraries, or nullptr. They are usually loaded with local
// visibility, so the global scope alone does not find them.
void * find_symbol(const char * name);

// The address of a symbol in the very library that contains the given function.
void * find_symbol_beside(const void * function, const char * name);

// A library of the system, loaded for good; nullptr when there is none of that name.
void * open_library(const char * name);
void * library_symbol(void * library, const char * name);

// Why a library cannot be loaded, in the loader's words; empty when it can. It is not kept.
std::string library_problem(const char * path);

} // namespace kvasir
