// What the rows of one cache occupy, over all its layers and devices, and the bound on it (kvasir_cache_limit). The row
// memories report what they hold as it changes, so that nothing has to be summed up when a token is decoded.
#pragma once

#include <cstddef>

namespace kvasir {

class memory_limit {
public:
    void   set(size_t bytes) { limit_ = bytes; } // 0: none
    bool   is_set() const { return limit_ != 0; }
    size_t held() const { return held_; }
    // A bound below what is held leaves what is there alone; only more is refused.
    bool   allows(size_t more) const { return more == 0 || limit_ == 0 || (held_ <= limit_ && more <= limit_ - held_); }
    void   require(size_t more) const; // throws kvasir::error (KVASIR_OUT_OF_MEMORY)
    void   changed(size_t before, size_t after) { held_ += after - before; }

    // Near the bound nobody takes more than what is needed now.
    bool tight = false;

private:
    size_t limit_ = 0, held_ = 0;
};

} // namespace kvasir
