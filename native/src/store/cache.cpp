#include "cache.h"

#include "../error.h"

#include <algorithm>
#include <cstring>

using namespace kvasir;

namespace kvasir {

// the arrays of one head's slot table, each of n_cells entries
enum table_column { CELL, POS, SCORE, SLOT_PLUS_1, TABLE_COLUMNS };

void layer::configure(int32_t heads_q, int32_t heads_kv, std::unique_ptr<row_memory> memory) {
    const int n = n_stream * heads_kv;
    column_bytes_ = whole_pages((size_t) n_cells * sizeof(int32_t));
    table_        = mapping(column_bytes_ * TABLE_COLUMNS * (size_t) n);
    heads.assign((size_t) n, head_store());
    saved_.resize((size_t) n);
    lengths.assign((size_t) n, 0);
    max_cell.assign((size_t) n_stream, -1);
    slot_plus_1.assign((size_t) n, nullptr);
    touched_.assign((size_t) n, 0);
    cells_of_page_ = (int32_t) (page_size() / sizeof(int32_t));
    table_pages_   = (n_cells + cells_of_page_ - 1) / cells_of_page_;
    held_cells_.assign((size_t) n * (size_t) table_pages_, 0);
    for (int i = 0; i < n; i++) {
        char * table   = table_.data() + (size_t) i * TABLE_COLUMNS * column_bytes_;
        heads[i].k     = memory->host(true, i);
        heads[i].v     = memory->host(false, i);
        heads[i].cell  = (int32_t *) (table + CELL * column_bytes_);
        heads[i].pos   = (int32_t *) (table + POS * column_bytes_);
        heads[i].score = (float *) (table + SCORE * column_bytes_);
        slot_plus_1[i] = (int32_t *) (table + SLOT_PLUS_1 * column_bytes_);
    }
    rows      = std::move(memory);
    moved     = std::make_unique<moved_queries>(*this);
    n_head    = heads_q;
    n_head_kv = heads_kv;
}

// one column of the statistic of one head: n_cells floats
float * layer::sums(int index, int32_t column) const {
    return (float *) sums_.memory.data() + ((size_t) index * sums_.per_slot + column) * (size_t) n_cells;
}

void layer::hold_cell(int index, int32_t cell, int32_t slot) {
    int32_t & entry = slot_plus_1[(size_t) index][cell];
    held_cells(index, cell) += entry == 0;
    entry = slot + 1;
}

// The cells of a long conversation are many, those that a head goes on holding few.
void layer::drop_cell(int index, int32_t cell) {
    slot_plus_1[(size_t) index][cell] = 0;
    if (--held_cells(index, cell) == 0) {
        int32_t * page = slot_plus_1[(size_t) index] + cell / cells_of_page_ * cells_of_page_;
        memory_release(page, page + cells_of_page_); // and reads as zero
    }
}

int32_t layer::slot_for(int index, int32_t cell, int32_t pos) {
    head_store & h     = heads[index];
    const int32_t entry = slot_plus_1[index][cell];
    if (entry == 0) {
        const int32_t slot = h.n;
        set_length(index, slot + 1);
        hold_cell(index, cell, slot);
        touched_[index]    = std::max(touched_[index], h.n);
        h.cell[slot]       = cell;
        h.pos[slot]        = pos < 0 ? cell : pos;
        h.score[slot]      = 0;
        h.ascending        = h.ascending && (slot == 0 || h.cell[slot - 1] < cell);
        h.max_cell         = std::max(h.max_cell, cell);
        int32_t & most     = max_cell[(size_t) (index / n_head_kv)];
        most               = std::max(most, cell);
        for (int32_t c = 0; c < sums_.per_slot; c++) {
            sums(index, c)[slot] = 0;
        }
        return slot;
    }
    const int32_t slot = entry - 1;
    if (pos >= 0) { // llama.cpp gave the cell to another token, perhaps at the same position
        h.pos[slot]   = pos;
        h.score[slot] = 0;
        moved->reset_slots(index, slot, 1);
        if (cache->statistic_on) {
            rows->reset_sums(index, slot);
        }
        for (int32_t c = 0; c < sums_.per_slot; c++) {
            sums(index, c)[slot] = 0;
        }
    }
    return slot;
}

bool layer::in_order(const placement & p) const {
    for (size_t stream = 0; stream < p.count.size(); stream++) {
        if (p.count[stream] > 0 && max_cell[stream] >= p.first[stream]) {
            return false;
        }
    }
    return p.ascending;
}

void layer::append(const placement & p) {
    for (int32_t stream = 0; stream < (int32_t) p.count.size(); stream++) {
        const int32_t count = p.count[(size_t) stream], last = p.last[(size_t) stream];
        if (count == 0) {
            continue;
        }
        max_cell[(size_t) stream] = last;
        for (int32_t head = 0; head < n_head_kv; head++) {
            const int i = index(stream, head);
            set_length(i, lengths[(size_t) i] + count);
            heads[(size_t) i].max_cell = last;
            touched_[(size_t) i] = std::max(touched_[(size_t) i], lengths[(size_t) i]);
        }
    }
    appended = true;
}

void layer::track(int index, bool on) {
    bool & tracked = heads[(size_t) index].track;
    n_tracked += on - tracked;
    tracked = on;
}

void layer::write_placed() {
    for (int32_t stream = 0; stream < (int32_t) placed->count.size(); stream++) {
        for (int32_t head = 0; placed->count[(size_t) stream] > 0 && head < n_head_kv; head++) {
            const int     i    = index(stream, head);
            head_store &  h    = heads[(size_t) i];
            int32_t       slot = before_[(size_t) i];
            for (size_t t = 0; t < placed->cell.size(); t++) {
                if (placed->stream[t] != stream) {
                    continue;
                }
                const int32_t cell = placed->cell[t];
                h.cell[slot]  = cell;
                h.pos[slot]   = query_pos[t];
                h.score[slot] = 0;
                hold_cell(i, cell, slot++);
            }
            for (int32_t c = 0; c < sums_.per_slot; c++) {
                std::fill(sums(i, c) + before_[(size_t) i], sums(i, c) + slot, 0.0f);
            }
        }
    }
}

void layer::begin_append() {
    placed   = nullptr;
    appended = false;
    before_  = lengths;
    moved->begin_micro_batch();
}

void layer::cancel_append() {
    moved->cancel_record();
    for (size_t i = 0; i < heads.size(); i++) {
        head_store & h = heads[i];
        while (h.n > before_[i]) {
            set_length((int) i, h.n - 1);
            drop_cell((int) i, h.cell[h.n]);
        }
        if (touched_[i] > h.n) {
            release_tail((int) i);
        }
    }
}

void layer::trim() {
    for (size_t i = 0; i < heads.size(); i++) {
        if (touched_[i] > heads[i].n) {
            release_tail((int) i);
        }
    }
    rows->trim();
}

void layer::release_tail(int index) {
    head_store &  h     = heads[index];
    const int32_t old_n = touched_[index];
    const auto release = [](char * base, size_t from, size_t to) { memory_release(base + whole_pages(from), base + whole_pages(to)); };
    rows->release(index, h.n);
    for (void * column : {(void *) h.cell, (void *) h.pos, (void *) h.score}) {
        release((char *) column, (size_t) h.n * sizeof(int32_t), (size_t) old_n * sizeof(int32_t));
    }
    touched_[index] = h.n;
}

void layer::keep(int index, const int32_t * slots, int32_t n_slots) {
    head_store &  h     = heads[index];
    const int32_t old_n = h.n;
    if (n_slots == old_n) {
        return;
    }
    slots_change();
    if (n_slots > 0 && slots[n_slots - 1] != n_slots - 1) { // not the first ones
        moved->slots_changed();
    }
    rows->keep(index, slots, n_slots, old_n);
    for (int32_t i = 0, kept = 0; i < old_n; i++) { // first what is dropped, so that no page goes that is needed
        if (kept < n_slots && slots[kept] == i) {
            kept++;
        } else {
            drop_cell(index, h.cell[i]);
        }
    }
    h.max_cell = -1;
    for (int32_t i = 0; i < n_slots; i++) {
        const int32_t from = slots[i];
        h.cell[i]  = h.cell[from];
        h.pos[i]   = h.pos[from];
        h.score[i] = h.score[from];
        h.max_cell = std::max(h.max_cell, h.cell[i]);
        slot_plus_1[index][h.cell[i]] = i + 1;
    }
    for (int32_t c = 0; c < sums_.per_slot; c++) {
        float * column = sums(index, c);
        for (int32_t i = 0; i < n_slots; i++) {
            column[i] = column[slots[i]];
        }
    }
    set_length(index, n_slots);
    release_tail(index);
}

void layer::evict(int index, int32_t slot) {
    head_store &  h    = heads[index];
    const int32_t last = h.n - 1;
    slots_change();
    moved->slots_changed();
    drop_cell(index, h.cell[slot]);
    if (slot != last) {
        rows->move(index, last, slot);
        h.cell[slot]  = h.cell[last];
        h.pos[slot]   = h.pos[last];
        h.score[slot] = h.score[last];
        slot_plus_1[index][h.cell[slot]] = slot + 1;
        for (int32_t c = 0; c < sums_.per_slot; c++) {
            sums(index, c)[slot] = sums(index, c)[last];
        }
        h.ascending = false;
    }
    set_length(index, last);
    if (cache->statistic_on) {
        rows->reset_sums(index, last); // for the token that comes to this slot next
    }
    // A head in steady state appends a slot and drops one at every step: pages are returned with some slack, so that one
    // on the edge does not come and go.
    const int32_t unused = touched_[index] - last;
    if ((size_t) unused * v.format.row_bytes > 2 * page_size()) {
        release_tail(index);
    }
}

void layer::truncate(int32_t stream, int32_t first_cell) {
    std::vector<int32_t> kept;
    int32_t              first_pos = INT32_MAX;
    for (int32_t head = 0; head < n_head_kv; head++) {
        const int          i = index(stream, head);
        const head_store & h = heads[i];
        kept.clear();
        for (int32_t slot = 0; slot < h.n; slot++) {
            if (h.cell[slot] < first_cell) {
                kept.push_back(slot);
            } else {
                first_pos = std::min(first_pos, h.pos[slot]);
            }
        }
        keep(i, kept.data(), (int32_t) kept.size());
    }
    if (first_pos != INT32_MAX) {
        moved->truncated(first_pos);
    }
    max_cell[(size_t) stream] = std::min(max_cell[(size_t) stream], first_cell - 1);
}

void layer::clear() {
    slots_change();
    for (size_t i = 0; i < heads.size(); i++) {
        head_store & h = heads[i];
        h.max_cell  = -1;
        h.ascending = true;
        touched_[i] = 0;
        set_length((int) i, 0);
    }
    std::fill(max_cell.begin(), max_cell.end(), -1);
    std::fill(held_cells_.begin(), held_cells_.end(), 0);
    n_queries = 0;
    if (rows) {
        moved->clear();
        rows->clear();
    }
    for (const mapping * m : {&table_, &sums_.memory}) {
        memory_release(m->data(), m->data() + m->size()); // the slot tables read as empty when they are zero
    }
}

// Rows, books, scores and sums. Either all of it is copied, or the stream is empty afterwards.
void layer::copy_stream(int32_t from, int32_t to) {
    slots_change();
    std::vector<int32_t> wanted = lengths;
    for (int32_t head = 0; head < n_head_kv; head++) {
        wanted[(size_t) index(to, head)] = heads[(size_t) index(from, head)].n;
    }
    try {
        cache->require_room([&] { return rows->growth(wanted.data()); });
        rows->reserve(wanted.data());
        for (int32_t head = 0; head < n_head_kv; head++) {
            rows->copy(index(from, head), index(to, head), heads[(size_t) index(from, head)].n, true);
            if (!v.format.part) {
                rows->copy(index(from, head), index(to, head), heads[(size_t) index(from, head)].n, false);
            }
        }
    } catch (...) {
        for (int32_t head = 0; head < n_head_kv; head++) {
            keep(index(to, head), nullptr, 0);
        }
        throw;
    }
    for (int32_t head = 0; head < n_head_kv; head++) {
        const int          a = index(from, head), b = index(to, head);
        const head_store & x = heads[(size_t) a];
        head_store &       y = heads[(size_t) b];
        const int32_t      before = y.n;
        for (int32_t i = 0; i < y.n; i++) {
            drop_cell(b, y.cell[i]);
        }
        memcpy(y.cell, x.cell, (size_t) x.n * sizeof *x.cell);
        memcpy(y.pos, x.pos, (size_t) x.n * sizeof *x.pos);
        memcpy(y.score, x.score, (size_t) x.n * sizeof *x.score);
        for (int32_t c = 0; c < sums_.per_slot; c++) {
            memcpy(sums(b, c), sums(a, c), (size_t) x.n * sizeof(float));
        }
        for (int32_t i = 0; i < x.n; i++) {
            hold_cell(b, y.cell[i], i);
        }
        set_length(b, x.n);
        y.max_cell  = x.max_cell;
        y.ascending = x.ascending;
        touched_[(size_t) b] = std::max(touched_[(size_t) b], y.n);
        release_tail(b);
        rows->copy_counts(a, b, x.n, before);
    }
    max_cell[(size_t) to] = max_cell[(size_t) from];
}

size_t layer::resident_bytes() const {
    size_t bytes = rows->resident_bytes() + moved->bytes();
    for (size_t i = 0; i < heads.size(); i++) {
        const int32_t n = touched_[i];
        const auto    first = held_cells_.begin() + (ptrdiff_t) (i * (size_t) table_pages_);
        bytes += whole_pages((size_t) n * sizeof(int32_t)) * 3 + (size_t) std::count_if(first, first + table_pages_, [](int32_t held) { return held > 0; }) * page_size() +
                 (size_t) n * sizeof(float) * (size_t) (sums_.per_slot + sums_aside_.per_slot) + saved_[i].size * sizeof(float);
    }
    return bytes;
}

void layer::start_sums(const statistic & stat) {
    const bool    on_host = !rows->start_sums(stat);
    const int32_t columns = stat.rows * (stat.n_bounds + 1 + (stat.recent_from >= 0 ? 1 : 0));
    if (on_host) {
        sums_.memory   = mapping((size_t) columns * (size_t) n_cells * heads.size() * sizeof(float));
        sums_.per_slot = columns;
    }
    sums_.on_host = on_host;
    n_queries     = 0;
    point_to_sums(stat);
}

void layer::point_to_sums(const statistic & stat) {
    for (size_t i = 0; i < heads.size(); i++) {
        heads[i].buckets = sums_.per_slot > 0 ? sums((int) i, 0) : nullptr;
        heads[i].recent  = sums_.per_slot > 0 && stat.recent_from >= 0 ? sums((int) i, stat.rows * (stat.n_bounds + 1)) : nullptr;
    }
}

void layer::read_sums(int index, const statistic & stat, bool recent, float * to) const {
    const head_store & h       = heads[(size_t) index];
    const int32_t      buckets = stat.rows * (stat.n_bounds + 1), first = recent ? buckets : 0, count = recent ? stat.rows : buckets;
    if (!sums_.on_host) {
        rows->read_sums(index, first, count, h.n, to);
        return;
    }
    for (int32_t c = 0; c < count; c++, to += h.n) {
        memcpy(to, sums(index, first + c), (size_t) h.n * sizeof(float));
    }
}

void layer::stop_sums(const statistic & stat) {
    if (!sums_.on_host) {
        rows->stop_sums();
        sums_ = statistic_sums();
        return;
    }
    for (size_t i = 0; i < heads.size(); i++) {
        head_store & h = heads[i];
        std::fill(h.score, h.score + h.n, 0.0f);
        for (int32_t c = 0; c < stat.rows * (stat.n_bounds + 1); c++) {
            const float * column = sums((int) i, c);
            for (int32_t slot = 0; slot < h.n; slot++) {
                h.score[slot] += column[slot] / (float) stat.rows;
            }
        }
    }
    drop_sums();
}

void layer::drop_sums() {
    if (!sums_.on_host) {
        rows->drop_sums();
    }
    sums_ = statistic_sums();
    for (head_store & h : heads) {
        h.buckets = h.recent = nullptr;
    }
}

void layer::set_sums_aside() {
    if (!sums_.on_host) {
        rows->set_sums_aside();
    }
    sums_aside_ = std::move(sums_);
    sums_       = statistic_sums();
    for (head_store & h : heads) { // nothing is added to these any more: what has not been saved is what it was at the mark
        if (h.saved.wanted) {
            h.saved = saved_counts();
        }
    }
    may_be_saved_ = true;
}

void layer::bring_sums_back() {
    drop_sums();
    sums_ = std::move(sums_aside_);
    sums_aside_ = statistic_sums();
    if (!sums_.on_host) {
        rows->bring_sums_back();
    }
    point_to_sums(cache->statistic_of(*this));
}

void layer::drop_sums_aside() {
    if (!sums_aside_.on_host) {
        rows->drop_sums_aside();
    }
    sums_aside_ = statistic_sums();
}

// ---- taking back what was counted ----

void layer::mark_counts() {
    end_mark();
    marked_n_       = lengths;
    marked_queries_ = n_queries;
    marked_         = true;
    rows->mark_counts();
}

void layer::end_mark() {
    if (!marked_) {
        return;
    }
    marked_ = may_be_saved_ = false;
    for (head_store & h : heads) {
        h.saved = saved_counts();
    }
    rows->end_mark();
}

// Slots get other numbers, or go: what is saved by slot is of no use any more.
void layer::slots_change() {
    if (cache->marked) {
        cache->end_mark();
    } else {
        end_mark();
    }
}

void layer::prepare_to_save(bool statistic_on) {
    if (!marked_ || may_be_saved_ || rows->accumulates() || (!statistic_on && n_tracked == 0)) {
        return;
    }
    for (size_t i = 0; i < heads.size(); i++) {
        head_store & h = heads[i];
        if ((!statistic_on && !h.track) || marked_n_[i] == 0) {
            continue;
        }
        saved_counts s;
        s.from    = statistic_on ? h.buckets : h.score; // what recent queries added lies behind the buckets
        s.stride  = statistic_on ? (size_t) n_cells : 0;
        s.columns = statistic_on ? sums_.per_slot : 1;
        s.n       = marked_n_[i];
        const size_t size = (size_t) s.columns * (size_t) s.n;
        saved_memory & memory = saved_[i];
        if (memory.size < size || memory.size > 4 * size + 4096) { // a head grows by a slot with each token
            memory = saved_memory();
            const size_t room = size + size / 8 + 64;
            memory.data.reset(new float[room]);
            memory.size = room;
        }
        s.to     = memory.data.get();
        s.wanted = true;
        h.saved  = s;
    }
    may_be_saved_ = true;
}

void layer::take_back_counts() {
    if (!marked_) {
        return;
    }
    n_queries = marked_queries_;
    rows->take_back_counts();
    for (size_t i = 0; i < heads.size(); i++) {
        head_store &         h = heads[i];
        const saved_counts & s = h.saved;
        const int32_t        n = std::min(marked_n_[i], h.n);
        for (int32_t c = 0; s.to && !s.wanted && c < s.columns; c++) {
            memcpy(const_cast<float *>(s.from) + (size_t) c * s.stride, s.to + (size_t) c * (size_t) s.n, (size_t) n * sizeof(float));
        }
        std::fill(h.score + n, h.score + h.n, 0.0f);
        for (int32_t c = 0; c < sums_.per_slot; c++) {
            std::fill(sums((int) i, c) + n, sums((int) i, c) + h.n, 0.0f);
        }
        h.saved.wanted = s.to != nullptr; // to be saved again, should more be added
    }
}

} // namespace kvasir

