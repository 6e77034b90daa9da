#include "batch.h"

#include "../error.h"

#include <algorithm>
#include <cstring>

namespace kvasir {

namespace {

error invalid(std::string text) { return {KVASIR_INVALID_ARGUMENT, std::move(text)}; }

// llama_context_params.attention_type, or what the model's header says
bool is_causal(const llama_model * model, const llama_context_params & params) {
    if (params.attention_type != LLAMA_ATTENTION_TYPE_UNSPECIFIED) {
        return params.attention_type == LLAMA_ATTENTION_TYPE_CAUSAL;
    }
    char architecture[64], value[16];
    const api & a = llama();
    return a.llama_model_meta_val_str(model, "general.architecture", architecture, sizeof architecture) < 0 ||
           a.llama_model_meta_val_str(model, format("%s.attention.causal", architecture).c_str(), value, sizeof value) < 0 || strcmp(value, "false") != 0;
}

// llama_context takes its own batch for as many outputs as it may have
int32_t outputs_of(const llama_model * model, const llama_context_params & params, int32_t n_batch) {
    return params.n_outputs_max == 0 || llama().llama_model_has_encoder(model) ? n_batch : (int32_t) std::min<uint32_t>(params.n_outputs_max, INT32_MAX);
}

} // namespace

batch_limits batch_limits_of(const llama_context * context) {
    const api & a = llama();
    batch_limits l;
    l.n_batch     = (int32_t) a.llama_n_batch(context);
    l.n_sequences = (int32_t) a.llama_n_seq_max(context);
    l.n_vocab     = a.llama_vocab_n_tokens(a.llama_model_get_vocab(a.llama_get_model(context)));
    l.n_outputs   = l.n_batch;
    if (!a.llama_get_memory(context)) { // llama_decode encodes then, all at once
        l.n_batch = std::min(l.n_batch, (int32_t) a.llama_n_ubatch(context));
    }
    return l;
}

batch_limits batch_limits_of(const llama_context * context, const llama_context_params & params) {
    const api &         a     = llama();
    const llama_model * model = a.llama_get_model(context);
    batch_limits        l     = batch_limits_of(context);
    l.n_outputs   = outputs_of(model, params, (int32_t) a.llama_n_batch(context));
    l.all_outputs = params.embeddings;
    l.several     = params.kv_unified;
    // one stream takes any sequence; a recurrent state is kept for as many as were asked for
    if (params.kv_unified && !a.llama_model_is_recurrent(model) && !a.llama_model_is_hybrid(model)) {
        l.n_sequences = (int32_t) a.llama_max_parallel_sequences();
    }
    if (!is_causal(model, params)) {
        l.n_batch = std::min(l.n_batch, (int32_t) a.llama_n_ubatch(context));
    }
    return l;
}

void check_outputs(const llama_model * model, const llama_context_params & params) {
    const uint32_t n_ctx   = params.n_ctx == 0 ? (uint32_t) llama().llama_model_n_ctx_train(model) : params.n_ctx;
    const uint32_t n_batch = is_causal(model, params) ? std::min(n_ctx, params.n_batch) : params.n_batch;
    const int32_t  most    = outputs_of(model, params, (int32_t) std::min<uint32_t>(n_batch, INT32_MAX));
    if (std::max(1u, params.n_seq_max) > (uint32_t) most) {
        throw invalid(format("n_seq_max = %u with room for the outputs of %d tokens (n_batch, n_ctx, n_outputs_max): each sequence needs one", params.n_seq_max, most));
    }
}

void check_batch(const llama_batch & batch, const batch_limits & limits) {
    const int32_t n = batch.n_tokens;
    if (n < 1 || n > limits.n_batch) {
        throw invalid(format("a batch of %d tokens: the context takes 1 to %d", n, limits.n_batch));
    }
    if (!batch.token && !batch.embd) {
        throw invalid("the batch has neither tokens nor embeddings");
    }
    if (!batch.n_seq_id != !batch.seq_id) {
        throw invalid("the batch has only one of n_seq_id and seq_id");
    }
    int32_t n_outputs = batch.logits ? 0 : 1;
    for (int32_t i = 0; i < n; i++) {
        if (batch.token && (batch.token[i] < 0 || batch.token[i] >= limits.n_vocab)) {
            throw invalid(format("token[%d] = %d: the vocabulary has 0 to %d", i, batch.token[i], limits.n_vocab - 1));
        }
        if (batch.pos && (batch.pos[i] < 0 || batch.pos[i] == INT32_MAX)) {
            throw invalid(format("pos[%d] = %d: positions are 0 to %d", i, batch.pos[i], INT32_MAX - 1));
        }
        n_outputs += batch.logits && batch.logits[i] != 0;
        if (!batch.seq_id) {
            continue;
        }
        const llama_seq_id * ids = batch.seq_id[i];
        const int32_t        m   = batch.n_seq_id[i];
        if (!ids) {
            throw invalid(format("seq_id[%d] is NULL", i));
        }
        if (m < 1 || m > limits.n_sequences || (m > 1 && !limits.several)) {
            throw invalid(format("n_seq_id[%d] = %d: a token belongs to one sequence, to several only with kv_unified", i, m));
        }
        for (int32_t s = 0; s < m; s++) {
            if (ids[s] < 0 || ids[s] >= limits.n_sequences) {
                throw invalid(format("seq_id[%d][%d] = %d: the context has sequences 0 to %d", i, s, ids[s], limits.n_sequences - 1));
            }
            if (std::find(ids, ids + s, ids[s]) != ids + s) {
                throw invalid(format("seq_id[%d] names sequence %d twice", i, ids[s]));
            }
        }
    }
    if ((limits.all_outputs ? n : n_outputs) > limits.n_outputs) {
        throw invalid(format("a batch with %d outputs: the context has room for %d (n_outputs_max)", limits.all_outputs ? n : n_outputs, limits.n_outputs));
    }
}

} // namespace kvasir
