// Which operations over the KV cache have a path, and what memory and which path a layer gets.
#pragma once

#include "../llama/api.h"

#include <string>

namespace kvasir {

struct layer;
struct side;

// A SET_ROWS into the store or a FLASH_ATTN_EXT over it, as found in a graph of llama.cpp.
struct found_node {
    int                 index;     // in the graph
    ggml_tensor *       node;
    layer *             l;
    side *              rows;      // SET_ROWS: what is written
    const ggml_tensor * positions; // SET_ROWS of K: those of the tokens, or none
};

// whether the node is in the store, or reads from it
bool touches_store(const ggml_tensor * node);
// Whether there is a path for a node over the store; else the reason. Makes the layer's memory when it sees its first
// attention, while llama.cpp reserves its graphs.
bool accept_node(const ggml_tensor * node, std::string & reason);

} // namespace kvasir