layer & kvasir_cache::layer_at(int32_t index) const {
    if (index < 0 || index >= (int32_t) layers.size()) {
        throw error(KVASIR_INVALID_ARGUMENT, format("layer %d is not in 0 .. %d", index, (int) layers.size() - 1));
    }
    return *layers[(size_t) index];
}

int kvasir_cache::head_at(const layer & l, int32_t stream, int32_t head) const {
    if (stream < 0 || stream >= l.n_stream || head < 0 || head >= l.n_head_kv) {
        throw error(KVASIR_INVALID_ARGUMENT, format("stream %d, head %d: layer %d has %d streams of %d KV heads", stream, head, l.il, l.n_stream, l.n_head_kv));
    }
    return l.index(stream, head);
}

layer & kvasir_cache::layer_of(int32_t il, bool swa, const ggml_tensor * tensor, ggml_backend_dev_t device) {
    for (auto & l : layers) {
        if (l->il == il && l->swa == swa) {
            return *l;
        }
    }
    auto l = std::make_unique<layer>();
    l->cache    = this;
    l->il       = il;
    l->swa      = swa;
    l->device   = device;
    l->n_cells  = (int32_t) tensor->ne[1];
    l->n_stream = (int32_t) tensor->ne[2];
    l->k.owner  = l->v.owner = l.get();
    l->k.is_k   = true;
    layers.push_back(std::move(l));
    return *layers.back();
}

