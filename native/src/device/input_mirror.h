// What llama.cpp's inputs hold on a device, known to the host without asking the device: the cells and positions of the
// tokens, and the mask.
//
// ggml's scheduler writes the inputs of a graph into the device's copies of them right before it computes the graph
// (ggml_backend_sched_compute_splits), through set_tensor of the buffer or of the backend. The buffers that the proxy hands
// out note what is written. A note is the value that the device's tensor had when the graph began: every later write to
// the same tensor renews it, a write that the host cannot see drops it.
#pragma once

#include "../llama/api.h"

#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace kvasir {

class input_mirror {
public:
    static input_mirror & get();

    void watch(ggml_backend_buffer_t buffer); // writes to this buffer are noted from now on
    void note(const ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    void drop(const ggml_tensor * tensor);
    void forget(ggml_backend_buffer_t buffer); // what was noted for it
    // The tensor's bytes, or nullptr; valid until the tensor is written again. A large mask is noted once it has been asked for.
    const void * find(const ggml_tensor * tensor) const;

    using set_function  = decltype(ggml_backend_buffer_i::set_tensor);
    using copy_function = decltype(ggml_backend_buffer_i::cpy_tensor);

private:
    struct functions {
        set_function  set_tensor;
        copy_function cpy_tensor;
    };
    // addresses alone are not unique: some backends count them from the same base in every buffer
    using key = std::pair<ggml_backend_buffer_t, const void *>;
    mutable std::mutex                                mutex_;
    std::map<ggml_backend_buffer_type_t, functions>   originals_; // one kind of buffer for each type
    std::map<key, std::vector<char>>                  notes_;
    mutable std::set<key>                             asked_; // large masks that somebody reads

    functions original(ggml_backend_buffer_t buffer) const;
    static void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    static bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst);
};

} // namespace kvasir
