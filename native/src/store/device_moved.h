// Moved queries of a layer on the portable path: the record is a buffer of the device, which a copy in llama.cpp's graph fills; sums are made by
// graphs of ggml's operations in between, and kept on the host as the layer's scores are.
#pragma once

#include "device_rows.h"
#include "moved_host_sums.h"

namespace kvasir {

class device_moved : public moved_host_sums {
public:
    device_moved(layer & l, device_rows & rows, ggml_backend_t backend) : moved_host_sums(l), rows_(rows), backend_(backend) {}
    ~device_moved() override { account(0); }

    void room(int32_t entries) override;
    void drop_entries(int32_t first, int32_t n, int32_t entries) override;
    void sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int n_threads) override;

    // where an entry begins: f16 [n_head][dim of K]
    place  entry(int32_t i) const { return {queries_.get(), (char *) queries_->iface.get_base(queries_.get()) + (size_t) i * entry_bytes()}; }
    size_t entry_bytes() const { return (size_t) l_.n_head * (size_t) l_.k.format.dim * sizeof(uint16_t); }
    // the weights of the layer's attention sinks, in memory of the device
    void   note_sinks(const ggml_tensor * sinks);

protected:
    size_t record_bytes() const override { return (size_t) room_ * entry_bytes(); }
    void   bring_values(std::vector<head_store> & heads, std::vector<std::vector<char>> & rows) override;

private:
    device_rows &      rows_;
    ggml_backend_t     backend_;
    device_buffer      queries_;
    int32_t            room_ = 0; // entries
    std::vector<float> sinks_;

    void bring_rows(bool is_k, std::vector<head_store> & heads, std::vector<std::vector<char>> & rows);
    void sum_on_host(const moved_sums_node & node, int n_threads);
};

} // namespace kvasir
