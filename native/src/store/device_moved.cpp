#include "device_moved.h"

#include "../attention/portable/portable_moved.h"
#include "../error.h"

#include <algorithm>
#include <cstring>

namespace kvasir {

std::unique_ptr<moved_memory> device_rows::moved(layer & l) { return std::make_unique<device_moved>(l, *this, backend_); }

static void synchronize(ggml_backend_t backend) {
    if (backend->iface.synchronize) {
        backend->iface.synchronize(backend);
    }
}

static ggml_tensor bytes_at(const place & at, size_t size) {
    ggml_tensor t{};
    t.type   = GGML_TYPE_I8;
    t.buffer = at.buffer;
    t.data   = at.address;
    t.ne[0]  = (int64_t) size;
    t.ne[1]  = t.ne[2] = t.ne[3] = 1;
    t.nb[0]  = 1;
    t.nb[1]  = t.nb[2] = t.nb[3] = size;
    return t;
}

static void get(const place & at, size_t size, void * to) {
    const ggml_tensor t = bytes_at(at, size);
    if (size > 0) {
        t.buffer->iface.get_tensor(t.buffer, &t, to, 0, size);
    }
}

static void set(const place & at, size_t size, const void * from) {
    ggml_tensor t = bytes_at(at, size);
    if (size > 0) {
        t.buffer->iface.set_tensor(t.buffer, &t, from, 0, size);
    }
}

void device_moved::room(int32_t entries) {
    constexpr int32_t fewest = 64; // those of a block: tokens that are decoded one by one come to no new buffer each
    if (entries <= room_) {
        return;
    }
    const int32_t wanted = std::max({entries, room_ + room_ / 2, fewest});
    require((size_t) (wanted - room_) * entry_bytes());
    ggml_backend_dev_t device = backend_->device;
    device_buffer larger = allocate_buffer(device, (size_t) wanted * entry_bytes());
    if (!larger) {
        throw error(KVASIR_OUT_OF_MEMORY, format("%s has no room for %.1f MiB of recorded queries of layer %d", device->iface.get_name(device),
                                                 (double) ((size_t) wanted * entry_bytes()) / (1 << 20), l_.il));
    }
    if (queries_) {
        std::vector<char> all((size_t) room_ * entry_bytes());
        synchronize(backend_);
        get(entry(0), all.size(), all.data());
        queries_ = std::move(larger);
        set(entry(0), all.size(), all.data());
    } else {
        queries_ = std::move(larger);
    }
    room_ = wanted;
    account();
}

void device_moved::drop_entries(int32_t first, int32_t n, int32_t entries) {
    if (!queries_) {
        return;
    }
    synchronize(backend_);
    if (entries == n) { // a prompt's record is far longer than that of 64 steps
        queries_.reset();
        room_ = 0;
        account();
        return;
    }
    std::vector<char> rest((size_t) (entries - first - n) * entry_bytes());
    get(entry(first + n), rest.size(), rest.data());
    set(entry(first), rest.size(), rest.data());
}

void device_moved::note_sinks(const ggml_tensor * sinks) {
    if (sinks && sinks_.empty()) {
        sinks_.resize((size_t) l_.n_head);
        const place at(sinks);
        synchronize(backend_);
        get(at, sinks_.size() * sizeof(float), sinks_.data());
    }
}

void device_moved::bring_rows(bool is_k, std::vector<head_store> & heads, std::vector<std::vector<char>> & rows) {
    for (size_t h = 0; h < heads.size(); h++) {
        const int32_t n = heads[h].n;
        rows.emplace_back((size_t) n * rows_.format(is_k).row_bytes);
        rows_.read(is_k, (int) h, 0, n, rows.back().data());
        (is_k ? heads[h].k : heads[h].v) = rows.back().data();
    }
}

void device_moved::bring_values(std::vector<head_store> & heads, std::vector<std::vector<char>> & rows) { bring_rows(rows_.has_values(true), heads, rows); }

void device_moved::sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int n_threads) {
    reserve_sums();
    rows_.flush();
    synchronize(backend_);
    std::vector<uint16_t> queries(pos.size() * entry_bytes() / sizeof(uint16_t));
    get(entry(0), pos.size() * entry_bytes(), queries.data());
    moved_sums_node node = node_of(blocks, pos, end);
    node.queries = queries.data();
    node.sinks   = sinks_.empty() ? nullptr : sinks_.data();
    if (!portable_moved(backend_, rows_, node, n_threads).run()) {
        sum_on_host(node, n_threads);
    }
}

// what the device has no operations for
void device_moved::sum_on_host(const moved_sums_node & node, int n_threads) {
    std::vector<head_store>        heads(l_.heads.begin(), l_.heads.end());
    std::vector<std::vector<char>> rows;
    bring_rows(true, heads, rows);
    if (!node.v.part) {
        bring_rows(false, heads, rows);
    }
    moved_sums_node on_host = node;
    on_host.heads = heads.data();
    moved_sums(on_host, n_threads);
}

} // namespace kvasir
