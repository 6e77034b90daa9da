// Chat templates: the model's own Jinja template through libllama-common, which has only a C++ interface.
#pragma once

#include "kvasir.h"

#include <string>

namespace kvasir {

// whether libllama-common is loaded and has the functions that this library was compiled for
bool chat_has_jinja();

// throws kvasir::error
std::string chat_apply(const llama_model * model, const kvasir_chat_message * messages, size_t n_messages, bool add_assistant);

} // namespace kvasir