void kvasir_cache::report_failure() {
    if (failure != KVASIR_OK) {
        const error e(failure, failure_text);
        failure = KVASIR_OK;
        throw e;
    }
}

void kvasir_cache::start_statistic(const kvasir_statistic_params & params) {
    if (params.n_bounds < 0 || (params.n_bounds > 0 && !params.bounds)) {
        throw error(KVASIR_INVALID_ARGUMENT, format("n_bounds = %d with bounds = %p", params.n_bounds, (const void *) params.bounds));
    }
    for (int32_t i = 0; i < params.n_bounds; i++) {
        if (params.bounds[i] <= (i == 0 ? 0 : params.bounds[i - 1])) {
            throw error(KVASIR_INVALID_ARGUMENT, format("bounds must be positive and ascend: bounds[%d] = %d", i, params.bounds[i]));
        }
    }
    if (marked && !replaced) {
        replaced = {statistic_on, per_query_head, recent_from, bounds};
        for (auto & l : layers) {
            l->set_sums_aside();
        }
    } else if (marked) { // started a second time since the mark: nothing of this one comes back
        for (auto & l : layers) {
            l->drop_sums();
        }
    } else {
        stop_statistic();
    }
    statistic_on = false;
    bounds.assign(params.bounds, params.bounds + params.n_bounds);
    recent_from    = params.recent_from;
    per_query_head = params.per_query_head != 0;
    start_sums();
    statistic_on = true;
}

