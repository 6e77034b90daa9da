#include "cuda_moved.h"

#include "../attention/cpu/moved_sums.h"
#include "../error.h"

#include <algorithm>

namespace kvasir::cuda {

namespace {

constexpr int32_t FEW_ENTRIES  = 256; // of a record that stay when less is recorded than before
constexpr size_t  MOST_RETIRED = (size_t) 8 << 20; // bytes of a layer that wait for a time when nobody waits for the device

int64_t whole_pages_of(int64_t slots) { return (std::max<int64_t>(slots, 1) + PAGE_SLOTS - 1) / PAGE_SLOTS * PAGE_SLOTS; }

int32_t padded(int32_t rows) { return (rows + MOVED_TILE - 1) / MOVED_TILE * MOVED_TILE; }

[[noreturn]] void no_memory(int32_t il, size_t bytes) {
    throw error(KVASIR_OUT_OF_MEMORY, format("the device has no memory left for moved queries of layer %d, which take %.1f MiB: read the prompt in smaller batches, record fewer "
                                             "queries, or choose another policy", il, (double) bytes / (1 << 20)));
}

} // namespace

// ---- tables ----

moved_books::moved_books(bool settled) {
    if (!leaves_reserve(COUNT * BYTES, settled)) {
        throw error(KVASIR_OUT_OF_MEMORY, "the device has no memory left for moved queries");
    }
    memory_.allocate(COUNT * BYTES);
    check(cu().cuMemHostAlloc(&host_, COUNT * BYTES, 0), "pinned memory");
}

moved_books::~moved_books() {
    for (event e : used_) {
        if (e) {
            cu().cuEventDestroy(e);
        }
    }
    if (host_) {
        cu().cuMemFreeHost(host_);
    }
}

void moved_books::next() {
    now_ = (now_ + 1) % COUNT;
    if (used_[now_]) {
        check(cu().cuEventSynchronize(used_[now_]), "an event");
    } else {
        check(cu().cuEventCreate(&used_[now_], EVENT_DISABLE_TIMING), "a CUDA event");
    }
}

void moved_books::send(stream queue) { check(cu().cuMemcpyHtoDAsync(rows_at(), host(0), BYTES, queue), "an upload"); }

void moved_books::used(stream queue) { check(cu().cuEventRecord(used_[now_], queue), "an event"); }

// ---- memory ----

bool cuda_moved::supports(const gpu & device, const page_format & format, int32_t n_head) {
    moved_params p{};
    p.a.pages.format = format;
    p.a.n_head       = n_head;
    p.n_rows         = 2 * MOVED_TILE;
    p.n_outputs      = MOVED_TILE;
    p.n_split        = 1;
    const auto fits = [&](const kvasir::cuda::launch & l) { return l.kernel && l.shared <= device.shared_limit(); };
    return n_head <= (int32_t) moved_books::MOST_HEADS && fits(moved_attend_launch(p, true)) && fits(moved_attend_launch(p, false)) && fits(moved_columns_launch(p, 1));
}

cuda_moved::cuda_moved(cuda_rows & rows, layer & l)
    : rows_(rows), l_(l), store_(rows.store()), entry_bytes_((size_t) l.n_head * (size_t) rows.format().dim_k * sizeof(uint16_t)) {
    current_context current(store_->device().primary());
    const std::vector<double> & omega = l.moved->turned.omega;
    outputs_ = take(PARTS * outputs_bytes());
    for (part p : {NOW, FOLDED, ASIDE}) {
        clear(p);
    }
    if (!omega.empty()) {
        omega_ = take(omega.size() * sizeof(double));
        check(cu().cuMemcpyHtoDAsync(omega_.at(), omega.data(), omega.size() * sizeof(double), store_->queue()), "an upload");
    }
    store_->synchronize();
    account();
}

cuda_moved::~cuda_moved() {
    guarded([&] {
        current_context current(store_->device().primary());
        store_->synchronize();
        retired_.clear();
        for (device_buffer * b : {&record_, &omega_, &outputs_, &now_.memory, &aside_.memory}) {
            b->free();
        }
    });
    l_.cache->limit.changed(accounted_, 0);
}

int32_t cuda_moved::longest() const { return *std::max_element(l_.lengths.begin(), l_.lengths.end()); }

device_buffer cuda_moved::take(size_t bytes) const {
    l_.cache->require_room([bytes] { return bytes; });
    if (!leaves_reserve(bytes, store_->settled_)) {
        no_memory(l_.il, bytes);
    }
    device_buffer memory;
    memory.allocate(bytes);
    return memory;
}

// To give memory back the device has to be waited for: later, between two turns, unless it is much.
void cuda_moved::retire(device_buffer & memory) {
    if (memory.size() > 0) {
        retired_.push_back(std::move(memory));
    }
    memory = device_buffer();
    size_t bytes = 0;
    for (const device_buffer & b : retired_) {
        bytes += b.size();
    }
    if (bytes > MOST_RETIRED) {
        free_retired();
    }
}

void cuda_moved::free_retired() {
    if (!retired_.empty()) {
        store_->synchronize();
        retired_.clear();
    }
}

void cuda_moved::account() {
    size_t bytes = record_.size() + omega_.size() + outputs_.size() + now_.memory.size() + aside_.memory.size();
    for (const device_buffer & b : retired_) {
        bytes += b.size();
    }
    l_.cache->limit.changed(accounted_, bytes);
    accounted_ = bytes;
}

void cuda_moved::clear(part p) { check(cu().cuMemsetD8Async(outputs(p), 0, outputs_bytes(), store_->queue()), "clearing sums of outputs"); }

template <typename P> void cuda_moved::start(const kvasir::cuda::launch & l, const P & p) {
    store_->device().launch(store_->queue(), l.kernel, l.grid_x, l.grid_y, 1, l.block, l.shared, p);
}

// ---- the record ----

// A prompt's record and its sums are far larger than those of 64 steps. They go when a record begins that needs less.
void cuda_moved::room(int32_t entries) {
    const size_t wanted = (size_t) entries * entry_bytes_;
    if (entries_ == 0) {
        const bool too_much = record_.size() > std::max(8 * wanted, FEW_ENTRIES * entry_bytes_);
        const bool sums_too = !now_.held && now_.capacity > 4 * whole_pages_of(longest());
        if (too_much || sums_too || (!retired_.empty() && !now_.held)) {
            current_context current(store_->device().primary());
            if (too_much) {
                retire(record_);
            }
            if (sums_too) {
                retire(now_.memory);
                now_.capacity = 0;
            }
            free_retired();
            account();
        }
    }
    if (wanted > record_.size()) {
        current_context current(store_->device().primary());
        device_buffer more = take(std::max({wanted, entries_ > 0 ? 2 * record_.size() : 0, moved_block_tokens * entry_bytes_}));
        if (entries_ > 0) {
            check(cu().cuMemcpyDtoDAsync(more.at(), record_.at(), (size_t) entries_ * entry_bytes_, store_->queue()), "copying recorded queries");
        }
        retire(record_);
        record_ = std::move(more);
        account();
    }
    entries_ = entries;
}

void cuda_moved::drop_entries(int32_t first, int32_t n, int32_t entries) {
    current_context current(store_->device().primary());
    for (int32_t at = first; at + n < entries;) { // pieces that do not overlap
        const int32_t some = std::min(n, entries - at - n);
        check(cu().cuMemcpyDtoDAsync(entry(at), entry(at + n), (size_t) some * entry_bytes_, store_->queue()), "moving recorded queries");
        at += some;
    }
    entries_ = entries - n;
}

// ---- sums ----

// Room for the sums of all slots.
void cuda_moved::reserve_sums() {
    const int64_t wanted = whole_pages_of(longest());
    const auto    bytes  = [this](int64_t capacity) { return (size_t) l_.n_head * (size_t) capacity * 2 * sizeof(float); };
    if (now_.capacity < wanted) {
        sums larger;
        // a prompt's grow by the micro-batch, those of steps with the longest head
        larger.capacity = now_.held ? std::max(wanted, std::min(2 * now_.capacity, whole_pages_of(l_.n_cells))) : now_.capacity == 0 ? wanted : whole_pages_of(wanted + wanted / 8);
        larger.memory   = take(bytes(larger.capacity));
        larger.held     = now_.held;
        if (now_.held) {
            check(cu().cuMemsetD8Async(larger.memory.at(), 0, bytes(larger.capacity), store_->queue()), "clearing the sums of moved queries");
            copy_2d c{};
            c.from  = {0, 0, MEMORY_DEVICE, nullptr, now_.memory.at(), nullptr, (size_t) now_.capacity * sizeof(float)};
            c.to    = {0, 0, MEMORY_DEVICE, nullptr, larger.memory.at(), nullptr, (size_t) larger.capacity * sizeof(float)};
            c.bytes = (size_t) now_.capacity * sizeof(float);
            c.rows  = (size_t) l_.n_head * 2;
            check(cu().cuMemcpy2DAsync(&c, store_->queue()), "copying the sums of moved queries");
        }
        retire(now_.memory);
        now_ = std::move(larger);
        account();
    }
    if (!now_.held) {
        check(cu().cuMemsetD8Async(now_.memory.at(), 0, bytes(now_.capacity), store_->queue()), "clearing the sums of moved queries");
        now_.held = true;
    }
}

moved_books & cuda_moved::books() {
    if (!store_->moved_books_) {
        store_->moved_books_ = std::make_unique<moved_books>(store_->settled_);
    }
    return *store_->moved_books_;
}

moved_params cuda_moved::params(int32_t end) const {
    const rotation & r = l_.moved->turned;
    moved_params     p{};
    p.a.pages    = rows_.pages();
    p.a.n_head   = l_.n_head;
    p.a.scale    = l_.moved->attention.scale;
    p.a.softcap  = l_.moved->attention.softcap;
    p.a.max_bias = l_.moved->attention.max_bias;
    p.a.sinks    = (const float *) l_.moved->attention.sinks;
    p.record     = (const uint16_t *) record_.at();
    p.end        = end;
    p.window     = l_.moved->window;
    p.omega      = (const double *) omega_.at();
    p.n_pairs    = (int32_t) r.omega.size();
    p.offset     = r.offset;
    p.halves     = r.halves;
    p.hadamard   = r.hadamard;
    p.p          = (float *) now_.memory.at();
    p.squares    = (float *) squares(now_);
    p.capacity   = now_.capacity;
    p.output     = (double *) outputs(NOW);
    p.length2    = (double *) lengths(NOW);
    return p;
}

std::vector<cuda_moved::chunk> cuda_moved::chunks_of(const std::vector<moved_block> & blocks, size_t & scratch) const {
    std::vector<chunk> chunks;
    for (size_t i = 0; i < blocks.size();) {
        chunk   c{i, i, 0, 0};
        int32_t others = 0;
        for (; c.last < blocks.size() && c.n_outputs + others + blocks[c.last].n <= MOVED_ENTRIES; c.last++) {
            (blocks[c.last].outputs ? c.n_outputs : others) += blocks[c.last].n;
        }
        c.n_outputs = padded(c.n_outputs);
        c.n_rows    = c.n_outputs + padded(others);
        chunks.push_back(c);
        const int32_t split = moved_split(l_.n_head, c.n_rows, longest(), store_->device().multiprocessors());
        scratch = std::max(scratch, moved_scratch(l_.n_head, dim(), c.n_rows, c.n_outputs, split).bytes);
        i       = c.last;
    }
    return chunks;
}

void cuda_moved::sum(const std::vector<moved_block> & blocks, const std::vector<int32_t> & pos, int32_t end, int) {
    current_context current(store_->device().primary());
    size_t scratch = 0;
    const std::vector<chunk> chunks = chunks_of(blocks, scratch);
    if (scratch > store_->scratch_.size() && !leaves_reserve(scratch, store_->settled_)) {
        no_memory(l_.il, scratch);
    }
    moved_books & tables = books();
    store_->scratch(scratch);
    run_resets();
    reserve_sums();
    store_->run_queued();
    rows_.label();
    const int32_t n = longest();
    for (const chunk & c : chunks) {
        tables.next();
        int32_t row = 0;
        for (const bool outputs : {true, false}) {
            for (size_t i = c.first; i < c.last; i++) {
                const moved_block & b = blocks[i];
                for (int32_t e = b.first; b.outputs == outputs && e < b.first + b.n; e++) {
                    tables.rows()[row++] = {e, b.begin, pos[(size_t) e], 0};
                }
            }
            while (row < (outputs ? c.n_outputs : c.n_rows)) {
                tables.rows()[row++] = {-1, 0, 0, 0};
            }
        }
        std::copy(l_.lengths.begin(), l_.lengths.end(), tables.lengths());
        tables.send(store_->queue());
        moved_params p = params(end);
        p.rows      = (const moved_row *) tables.rows_at();
        p.n         = (const int32_t *) tables.lengths_at();
        p.n_rows    = c.n_rows;
        p.n_outputs = c.n_outputs;
        p.n_split   = moved_split(l_.n_head, c.n_rows, n, store_->device().multiprocessors());
        p.scratch   = (char *) store_->scratch(scratch);
        start(moved_turn_launch(p), p);
        for (const bool outputs : {true, false}) {
            const kvasir::cuda::launch l = moved_attend_launch(p, outputs);
            if (l.grid_x > 0) {
                start(l, p);
            }
        }
        start(moved_merge_launch(p), p);
        if (p.n_outputs > 0) {
            start(moved_outputs_launch(p), p);
        }
        if (n > 0) {
            start(moved_columns_launch(p, n), p);
        }
        tables.used(store_->queue());
    }
}

void cuda_moved::read(int head, float * p, float * squares_to) {
    current_context current(store_->device().primary());
    const auto    group = (size_t) (l_.n_head / l_.n_head_kv), n = (size_t) l_.lengths[(size_t) head];
    run_resets();
    const size_t  there = now_.held ? std::min(n, (size_t) now_.capacity) : 0;
    for (const auto & [from, to] : {std::pair(now_.memory.at(), p), std::pair(squares(now_), squares_to)}) {
        if (!to) {
            continue;
        }
        if (there > 0) {
            copy_2d c{};
            c.from  = {0, 0, MEMORY_DEVICE, nullptr, from + (size_t) head * group * (size_t) now_.capacity * sizeof(float), nullptr, (size_t) now_.capacity * sizeof(float)};
            c.to    = {0, 0, MEMORY_HOST, to, 0, nullptr, n * sizeof(float)};
            c.bytes = there * sizeof(float);
            c.rows  = group;
            check(cu().cuMemcpy2DAsync(&c, store_->queue()), "reading the sums of moved queries");
        }
        for (size_t g = 0; g < group; g++) {
            std::fill(to + g * n + there, to + (g + 1) * n, 0.0f);
        }
    }
    store_->synchronize();
}

void cuda_moved::read_outputs(double * output, double * length2) {
    current_context current(store_->device().primary());
    const size_t        n_output = (size_t) l_.n_head * (size_t) dim(), n = outputs_bytes() / sizeof(double);
    std::vector<double> both(2 * n); // of now, and of what is folded
    check(cu().cuMemcpyDtoHAsync(both.data(), outputs(NOW), 2 * outputs_bytes(), store_->queue()), "reading sums of outputs");
    store_->synchronize();
    for (size_t i = 0; i < n; i++) {
        (i < n_output ? output[i] : length2[i - n_output]) = both[i] + both[n + i];
    }
}

void cuda_moved::fold(int64_t n_outputs, const float * weights, int32_t smooth, int) {
    current_context current(store_->device().primary());
    const size_t n_mean = (size_t) l_.n_head * (size_t) dim() * sizeof(float), scratch = n_mean + (size_t) l_.n_head * sizeof(float);
    store_->run_queued();
    rows_.label();
    run_resets();
    char * const  mean   = (char *) store_->scratch(scratch);
    moved_books & tables = books();
    tables.next();
    std::copy(l_.lengths.begin(), l_.lengths.end(), tables.lengths());
    if (weights) {
        std::copy(weights, weights + l_.n_head, tables.weights());
    }
    tables.send(store_->queue());
    const moved_means_params m{(double *) outputs(NOW), (double *) lengths(NOW), (double *) outputs(FOLDED), (double *) lengths(FOLDED),
                               weights ? (const float *) tables.weights_at() : nullptr, (double) n_outputs, dim(), (float *) mean, (float *) (mean + n_mean)};
    start(moved_means_launch(l_.n_head), m);
    const moved_fold_params f{rows_.pages(), (const int32_t *) tables.lengths_at(), (const float *) squares(now_), now_.capacity, m.mean, m.weight,
                              l_.n_head / l_.n_head_kv, smooth / 2};
    if (longest() > 0) {
        start(moved_fold_launch(f.pages, longest()), f);
    }
    tables.used(store_->queue());
    now_.held = false; // moved_means has cleared the sums of outputs
}

void cuda_moved::clear_sums() {
    current_context current(store_->device().primary());
    now_.held = false;
    resets_.clear();
    clear(NOW);
}

void cuda_moved::clear_folded() { // the cache holds nothing: the memory goes back
    current_context current(store_->device().primary());
    clear(FOLDED);
    retire(record_);
    retire(now_.memory);
    now_     = sums();
    entries_ = 0;
    resets_.clear();
    free_retired();
    account();
}

void cuda_moved::set_sums_aside() {
    current_context current(store_->device().primary());
    run_resets();
    if (now_.held) {
        sums copy;
        copy.memory = take(now_.memory.size());
        check(cu().cuMemcpyDtoDAsync(copy.memory.at(), now_.memory.at(), now_.memory.size(), store_->queue()), "copying the sums of moved queries");
        copy.capacity = now_.capacity;
        copy.held     = true;
        aside_        = std::move(copy);
        account();
    }
    check(cu().cuMemcpyDtoDAsync(outputs(ASIDE), outputs(NOW), outputs_bytes(), store_->queue()), "copying sums of outputs");
}

void cuda_moved::bring_sums_back() {
    current_context current(store_->device().primary());
    resets_.clear();
    if (aside_.held) {
        std::swap(now_.memory, aside_.memory);
        std::swap(now_.capacity, aside_.capacity);
    }
    now_.held = aside_.held;
    check(cu().cuMemcpyDtoDAsync(outputs(NOW), outputs(ASIDE), outputs_bytes(), store_->queue()), "copying sums of outputs");
    drop_sums_aside();
}

void cuda_moved::drop_sums_aside() {
    current_context current(store_->device().primary());
    retire(aside_.memory);
    aside_ = sums();
    account();
}

// A ring of cells gives many slots to other tokens, one after another.
void cuda_moved::reset_slots(int head, int32_t first, int32_t n) {
    const auto end = (int32_t) std::min<int64_t>((int64_t) first + n, now_.capacity);
    if (now_.held && end > first) {
        resets_.push_back({0, head, first, end});
    }
}

void cuda_moved::run_resets() {
    if (now_.held && !resets_.empty()) {
        const auto * items = (const move_item *) store_->upload(resets_.data(), resets_.size() * sizeof resets_[0]);
        const moved_reset_params p{(float *) now_.memory.at(), (float *) squares(now_), now_.capacity, items, (int32_t) resets_.size(), l_.n_head / l_.n_head_kv};
        start(moved_reset_launch(p.n_items), p);
    }
    resets_.clear();
}

} // namespace kvasir::cuda
