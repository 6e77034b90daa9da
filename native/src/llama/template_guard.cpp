#include "template_guard.h"

#include "template_budget.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

namespace kvasir {

using namespace jinja;

namespace {

// Values within a tuple along every path, each KiB of a string for one: so are tuples hashed and compared, without an allocation.
constexpr size_t TUPLE_VALUES = 1000;

// The same of what may be written into a stream: its memory is not counted.
constexpr size_t PRINTED_VALUES = 20'000;

// libstdc++ sorts so many elements by insertion, which stays inside the array whatever the comparison says.
constexpr size_t SORTED_UNCHECKED = 16;

void check_string(const value & v) {
    if (is_val<value_string>(v) && v->val_str.length() > TEMPLATE_STRING_BYTES) {
        throw std::runtime_error("a string of more than 512 KiB");
    }
}

// An expression whose value is looked at before the engine takes it.
struct checked : public expression {
    statement_ptr inner;
    explicit checked(statement_ptr && inner) : inner(std::move(inner)) { pos = this->inner->pos; }
    std::string type() const override { return inner->type(); }
    value       execute_impl(context & ctx) const override {
        value v = inner->execute(ctx);
        check_string(v);
        check(v);
        return v;
    }
    virtual void check(const value &) const {}
};

// How many values there are along every path, limit + 1 for more.
size_t paths(const value & v, size_t limit, std::unordered_map<const value_t *, size_t> & known) {
    if (!is_val<value_array>(v) && !is_val<value_object>(v)) {
        return 1 + (is_val<value_string>(v) ? v->val_str.length() / 1024 : 0);
    }
    const auto found = known.find(v.get());
    if (found != known.end()) {
        return found->second;
    }
    size_t sum = 1;
    for (const value & element : v->val_arr) {
        sum = std::min(limit + 1, sum + paths(element, limit, known));
    }
    for (const auto & pair : v->val_obj) {
        sum = std::min(limit + 1, sum + paths(pair.first, limit, known) + paths(pair.second, limit, known));
    }
    return known[v.get()] = sum;
}

void check_paths(const value & v, size_t limit, const char * what) {
    std::unordered_map<const value_t *, size_t> known;
    if (paths(v, limit, known) > limit) {
        throw std::runtime_error(what);
    }
}

struct checked_printed : public checked {
    using checked::checked;
    void check(const value & v) const override { check_paths(v, PRINTED_VALUES, "more than 20,000 values to print"); }
};

// Which test select() and its kin apply is known only now; that one divides by what it is given.
struct checked_argument : public checked {
    using checked::checked;
    void check(const value & v) const override {
        const value & name = is_val<value_kwarg>(v) ? cast_val<value_kwarg>(v)->val : v;
        if (is_val<value_string>(name) && name->val_str.str() == "divisibleby") {
            throw std::runtime_error("the test 'divisibleby' by its name");
        }
        check_paths(name, PRINTED_VALUES, "an argument of more than 20,000 values");
    }
};

struct checked_divisor : public checked {
    using checked::checked;
    void check(const value & v) const override {
        if (!is_val<value_int>(v) || v->as_int() == 0 || v->as_int() == -1) {
            throw std::runtime_error("'divisibleby' needs an integer other than 0 and -1");
        }
    }
};

bool are_strings(const std::vector<value> & values) {
    return std::all_of(values.begin(), values.end(), [](const value & v) { return is_val<value_string>(v); });
}

bool are_numbers(const std::vector<value> & values) {
    return std::all_of(values.begin(), values.end(),
                       [](const value & v) { return is_val<value_int>(v) || (is_val<value_float>(v) && !std::isnan(v->as_float())); });
}

// std::sort leaves its array where the comparison is no order, as the engine's is none between types.
struct checked_sorted : public checked {
    using checked::checked;
    void check(const value & v) const override {
        std::vector<value> keys, values;
        if (is_val<value_array>(v)) {
            keys = v->as_array();
        } else if (is_val<value_object>(v)) {
            for (const auto & pair : v->as_ordered_object()) {
                keys.push_back(pair.first);
                values.push_back(pair.second);
            }
        }
        if (keys.size() > SORTED_UNCHECKED && !((are_strings(keys) || are_numbers(keys)) && (are_strings(values) || are_numbers(values)))) {
            throw std::runtime_error("more than 16 values of different types to sort");
        }
    }
};

bool sorts(const std::string & name) { return name == "sort" || name == "dictsort"; }

bool prints(const std::string & name) { return name == "tojson" || name == "string" || name == "safe"; }

struct constant : public expression {
    value v;
    explicit constant(const value & v) : v(v) {}
    value execute_impl(context &) const override { return v; }
};

// object[property]: which method that may be is known only now
struct checked_computed : public expression {
    statement_ptr object;
    statement_ptr property;
    checked_computed(statement_ptr && object, statement_ptr && property) : object(std::move(object)), property(std::move(property)) {}
    std::string type() const override { return "MemberExpression"; }
    value       execute_impl(context & ctx) const override {
        value o = object->execute(ctx);
        value p = property->execute(ctx);
        check_string(o);
        check_paths(p, PRINTED_VALUES, "a property of more than 20,000 values");
        if (is_val<value_string>(p)) {
            const std::string name = p->val_str.str();
            if ((name == "append" || sorts(name) || prints(name)) && !(is_val<value_object>(o) && o->has_key(p))) {
                throw std::runtime_error("the method '" + name + "' by its name");
            }
        }
        member_expression access(std::make_unique<constant>(o), std::make_unique<constant>(p), true);
        access.pos = pos;
        return access.execute_impl(ctx);
    }
};

struct checked_tuple : public checked {
    using checked::checked;
    void check(const value & v) const override { check_paths(v, TUPLE_VALUES, "a tuple of more than 1,000 values"); }
};

// A value that contained itself would be printed, and freed, without end.
void check_acyclic(const value & container, const value & added) {
    std::unordered_set<const value_t *> seen;
    std::vector<value>                  open{added};
    while (!open.empty()) {
        const value v = open.back();
        open.pop_back();
        if (!v || !seen.insert(v.get()).second) {
            continue;
        }
        if (v == container) {
            throw std::runtime_error("a value that contains itself");
        }
        open.insert(open.end(), v->val_arr.begin(), v->val_arr.end());
        for (const auto & pair : v->val_obj) {
            open.push_back(pair.first);
            open.push_back(pair.second);
        }
        if (is_val<value_kwarg>(v)) {
            open.push_back(cast_val<value_kwarg>(v)->val);
        }
    }
}

// array.append(element)
struct checked_append : public expression {
    statement_ptr array;
    statement_ptr element;
    checked_append(statement_ptr && array, statement_ptr && element) : array(std::move(array)), element(std::move(element)) {}
    std::string type() const override { return "CallExpression"; }
    value       execute_impl(context & ctx) const override {
        value v = element->execute(ctx);
        value a = array->execute(ctx);
        if (!is_val<value_array>(a) || a->is_immutable()) {
            throw std::runtime_error("append: first argument must be an array");
        }
        check_acyclic(a, v);
        cast_val<value_array>(a)->push_back(v);
        return a;
    }
};

// {% set object.name = value %}; body: what stands up to endset, where there is no value
struct checked_member : public statement {
    statement_ptr object;
    std::string   name;
    statement_ptr val;
    statements    body;
    std::string   type() const override { return "Set"; }
    value         execute_impl(context & ctx) const override {
        value v;
        if (val) {
            v = val->execute(ctx);
        } else {
            auto parts = mk_val<value_array>();
            for (const auto & s : body) {
                parts->push_back(s->execute(ctx));
            }
            v = runtime::gather_string_parts(parts);
        }
        value o = object->execute(ctx);
        if (!is_val<value_object>(o)) {
            throw std::runtime_error("Cannot assign to member of non-object");
        }
        check_acyclic(o, v);
        cast_val<value_object>(o)->insert(name, v);
        return mk_val<value_undefined>();
    }
};

template <typename T> void wrap(statement_ptr & s) {
    if (s) {
        s = std::make_unique<T>(std::move(s));
    }
}

std::string name_of(const statement_ptr & s) {
    const auto * id = s ? cast_stmt<identifier>(s) : nullptr;
    return id ? id->val : std::string();
}

void guard(statement_ptr & s);

void guard(statements & list) {
    for (auto & s : list) {
        guard(s);
    }
}

void guard_arguments(statements & arguments) {
    for (auto & a : arguments) {
        guard(a);
        wrap<checked_argument>(a);
    }
}

// a filter: an identifier, or a call of one
void guard_filter(statement_ptr & filter) {
    auto *            call = cast_stmt<call_expression>(filter);
    const std::string name = name_of(call ? call->callee : filter);
    if (name == "append") {
        throw std::runtime_error("'append' as a filter");
    }
    if (call) {
        guard_arguments(call->args);
    }
}

// Guards a member access, and puts another node in its place where its property is computed.
void guard_member(statement_ptr & s, bool called) {
    auto & m = *cast_stmt<member_expression>(s);
    guard(m.object);
    auto * slice = m.computed ? cast_stmt<slice_expression>(m.property) : nullptr;
    if (slice) {
        wrap<checked>(m.object);
        guard(slice->start_expr);
        guard(slice->stop_expr);
        guard(slice->step_expr);
    } else if (m.computed) {
        guard(m.property);
        auto access = std::make_unique<checked_computed>(std::move(m.object), std::move(m.property));
        access->pos = m.pos;
        s           = std::move(access);
    } else if (sorts(name_of(m.property))) {
        wrap<checked_sorted>(m.object);
    } else if (prints(name_of(m.property))) {
        wrap<checked_printed>(m.object);
    } else if (name_of(m.property) == "append" && !called) {
        throw std::runtime_error("'append' that is not called");
    } else {
        wrap<checked>(m.object);
    }
}

// defaults of macro parameters; the parameters themselves are looked at by their type
void guard_parameters(statements & parameters) {
    for (auto & p : parameters) {
        if (auto * k = cast_stmt<keyword_argument_expression>(p)) {
            guard(k->val);
        }
    }
}

void guard(statement_ptr & s) {
    if (!s) {
        return;
    }
    if (auto * x = cast_stmt<if_statement>(s)) {
        guard(x->test);
        guard(x->body);
        guard(x->alternate);
    } else if (auto * x = cast_stmt<for_statement>(s)) {
        guard(x->iterable);
        guard(x->body);
        guard(x->default_block);
    } else if (auto * x = cast_stmt<set_statement>(s)) {
        guard(x->val);
        guard(x->body);
        if (auto * m = cast_stmt<member_expression>(x->assignee)) {
            if (m->computed || name_of(m->property).empty()) {
                throw std::runtime_error("an assignment to a computed member");
            }
            guard(m->object);
            auto set    = std::make_unique<checked_member>();
            set->pos    = x->pos;
            set->object = std::move(m->object);
            set->name   = name_of(m->property);
            set->val    = std::move(x->val);
            set->body   = std::move(x->body);
            s           = std::move(set);
        }
    } else if (auto * x = cast_stmt<macro_statement>(s)) {
        guard_parameters(x->args);
        guard(x->body);
    } else if (auto * x = cast_stmt<call_statement>(s)) {
        if (auto * call = cast_stmt<call_expression>(x->call)) {
            guard_arguments(call->args);
        }
        guard_parameters(x->caller_args);
        guard(x->body);
    } else if (auto * x = cast_stmt<filter_statement>(s)) {
        guard_filter(x->filter);
        guard(x->body);
    } else if (auto * x = cast_stmt<filter_expression>(s)) {
        guard_filter(x->filter);
        guard(x->operand);
        wrap<checked_printed>(x->operand);
        auto *            call = cast_stmt<call_expression>(x->filter);
        const std::string name = name_of(call ? call->callee : x->filter);
        if (sorts(name)) {
            wrap<checked_sorted>(x->operand);
        }
    } else if (auto * x = cast_stmt<test_expression>(s)) {
        guard(x->operand);
        wrap<checked>(x->operand);
        if (auto * call = cast_stmt<call_expression>(x->test)) {
            guard_arguments(call->args);
            if (name_of(call->callee) == "divisibleby") {
                for (auto & a : call->args) {
                    wrap<checked_divisor>(a);
                }
            }
        }
    } else if (auto * x = cast_stmt<call_expression>(s)) {
        if (is_stmt<member_expression>(x->callee)) {
            guard_member(x->callee, true);
            auto * m = cast_stmt<member_expression>(x->callee);
            if (m && !m->computed && name_of(m->property) == "append") {
                if (x->args.size() != 1) {
                    throw std::runtime_error("'append' takes one argument");
                }
                guard(x->args[0]);
                auto append = std::make_unique<checked_append>(std::move(m->object), std::move(x->args[0]));
                append->pos = x->pos;
                s           = std::move(append);
                return;
            }
        } else {
            guard(x->callee);
        }
        guard_arguments(x->args);
    } else if (is_stmt<member_expression>(s)) {
        guard_member(s, false);
    } else if (auto * x = cast_stmt<binary_expression>(s)) {
        guard(x->left);
        guard(x->right);
        wrap<checked_printed>(x->left);
        wrap<checked_printed>(x->right);
    } else if (auto * x = cast_stmt<select_expression>(s)) {
        guard(x->lhs);
        guard(x->test);
    } else if (auto * x = cast_stmt<ternary_expression>(s)) {
        guard(x->condition);
        guard(x->true_expr);
        guard(x->false_expr);
    } else if (auto * x = cast_stmt<unary_expression>(s)) {
        guard(x->argument);
    } else if (auto * x = cast_stmt<keyword_argument_expression>(s)) {
        guard(x->val);
    } else if (auto * x = cast_stmt<array_literal>(s)) {
        guard(x->val);
    } else if (auto * x = cast_stmt<tuple_literal>(s)) {
        guard(x->val);
        wrap<checked_tuple>(s);
    } else if (auto * x = cast_stmt<object_literal>(s)) {
        for (auto & pair : x->val) {
            guard(pair.first);
            guard(pair.second);
        }
    }
}

} // namespace

void template_guard(program & p) { guard(p.body); }

} // namespace kvasir