// In all layers, or in none.
void kvasir_cache::start_sums() {
    try {
        for (auto & l : layers) {
            l->start_sums(statistic_of(*l));
        }
    } catch (...) {
        for (auto & l : layers) {
            l->drop_sums();
        }
        throw;
    }
}

kvasir::statistic kvasir_cache::statistic_of(const layer & l) const {
    kvasir::statistic s;
    s.bounds      = bounds.data();
    s.n_bounds    = (int32_t) bounds.size();
    s.recent_from = recent_from;
    s.rows        = per_query_head ? l.n_head / l.n_head_kv : 1;
    s.capacity    = (size_t) l.n_cells;
    return s;
}

void kvasir_cache::stop_statistic() {
    if (!statistic_on) {
        return;
    }
    for (auto & l : layers) {
        l->end_mark();
        l->stop_sums(statistic_of(*l));
    }
    drop_replaced();
    statistic_on = false;
}

void kvasir_cache::drop_replaced() {
    if (replaced) {
        replaced.reset();
        for (auto & l : layers) {
            l->drop_sums_aside();
        }
    }
}

void kvasir_cache::mark_counts() {
    drop_replaced();
    for (auto & l : layers) {
        l->mark_counts();
        l->moved->mark();
    }
    marked = true;
}

void kvasir_cache::end_mark() {
    if (!marked) {
        return;
    }
    marked = false;
    drop_replaced();
    for (auto & l : layers) {
        l->end_mark();
        l->moved->end_mark();
    }
}

void kvasir_cache::take_back_counts() {
    if (!marked) {
        return;
    }
    if (replaced) {
        statistic_on   = replaced->on;
        per_query_head = replaced->per_query_head;
        recent_from    = replaced->recent_from;
        bounds         = std::move(replaced->bounds);
        replaced.reset();
        for (auto & l : layers) {
            l->bring_sums_back();
        }
    }
    for (auto & l : layers) {
        l->take_back_counts();
        l->moved->take_back();
    }
}

void kvasir_cache::begin_graph(const layer & first) {
    if (std::find(micro_batch.begin(), micro_batch.end(), &first) != micro_batch.end()) {
        micro_batch.clear();
    }
}

void kvasir_cache::begin_append(layer & l) {
    l.begin_append();
    if (!marked) {
        l.mark_counts();
    }
    micro_batch.push_back(&l);
}

void kvasir_cache::cancel_micro_batch() {
    if (marked) {
        take_back_counts();
    }
    for (layer * l : micro_batch) {
        if (!marked) {
            l->take_back_counts();
        }
        l->cancel_append();
    }
    micro_batch.clear();
}
