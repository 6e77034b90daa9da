/* The headers that the Java bindings are generated from. */
#include "ggml.h"
#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"
#include "kvasir.h"
