// What the operating system says of processors.
#pragma once

#include <cstdint>

namespace kvasir {

// how many this process may run on
int32_t usable_processors();

// How often threads of this process had to leave a processor although they could have gone on, since it began. Always 0 where the
// operating system does not say (Windows).
int64_t preemptions();

} // namespace kvasir
