// A thread for one call that needs more stack than its caller may have left.
#pragma once

#include <cstddef>
#include <functional>

namespace kvasir {

// Runs body on a thread of its own with that much stack, waits for its end and throws what it threw. The stack is address
// space: it occupies what body uses of it, and is gone afterwards. Throws std::bad_alloc where there is no such stack.
void run_on_stack(size_t size, const std::function<void()> & body);

// The same; returns how many bytes of the stack were used, 0 where the system does not tell. Looks through all of the stack.
size_t measure_stack(size_t size, const std::function<void()> & body);

} // namespace kvasir
