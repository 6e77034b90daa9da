// Makes a parsed template safe to run: puts checks into its syntax tree where llama.cpp's engine has none.
#pragma once

#include "jinja/runtime.h" // llama.cpp's common/jinja

namespace kvasir {

// Throws std::runtime_error for a construct that cannot be made safe.
void template_guard(jinja::program & program);

} // namespace kvasir
