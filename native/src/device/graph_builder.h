// A graph for the inner backend in which nodes of llama.cpp's graph stand beside nodes of our own. Whatever is built is
// computed as one graph: the backend sees all hazards between the nodes, and nothing waits for the host in between.
#pragma once

#include "../llama/api.h"
#include "device_arena.h"

#include <vector>

namespace kvasir {

// an address in a device's buffer
struct place {
    ggml_backend_buffer_t buffer  = nullptr;
    char *                address = nullptr;

    place() = default;
    place(ggml_backend_buffer_t buffer, void * address) : buffer(buffer), address((char *) address) {}
    place(const device_arena::piece & p) : place(p.buffer, p.address) {}
    explicit place(const ggml_tensor * t) : place(t->buffer || !t->view_src ? t->buffer : t->view_src->buffer, t->data) {}
    place operator+(size_t offset) const { return {buffer, address + offset}; }
};

class graph_builder {
public:
    explicit graph_builder(ggml_backend_t backend);
    ~graph_builder();
    graph_builder(const graph_builder &) = delete;
    graph_builder & operator=(const graph_builder &) = delete;

    ggml_backend_t backend() const { return backend_; }
    // forgets everything; original: the graph that the nodes given to pass() are from
    void begin(const ggml_cgraph * original = nullptr);
    void pass(ggml_tensor * node);

    // a tensor over memory that exists; rows and planes lie nb1 and nb2 bytes apart (0: without gaps)
    ggml_tensor * tensor(ggml_type type, const place & at, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, size_t nb1 = 0, size_t nb2 = 0);
    // contents come from host, which is to be filled before compute
    ggml_tensor * input(ggml_type type, int64_t n0, int64_t n1, int64_t n2, void ** host);
    ggml_tensor * scratch(ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1);
    // for the result of an operation, which may want more than its elements: ggml-cuda's attention converts K and V behind them
    ggml_tensor * scratch_for(const ggml_tensor * operation);
    size_t        alloc_size(const ggml_tensor * operation) const;
    // what is in host after fetch_results
    ggml_tensor * result(ggml_type type, int64_t n0, int64_t n1, int64_t n2, void ** host);

    // Appends an operation made by a function of ggml's in context(); it writes to the memory of out. Throws
    // KVASIR_UNSUPPORTED when the backend does not have it.
    ggml_tensor * add(ggml_tensor * operation, const ggml_tensor * out);
    // a copy into another type or layout
    ggml_tensor * copy(ggml_tensor * from, ggml_tensor * to);
    // t, or a copy of it where the backend can bind it as a source
    ggml_tensor * bindable(ggml_tensor * t);
    bool          bindable(const place & at) const;

    bool           supports(const ggml_tensor * operation) const;
    ggml_context * context(); // with room for one tensor

    bool        empty() const { return nodes_.empty(); }
    size_t      input_bytes() const { return inputs_.taken(); }
    size_t      result_bytes() const { return results_.taken(); }
    void        rewind_scratch() { scratch_.rewind(); } // what follows may overwrite the scratch of the nodes so far
    // Computes what was added since begin or the last compute; does not wait for it.
    ggml_status compute();
    void        synchronize();
    // after compute: waits, and brings the results to the host
    void        fetch_results();
    // after the results were read: inputs, scratch and results can be taken again. Waits for what uses them.
    void        reset_memory();

private:
    struct pool {
        std::vector<char> memory;
        ggml_context *    context = nullptr;
    };
    static pool new_pool(size_t size);

    ggml_backend_t     backend_;
    ggml_backend_dev_t device_;
    size_t             alignment_;
    device_arena       inputs_, scratch_, results_;
    std::vector<pool>  pools_;
    size_t             pool_ = 0, in_pool_ = 0; // the context in use, and the tensors in it
    pool                       empty_pool_;
    const ggml_cgraph *        empty_    = nullptr; // a graph without nodes
    const ggml_cgraph *        original_ = nullptr;
    std::vector<ggml_tensor *> nodes_;
};

} // namespace kvasir
