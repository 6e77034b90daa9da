// Memory of a device, handed out piece by piece for one graph, with a copy on the host for what is sent or fetched in one go.
#pragma once

#include "../llama/api.h"

#include <memory>
#include <vector>

namespace kvasir {

struct buffer_deleter {
    void operator()(ggml_backend_buffer * buffer) const { llama().ggml_backend_buffer_free(buffer); }
};
using device_buffer = std::unique_ptr<ggml_backend_buffer, buffer_deleter>;

// nullptr when the device has no room
device_buffer allocate_buffer(ggml_backend_dev_t device, size_t size);

class device_arena {
public:
    struct piece {
        ggml_backend_buffer_t buffer  = nullptr;
        char *                address = nullptr; // as ggml_tensor::data, on the device
        char *                host    = nullptr; // of a mirrored arena
    };

    device_arena(ggml_backend_dev_t device, bool mirrored) : device_(device), mirrored_(mirrored) {}

    piece  take(size_t size); // throws kvasir::error (KVASIR_OUT_OF_MEMORY)
    size_t taken() const;
    void   send();            // host to device, everything that was taken
    void   fetch();           // device to host
    void   rewind();          // all pieces are free again: what used them has run, or stands before it in the same graph

private:
    struct chunk {
        device_buffer           buffer;
        device_buffer           pinned;  // where the device has such memory; else own
        std::unique_ptr<char[]> own;
        char *                  host = nullptr;
        size_t                  size = 0, used = 0;
    };
    ggml_backend_dev_t device_;
    bool               mirrored_;
    std::vector<chunk> chunks_;

    template <typename F> void for_each_chunk(F && f);
};

} // namespace kvasir
