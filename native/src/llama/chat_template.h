// Rendering chat templates with llama.cpp's Jinja engine (common/jinja), which is compiled into this library from the pinned
// source: so its limits can be ours, and a build of llama.cpp without libllama-common will do.
#pragma once

#include "kvasir.h"

#include <string>

namespace kvasir {

// A template is input like any other: it may be malformed, or made to harm. Throws kvasir::error, KVASIR_UNSUPPORTED, with what is
// wrong and where.
std::string chat_render(const std::string & source, const std::string & bos, const std::string & eos, const kvasir_chat_message * messages, size_t n_messages,
                        int32_t flags);

} // namespace kvasir
