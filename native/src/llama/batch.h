// What a batch must be like: of one that is not, llama.cpp says so by ending the process, or not at all.
#pragma once

#include "api.h"

namespace kvasir {

struct batch_limits {
    int32_t n_batch      = 0; // tokens of a batch
    int32_t n_sequences  = 0; // sequence ids are below
    int32_t n_vocab      = 0;
    int32_t n_outputs    = 0; // tokens whose logits can be asked for
    bool    all_outputs  = false; // every token is one that is asked for
    bool    several      = false; // a token may belong to several sequences
};

// What a context takes. The parameters are those that it was made with.
batch_limits batch_limits_of(const llama_context * context, const llama_context_params & params);
// What can be said of a context that others have made: no more than it is sure to take.
batch_limits batch_limits_of(const llama_context * context);

// Throws kvasir::error (KVASIR_INVALID_ARGUMENT) with what is wrong, and where.
void check_batch(const llama_batch & batch, const batch_limits & limits);

// Parameters with which llama.cpp would end the process while it makes a context; throws likewise.
void check_outputs(const llama_model * model, const llama_context_params & params);

} // namespace kvasir
