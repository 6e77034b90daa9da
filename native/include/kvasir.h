/*
 * Kvasir's C ABI: an adaptive, ragged KV cache under unmodified llama.cpp.
 *
 * Every function is noexcept. Functions that can fail return a kvasir_status and leave a text for the calling thread in
 * kvasir_last_error(). Pointers that are handed out stay valid until the object that they belong to is freed.
 *
 * Terms: a *cell* is llama.cpp's index of a token in a KV cache, a *slot* is the place of that token in the store of one
 * (layer, stream, KV head). Without eviction slot and cell agree for one sequence; afterwards every head has its own slots.
 *
 * Threads: one cache belongs to one llama_context and must be used by one thread at a time, never during kvasir_decode.
 */
#ifndef KVASIR_H
#define KVASIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define KVASIR_API __declspec(dllexport)
#else
#define KVASIR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define KVASIR_NOEXCEPT noexcept
extern "C" {
#else
#define KVASIR_NOEXCEPT
#endif

#define KVASIR_ABI_VERSION 3

struct llama_model;
struct llama_context;
struct llama_model_params;
struct llama_context_params;
struct llama_batch;
struct ggml_backend_device;

enum kvasir_status {
    KVASIR_OK               = 0,
    KVASIR_INVALID_ARGUMENT = 1,
    KVASIR_UNSUPPORTED      = 2, // a feature of the model or of the options that the store has no path for
    KVASIR_OUT_OF_MEMORY    = 3,
    KVASIR_NOT_INTERCEPTED  = 4, // a KV layer of the model is not held by the store: nothing would be saved
    KVASIR_INCOMPATIBLE     = 5, // the loaded ggml or llama.cpp is not the one that this library was built for
    KVASIR_FAILED           = 6  // llama.cpp reported a failure; the text says which
};

// Which code computes attention over the store.
enum kvasir_attention {
    KVASIR_ATTENTION_NATIVE   = 0, // Kvasir's own kernels, where there are some for the layer's device; else PORTABLE
    KVASIR_ATTENTION_PORTABLE = 1  // ggml's FLASH_ATTN_EXT on the layer's device, one node per KV head
};

struct kvasir_cache; // the store of one llama_context

/* ---- library ---- */

KVASIR_API uint32_t     kvasir_abi_version(void) KVASIR_NOEXCEPT;
KVASIR_API const char * kvasir_last_error(void) KVASIR_NOEXCEPT;
// the llama.cpp version whose internal structs this library was compiled against, for example "v0.5.0"
KVASIR_API const char * kvasir_llama_version(void) KVASIR_NOEXCEPT;
// The kernels of Kvasir's own for a registered ggml device: of the CPU the instruction set that they run with on this
// machine, "avx512", "avx2", "neon" or "baseline"; of an NVIDIA GPU "cuda". Empty: the device takes the portable path.
KVASIR_API const char * kvasir_kernels(const char * device_name) KVASIR_NOEXCEPT;
// resolves ggml and llama.cpp among the loaded libraries, and checks by a tiny graph that their structs are the expected ones
KVASIR_API enum kvasir_status kvasir_init(void) KVASIR_NOEXCEPT;

// ggml_backend_load_all_from_path: what is found there is among ggml's devices afterwards. To be called before kvasir_init.
KVASIR_API enum kvasir_status kvasir_backends_load(const char * directory) KVASIR_NOEXCEPT;
// Why the loader refuses a library, in its words; NULL when it does not. Nothing is registered or kept. The text is the calling thread's
// until its next call.
KVASIR_API const char * kvasir_library_problem(const char * path) KVASIR_NOEXCEPT;

/* ---- devices, models, contexts ---- */

// ggml_backend_dev_memory: a driver is asked, which may fail
KVASIR_API enum kvasir_status kvasir_device_memory(struct ggml_backend_device * device, size_t * free, size_t * total) KVASIR_NOEXCEPT;

// The proxy of a registered ggml device ("CPU", "Vulkan0", ...), to be put into llama_model_params.devices. Proxies of several
// devices share a model's layers as llama.cpp splits them; each layer's rows lie where the layer is.
KVASIR_API enum kvasir_status kvasir_device(const char * inner_name, struct ggml_backend_device ** device) KVASIR_NOEXCEPT;

// llama_model_load_from_file behind a wall for C++ exceptions
KVASIR_API enum kvasir_status kvasir_model_load(const char * path, const struct llama_model_params * params, struct llama_model ** model) KVASIR_NOEXCEPT;

// what llama.cpp calls the model, as llama_model_desc: a terminated text of less than size bytes
KVASIR_API enum kvasir_status kvasir_model_description(const struct llama_model * model, char * buffer, size_t size) KVASIR_NOEXCEPT;
// the model's chat template, which lives as long as the model; NULL when it has none
KVASIR_API enum kvasir_status kvasir_model_chat_template(const struct llama_model * model, const char ** source) KVASIR_NOEXCEPT;

// KVASIR_UNSUPPORTED, with the reason, for a model that llama.cpp cannot continue a text with (encoders, diffusion models,
// attention that is not causal) and, with_store != 0, for one whose kind of memory the store has no path for (recurrent models,
// an indexer's cache beside K and V). KVASIR_OK is no promise: what an operation over the cache lacks is seen by
// kvasir_context_new only, which asks this first.
KVASIR_API enum kvasir_status kvasir_model_check(const struct llama_model * model, int32_t with_store) KVASIR_NOEXCEPT;

// llama_init_from_model behind the same wall. With cache != NULL the context must keep its whole KV cache in the store:
// otherwise the context is freed again and KVASIR_NOT_INTERCEPTED or KVASIR_UNSUPPORTED names the layer or the operation.
// cache == NULL: a plain llama.cpp context.
// n_threads and n_threads_batch are most: no more compute than there are processors, and decode steps over the CPU's kernels take fewer
// while other processes want the processors, with the same results.
KVASIR_API enum kvasir_status kvasir_context_new(struct llama_model * model, const struct llama_context_params * params,
        enum kvasir_attention attention, struct llama_context ** context, struct kvasir_cache ** cache) KVASIR_NOEXCEPT;
// frees the context and then its cache (which may be NULL)
KVASIR_API void kvasir_context_free(struct llama_context * context, struct kvasir_cache * cache) KVASIR_NOEXCEPT;

// llama_decode behind the wall; *result is llama_decode's own return value (0 ok, 1 no room, 2 aborted, < 0 error). A batch that
// llama.cpp would not survive (more tokens than n_batch, token, position or sequence id out of range, more outputs than n_outputs_max)
// is KVASIR_INVALID_ARGUMENT. A graph that failed without llama.cpp's notice fails the call: shifted positions
// (llama_memory_seq_add, llama_memory_seq_div) are KVASIR_UNSUPPORTED until llama_memory_clear.
KVASIR_API enum kvasir_status kvasir_decode(struct llama_context * context, const struct llama_batch * batch, int32_t * result) KVASIR_NOEXCEPT;

// The logits of token index of the last batch, -1 the last of it; valid until the next kvasir_decode.
KVASIR_API enum kvasir_status kvasir_logits(struct llama_context * context, int32_t index, float ** logits) KVASIR_NOEXCEPT;

// llama_memory_seq_rm of the positions from first on; *removed is 0 when the memory cannot do that, and nothing was removed
KVASIR_API enum kvasir_status kvasir_memory_remove(struct llama_context * context, int32_t sequence, int32_t first, int32_t * removed) KVASIR_NOEXCEPT;
// llama_memory_seq_pos_min: the first position of the sequence that is left, -1 when none is
KVASIR_API enum kvasir_status kvasir_memory_first(struct llama_context * context, int32_t sequence, int32_t * position) KVASIR_NOEXCEPT;
// llama_memory_clear: all sequences
KVASIR_API enum kvasir_status kvasir_memory_clear(struct llama_context * context) KVASIR_NOEXCEPT;

// Whether all that computes in this process is to be given up, as it is about to end; 0: no longer. Any thread may call it.
KVASIR_API void kvasir_abandon(int32_t on) KVASIR_NOEXCEPT;
// A ggml_abort_callback, for llama_set_abort_callback: what kvasir_abandon said last. data is not looked at.
KVASIR_API bool kvasir_abandoned(void * data) KVASIR_NOEXCEPT;

/* ---- sampling ---- */

struct kvasir_sampling {
    float    temperature;       // 0 or less: always the most probable token
    int32_t  top_k;             // 0 or less: off
    float    top_p;             // 1 or more: off
    float    min_p;             // 0 or less: off
    float    repeat_penalty;    // 1: off
    float    frequency_penalty; // 0: off
    float    presence_penalty;  // 0: off
    int32_t  penalty_window;    // recent tokens that the penalties look at; 0: none
    uint32_t seed;
};

struct kvasir_sampler; // llama.cpp's samplers in its default order; used by one thread at a time

KVASIR_API enum kvasir_status kvasir_sampler_new(const struct kvasir_sampling * sampling, int32_t n_vocab, struct kvasir_sampler ** sampler) KVASIR_NOEXCEPT;
KVASIR_API void kvasir_sampler_free(struct kvasir_sampler * sampler) KVASIR_NOEXCEPT;
// draws a token from the logits of token index of the last batch, and shows it to the penalties
KVASIR_API enum kvasir_status kvasir_sampler_sample(struct kvasir_sampler * sampler, struct llama_context * context, int32_t index,
        int32_t * token) KVASIR_NOEXCEPT;
// shows the penalties a token that was not drawn
KVASIR_API enum kvasir_status kvasir_sampler_accept(struct kvasir_sampler * sampler, int32_t token) KVASIR_NOEXCEPT;
// the penalties forget the tokens that they were shown
KVASIR_API enum kvasir_status kvasir_sampler_forget(struct kvasir_sampler * sampler) KVASIR_NOEXCEPT;
// the same, and the random numbers begin again from the seed
KVASIR_API enum kvasir_status kvasir_sampler_reset(struct kvasir_sampler * sampler) KVASIR_NOEXCEPT;

/* ---- text and tokens ---- */

struct llama_vocab;
struct kvasir_tokenizer; // of one vocabulary; any thread may use it

// The vocabulary's model must outlive the tokenizer.
KVASIR_API enum kvasir_status kvasir_tokenizer_new(const struct llama_vocab * vocab, struct kvasir_tokenizer ** tokenizer) KVASIR_NOEXCEPT;
KVASIR_API void kvasir_tokenizer_free(struct kvasir_tokenizer * tokenizer) KVASIR_NOEXCEPT;

// llama_tokenize of length bytes, zeros among them too, on a stack that is deep enough for them: llama.cpp matches most
// pre-tokenisers by a recursion. *n_tokens receives the number of all tokens; when it is larger than capacity, tokens holds the
// first ones: call again with more room. KVASIR_INVALID_ARGUMENT: the text is too long, or too long without a break for
// the model's pre-tokeniser. KVASIR_UNSUPPORTED or KVASIR_FAILED: the vocabulary has no tokens for it.
KVASIR_API enum kvasir_status kvasir_tokenize(struct kvasir_tokenizer * tokenizer, const char * text, size_t length, int32_t add_special,
        int32_t parse_special, int32_t * tokens, size_t capacity, size_t * n_tokens) KVASIR_NOEXCEPT;
// llama_detokenize, special tokens as text. *length receives the bytes of the whole text, without a terminating zero; when it is
// larger than size, what is in buffer is not the text: call again with a larger one.
KVASIR_API enum kvasir_status kvasir_detokenize(const struct kvasir_tokenizer * tokenizer, const int32_t * tokens, size_t n_tokens, char * buffer, size_t size,
        size_t * length) KVASIR_NOEXCEPT;
// the bytes of one token, of a special one too; *length and size as of kvasir_detokenize
KVASIR_API enum kvasir_status kvasir_token_piece(const struct kvasir_tokenizer * tokenizer, int32_t token, char * buffer, size_t size,
        size_t * length) KVASIR_NOEXCEPT;

/* ---- chat templates ---- */

struct kvasir_chat_message {
    const char * role;
    const char * content;
};

enum kvasir_chat_flags {
    KVASIR_CHAT_GENERATION_PROMPT = 1, // up to where the assistant begins to speak
    KVASIR_CHAT_TYPED_CONTENT     = 2, // contents are lists of parts, one of type "text" each: some templates know no other
};

// Renders messages with a Jinja template; bos and eos are the texts of these tokens, or "". *length receives the bytes of the whole
// text (without a terminating zero); when it is larger than size, buffer holds the first size bytes: call again with a larger one.
// KVASIR_UNSUPPORTED: the template is malformed, refuses these messages, or exceeds what rendering may cost (see the README).
KVASIR_API enum kvasir_status kvasir_chat_render(const char * source, const char * bos, const char * eos, const struct kvasir_chat_message * messages,
        size_t n_messages, int32_t flags, char * buffer, size_t size, size_t * length) KVASIR_NOEXCEPT;

// The recurrent state of a sequence of a recurrent or a hybrid model. llama_memory_seq_rm cannot cut it at a position: it is
// saved where one may have to go back to, and restored there, which cuts the sequence behind the token that was the last one
// then, in the attention's cells too; kvasir_cache_truncate does so in the store. KVASIR_UNSUPPORTED for a model without such a
// state, and for one that has a sliding window as well, whose cells llama.cpp does not tell apart from it here.
KVASIR_API enum kvasir_status kvasir_recurrent_size(struct llama_context * context, int32_t seq, size_t * bytes) KVASIR_NOEXCEPT;
KVASIR_API enum kvasir_status kvasir_recurrent_save(struct llama_context * context, int32_t seq, void * to, size_t bytes) KVASIR_NOEXCEPT;
KVASIR_API enum kvasir_status kvasir_recurrent_restore(struct llama_context * context, int32_t seq, const void * from, size_t bytes) KVASIR_NOEXCEPT;

/* ---- the store ---- */

struct kvasir_layer_info {
    int32_t layer;        // the model's layer index
    int32_t n_stream;
    int32_t n_cells;      // cells of one stream
    int32_t n_head;       // query heads
    int32_t n_head_kv;
    int32_t head_dim_k;
    int32_t head_dim_v;
    int32_t type_k;       // enum ggml_type
    int32_t type_v;
    int32_t n_swa;        // 1 when the layer belongs to the smaller cache of a sliding-window model
    int64_t slot_bytes;   // K and V bytes of one slot of one KV head
    const char * device;  // the ggml device that holds the layer and its rows
    int32_t attention;    // enum kvasir_attention: the path that the layer has there
    int32_t scores_at_hand; // 1: a head's scores in its view are always up to date; 0: only after kvasir_cache_scores
};

// What the store holds for one (layer, stream, KV head). The arrays have n_cells entries, the first *n_slots of which are
// valid; the addresses never change, so they can be read again after every decode without another call.
struct kvasir_head_view {
    const int32_t * n_slots;
    const int32_t * cell;         // [slot] llama.cpp's cell
    const int32_t * pos;          // [slot] the token's position in its sequence
    const float   * score;        // [slot] attention accumulated over all queries since tracking began; mean over the query group
    const int32_t * slot_plus_1;  // [cell] the slot that holds the cell, plus 1; 0 when the head does not hold it
};

struct kvasir_bytes {
    int64_t slots;          // slots held, over all layers, streams and KV heads
    int64_t kept_bytes;     // K and V bytes of those slots
    int64_t resident_bytes; // bytes of memory that the store occupies: pages or device buffers of K and V, and the slot tables
    int64_t full_bytes;     // K and V bytes that llama.cpp would have allocated for this context
    int64_t row_bytes;      // of resident_bytes, the pages or device buffers of K and V: what kvasir_cache_limit bounds
};

struct kvasir_eviction {
    int32_t layer;  // index into the cache's layers, not the model's
    int32_t stream;
    int32_t head;
    int32_t slot;
};

KVASIR_API int32_t kvasir_cache_n_layers(const struct kvasir_cache * cache) KVASIR_NOEXCEPT;
// layer: 0 .. n_layers - 1, ascending by the model's layer index
KVASIR_API enum kvasir_status kvasir_cache_layer(const struct kvasir_cache * cache, int32_t layer, struct kvasir_layer_info * info) KVASIR_NOEXCEPT;
KVASIR_API enum kvasir_status kvasir_cache_head(const struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head, struct kvasir_head_view * view) KVASIR_NOEXCEPT;
KVASIR_API enum kvasir_status kvasir_cache_bytes(const struct kvasir_cache * cache, struct kvasir_bytes * bytes) KVASIR_NOEXCEPT;
// What went wrong in a function of llama.cpp that writes to the cache and reports nothing: llama_state_seq_set_data, and
// llama_memory_seq_cp, which copies at the beginning of the next kvasir_decode. KVASIR_OK: nothing did. It is told once, here or by
// the next kvasir_decode, which fails with it. A stream that could not be copied to is empty in the layers concerned.
KVASIR_API enum kvasir_status kvasir_cache_failure(struct kvasir_cache * cache) KVASIR_NOEXCEPT;
// Bounds the memory of the K and V rows of all layers together, kvasir_bytes.row_bytes; 0, as at first: no bound. The bound is
// checked before memory is taken: tokens whose rows would exceed it make kvasir_decode fail with KVASIR_OUT_OF_MEMORY, and
// llama_state_seq_set_data and llama_memory_seq_cp the next kvasir_decode. As where there is no memory indeed, the micro-batch
// that failed leaves nothing behind in the layers of its device, and the context goes on: with fewer tokens, after keep, evict or
// truncate, or under a higher bound. A bound below what is held drops nothing, and refuses tokens until enough was dropped.
// Not counted are, on the portable path, the second copy of one layer's rows while they move to another buffer, and on NVIDIA
// GPUs what a chunk of mapped memory (a few MiB) holds beyond the pages in use.
KVASIR_API enum kvasir_status kvasir_cache_limit(struct kvasir_cache * cache, int64_t bytes) KVASIR_NOEXCEPT;
// KVASIR_OUT_OF_MEMORY when the bound does not allow n_tokens more slots in every head of the stream, of all streams with -1:
// what kvasir_decode would fail with, where llama.cpp has changed a recurrent state by then.
KVASIR_API enum kvasir_status kvasir_cache_room(struct kvasir_cache * cache, int32_t stream, int32_t n_tokens) KVASIR_NOEXCEPT;

// keeps the given slots (ascending), in their order, drops the rest and returns the memory
KVASIR_API enum kvasir_status kvasir_cache_keep(struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head, const int32_t * slots, int32_t n_slots) KVASIR_NOEXCEPT;
// drops single slots, many heads in one call. Evictions are carried out in order; each moves the head's last slot into the
// hole, so two evictions of one head must name the higher slot first.
KVASIR_API enum kvasir_status kvasir_cache_evict(struct kvasir_cache * cache, const struct kvasir_eviction * evictions, int32_t n_evictions) KVASIR_NOEXCEPT;
// drops every slot of a stream whose cell is >= first_cell (after llama_memory_seq_rm of a tail); when the cache
// holds nothing then, its memory goes back at once
KVASIR_API enum kvasir_status kvasir_cache_truncate(struct kvasir_cache * cache, int32_t stream, int32_t first_cell) KVASIR_NOEXCEPT;
// the rows of one head as floats, [n_slots][head_dim]; k or v may be NULL
KVASIR_API enum kvasir_status kvasir_cache_read(const struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head, float * k, float * v) KVASIR_NOEXCEPT;
// the Euclidean norms of a head's value rows in n_slots slots from first_slot on, [n_slots]
KVASIR_API enum kvasir_status kvasir_cache_value_norms(const struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head,
        int32_t first_slot, int32_t n_slots, float * norms) KVASIR_NOEXCEPT;

/* ---- the statistic ---- */

struct kvasir_statistic_params {
    // Bucket b accumulates the weights of keys at distance d = position(query) - position(key) with
    // bounds[b - 1] <= d < bounds[b] (bounds[-1] = 0); one more bucket takes d >= bounds[n_bounds - 1].
    // bounds must ascend and be > 0.
    const int32_t * bounds;
    int32_t         n_bounds;
    // a second array: column sums over the queries at position >= recent_from only; -1: none
    int32_t         recent_from;
    // 0: one row of sums per KV head, averaged over its query heads; 1: one row per query head
    int32_t         per_query_head;
};

// starts (or starts again, from zero) the statistic of every layer and head
KVASIR_API enum kvasir_status kvasir_statistic_start(struct kvasir_cache * cache, const struct kvasir_statistic_params * params) KVASIR_NOEXCEPT;
// ends it and frees its memory; the column totals become the heads' scores
KVASIR_API enum kvasir_status kvasir_statistic_stop(struct kvasir_cache * cache) KVASIR_NOEXCEPT;
// The sums of one head since the start: buckets [rows][n_bounds + 1][n_slots], recent [rows][n_slots] (either may be NULL),
// with rows = 1, or the query heads of the group. *n_queries: how many queries (tokens) were counted.
KVASIR_API enum kvasir_status kvasir_statistic_read(const struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head,
        float * buckets, float * recent, int64_t * n_queries) KVASIR_NOEXCEPT;
// whether the head's score goes on being accumulated by every query (on by default: 0)
KVASIR_API enum kvasir_status kvasir_cache_track(struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head, int32_t on) KVASIR_NOEXCEPT;
// What queries add to scores and to the statistic can be taken back, bit for bit. A micro-batch that fails or is aborted takes
// back its own by itself. For all that comes after it, a prompt of many micro-batches say, kvasir_cache_mark(on = 1) says where
// a failure and kvasir_cache_take_back go back to: scores, sums and n_queries are then those of the mark, also when the statistic
// was started since; slots that came later, which the caller is about to drop, are left with zeros. The mark ends with take_back,
// with on = 0, and when slots are kept, evicted, truncated, copied or cleared, or the statistic is stopped; without one take_back
// does nothing. It costs a copy of what the marked slots have of the above, made once and only when something is added.
KVASIR_API enum kvasir_status kvasir_cache_mark(struct kvasir_cache * cache, int32_t on) KVASIR_NOEXCEPT;
KVASIR_API enum kvasir_status kvasir_cache_take_back(struct kvasir_cache * cache) KVASIR_NOEXCEPT;
// Brings the scores in the head's view up to date. On the CPU they always are; a GPU accumulates them in its own memory.
KVASIR_API enum kvasir_status kvasir_cache_scores(struct kvasir_cache * cache, int32_t layer, int32_t stream, int32_t head) KVASIR_NOEXCEPT;

/* ---- the statistic of moved queries ---- */

// What the queries of the tokens that were read would take if they came after everything that is held, native/README.md ("Moved
// queries"): for each slot and query head the sums of the softmax weights p and of p^2. Layers of one stream only
// (KVASIR_UNSUPPORTED else). A *block* is 64 tokens by position, counted from the first token whose query has not been summed up.
//
// Every stride-th query of a block (1, 2, 4 or 8) is recorded from here on, in every layer; 0: none any more, and all of the below is freed.
// Queries that are recorded stay so when the stride changes. A micro-batch that fails leaves none behind; kvasir_cache_take_back
// brings record and sums back to what they were at the mark.
KVASIR_API enum kvasir_status kvasir_moved_record(struct kvasir_cache * cache, int32_t stride) KVASIR_NOEXCEPT;
// Sums up the recorded queries of the tokens before position end in one layer, and drops them: each block is moved so that it
// begins at end, and attends to the slots of positions below end and, causally, to a copy of its own tokens. *n_queries: how many. A
// GPU does so behind what it computes; the CPU uses n_threads threads, with the same results for any number. Memory for the sums, 8
// bytes for a slot and query head, counts in kvasir_cache_limit.
KVASIR_API enum kvasir_status kvasir_moved_sum(struct kvasir_cache * cache, int32_t layer, int32_t end, int32_t n_threads, int32_t * n_queries) KVASIR_NOEXCEPT;
// The sums of one head since they were folded last: p and squares [query heads of the group][n_slots]; means over a sample of the queries of
// that time and before, of the output [group][head_dim_v] and of its squared length [group]. Each may be NULL.
KVASIR_API enum kvasir_status kvasir_moved_read(struct kvasir_cache * cache, int32_t layer, int32_t head, float * p, float * squares,
        float * output, float * length2) KVASIR_NOEXCEPT;
// Adds to the score of every slot j of the layer sum_g w_g squares_gj |v_j - mean output of g|^2, which is freed then. weights [n_head], or
// NULL: w_g = 1 / mean |output of g|^2. smooth (odd): squares are means over so many neighbouring slots first, which closes the gaps
// that a stride leaves. Heads must not be tracked.
KVASIR_API enum kvasir_status kvasir_moved_fold(struct kvasir_cache * cache, int32_t layer, const float * weights, int32_t smooth, int32_t n_threads) KVASIR_NOEXCEPT;
// kvasir_cache_keep of all heads of a stream in one call: n_slots [layers' heads, numbered through], and their slots one head after another
KVASIR_API enum kvasir_status kvasir_cache_keep_all(struct kvasir_cache * cache, int32_t stream, const int32_t * slots, const int32_t * n_slots) KVASIR_NOEXCEPT;

// How queries of a layer are moved.
struct kvasir_moved_info {
    int32_t turned;   // 1: by the layer's rotary positions; 0: the layer has none, a moved query is the same
    int32_t window;   // positions that the layer's queries see; 0: all
    int32_t hadamard; // size of the blocks of the rotation that llama.cpp applies to quantised keys; 0: none
};
KVASIR_API enum kvasir_status kvasir_moved_layer(struct kvasir_cache * cache, int32_t layer, struct kvasir_moved_info * info) KVASIR_NOEXCEPT;

/* ---- scores, norms and sums of many heads at once ---- */

enum kvasir_read {
    KVASIR_READ_SCORES      = 0, // [n_slots] as kvasir_head_view.score
    KVASIR_READ_VALUE_NORMS = 1, // [n_slots] as kvasir_cache_value_norms
    KVASIR_READ_STATISTIC   = 2  // [rows][n_bounds + 1][n_slots] as kvasir_statistic_read's buckets; only of all slots
};

struct kvasir_fetch {
    int32_t       layer;
    int32_t       head;
    int32_t       what;       // enum kvasir_read
    int32_t       first_slot;
    int32_t       n_slots;
    const float * data;       // out: where it comes to
};

// Begins to bring to the host what the items name, of heads of one stream, as it is after all that was decoded, kept and evicted so
// far. A GPU does so behind the graph that it is computing, and the call does not wait for it. data may be read once
// kvasir_cache_fetched has returned, by any thread, until the next kvasir_cache_fetch for the same stream. When an item is
// refused nothing is brought.
KVASIR_API enum kvasir_status kvasir_cache_fetch(struct kvasir_cache * cache, int32_t stream, struct kvasir_fetch * items, int32_t n_items) KVASIR_NOEXCEPT;
// waits for what the last kvasir_cache_fetch for the stream has begun
KVASIR_API enum kvasir_status kvasir_cache_fetched(struct kvasir_cache * cache, int32_t stream) KVASIR_NOEXCEPT;

/* ---- measurement ---- */

struct kvasir_timings {
    int64_t graphs;        // graphs computed
    int64_t graph_ns;      // in graph_compute, all of it
    int64_t attention_ns;  // in FLASH_ATTN_EXT over the store, by kernels of ours (0 on the portable path)
    int64_t append_ns;     // in SET_ROWS into the store, likewise
    int64_t prepare_ns;    // on the calling thread, before the graph runs
    int64_t captures;      // CUDA graphs recorded: a decode graph's second run, and again when addresses have changed
    int64_t threads;       // that computed the CPU's part of the last kvasir_decode; not reset
};

KVASIR_API enum kvasir_status kvasir_cache_timings(struct kvasir_cache * cache, struct kvasir_timings * timings, int32_t reset) KVASIR_NOEXCEPT;

/* ---- struct layout self-test, for bindings: sizeof of the struct of that name, or 0 ---- */

KVASIR_API size_t kvasir_sizeof(const char * struct_name) KVASIR_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
