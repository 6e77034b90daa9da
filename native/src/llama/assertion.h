// ggml's assertions end the process. Where nothing is computed by several threads they can be exceptions instead.
#pragma once

namespace kvasir {

// To be called when ggml's functions are known: ggml then asks here what a failed assertion means.
void assertions_install(const struct api & a);

// While one lives, a failed GGML_ASSERT or GGML_ABORT of this thread throws kvasir::error (KVASIR_FAILED) with ggml's text.
// Not for code that computes a graph: the other threads of it would wait for ever.
class assertions_throw {
public:
    assertions_throw();
    ~assertions_throw();
    assertions_throw(const assertions_throw &) = delete;
    assertions_throw & operator=(const assertions_throw &) = delete;

private:
    bool outer;
};

} // namespace kvasir
