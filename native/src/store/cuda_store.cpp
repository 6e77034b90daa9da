#include "cuda_store.h"

#include "../error.h"
#include "cache.h"
#include "cuda_moved.h"

#include <algorithm>
#include <cstring>

namespace kvasir::cuda {

namespace {

constexpr size_t STAGINGS = 4;
constexpr int32_t AHEAD = 8; // tokens
constexpr size_t SPARE_BYTES = (size_t) 8 << 20; // of pinned memory that stay when less is fetched than before
constexpr size_t MOST_MOVES = 256; // of a head that wait: each new one is compared with them

size_t grown(size_t wanted) {
    size_t size = (size_t) 64 << 10;
    while (size < wanted) {
        size *= 2;
    }
    return size;
}

// Host memory that the device writes to and reads; its contents are lost when it grows.
void reserve_pinned(void *& host, size_t & size, size_t bytes) {
    if (bytes <= size) {
        return;
    }
    if (host) {
        check(cu().cuMemFreeHost(host), "pinned memory");
        host = nullptr;
        size = 0;
    }
    check(cu().cuMemHostAlloc(&host, grown(bytes), 0), "pinned memory");
    size = grown(bytes);
}

int32_t pages_for(int32_t slots) { return (slots + PAGE_SLOTS - 1) / PAGE_SLOTS; }

} // namespace

// ---- device memory ----

device_buffer::~device_buffer() { free(); }

bool device_buffer::reserve(size_t bytes) {
    if (bytes <= size_) {
        return false;
    }
    free();
    const size_t size = grown(bytes);
    check(cu().cuMemAlloc(&address_, size), "device memory for the KV cache's books");
    size_ = size;
    return true;
}

void device_buffer::allocate(size_t bytes) {
    free();
    check(cu().cuMemAlloc(&address_, std::max<size_t>(bytes, 1)), "device memory for the statistic");
    size_ = bytes;
}

void device_buffer::free() {
    if (address_) {
        cu().cuMemFree(address_);
        address_ = 0;
        size_    = 0;
    }
}

// ---- the store ----

cuda_store::cuda_store(gpu & device) : device_(device), stagings_(STAGINGS) {
    current_context current(device_.primary());
    check(cu().cuStreamCreate(&queue_, STREAM_NON_BLOCKING), "a CUDA stream");
    for (staging & s : stagings_) {
        check(cu().cuEventCreate(&s.used, EVENT_DISABLE_TIMING), "a CUDA event");
    }
}

cuda_store::~cuda_store() {
    cu().cuCtxSetCurrent(device_.primary()); // the thread that frees a context goes on to free ggml's own buffers
    cu().cuStreamSynchronize(queue_);
    moved_books_.reset();
    pages_.clear();
    for (staging & s : stagings_) {
        cu().cuEventDestroy(s.used);
        if (s.host) {
            cu().cuMemFreeHost(s.host);
        }
    }
    for (auto & [stream, l] : landings_) {
        cu().cuEventDestroy(l.done);
        cu().cuMemFreeHost(l.host);
    }
    cu().cuStreamDestroy(queue_);
}

void cuda_store::synchronize() { check(cu().cuStreamSynchronize(queue_), "the KV cache's stream"); }

int32_t cuda_store::add(cuda_rows * rows, int n_heads, uint32_t page_bytes) {
    const int32_t first = n_heads_;
    n_heads_ += n_heads;
    rows->index_ = (int32_t) rows_.size();
    rows_.push_back(rows);
    page_set & set = pages_[page_bytes];
    if (!set.pool) {
        set.pool = std::make_unique<page_pool>(device_.id(), page_bytes, (int32_t) (device_.total_memory() / page_bytes));
    }
    addresses_changed();
    return first;
}

void cuda_store::remove(cuda_rows * rows) { // the others keep their numbers
    rows_[(size_t) rows->index_] = nullptr;
    addresses_changed();
}

cuda_store::staging & cuda_store::next_staging(size_t bytes) {
    // all that was launched so far may read the block that is left behind, and nothing later will
    check(cu().cuEventRecord(stagings_[staging_].used, queue_), "an event");
    staging_    = (staging_ + 1) % STAGINGS;
    staging & s = stagings_[staging_];
    check(cu().cuEventSynchronize(s.used), "an event");
    reserve_pinned(s.host, s.size, bytes);
    return s;
}

// The memory for what is fetched next, when nothing is written to it any more.
cuda_store::landing & cuda_store::next_landing(int32_t stream, size_t bytes) {
    landing & l = landings_[stream];
    if (!l.done) {
        check(cu().cuEventCreate(&l.done, EVENT_DISABLE_TIMING), "a CUDA event");
    }
    check(cu().cuEventSynchronize(l.done), "an event");
    if (l.size > SPARE_BYTES && bytes < l.size / 8) { // profiling is over
        check(cu().cuMemFreeHost(l.host), "pinned memory");
        l.host = nullptr;
        l.size = 0;
    }
    reserve_pinned(l.host, l.size, bytes);
    return l;
}

device_ptr cuda_store::upload(const void * data, size_t bytes) {
    staging & s = next_staging(bytes);
    s.memory.reserve(bytes);
    memcpy(s.host, data, bytes);
    check(cu().cuMemcpyHtoDAsync(s.memory.at(), s.host, bytes, queue_), "an upload");
    return s.memory.at();
}

void cuda_store::put_step(const std::vector<char> & data) {
    if (data.size() > step_.size()) {
        synchronize();
        step_.reserve(data.size());
        addresses_changed();
    }
    staging & s = next_staging(data.size());
    memcpy(s.host, data.data(), data.size());
    check(cu().cuMemcpyHtoDAsync(step_.at(), s.host, data.size(), queue_), "an upload");
}

device_ptr cuda_store::scratch(size_t bytes) {
    if (bytes > scratch_.size()) {
        synchronize();
        scratch_.reserve(bytes);
    }
    return scratch_.at();
}

device_ptr cuda_store::layers() {
    if (layers_of_ != addresses_) {
        if (step_.size() == 0) {
            step_.reserve(step_begin());
        }
        std::vector<layer_pages> all;
        for (const cuda_rows * rows : rows_) {
            all.push_back(rows ? rows->pages() : layer_pages{});
        }
        const size_t bytes = all.size() * sizeof(layer_pages);
        synchronize();
        layers_.reserve(bytes);
        staging & s = next_staging(bytes);
        memcpy(s.host, all.data(), bytes);
        check(cu().cuMemcpyHtoDAsync(layers_.at(), s.host, bytes, queue_), "an upload");
        layers_of_ = addresses_;
    }
    return layers_.at();
}

device_ptr cuda_store::columns() {
    std::vector<statistic_columns> all;
    bool any = false;
    for (const cuda_rows * rows : rows_) {
        all.push_back(rows ? rows->sums_.columns : statistic_columns{});
        any = any || all.back().buckets;
    }
    return any ? upload(all.data(), all.size() * sizeof all[0]) : 0;
}

void cuda_store::run_queued() {
    if (!keeps_.empty()) {
        uint32_t shared = 0;
        for (const keep_item & item : keeps_) {
            shared = std::max(shared, keep_shared(rows_[(size_t) item.layer]->format_));
        }
        const keep_params p{(const layer_pages *) layers(), (const statistic_columns *) columns(), (const keep_item *) upload(keeps_.data(), keeps_.size() * sizeof keeps_[0]),
                            keep_slots_.empty() ? nullptr : (const int32_t *) upload(keep_slots_.data(), keep_slots_.size() * sizeof(int32_t))};
        const launch l = keep_launch((int32_t) keeps_.size(), shared);
        device_.launch(queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
        for (size_t i = 0; i < keeps_.size(); i++) {
            rows_[(size_t) keeps_[i].layer]->clear_sums(keeps_[i].head, keeps_[i].n, kept_before_[i] - keeps_[i].n);
        }
    }
    moves_.clear();
    for (const auto & [rows, head] : moved_) {
        std::vector<move_item> & moves = rows->moves_[(size_t) head];
        moves_.insert(moves_.end(), moves.begin(), moves.end());
        moves.clear();
    }
    if (!moves_.empty()) {
        const move_params p{(const layer_pages *) layers(), (const statistic_columns *) columns(), (const move_item *) upload(moves_.data(), moves_.size() * sizeof moves_[0])};
        const launch l = move_launch((int32_t) moves_.size());
        device_.launch(queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
    }
    if (!clears_.empty()) { // of slots that moves have left, or that come to another token
        const clear_params p{(const statistic_columns *) columns(), (const move_item *) upload(clears_.data(), clears_.size() * sizeof clears_[0]), (int32_t) clears_.size()};
        if (p.columns) {
            const launch l = clear_sums_launch(p.n_items);
            device_.launch(queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
        }
        clears_.clear();
        clears_held_ = false;
    }
    if (!keeps_.empty() || !moved_.empty()) {
        for (cuda_rows * rows : rows_) {
            if (rows) {
                std::fill(rows->queued_.begin(), rows->queued_.end(), cuda_rows::NOTHING);
            }
        }
    }
    kept_ = kept_ || !keeps_.empty();
    keeps_.clear();
    keep_slots_.clear();
    kept_before_.clear();
    moved_.clear();
    // A page that was given back may be another head's by now: it is cleared only after the rows above have been read.
    for (auto & [bytes, set] : pages_) {
        if (!set.to_zero.empty()) {
            const page_list_params p{(char *) set.pool->base(), (const int32_t *) upload(set.to_zero.data(), set.to_zero.size() * sizeof(int32_t)), bytes};
            const launch l = zero_pages_launch((int32_t) set.to_zero.size());
            device_.launch(queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
            set.to_zero.clear();
        }
    }
    if (!words_.empty()) {
        const words_params p{(const word *) upload(words_.data(), words_.size() * sizeof words_[0]), (int32_t) words_.size()};
        device_.launch(queue_, "write_words", ((uint32_t) words_.size() + WORDS_THREADS - 1) / WORDS_THREADS, 1, 1, WORDS_THREADS, 0, p);
        words_.clear();
    }
}

// Pages in use come to the low end of their memory.
void cuda_store::compact_pages() {
    for (auto & [bytes, set] : pages_) {
        if (!set.pool->worth_compacting()) {
            continue;
        }
        unmap_ = true;
        std::vector<int32_t> pairs;
        set.pool->compact([&, owners = &set.owners](int32_t from, int32_t to) {
            const page_owner o = (*owners)[(size_t) from];
            pairs.push_back(from);
            pairs.push_back(to);
            (*owners)[(size_t) to] = o;
            const size_t entry = (size_t) o.head * o.rows->stride_ + o.index;
            o.rows->table_[entry] = to;
            words_.push_back({(int32_t *) o.rows->device_table_.at(entry * sizeof(int32_t)), to, 0});
        });
        if (!pairs.empty()) {
            const page_list_params p{(char *) set.pool->base(), (const int32_t *) upload(pairs.data(), pairs.size() * sizeof(int32_t)), bytes};
            const launch l = move_pages_launch((int32_t) pairs.size() / 2);
            device_.launch(queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
            run_queued(); // the tables follow
        }
    }
}

void cuda_store::unmap_pages() {
    if (unmap_) {
        synchronize();
        for (auto & [bytes, set] : pages_) {
            set.pool->unmap_free();
        }
        unmap_ = false;
    }
}

void cuda_store::return_memory() {
    compact_pages();
    unmap_pages();
}

void cuda_store::label() {
    for (cuda_rows * rows : rows_) {
        if (rows) {
            rows->label();
        }
    }
}

void cuda_store::flush() {
    current_context current(device_.primary());
    run_queued();
    if (kept_) {
        compact_pages();
        kept_ = false;
    }
    unmap_pages();
    label();
}

void cuda_store::flush_for_step() {
    current_context current(device_.primary());
    run_queued();
    unmap_pages(); // moved before the last step, whose results the host has had
    if (kept_) {
        compact_pages();
        kept_ = false;
    }
    label();
}

// Kernels write scores and norms to the host's memory themselves, all heads in one launch; sums are copied.
void cuda_store::fetch(const kvasir_cache & cache, int32_t stream, kvasir_fetch * items, int32_t n) {
    std::vector<kvasir_fetch *> wanted[3];
    size_t floats = 0;
    const auto rows_of = [&](const kvasir_fetch & item) { return static_cast<cuda_rows *>(cache.layers[(size_t) item.layer]->rows.get()); };
    const auto count = [&](const kvasir_fetch & item) {
        const statistic_columns & c = rows_of(item)->sums_.columns;
        return (size_t) item.n_slots * (item.what == KVASIR_READ_STATISTIC ? (size_t) (c.rows * (c.n_bounds + 1)) : 1);
    };
    bool changing = false;
    for (int32_t i = 0; i < n; i++) {
        if (cache.layers[(size_t) items[i].layer]->rows->accumulates() && rows_of(items[i])->store_.get() == this && items[i].n_slots > 0) {
            const cuda_rows * rows = rows_of(items[i]);
            wanted[items[i].what].push_back(&items[i]);
            floats += count(items[i]);
            changing = changing || rows->queued_[(size_t) rows->layer_.index(stream, items[i].head)] != cuda_rows::NOTHING;
        }
    }
    if (floats == 0) {
        return;
    }
    current_context current(device_.primary());
    if (changing || !clears_.empty()) { // else what waits for other heads goes on waiting for more, to be launched together
        run_queued();
    }
    const size_t   n_spans = wanted[KVASIR_READ_SCORES].size() + wanted[KVASIR_READ_VALUE_NORMS].size();
    landing &      l       = next_landing(stream, n_spans * sizeof(span_item) + floats * sizeof(float));
    span_item *    span    = (span_item *) l.host;
    float *        data    = (float *) (span + n_spans);
    const layer_pages * all = (const layer_pages *) layers();
    for (const kvasir_read what : {KVASIR_READ_SCORES, KVASIR_READ_VALUE_NORMS}) {
        const span_params p{all, span, (char *) data};
        int64_t at      = 0;
        int32_t longest = 0;
        for (kvasir_fetch * item : wanted[what]) {
            const cuda_rows * rows = rows_of(*item);
            *span++    = {rows->index_, rows->layer_.index(stream, item->head), item->first_slot, item->n_slots, SIDE_V, 0, at};
            item->data = data + at;
            at += item->n_slots;
            longest = std::max(longest, item->n_slots);
        }
        if (longest > 0) {
            const launch k = span_launch(what == KVASIR_READ_SCORES ? "store_scores" : "store_value_norms", (int32_t) wanted[what].size(), longest);
            device_.launch(queue_, k.kernel, k.grid_x, k.grid_y, 1, k.block, k.shared, p);
        }
        data += at;
    }
    for (kvasir_fetch * item : wanted[KVASIR_READ_STATISTIC]) {
        cuda_rows * rows = rows_of(*item);
        rows->copy_sums(rows->layer_.index(stream, item->head), 0, rows->sums_.columns.rows * (rows->sums_.columns.n_bounds + 1), item->n_slots, data);
        item->data = data;
        data += count(*item);
    }
    check(cu().cuEventRecord(l.done, queue_), "an event");
}

void cuda_store::fetched(int32_t stream) {
    const auto found = landings_.find(stream);
    if (found != landings_.end()) {
        current_context current(device_.primary());
        check(cu().cuEventSynchronize(found->second.done), "reading the KV cache");
    }
}

void cuda_store::settle() {
    settled_ = true;
    for (auto & [bytes, set] : pages_) {
        set.pool->settle();
    }
}

void cuda_store::map_ahead() {
    for (auto & [bytes, set] : pages_) {
        int32_t pages = 0;
        const memory_limit * limit = nullptr;
        for (const cuda_rows * rows : rows_) {
            if (!rows || rows->format_.bytes != bytes) {
                continue;
            }
            limit = &rows->limit();
            for (int32_t head = 0; head < rows->n_heads(); head++) {
                const int32_t n = rows->layer_.lengths[(size_t) head];
                pages += n > 0 && n + AHEAD > rows->held_[(size_t) head] * PAGE_SLOTS;
            }
        }
        if (pages > 0 && !limit->tight && limit->allows((size_t) pages * bytes)) {
            set.pool->map_ahead(pages);
        }
    }
}

// ---- the rows of a layer ----

cuda_rows::cuda_rows(memory_limit & limit, std::shared_ptr<cuda_store> store, const page_format & format, const layer & l, int n_heads)
    : row_memory(limit), store_(std::move(store)), format_(format), layer_(l), stride_(pages_for(l.n_cells)), table_((size_t) n_heads * (size_t) stride_, 0),
      held_((size_t) n_heads, 0), queued_((size_t) n_heads, NOTHING), moves_((size_t) n_heads), exact_((size_t) n_heads, 0), unlabelled_((size_t) n_heads, 0) {
    current_context current(store_->device_.primary());
    device_table_.reserve(table_.size() * sizeof(int32_t));
    first_head_ = store_->add(this, n_heads, format.bytes);
}

cuda_rows::~cuda_rows() {
    guarded([&] {
        current_context current(store_->device_.primary());
        store_->run_queued();
        store_->synchronize();
        for (int head = 0; head < n_heads(); head++) {
            give_back(head, 0);
        }
        store_->remove(this);
        device_table_.free();
        sums_  = statistic_sums();
        aside_ = statistic_sums();
        saved_memory_.free();
    });
}

layer_pages cuda_rows::pages() const {
    layer_pages p{};
    p.format       = format_;
    p.pool         = (char *) store_->pages_.at(format_.bytes).pool->base();
    p.table        = (const int32_t *) device_table_.at();
    p.n            = (const int32_t *) store_->step_.at() + first_head_;
    p.table_stride = stride_;
    p.n_head_kv    = layer_.n_head_kv > 0 ? layer_.n_head_kv : n_heads() / layer_.n_stream;
    return p;
}

size_t cuda_rows::growth(const int32_t * n) {
    int32_t pages = 0;
    for (int head = 0; head < n_heads(); head++) {
        pages += std::max(0, pages_for(n[head]) - held_[(size_t) head]);
    }
    return (size_t) pages * format_.bytes;
}

void cuda_rows::reserve(const int32_t * n) {
    const size_t more = growth(n);
    limit().require(more);
    widen_sums(n);
    if (more == 0) { // a page holds many tokens
        return;
    }
    auto & set = store_->pages_.at(format_.bytes);
    std::vector<std::pair<int, int32_t>> taken; // head, pages before
    current_context current(store_->device_.primary());
    try {
        for (int head = 0; head < n_heads(); head++) {
            const int32_t wanted = pages_for(n[head]);
            if (wanted <= held_[(size_t) head]) {
                continue;
            }
            taken.push_back({head, held_[(size_t) head]});
            while (held_[(size_t) head] < wanted) {
                const int32_t page  = set.pool->take();
                const int32_t index = held_[(size_t) head]++;
                set_row_bytes(row_bytes() + format_.bytes);
                const size_t  entry = (size_t) head * stride_ + index;
                set.owners.resize(std::max(set.owners.size(), (size_t) page + 1));
                set.owners[(size_t) page] = {this, head, index};
                table_[entry] = page;
                set.to_zero.push_back(page);
                store_->words_.push_back({(int32_t *) device_table_.at(entry * sizeof(int32_t)), page, 0});
            }
        }
    } catch (...) {
        for (const auto & [head, before] : taken) {
            give_back(head, before);
        }
        throw;
    }
}

void cuda_rows::give_back(int head, int32_t pages) {
    auto & set = store_->pages_.at(format_.bytes);
    while (held_[(size_t) head] > pages) {
        set.pool->give_back(table_[(size_t) head * stride_ + --held_[(size_t) head]]);
        set_row_bytes(row_bytes() - format_.bytes);
    }
    // by the time that the moves are carried out the pages may be another head's
    const int32_t            slots = held_[(size_t) head] * PAGE_SLOTS;
    std::vector<move_item> & moves = moves_[(size_t) head];
    moves.erase(std::remove_if(moves.begin(), moves.end(), [slots](const move_item & m) { return m.to >= slots; }), moves.end());
}

void cuda_rows::trim() {
    for (int head = 0; head < n_heads(); head++) {
        give_back(head, pages_for(layer_.lengths[(size_t) head]));
    }
}

// A keep or a move sees the tables of before the pages that were taken since, and none of another one for the same head.
void cuda_rows::keep(int head, const int32_t * slots, int32_t n, int32_t n_before) {
    if (queued_[(size_t) head] != NOTHING || !store_->words_.empty() || !store_->clears_.empty()) {
        current_context current(store_->device_.primary());
        store_->run_queued();
    }
    store_->keeps_.push_back({index_, head, n, 0, (int64_t) store_->keep_slots_.size()});
    store_->keep_slots_.insert(store_->keep_slots_.end(), slots, slots + n);
    store_->kept_before_.push_back(n_before);
    queued_[(size_t) head] = KEEP;
    exact_[(size_t) head]  = 1;
}

void cuda_rows::move(int head, int32_t from, int32_t to) {
    std::vector<move_item> & moves = moves_[(size_t) head];
    if (queued_[(size_t) head] == KEEP || !store_->words_.empty() || store_->clears_held_ || moves.size() >= MOST_MOVES) {
        current_context current(store_->device_.primary());
        store_->run_queued();
    }
    if (queued_[(size_t) head] == NOTHING) {
        queued_[(size_t) head] = MOVES;
        store_->moved_.push_back({this, head});
    }
    // A row that waits to come to the last slot goes straight to where that is moved, and one that waits to come to the slot
    // that is dropped does not come. So no row is moved twice, and all can be moved at once.
    move_item move{index_, head, from, to};
    for (size_t i = 0; i < moves.size();) {
        if (moves[i].to == from) {
            move.from = moves[i].from;
        }
        if (moves[i].to == from || moves[i].to == to) {
            moves[i] = moves.back();
            moves.pop_back();
        } else {
            i++;
        }
    }
    moves.push_back(move);
}

void cuda_rows::release(int head, int32_t n) {
    // a head in steady state appends a slot and drops one at every step: a page in reserve spares it coming and going
    const int32_t reserve = exact_[(size_t) head] ? 0 : 1;
    exact_[(size_t) head] = 0;
    give_back(head, std::min(held_[(size_t) head], pages_for(n) + reserve));
}

void cuda_rows::clear() {
    current_context current(store_->device_.primary());
    store_->run_queued();
    for (int head = 0; head < n_heads(); head++) {
        give_back(head, 0);
    }
    std::fill(unlabelled_.begin(), unlabelled_.end(), (uint8_t) 0);
    if (sums_.columns.buckets) {
        check(cu().cuMemsetD8Async(sums_.memory.at(), 0, sums_.memory.size(), store_->queue_), "clearing the statistic");
    }
    store_->return_memory();
}

void cuda_rows::copy(int from, int to, int32_t n, bool is_k) {
    if (n == 0) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    std::vector<int32_t> wanted(held_.size());
    for (size_t head = 0; head < held_.size(); head++) {
        wanted[head] = (int) head == to ? n : 0;
    }
    reserve(wanted.data());
    store_->run_queued();
    const device_ptr rows = store_->scratch((is_k ? layer_.k.format.row_bytes : layer_.v.format.row_bytes) * (size_t) n);
    span("store_gather", from, is_k ? SIDE_K : SIDE_V, 0, n, rows);
    span("store_scatter", to, is_k ? SIDE_K : SIDE_V, 0, n, rows);
    unlabelled_[(size_t) to] = 1;
    any_unlabelled_ = true;
}

void cuda_rows::copy_counts(int from, int to, int32_t n, int32_t before) {
    current_context current(store_->device_.primary());
    clear_sums(to, n, before - n);
    if (n == 0) {
        return;
    }
    store_->run_queued();
    label();
    const device_ptr scores = store_->scratch((size_t) n * sizeof(float));
    span("store_scores", from, 0, 0, n, scores);
    put_scores({{index_, to, 0, n, 0, 0, 0}}, scores);
    const statistic_columns & c = sums_.columns;
    const auto copy = [&](float * columns, int32_t count) {
        copy_2d d{};
        const size_t head = (size_t) count * (size_t) c.capacity;
        d.from  = {0, 0, MEMORY_DEVICE, nullptr, (device_ptr) (columns + (size_t) from * head), nullptr, (size_t) c.capacity * sizeof(float)};
        d.to    = {0, 0, MEMORY_DEVICE, nullptr, (device_ptr) (columns + (size_t) to * head), nullptr, (size_t) c.capacity * sizeof(float)};
        d.bytes = (size_t) n * sizeof(float);
        d.rows  = (size_t) count;
        check(cu().cuMemcpy2DAsync(&d, store_->queue_), "copying the statistic");
    };
    if (c.buckets) {
        copy(c.buckets, c.rows * (c.n_bounds + 1));
    }
    if (c.recent) {
        copy(c.recent, c.rows);
    }
}

void cuda_rows::span(const char * kernel, int head, int32_t side, int32_t first, int32_t n, device_ptr data) {
    const span_item   item{index_, head, first, n, side, 0, 0};
    const layer_pages * layers = (const layer_pages *) store_->layers();
    const span_params p{layers, (const span_item *) store_->upload(&item, sizeof item), (char *) data};
    const launch      l = span_launch(kernel, 1, n);
    store_->device_.launch(store_->queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
}

// What a kernel makes of slots [first, first + n) of a head, brought to the host.
void cuda_rows::fetch(const char * kernel, int head, int32_t side, int32_t first, int32_t n, void * to, size_t slot_bytes) {
    if (n == 0) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    const size_t bytes = (size_t) n * slot_bytes;
    span(kernel, head, side, first, n, store_->scratch(bytes));
    check(cu().cuMemcpyDtoHAsync(to, store_->scratch(bytes), bytes, store_->queue_), "reading the KV cache");
    store_->synchronize();
}

void cuda_rows::read(bool is_k, int head, int32_t first, int32_t n, char * rows) {
    fetch("store_gather", head, is_k ? SIDE_K : SIDE_V, first, n, rows, is_k ? layer_.k.format.row_bytes : layer_.v.format.row_bytes);
}

void cuda_rows::write(bool is_k, int head, int32_t first, int32_t n, const char * rows) {
    if (n == 0) {
        return;
    }
    current_context current(store_->device_.primary());
    std::vector<int32_t> wanted(held_.size());
    wanted[(size_t) head] = first + n;
    reserve(wanted.data());
    store_->run_queued();
    const device_ptr data = store_->upload(rows, (size_t) n * (is_k ? layer_.k.format.row_bytes : layer_.v.format.row_bytes));
    span("store_scatter", head, is_k ? SIDE_K : SIDE_V, first, n, data);
    unlabelled_[(size_t) head] = 1;
    any_unlabelled_ = true;
}

void cuda_rows::label() {
    bool left = false;
    for (int head = 0; any_unlabelled_ && head < n_heads(); head++) {
        const head_store & h = layer_.heads[(size_t) head];
        if (!unlabelled_[(size_t) head]) {
            continue;
        }
        if (h.n == 0) { // its books follow
            left = true;
            continue;
        }
        std::vector<token_label> labels((size_t) h.n);
        for (int32_t slot = 0; slot < h.n; slot++) {
            labels[(size_t) slot] = {0, h.cell[slot], h.pos[slot], 0};
        }
        span("store_labels", head, 0, 0, h.n, store_->upload(labels.data(), labels.size() * sizeof labels[0]));
        unlabelled_[(size_t) head] = 0;
    }
    any_unlabelled_ = left;
}

void cuda_rows::flush() { store_->flush(); }

size_t cuda_rows::resident_bytes() const { return row_bytes() + sums_.memory.size() + aside_.memory.size() + saved_memory_.size(); }

bool cuda_rows::value_norms(int head, int32_t first, int32_t n, float * norms) {
    fetch("store_value_norms", head, SIDE_V, first, n, norms, sizeof(float));
    return true;
}

bool cuda_rows::read_scores(int head, int32_t n, float * scores) {
    fetch("store_scores", head, 0, 0, n, scores, sizeof(float));
    return true;
}

std::unique_ptr<moved_memory> cuda_rows::moved(layer & l) {
    return cuda_moved::supports(store_->device_, format_, l.n_head) ? std::make_unique<cuda_moved>(*this, l) : nullptr;
}

// ---- the statistic ----

int64_t cuda_rows::sums_capacity(int32_t slots) const {
    constexpr int64_t multiple = 256;
    return std::min<int64_t>((std::max<int64_t>(slots, 1) + multiple - 1) / multiple * multiple, (int64_t) stride_ * PAGE_SLOTS);
}

// Columns of zeros for so many slots, of the shape of other ones.
void cuda_rows::allocate_sums(statistic_sums & sums, const statistic_columns & shape, int64_t capacity) const {
    const size_t column  = (size_t) capacity * sizeof(float);
    const size_t buckets = held_.size() * (size_t) shape.rows * (size_t) (shape.n_bounds + 1) * column;
    const size_t bytes   = buckets + (shape.recent ? held_.size() * (size_t) shape.rows * column : 0);
    if (!leaves_reserve(bytes, store_->settled_)) {
        throw error(KVASIR_OUT_OF_MEMORY, kvasir::format("the device has no memory left for the statistic of layer %d, which takes %.1f MiB: profile a shorter prompt, or choose a policy "
                                                         "that does not profile", layer_.il, (double) bytes / (1 << 20)));
    }
    sums.memory.allocate(bytes);
    check(cu().cuMemsetD8Async(sums.memory.at(), 0, bytes, store_->queue_), "the statistic's memory");
    sums.columns = {(float *) sums.memory.at(), shape.recent ? (float *) sums.memory.at(buckets) : nullptr, shape.n_bounds, shape.rows, capacity};
}

// the first bytes of every column
void cuda_rows::copy_columns(const statistic_sums & from, const statistic_sums & to, size_t bytes) {
    const statistic_columns & a = from.columns, & b = to.columns;
    const auto copy = [&](const float * source, float * target, size_t rows) {
        copy_2d c{};
        c.from  = {0, 0, MEMORY_DEVICE, nullptr, (device_ptr) source, nullptr, (size_t) a.capacity * sizeof(float)};
        c.to    = {0, 0, MEMORY_DEVICE, nullptr, (device_ptr) target, nullptr, (size_t) b.capacity * sizeof(float)};
        c.bytes = bytes;
        c.rows  = rows;
        check(cu().cuMemcpy2DAsync(&c, store_->queue_), "copying the statistic");
    };
    if (bytes > 0) {
        copy(a.buckets, b.buckets, held_.size() * (size_t) a.rows * (size_t) (a.n_bounds + 1));
        if (a.recent) {
            copy(a.recent, b.recent, held_.size() * (size_t) a.rows);
        }
    }
}

bool cuda_rows::start_sums(const statistic & stat) {
    current_context current(store_->device_.primary());
    store_->run_queued(); // with the sums that they are meant for
    statistic_sums sums;
    const int32_t  n_bounds = stat.n_bounds;
    sums.bounds.allocate(std::max<size_t>((size_t) n_bounds, 1) * sizeof(int32_t));
    if (n_bounds > 0) {
        const device_ptr bounds = store_->upload(stat.bounds, (size_t) n_bounds * sizeof(int32_t));
        check(cu().cuMemcpyDtoDAsync(sums.bounds.at(), bounds, (size_t) n_bounds * sizeof(int32_t), store_->queue_), "the statistic's bounds");
    }
    float one = 0;
    const statistic_columns shape{nullptr, stat.recent_from >= 0 ? &one : nullptr, n_bounds, stat.rows, 0};
    allocate_sums(sums, shape, sums_capacity(*std::max_element(layer_.lengths.begin(), layer_.lengths.end())));
    sums_ = std::move(sums);
    return true;
}

// Room for the sums of n slots of each head. They grow with the prompt: a context has room for many times as much.
void cuda_rows::widen_sums(const int32_t * n) {
    const int32_t longest = sums_.columns.buckets ? *std::max_element(n, n + n_heads()) : 0;
    if (longest <= sums_.columns.capacity) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    statistic_sums wider;
    allocate_sums(wider, sums_.columns, sums_capacity(std::max(longest, (int32_t) (sums_.columns.capacity / 2 * 3))));
    copy_columns(sums_, wider, (size_t) sums_.columns.capacity * sizeof(float));
    store_->synchronize();
    std::swap(sums_.memory, wider.memory);
    sums_.columns = wider.columns;
}

// There may be slots that came while other sums were counted: these have no room for them.
void cuda_rows::clear_sums(int head, int32_t first, int32_t n) {
    const auto end = (int32_t) std::min<int64_t>((int64_t) first + n, sums_.columns.capacity);
    if (sums_.columns.buckets && end > first) {
        store_->clears_.push_back({index_, head, first, end});
    }
}

void cuda_rows::reset_sums(int head, int32_t slot) {
    if (sums_.columns.buckets) {
        clear_sums(head, slot, 1);
        store_->clears_held_ = store_->clears_held_ || slot < layer_.lengths[(size_t) head];
    }
}

void cuda_rows::read_sums(int head, int32_t first, int32_t count, int32_t n, float * sums) {
    if (n == 0) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    copy_sums(head, first, count, n, sums);
    store_->synchronize();
}

// columns of all buckets, or of what recent queries added
void cuda_rows::copy_sums(int head, int32_t first, int32_t count, int32_t n, float * sums) {
    const int32_t in_buckets = sums_.columns.rows * (sums_.columns.n_bounds + 1);
    const float * from = first < in_buckets ? sums_.columns.buckets + ((size_t) head * in_buckets + first) * (size_t) sums_.columns.capacity
                                            : sums_.columns.recent + ((size_t) head * sums_.columns.rows + first - in_buckets) * (size_t) sums_.columns.capacity;
    const size_t  bytes = (size_t) n * sizeof(float);
    copy_2d       copy{};
    copy.from  = {0, 0, MEMORY_DEVICE, nullptr, (device_ptr) from, nullptr, (size_t) sums_.columns.capacity * sizeof(float)};
    copy.to    = {0, 0, MEMORY_HOST, sums, 0, nullptr, bytes};
    copy.bytes = bytes;
    copy.rows  = (size_t) count;
    check(cu().cuMemcpy2DAsync(&copy, store_->queue_), "reading the statistic");
}

void cuda_rows::stop_sums() {
    if (!sums_.columns.buckets) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    std::vector<char> step((size_t) store_->n_heads_ * sizeof(int32_t));
    for (const cuda_rows * rows : store_->rows_) {
        if (rows) {
            memcpy(step.data() + (size_t) rows->first_head_ * sizeof(int32_t), rows->layer_.lengths.data(), rows->layer_.lengths.size() * sizeof(int32_t));
        }
    }
    store_->put_step(step);
    const statistic_totals_params p{pages(), sums_.columns.buckets, n_heads(), sums_.columns.n_bounds, sums_.columns.rows, sums_.columns.capacity};
    const launch                  l = statistic_totals_launch(p.pages, n_heads());
    store_->device_.launch(store_->queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
    store_->synchronize();
    sums_ = statistic_sums();
}

void cuda_rows::drop_sums() {
    current_context current(store_->device_.primary());
    if (sums_.columns.buckets) {
        store_->run_queued();
        store_->synchronize();
    }
    sums_ = statistic_sums();
}

void cuda_rows::set_sums_aside() {
    current_context current(store_->device_.primary());
    store_->run_queued();
    aside_ = std::move(sums_);
    sums_  = statistic_sums();
}

void cuda_rows::bring_sums_back() {
    drop_sums();
    sums_  = std::move(aside_);
    aside_ = statistic_sums();
    widen_sums(layer_.lengths.data()); // slots that came meanwhile are there still; what was dropped above took more
}

void cuda_rows::drop_sums_aside() {
    current_context current(store_->device_.primary());
    if (aside_.columns.buckets) {
        store_->synchronize();
    }
    aside_ = statistic_sums();
}

// ---- taking back what was counted ----

void cuda_rows::mark_counts() {
    marked_   = true;
    saved_    = false;
    marked_n_ = layer_.lengths;
}

void cuda_rows::end_mark() { marked_ = saved_ = false; }

int64_t cuda_rows::longest_at_mark() const { return *std::max_element(marked_n_.begin(), marked_n_.end()); }

void cuda_rows::save_counts() {
    if (!marked_ || saved_ || aside_.columns.buckets) { // set aside: what was at the mark
        return;
    }
    saved_spans_.clear();
    if (sums_.columns.buckets) {
        if (longest_at_mark() > 0) {
            statistic_sums saved;
            saved.memory.swap(saved_memory_);
            const statistic_columns & c = sums_.columns;
            const size_t column = (size_t) longest_at_mark() * sizeof(float), n_buckets = held_.size() * (size_t) c.rows * (size_t) (c.n_bounds + 1);
            const size_t bytes = (n_buckets + (c.recent ? held_.size() * (size_t) c.rows : 0)) * column;
            if (bytes > saved.memory.size()) {
                store_->synchronize();
                saved.memory.allocate(bytes);
            }
            saved.columns = {(float *) saved.memory.at(), c.recent ? (float *) saved.memory.at(n_buckets * column) : nullptr, c.n_bounds, c.rows, longest_at_mark()};
            copy_columns(sums_, saved, column);
            saved_memory_.swap(saved.memory);
        }
        saved_ = true;
        return;
    }
    int64_t at = 0;
    for (int head = 0; layer_.n_tracked > 0 && head < n_heads(); head++) {
        if (layer_.heads[(size_t) head].track && marked_n_[(size_t) head] > 0) {
            saved_spans_.push_back({index_, head, 0, marked_n_[(size_t) head], 0, 0, at});
            at += marked_n_[(size_t) head];
        }
    }
    if (at > 0) {
        if ((size_t) at * sizeof(float) > saved_memory_.size()) {
            store_->synchronize();
            saved_memory_.reserve((size_t) at * sizeof(float));
        }
        const auto *      layers = (const layer_pages *) store_->layers();
        const span_params p{layers, (const span_item *) store_->upload(saved_spans_.data(), saved_spans_.size() * sizeof saved_spans_[0]), (char *) saved_memory_.at()};
        const launch      l = span_launch("store_scores", (int32_t) saved_spans_.size(), (int32_t) longest_at_mark());
        store_->device_.launch(store_->queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
    }
    saved_ = true;
}

// Scores of slots from a buffer; of a span that begins before it: zeros.
void cuda_rows::put_scores(const std::vector<span_item> & spans, device_ptr from) {
    int32_t longest = 0;
    for (const span_item & s : spans) {
        longest = std::max(longest, s.n);
    }
    if (longest > 0) {
        const auto *      layers = (const layer_pages *) store_->layers();
        const span_params p{layers, (const span_item *) store_->upload(spans.data(), spans.size() * sizeof spans[0]), (char *) from};
        const launch      l = span_launch("store_put_scores", (int32_t) spans.size(), longest);
        store_->device_.launch(store_->queue_, l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
    }
}

void cuda_rows::take_back_counts() {
    if (!marked_) {
        return;
    }
    current_context current(store_->device_.primary());
    store_->run_queued();
    if (saved_ && sums_.columns.buckets && longest_at_mark() > 0) {
        const statistic_columns & c = sums_.columns;
        const size_t column = (size_t) longest_at_mark() * sizeof(float), n_buckets = held_.size() * (size_t) c.rows * (size_t) (c.n_bounds + 1);
        statistic_sums saved;
        saved.columns = {(float *) saved_memory_.at(), c.recent ? (float *) saved_memory_.at(n_buckets * column) : nullptr, c.n_bounds, c.rows, longest_at_mark()};
        copy_columns(saved, sums_, column);
    }
    if (saved_) {
        put_scores(saved_spans_, saved_memory_.at());
    }
    std::vector<span_item> later;
    for (int head = 0; head < n_heads(); head++) {
        const int32_t n = layer_.lengths[(size_t) head], first = std::min(marked_n_[(size_t) head], n);
        clear_sums(head, first, n - first);
        if (n > first && layer_.heads[(size_t) head].track) {
            later.push_back({index_, head, first, n - first, 0, 0, -1});
        }
    }
    put_scores(later, 0);
    saved_ = false;
}

} // namespace kvasir::cuda
