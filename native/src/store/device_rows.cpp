#include "device_rows.h"

#include "../error.h"
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvasir {

static constexpr int32_t SLOTS_MULTIPLE = 256;

static int32_t rounded(int32_t n) { return (n + SLOTS_MULTIPLE - 1) / SLOTS_MULTIPLE * SLOTS_MULTIPLE; }

// size bytes at an address of a buffer, for ggml's functions that move bytes
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

static void copy_bytes(const place & from, const place & to, size_t size) {
    if (size == 0) {
        return;
    }
    const ggml_tensor src = bytes_at(from, size);
    ggml_tensor       dst = bytes_at(to, size);
    llama().ggml_backend_tensor_copy(&src, &dst);
}

device_rows::device_rows(memory_limit & limit, std::shared_ptr<graph_builder> mover, const row_format & k, const row_format & v, int n_heads, int32_t n_cells, int32_t il)
    : row_memory(limit), mover_(std::move(mover)), backend_(mover_->backend()), il_(il), n_cells_(n_cells), capacity_((size_t) n_heads, 0), used_((size_t) n_heads, 0), rows_((size_t) n_heads), norms_((size_t) n_heads) {
    k_.format = k;
    v_.format = v;
    for (side_memory * s : {&k_, &v_}) {
        s->offset.assign((size_t) n_heads, 0);
    }
}

place device_rows::side_memory::head(size_t i) const { return {buffer.get(), (char *) buffer->iface.get_base(buffer.get()) + offset[i]}; }

void device_rows::synchronize() const {
    if (backend_->iface.synchronize) {
        backend_->iface.synchronize(backend_);
    }
}

bool device_rows::any_kept() const {
    return std::any_of(rows_.begin(), rows_.end(), [](const head_rows & r) { return r.kept; });
}

size_t device_rows::lay_out(const row_format & format, const std::vector<int32_t> & capacity, std::vector<size_t> * offset) const {
    // kernels of some backends read past the last row of a quantised matrix
    constexpr size_t spare = 4096;
    ggml_backend_dev_t         device    = backend_->device;
    ggml_backend_buffer_type_t type      = device->iface.get_buffer_type(device);
    const size_t               alignment = type->iface.get_alignment(type);
    size_t size = 0;
    if (format.part) {
        return 0;
    }
    for (int32_t n : capacity) {
        if (offset) {
            offset->push_back(size);
        }
        size += (size_t) n * format.row_bytes;
        while (size % alignment != 0) { // by whole rows
            size += (size_t) SLOTS_MULTIPLE * format.row_bytes;
        }
    }
    return size == 0 ? 0 : size + spare;
}

device_rows::side_memory device_rows::allocate(const row_format & format, const std::vector<int32_t> & capacity) const {
    ggml_backend_dev_t device = backend_->device;
    side_memory s;
    s.format = format;
    const size_t size = lay_out(format, capacity, &s.offset);
    if (size == 0) {
        return s;
    }
    s.buffer = allocate_buffer(device, size);
    if (!s.buffer) {
        throw error(KVASIR_OUT_OF_MEMORY, kvasir::format("%s has no room for %.1f MiB of KV cache of layer %d: evict tokens, or use a smaller context or KV type",
                                                         device->iface.get_name(device), (double) size / (1 << 20), il_));
    }
    s.buffer->iface.clear(s.buffer.get(), 0);
    return s;
}

int64_t device_rows::first_row(bool is_k, int head) const { return (int64_t) (of(is_k).offset[(size_t) head] / of(is_k).format.row_bytes); }

int64_t device_rows::n_rows(bool is_k) const { return first_row(is_k, (int) capacity_.size() - 1) + capacity_.back(); }

size_t device_rows::head_bytes(bool is_k, int first, int n) const {
    const std::vector<size_t> & offset = of(is_k).offset;
    if (n == 1) {
        return (size_t) capacity_[(size_t) first] * of(is_k).format.row_bytes;
    }
    const size_t bytes = offset[(size_t) first + 1] - offset[(size_t) first];
    for (int i = first + 1; i < first + n; i++) {
        if (offset[(size_t) i] - offset[(size_t) i - 1] != bytes) {
            return 0;
        }
    }
    return bytes;
}

std::vector<int32_t> device_rows::capacity_for(const int32_t * n) const {
    std::vector<int32_t> wanted = capacity_;
    for (size_t i = 0; i < wanted.size(); i++) {
        if (n[i] > wanted[i]) { // an eighth more than is needed, so that a long head is not copied at every step
            const int32_t spare = limit().tight ? 0 : n[i] / 8 / SLOTS_MULTIPLE * SLOTS_MULTIPLE;
            wanted[i] = std::max(rounded(n[i]), std::min(rounded(n[i]) + spare, rounded(n_cells_)));
        }
    }
    return wanted;
}

// The buffer that is left when its rows have moved does not count: it is gone before the next layer moves, and a cache at
// its limit must be able to move into smaller buffers.
size_t device_rows::growth(const int32_t * n) {
    flush();
    const std::vector<int32_t> wanted = capacity_for(n);
    if (wanted == capacity_) {
        return 0;
    }
    const auto bytes = [&](const std::vector<int32_t> & capacity) { return lay_out(k_.format, capacity, nullptr) + lay_out(v_.format, capacity, nullptr); };
    return bytes(wanted) - bytes(capacity_);
}

void device_rows::reserve(const int32_t * n) {
    limit().require(growth(n));
    const std::vector<int32_t> wanted = capacity_for(n);
    if (wanted != capacity_) {
        rebuild(wanted);
    }
    for (size_t i = 0; i < used_.size(); i++) {
        used_[i] = std::max(used_[i], n[i]);
    }
}

void device_rows::keep(int head, const int32_t * slots, int32_t n, int32_t) {
    std::vector<int32_t> order((size_t) n);
    for (int32_t i = 0; i < n; i++) {
        order[(size_t) i] = row(head, slots[i]);
    }
    rows_[(size_t) head] = {std::move(order), true};
    used_[(size_t) head] = n;
    std::vector<float> & norms = norms_[(size_t) head];
    const auto           known = (size_t) (std::lower_bound(slots, slots + n, (int32_t) norms.size()) - slots);
    for (size_t i = 0; i < known; i++) {
        norms[i] = norms[(size_t) slots[i]];
    }
    norms.resize(known);
}

void device_rows::move(int head, int32_t from, int32_t to) {
    std::vector<int32_t> & order = rows_[(size_t) head].order;
    while (order.size() <= (size_t) from) {
        order.push_back((int32_t) order.size());
    }
    std::swap(order[(size_t) from], order[(size_t) to]);
    std::vector<float> & norms = norms_[(size_t) head];
    if ((size_t) to < norms.size()) {
        norms[(size_t) to] = (size_t) from < norms.size() ? norms[(size_t) from] : NAN;
    }
}

void device_rows::release(int head, int32_t n) {
    used_[(size_t) head] = n;
    norms_[(size_t) head].resize(std::min(norms_[(size_t) head].size(), (size_t) n));
    head_rows & r = rows_[(size_t) head];
    if (r.kept) {
        r.order.resize((size_t) n);
    }
    while (!r.kept && r.order.size() > (size_t) n && (n == 0 || r.order.back() == (int32_t) r.order.size() - 1)) {
        r.order.pop_back();
    }
}

void device_rows::clear() {
    synchronize();
    for (side_memory * s : {&k_, &v_}) {
        s->buffer.reset();
    }
    set_row_bytes(0);
    std::fill(capacity_.begin(), capacity_.end(), 0);
    std::fill(used_.begin(), used_.end(), 0);
    std::fill(rows_.begin(), rows_.end(), head_rows());
    std::fill(norms_.begin(), norms_.end(), std::vector<float>());
}

// The capacities that fit. Single evictions let a head shrink slowly: it is worth a copy when a quarter comes back.
bool device_rows::wasteful(std::vector<int32_t> & fitting) const {
    int64_t held = 0, needed = 0;
    fitting.resize(capacity_.size());
    for (size_t i = 0; i < fitting.size(); i++) {
        fitting[i] = std::min(rounded(used_[i]), capacity_[i]);
        held += capacity_[i];
        needed += fitting[i];
    }
    return needed < held - held / 4;
}

void device_rows::flush() {
    std::vector<int32_t> fitting;
    if (!wasteful(fitting) && !any_kept()) {
        return;
    }
    shrink(fitting);
}

void device_rows::trim() {
    std::vector<int32_t> fitting;
    wasteful(fitting);
    if (fitting != capacity_) {
        shrink(fitting);
    }
}

void device_rows::shrink(const std::vector<int32_t> & fitting) {
    try {
        rebuild(fitting);
    } catch (const error & e) {
        if (e.status() != KVASIR_OUT_OF_MEMORY) {
            throw;
        }
        gather_in_place(); // no room for the copy: nothing goes back this time
    }
}

// Into buffers of other capacities, every slot at its own number.
void device_rows::rebuild(const std::vector<int32_t> & capacity) {
    side_memory k = allocate(k_.format, capacity), v = allocate(v_.format, capacity);
    gather(k, v);
    k_        = std::move(k);
    v_        = std::move(v);
    capacity_ = capacity;
    set_row_bytes((k_.buffer ? k_.buffer->size : 0) + (v_.buffer ? v_.buffer->size : 0));
    std::fill(rows_.begin(), rows_.end(), head_rows());
}

// the rows of all heads in the order of their slots, into other memory
void device_rows::gather(const side_memory & k, const side_memory & v) {
    struct piece {
        const side_memory * from;
        const side_memory * to;
        size_t              head;
        int32_t             n; // slots
    };
    const api &                       a = llama();
    std::vector<piece>                all, on_host;
    std::vector<std::vector<int32_t>> orders(rows_.size()); // empty: as they are
    for (size_t i = 0; i < rows_.size(); i++) {
        const int32_t n = std::min(used_[i], capacity_[i]);
        if (n == 0) {
            continue;
        }
        for (int32_t slot = 0; slot < n && !order((int) i).empty(); slot++) {
            orders[i].push_back(row((int) i, slot));
        }
        all.push_back({&k_, &k, i, n});
        if (!v_.format.part) {
            all.push_back({&v_, &v, i, n});
        }
    }
    mover_->begin();
    for (const piece & p : all) { // whatever the type is: words are copied as they are
        const size_t row_bytes = p.from->format.row_bytes;
        const auto   words     = (int64_t) (row_bytes / sizeof(int32_t));
        if (row_bytes % sizeof(int32_t) != 0) {
            on_host.push_back(p);
            continue;
        }
        ggml_tensor * to = mover_->tensor(GGML_TYPE_I32, p.to->head(p.head), words, p.n);
        ggml_tensor * moved;
        if (orders[p.head].empty()) {
            moved = a.ggml_cpy(mover_->context(), mover_->tensor(GGML_TYPE_I32, p.from->head(p.head), words, p.n), to);
        } else {
            void *        host;
            ggml_tensor * index = mover_->input(GGML_TYPE_I32, p.n, 1, 1, &host);
            memcpy(host, orders[p.head].data(), (size_t) p.n * sizeof(int32_t));
            moved = a.ggml_get_rows(mover_->context(), mover_->tensor(GGML_TYPE_I32, p.from->head(p.head), words, capacity_[p.head]), index);
        }
        if (mover_->supports(moved)) {
            mover_->add(moved, to);
        } else {
            on_host.push_back(p);
        }
    }
    if (mover_->compute() != GGML_STATUS_SUCCESS) { // an abort that was asked for: the rows must move all the same
        on_host = all;
    }
    mover_->synchronize();
    for (const piece & p : on_host) {
        const place from = p.from->head(p.head), to = p.to->head(p.head);
        if (orders[p.head].empty()) {
            copy_bytes(from, to, (size_t) p.n * p.from->format.row_bytes);
        } else {
            gather_on_host(p.from->format, from, to, orders[p.head]);
        }
    }
}

void device_rows::gather_on_host(const row_format & format, const place & from, const place & to, const std::vector<int32_t> & order) const {
    if (order.empty()) {
        return;
    }
    const size_t      row = format.row_bytes, held = (size_t) (*std::max_element(order.begin(), order.end()) + 1) * row;
    std::vector<char> all(held), kept(order.size() * row);
    const ggml_tensor src = bytes_at(from, held);
    ggml_tensor       dst = bytes_at(to, kept.size());
    src.buffer->iface.get_tensor(src.buffer, &src, all.data(), 0, held);
    for (size_t s = 0; s < order.size(); s++) {
        memcpy(kept.data() + s * row, all.data() + (size_t) order[s] * row, row);
    }
    dst.buffer->iface.set_tensor(dst.buffer, &dst, kept.data(), 0, kept.size());
}

void device_rows::gather_in_place() {
    synchronize();
    for (size_t i = 0; i < rows_.size(); i++) {
        if (rows_[i].kept) {
            for (const side_memory * s : {&k_, &v_}) {
                if (!s->format.part) {
                    gather_on_host(s->format, s->head(i), s->head(i), rows_[i].order);
                }
            }
            rows_[i] = head_rows();
        }
    }
}

void device_rows::copy(int from, int to, int32_t n, bool is_k) {
    std::vector<int32_t> wanted = used_;
    wanted[(size_t) to] = std::max(wanted[(size_t) to], n);
    reserve(wanted.data());
    if (!order(from).empty() || !order(to).empty()) {
        rebuild(capacity_);
    }
    if (n > 0) {
        synchronize();
        copy_bytes(rows(is_k, from), rows(is_k, to), (size_t) n * of(is_k).format.row_bytes);
    }
    if (has_values(is_k)) {
        norms_[(size_t) to] = norms_[(size_t) from];
    }
}

void device_rows::read(bool is_k, int head, int32_t first, int32_t n, char * to) {
    if (n == 0) {
        return;
    }
    flush();
    synchronize();
    const size_t row_bytes = of(is_k).format.row_bytes;
    const auto   get       = [&](int32_t row, int32_t count, char * bytes) {
        const ggml_tensor t = bytes_at(rows(is_k, head) + (size_t) row * row_bytes, (size_t) count * row_bytes);
        t.buffer->iface.get_tensor(t.buffer, &t, bytes, 0, (size_t) count * row_bytes);
    };
    if (order(head).empty()) {
        get(first, n, to);
        return;
    }
    int32_t begin = INT32_MAX, end = 0;
    for (int32_t slot = first; slot < first + n; slot++) {
        begin = std::min(begin, row(head, slot));
        end   = std::max(end, row(head, slot) + 1);
    }
    std::vector<char> held((size_t) (end - begin) * row_bytes);
    get(begin, end - begin, held.data());
    for (int32_t i = 0; i < n; i++) {
        memcpy(to + (size_t) i * row_bytes, held.data() + (size_t) (row(head, first + i) - begin) * row_bytes, row_bytes);
    }
}

void device_rows::write(bool is_k, int head, int32_t first, int32_t n, const char * from) {
    if (n == 0) {
        return;
    }
    flush();
    synchronize();
    const size_t row_bytes = of(is_k).format.row_bytes;
    for (int32_t i = 0, run; i < n; i += run) {
        const int32_t to = row(head, first + i);
        for (run = 1; i + run < n && row(head, first + i + run) == to + run; run++) {
        }
        const size_t size = (size_t) run * row_bytes;
        ggml_tensor  t    = bytes_at(rows(is_k, head) + (size_t) to * row_bytes, size);
        t.buffer->iface.set_tensor(t.buffer, &t, from + (size_t) i * row_bytes, 0, size);
    }
    for (int32_t slot = first; has_values(is_k) && slot < first + n; slot++) {
        forget_norm(head, slot);
    }
}

void device_rows::forget_norm(int head, int32_t slot) {
    std::vector<float> & norms = norms_[(size_t) head];
    if ((size_t) slot < norms.size()) {
        norms[(size_t) slot] = NAN;
    }
}

bool device_rows::value_norms(int head, int32_t first, int32_t n, float * norms) {
    std::vector<float> & known = norms_[(size_t) head];
    if (known.size() < (size_t) (first + n)) {
        known.resize((size_t) used_[(size_t) head], NAN);
    }
    const auto unknown = [](float norm) { return std::isnan(norm); };
    if (std::any_of(known.begin() + first, known.begin() + first + n, unknown)) {
        // all of them, as their turn comes: a window moves on by a slot with each token
        const auto from = (int32_t) (std::find_if(known.begin(), known.end(), unknown) - known.begin());
        const auto to   = (int32_t) (known.rend() - std::find_if(known.rbegin(), known.rend(), unknown));
        std::vector<char> rows((size_t) (to - from) * v_.format.row_bytes);
        read(false, head, from, to - from, rows.data());
        rows_norms(v_.format, rows.data(), to - from, known.data() + from);
    }
    std::copy_n(known.begin() + first, n, norms);
    return true;
}

} // namespace kvasir
