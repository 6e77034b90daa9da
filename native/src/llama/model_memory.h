// Which kind of memory llama.cpp gives a model, as far as it decides what Kvasir can do with it.
#pragma once

#include "api.h"

#include <string>

namespace kvasir {

// Why llama.cpp cannot continue a text with the model at all, with or without the store: "" when it can.
std::string why_no_memory(const llama_model * model);

// Why the store has no path for a model that llama.cpp can run without it; "" when nothing is known against it. What an
// operation over the cache is missing is seen only while a context is made.
std::string why_no_store(const llama_model * model);

} // namespace kvasir
