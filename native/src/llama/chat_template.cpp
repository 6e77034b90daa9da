#include "chat_template.h"

#include "../error.h"
#include "../platform/library.h"

#include "chat.h" // llama.cpp's common/chat.h

#include <memory>

namespace kvasir {

namespace {

// Stands in for common_chat_templates_ptr: the same layout and the same way of being returned, but a deleter that needs
// no symbol at link time.
struct templates_deleter {
    void operator()(common_chat_templates * templates) const;
};
using templates_ptr = std::unique_ptr<common_chat_templates, templates_deleter>;
static_assert(sizeof(templates_ptr) == sizeof(common_chat_templates_ptr), "both are one pointer");

// Mangled names: the functions are looked up, not linked, so that a build of llama.cpp without libllama-common will do.
struct common_functions {
    templates_ptr (*init)(const llama_model *, const std::string &, const std::string &, const std::string &) = nullptr;
    void (*free)(common_chat_templates *) = nullptr;
    common_chat_params (*apply)(const common_chat_templates *, const common_chat_templates_inputs &) = nullptr;
};

const common_functions & common() {
    static const common_functions f = [] {
        common_functions r;
        r.init  = (decltype(r.init)) find_symbol("_Z26common_chat_templates_initPK11llama_modelRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES9_S9_");
        r.free  = (decltype(r.free)) find_symbol("_Z26common_chat_templates_freeP21common_chat_templates");
        r.apply = (decltype(r.apply)) find_symbol("_Z27common_chat_templates_applyPK21common_chat_templatesRK28common_chat_templates_inputs");
        return r;
    }();
    return f;
}

void templates_deleter::operator()(common_chat_templates * templates) const { common().free(templates); }

} // namespace

bool chat_has_jinja() {
    const common_functions & f = common();
    return f.init && f.free && f.apply;
}

std::string chat_apply(const llama_model * model, const kvasir_chat_message * messages, size_t n_messages, bool add_assistant) {
    if (!chat_has_jinja()) {
        throw error(KVASIR_UNSUPPORTED, "libllama-common is not loaded: only llama.cpp's built-in chat templates are there");
    }
    const common_functions & f = common();
    const std::string        none;
    const templates_ptr      templates = f.init(model, none, none, none);

    common_chat_templates_inputs inputs;
    inputs.add_generation_prompt = add_assistant;
    inputs.use_jinja             = true;
    for (size_t i = 0; i < n_messages; i++) {
        common_chat_msg message;
        message.role    = messages[i].role;
        message.content = messages[i].content;
        inputs.messages.push_back(std::move(message));
    }
    return f.apply(templates.get(), inputs).prompt;
}

} // namespace kvasir
