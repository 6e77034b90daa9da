#include "chat_template.h"

#include "../error.h"
#include "../platform/thread.h"
#include "template_budget.h"
#include "template_guard.h"

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"

#include <algorithm>
#include <cstring>
#include <ctime>

namespace kvasir {

namespace {

using namespace jinja;

std::string line_of(size_t position, const std::string & source) {
    position = std::min(position, source.size());
    return " (line " + std::to_string(1 + std::count(source.begin(), source.begin() + (ptrdiff_t) position, '\n')) + ")";
}

// The engine shows where it stands by a piece of the source with a caret below; a line number is shorter, and goes into a log.
std::string with_line(const std::string & text, const std::string & source) {
    const size_t first = text.find('\n');
    const size_t last  = text.rfind('\n');
    if (first == std::string::npos || last == first || text.empty() || text.back() != '^') {
        return text;
    }
    // "...piece..." with the source's line breaks replaced, and below it the caret behind three dots and the piece's start
    std::string       piece = text.substr(first + 1, last - first - 1);
    const std::string arrow = "\xe2\x86\xb5";
    for (size_t at = 0; (at = piece.find(arrow, at)) != std::string::npos; at++) {
        piece.replace(at, arrow.size(), "\n");
    }
    if (piece.size() < 6) {
        return text.substr(0, first);
    }
    const size_t start = source.find(piece.substr(3, piece.size() - 6));
    if (start == std::string::npos) {
        return text.substr(0, first);
    }
    return text.substr(0, first) + line_of(start + (text.size() - last - 2) - 3, source);
}

// "Error executing X at position N: what" becomes "what (line L)"
std::string reason_of(const std::exception & e, const std::string & source) {
    const std::string text   = e.what();
    const std::string marker = " at position ";
    const size_t      where  = text.find(marker);
    const size_t      what   = where == std::string::npos ? where : text.find(": ", where);
    if (text.rfind("\nError executing ", 0) != 0 || what == std::string::npos) {
        return with_line(text, source);
    }
    const size_t number = where + marker.size();
    return text.substr(what + 2) + line_of(std::stoull(text.substr(number, what - number)), source);
}

void check_nesting(const std::vector<token> & tokens) {
    int depth = 0;
    for (const token & t : tokens) {
        switch (t.t) {
            case token::open_paren:
            case token::open_square_bracket:
            case token::open_curly_bracket:
                if (++depth > TEMPLATE_NESTING) {
                    throw std::runtime_error("more than 200 brackets within each other");
                }
                break;
            case token::close_paren:
            case token::close_square_bracket:
            case token::close_curly_bracket:
            case token::open_statement:
            case token::open_expression:
                depth = t.t == token::open_statement || t.t == token::open_expression ? 0 : depth - 1;
                break;
            default: break;
        }
    }
}

value content_of(const char * text, bool typed) {
    auto content = mk_val<value_string>(std::string(text));
    if (!typed) {
        return content;
    }
    auto part = mk_val<value_object>();
    part->insert("type", mk_val<value_string>("text"));
    part->insert("text", content);
    auto parts = mk_val<value_array>();
    parts->push_back(part);
    return parts;
}

std::string today(const char * pattern) {
    const time_t now = time(nullptr);
    tm           parts;
#if defined(_WIN32)
    localtime_s(&parts, &now);
#else
    localtime_r(&now, &parts);
#endif
    char text[64];
    return std::string(text, strftime(text, sizeof text, pattern, &parts));
}

// what llama.cpp's own chat functions hand to a template
void set_variables(context & ctx, const std::string & bos, const std::string & eos, const kvasir_chat_message * messages, size_t n_messages, int32_t flags) {
    auto list = mk_val<value_array>();
    for (size_t i = 0; i < n_messages; i++) {
        auto message = mk_val<value_object>();
        message->insert("role", mk_val<value_string>(std::string(messages[i].role)));
        message->insert("content", content_of(messages[i].content, (flags & KVASIR_CHAT_TYPED_CONTENT) != 0));
        list->push_back(message);
    }
    ctx.set_val("messages", list);
    ctx.set_val("bos_token", mk_val<value_string>(bos));
    ctx.set_val("eos_token", mk_val<value_string>(eos));
    ctx.set_val("enable_thinking", mk_val<value_bool>(true));
    ctx.set_val("datetime", mk_val<value_string>(today("%b %d %Y")));
    ctx.set_val("date_string", mk_val<value_string>(today("%d %b %Y")));
    if (flags & KVASIR_CHAT_GENERATION_PROMPT) {
        ctx.set_val("add_generation_prompt", mk_val<value_bool>(true));
    }
}

std::string render(const std::string & source, const std::string & bos, const std::string & eos, const kvasir_chat_message * messages, size_t n_messages,
                   int32_t flags) {
    const lexer_result lexed = lexer().tokenize(source);
    check_nesting(lexed.tokens);
    program parsed = parse_from_tokens(lexed);
    template_guard(parsed);
    context ctx; // without the source: the engine would look through it for every expression that an exception leaves
    set_variables(ctx, bos, eos, messages, n_messages, flags);
    return runtime::gather_string_parts(runtime(ctx).execute(parsed))->as_string().str();
}

// What the engine sets up once for the process is not the first template's.
void set_up_engine() {
    static const bool done = [] {
        kvasir_chat_message message{"user", "x"};
        for (const int32_t flags : {0, KVASIR_CHAT_TYPED_CONTENT | KVASIR_CHAT_GENERATION_PROMPT}) {
            render("{{ messages|length + 1.5 }}{{ bos_token|trim }}{{ none|string }}{{ true|string }}{{ x|default('') }}{{ messages[0].items()|list|length }}", "",
                   "", &message, 1, flags);
        }
        return true;
    }();
    (void) done;
}

} // namespace

std::string chat_render(const std::string & source, const std::string & bos, const std::string & eos, const kvasir_chat_message * messages, size_t n_messages,
                        int32_t flags) {
    if (source.size() > TEMPLATE_BYTES) {
        throw error(KVASIR_UNSUPPORTED, format("it has %zu bytes, more than 256 KiB", source.size()));
    }
    size_t bytes = 0;
    for (size_t i = 0; i < n_messages; i++) {
        bytes += strlen(messages[i].role) + strlen(messages[i].content);
    }
    if (bytes > TEMPLATE_CONTENT_BYTES) {
        throw error(KVASIR_UNSUPPORTED, format("the messages have %zu bytes, more than 256 KiB", bytes));
    }
    std::string text, reason;
    run_on_stack(TEMPLATE_STACK, [&] {
        set_up_engine();
        const char * reached = nullptr;
        bool         failed  = false;
        {
            template_budget budget;
            try {
                text = render(source, bos, eos, messages, n_messages, flags);
            } catch (const std::exception & e) {
                failed = true;
                try {
                    reason = reason_of(e, source);
                } catch (const std::bad_alloc &) {
                    // a limit, which is told below
                }
            }
            reached = budget.reached();
        }
        if (reached) {
            reason = reached;
        } else if (failed && reason.empty()) {
            reason = "it fails without a reason";
        }
    });
    if (!reason.empty()) {
        throw error(KVASIR_UNSUPPORTED, reason);
    }
    return text;
}

} // namespace kvasir
