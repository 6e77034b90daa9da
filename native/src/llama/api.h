// The functions of ggml and llama.cpp that Kvasir calls, looked up in the libraries that the process has loaded: SONAMEs
// differ between builds of llama.cpp, so nothing is linked.
#pragma once

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "llama.h"

namespace kvasir {

#define KVASIR_GGML_FUNCTIONS(X)    \
    X(ggml_version)                 \
    X(ggml_set_abort_callback)      \
    X(ggml_init)                    \
    X(ggml_free)                    \
    X(ggml_reset)                   \
    X(ggml_tensor_overhead)         \
    X(ggml_nbytes)                  \
    X(ggml_row_size)                \
    X(ggml_type_name)               \
    X(ggml_op_name)                 \
    X(ggml_get_type_traits)         \
    X(ggml_new_tensor_4d)           \
    X(ggml_view_2d)                 \
    X(ggml_set_name)                \
    X(ggml_new_graph_custom)        \
    X(ggml_build_forward_expand)    \
    X(ggml_graph_n_nodes)           \
    X(ggml_graph_node)              \
    X(ggml_custom_4d)               \
    X(ggml_cpy)                     \
    X(ggml_get_rows)                \
    X(ggml_repeat_back)             \
    X(ggml_sum_rows)                \
    X(ggml_concat)                  \
    X(ggml_sqr)                     \
    X(ggml_set_rows)                \
    X(ggml_mul_mat)                 \
    X(ggml_scale)                   \
    X(ggml_tanh)                    \
    X(ggml_soft_max_ext)            \
    X(ggml_soft_max_add_sinks)      \
    X(ggml_flash_attn_ext)          \
    X(ggml_flash_attn_ext_add_sinks) \
    X(ggml_rope_yarn_corr_dims)     \
    X(ggml_fp16_to_fp32)            \
    X(ggml_fp32_to_fp16)            \
    X(ggml_threadpool_params_init)  \
    X(ggml_backend_buffer_init)     \
    X(ggml_backend_buffer_free)     \
    X(ggml_backend_tensor_copy)     \
    X(ggml_backend_cpu_buffer_from_ptr) \
    X(ggml_backend_dev_count)       \
    X(ggml_backend_dev_get)         \
    X(ggml_backend_dev_name)        \
    X(ggml_backend_dev_memory)      \
    X(ggml_backend_dev_init)        \
    X(ggml_backend_free)            \
    X(ggml_backend_graph_compute)

#define KVASIR_LLAMA_FUNCTIONS(X)    \
    X(llama_version)                 \
    X(llama_model_load_from_file)    \
    X(llama_model_is_recurrent)      \
    X(llama_model_is_hybrid)         \
    X(llama_model_is_diffusion)      \
    X(llama_model_has_encoder)       \
    X(llama_model_has_decoder)       \
    X(llama_model_meta_val_str)      \
    X(llama_model_n_swa)             \
    X(llama_get_model)               \
    X(llama_get_memory)              \
    X(llama_memory_seq_rm)           \
    X(llama_memory_seq_pos_max)      \
    X(llama_n_seq_max)               \
    X(llama_state_seq_get_size_ext)  \
    X(llama_state_seq_get_data_ext)  \
    X(llama_state_seq_set_data_ext)  \
    X(llama_model_n_ctx_train)       \
    X(llama_model_get_vocab)         \
    X(llama_vocab_n_tokens)          \
    X(llama_model_chat_template)     \
    X(llama_init_from_model)         \
    X(llama_n_ctx)                   \
    X(llama_n_batch)                 \
    X(llama_n_ubatch)                \
    X(llama_max_parallel_sequences)  \
    X(llama_free)                    \
    X(llama_decode)                  \
    X(llama_set_n_threads)           \
    X(llama_attach_threadpool)       \
    X(llama_vocab_type)              \
    X(llama_vocab_get_attr)          \
    X(llama_vocab_get_text)          \
    X(llama_tokenize)                \
    X(llama_detokenize)              \
    X(llama_token_to_piece)          \
    X(llama_backend_init)            \
    X(llama_model_desc)              \
    X(llama_get_logits_ith)          \
    X(llama_memory_seq_pos_min)      \
    X(llama_memory_clear)            \
    X(llama_sampler_chain_default_params) \
    X(llama_sampler_chain_init)      \
    X(llama_sampler_chain_add)       \
    X(llama_sampler_init_penalties)  \
    X(llama_sampler_init_greedy)     \
    X(llama_sampler_init_top_k)      \
    X(llama_sampler_init_top_p)      \
    X(llama_sampler_init_min_p)      \
    X(llama_sampler_init_temp)       \
    X(llama_sampler_init_dist)       \
    X(llama_sampler_sample)          \
    X(llama_sampler_accept)          \
    X(llama_sampler_reset)           \
    X(llama_sampler_free)

struct api {
#define X(name) decltype(&::name) name;
    KVASIR_GGML_FUNCTIONS(X)
    KVASIR_LLAMA_FUNCTIONS(X)
#undef X
    // of src/llama-ext.h: the graph of a batch, as it is until the next call; nullptr where the library does not export it
    ggml_cgraph * (*llama_graph_reserve)(llama_context * context, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_outputs);

    ggml_backend_dev_t cpu; // the registered CPU device

    // of the CPU backend's own module
    decltype(&::ggml_threadpool_new)             threadpool_new;
    decltype(&::ggml_threadpool_free)            threadpool_free;
    decltype(&::ggml_backend_cpu_set_threadpool) set_threadpool;
    decltype(&::ggml_get_type_traits_cpu)        type_traits_cpu;
};

// From here on symbols are looked up in one of the loaded builds of llama.cpp; throws kvasir::error (KVASIR_INCOMPATIBLE) when there is none
// of the version that this library was compiled for, or it is not known which one is meant.
void use_loaded_llama();

// Resolves everything on the first call and checks that structs lie as this library was compiled for; throws
// kvasir::error (KVASIR_INCOMPATIBLE) with what is missing or different.
const api & llama();

void * device_function(ggml_backend_dev_t device, const char * name);

} // namespace kvasir
