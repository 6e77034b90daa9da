// Which operations over the KV cache have a path, and what memory and which path a layer gets.
#pragma once

#include "../llama/api.h"
#include "attention_op.h"

#include <string>

struct kvasir_cache;

namespace kvasir {

struct layer;
struct side;

// A graph over a store that has no path for it, which llama.cpp may try to compute without asking how that went: the shift of K after
// llama_memory_seq_add. The next graph over the store fails then, and with it llama_decode.
struct graph_refusal {
    const kvasir_cache * cache = nullptr; // none: there was no such graph since the thread's kvasir_decode began
    std::string          reason;
};
graph_refusal & refused_graph(); // of the calling thread
void            refuse_graph(const kvasir_cache * cache, const std::string & reason);

// A SET_ROWS into the store or an attention over it, as found in a graph of llama.cpp.
struct found_node {
    int                 index;     // in the graph
    ggml_tensor *       node;      // of a plain attention the last one
    layer *             l;
    side *              rows;      // SET_ROWS: what is written
    const ggml_tensor * positions; // SET_ROWS of K: those of the tokens, or none
    attention_op        attention; // what it is over, where it is one

    bool    by_element() const; // V of a plain attention
    int64_t n_tokens() const;
};

// the cache whose store the node is in, or reads from; else nullptr
kvasir_cache * cache_of(const ggml_tensor * node);
inline bool touches_store(const ggml_tensor * node) { return cache_of(node) != nullptr; }
// Whether there is a path for a node over the store; else the reason. Makes the layer's memory when it sees its first
// attention, while llama.cpp reserves its graphs.
bool accept_node(const ggml_tensor * node, std::string & reason);

} // namespace kvasir
