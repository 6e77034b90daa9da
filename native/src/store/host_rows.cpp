#include "host_rows.h"

#include "moved_queries.h"

#include "rows.h"

#include <algorithm>
#include <cstring>

namespace kvasir {

host_rows::host_rows(memory_limit & limit, const row_format & k, const row_format & v, int n_heads, int32_t n_cells)
    : row_memory(limit), touched_((size_t) n_heads, 0), room_((size_t) n_heads, 0) {
    k_.format = k;
    v_.format = v;
    for (side_memory * s : {&k_, &v_}) {
        s->head_bytes = whole_pages(rows_bytes(s->format, n_cells));
        if (s->head_bytes > 0) {
            s->memory = mapping(s->head_bytes * (size_t) n_heads, /*committed =*/ false);
        }
    }
}

char * host_rows::host(bool is_k, int head) const {
    const side_memory & s = of(is_k);
    return s.memory.data() + (size_t) head * s.head_bytes;
}

size_t host_rows::bytes(int32_t n) const { return whole_pages(rows_bytes(k_.format, n)) + whole_pages(rows_bytes(v_.format, n)); }

// The memory of n slots of the head, more than there were, can be touched.
void host_rows::commit(size_t head, int32_t n) {
    for (const side_memory * s : {&k_, &v_}) {
        char * base = s->memory.data() + head * s->head_bytes;
        memory_commit(base + whole_pages(rows_bytes(s->format, touched_[head])), base + whole_pages(rows_bytes(s->format, n)));
    }
}

// From here on it counts as in use.
void host_rows::touch(size_t head, int32_t n) {
    set_row_bytes(row_bytes() + bytes(n) - bytes(touched_[head]));
    touched_[head] = n;
    room_[head]    = std::min(rows_fitting(k_.format, whole_pages(rows_bytes(k_.format, n))), rows_fitting(v_.format, whole_pages(rows_bytes(v_.format, n))));
}

// a token brings a new page now and then only
size_t host_rows::growth(const int32_t * n) {
    size_t more = 0;
    for (size_t i = 0; i < touched_.size(); i++) {
        more += n[i] > room_[i] ? bytes(n[i]) - bytes(touched_[i]) : 0;
    }
    return more;
}

// pages come with the first touch
void host_rows::reserve(const int32_t * n) {
    limit().require(growth(n));
    for (size_t i = 0; i < touched_.size(); i++) {
        if (n[i] > room_[i]) {
            commit(i, n[i]);
        }
    }
    for (size_t i = 0; i < touched_.size(); i++) {
        if (n[i] > room_[i]) {
            touch(i, n[i]);
        } else {
            touched_[i] = std::max(touched_[i], n[i]);
        }
    }
}

void host_rows::keep(int head, const int32_t * slots, int32_t n, int32_t) {
    rows_keep(k_.format, host(true, head), slots, n);
    rows_keep(v_.format, host(false, head), slots, n);
}

void host_rows::move(int head, int32_t from, int32_t to) {
    rows_move(k_.format, host(true, head), from, to);
    rows_move(v_.format, host(false, head), from, to);
}

void host_rows::release(int head, int32_t n) {
    for (const side_memory * s : {&k_, &v_}) {
        char * base = s->memory.data() + (size_t) head * s->head_bytes;
        memory_decommit(base + whole_pages(rows_bytes(s->format, n)), base + whole_pages(rows_bytes(s->format, touched_[(size_t) head])));
    }
    touch((size_t) head, n);
}

void host_rows::clear() {
    std::fill(touched_.begin(), touched_.end(), 0);
    std::fill(room_.begin(), room_.end(), 0);
    set_row_bytes(0);
    for (const side_memory * s : {&k_, &v_}) {
        memory_decommit(s->memory.data(), s->memory.data() + s->memory.size());
    }
}

void host_rows::copy(int from, int to, int32_t n, bool is_k) {
    if (n > touched_[(size_t) to]) {
        commit((size_t) to, n);
    }
    memcpy(host(is_k, to), host(is_k, from), rows_bytes(of(is_k).format, n));
    if (n > touched_[(size_t) to]) {
        touch((size_t) to, n);
    }
}

void host_rows::read(bool is_k, int head, int32_t first, int32_t n, char * rows) {
    rows_gather(of(is_k).format, host(is_k, head), nullptr, first, n, rows);
}

void host_rows::write(bool is_k, int head, int32_t first, int32_t n, const char * rows) {
    const row_format & f = of(is_k).format;
    for (int32_t i = 0; i < n; i++) {
        rows_set(f, host(is_k, head), first + i, rows + (size_t) i * f.row_bytes);
    }
}

std::unique_ptr<moved_memory> host_rows::moved(layer & l) { return host_moved_memory(l); }

} // namespace kvasir
