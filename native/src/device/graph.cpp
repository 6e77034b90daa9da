#include "graph.h"

#include "accept.h"
#include "input_mirror.h"
#include "kv_buffer.h"
#include "mask.h"

#include "../error.h"
#include "../store/device_moved.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

namespace kvasir {

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- taking the nodes over ----

// Layers of one device may have different paths: there are no kernels for some head dims. What a layer's is, its rows say.
static bool has(const layer & l, row_kind kind) { return l.rows && l.rows->kind() == kind; }
static bool on_gpu(const layer & l) { return has(l, row_kind::PAGES); }

static void note_time(store_node & n, int64_t begin) {
    int64_t none = 0;
    n.begin_ns.compare_exchange_strong(none, begin, std::memory_order_relaxed);
    const int64_t end     = now_ns();
    int64_t       current = n.end_ns.load(std::memory_order_relaxed);
    while (current < end && !n.end_ns.compare_exchange_weak(current, end, std::memory_order_relaxed)) {
    }
}

static int64_t index_of(ggml_type type, const void * indices, int64_t i) {
    return type == GGML_TYPE_I64 ? ((const int64_t *) indices)[i] : ((const int32_t *) indices)[i];
}

static void run_append(ggml_tensor *, int ith, int nth, void * userdata) {
    store_node &        n     = *(store_node *) userdata;
    const int64_t       begin = now_ns();
    const ggml_tensor * src   = n.node->src[0];
    const ggml_type     type  = n.node->src[1]->type;
    const layer &       l     = *n.l;
    const side &        s     = *n.rows;
    for (int64_t i = n.n_tokens * ith / nth; i < n.n_tokens * (ith + 1) / nth; i++) {
        const int64_t row    = index_of(type, n.cells, i);
        const int32_t stream = (int32_t) (row / l.n_cells), cell = (int32_t) (row % l.n_cells);
        const float * values = (const float *) ((const char *) src->data + (size_t) i * n.token_bytes);
        for (int32_t h = 0; h < l.n_head_kv; h++) {
            const int index = l.index(stream, h);
            const head_store & head = l.heads[(size_t) index];
            rows_write(s.format, s.is_k ? head.k : head.v, l.slot_plus_1[index][cell] - 1, values + (size_t) h * s.format.dim);
        }
    }
    note_time(n, begin);
}

static void run_attention(ggml_tensor *, int ith, int nth, void * userdata) {
    store_node &  n     = *(store_node *) userdata;
    const int64_t begin = now_ns();
    if (n.records) {
        host_moved_record(*n.l->moved, n.attention, ith, nth);
    }
    n.cpu.run(ith, nth);
    note_time(n, begin);
}

store_graph::~store_graph() {
    for (ggml_backend_buffer_t buffer : noted_) {
        input_mirror::get().forget(buffer);
    }
}

store_node & store_graph::next() {
    if (used_ == nodes_.size()) {
        nodes_.emplace_back();
    }
    store_node & n = nodes_[used_++];
    n.records  = false;
    n.begin_ns = 0;
    n.end_ns   = 0;
    return n;
}

// The positions of the tokens of a batch stand in the ROPE that made the K rows.
static const ggml_tensor * find_positions(const ggml_tensor * t, int depth) {
    if (!t || depth == 0) {
        return nullptr;
    }
    if (t->op == GGML_OP_ROPE) {
        return t->src[1];
    }
    if (t->view_src) {
        if (const ggml_tensor * p = find_positions(t->view_src, depth - 1)) {
            return p;
        }
    }
    for (int i = 0; i < 2; i++) { // the second source: K may be multiplied by a rotation matrix before it is quantised
        if (const ggml_tensor * p = find_positions(t->src[i], depth - 1)) {
            return p;
        }
    }
    return nullptr;
}

// What an input of the graph holds, where the host can read it; nullptr for what the graph has yet to compute.
const void * store_graph::host_data(const ggml_tensor * t) {
    for (const auto & [input, data] : inputs_) { // a handful, and all layers ask for the same ones
        if (input == t) {
            return data;
        }
    }
    const void * data = find_host_data(t);
    inputs_.push_back({t, data});
    return data;
}

const void * store_graph::find_host_data(const ggml_tensor * t) {
    const ggml_tensor *   root   = root_of(t);
    ggml_backend_buffer_t buffer = root->buffer;
    if (!t->data || root->op != GGML_OP_NONE || !buffer) {
        return nullptr;
    }
    if (buffer->buft->iface.is_host && buffer->buft->iface.is_host(buffer->buft)) {
        return t->data;
    }
    const auto offset = (size_t) ((const char *) t->data - (const char *) root->data);
    noted_.insert(buffer);
    if (const void * noted = input_mirror::get().find(root)) {
        return (const char *) noted + offset;
    }
    auto found = fetched_.find(root);
    if (found == fetched_.end()) {
        found = fetched_.emplace(root, llama().ggml_nbytes(root)).first;
        if (inner_->iface.synchronize) {
            inner_->iface.synchronize(inner_);
        }
        buffer->iface.get_tensor(buffer, root, found->second.data(), 0, found->second.size());
    }
    return found->second.data() + offset;
}

const placement & store_graph::place(const layer & l, ggml_type type, const void * cells, int64_t n) {
    for (size_t i = 0; i < n_placements_; i++) {
        const placement & known = placements_[i];
        if (known.n_cells == l.n_cells && known.cell.size() == (size_t) n && std::find(known.cells.begin(), known.cells.end(), cells) != known.cells.end()) {
            return known;
        }
    }
    if (n_placements_ == placements_.size()) {
        placements_.emplace_back();
    }
    placement & p = placements_[n_placements_];
    p.cells     = {cells};
    p.n_cells   = l.n_cells;
    p.ascending = true;
    p.stream.resize((size_t) n);
    p.cell.resize((size_t) n);
    p.rank.resize((size_t) n);
    p.count.assign((size_t) l.n_stream, 0);
    p.first.assign((size_t) l.n_stream, 0);
    p.last.assign((size_t) l.n_stream, -1);
    for (size_t i = 0; i < (size_t) n; i++) {
        const int64_t row = index_of(type, cells, (int64_t) i);
        if (row < 0 || row >= (int64_t) l.n_stream * l.n_cells) {
            throw error(KVASIR_FAILED, format("llama.cpp wrote to row %lld of the KV cache of layer %d", (long long) row, l.il));
        }
        const auto stream = (size_t) (row / l.n_cells);
        p.stream[i] = (int32_t) stream;
        p.cell[i]   = (int32_t) (row % l.n_cells);
        p.rank[i]   = p.count[stream]++;
        if (p.rank[i] == 0) {
            p.first[stream] = p.cell[i];
        }
        p.ascending    = p.ascending && p.cell[i] > p.last[stream];
        p.last[stream] = p.cell[i];
    }
    for (size_t i = 0; i < n_placements_; i++) { // V has indices of its own, the same ones
        placement & known = placements_[i];
        if (known.n_cells == p.n_cells && known.cell == p.cell && known.stream == p.stream) {
            known.cells.push_back(cells);
            return known;
        }
    }
    n_placements_++;
    return p;
}

// the indices of a SET_ROWS
const void * store_graph::cells_of(const found_node & f) {
    const void * cells = f.l->configured() ? host_data(f.node->src[1]) : nullptr;
    if (!cells) {
        throw error(KVASIR_UNSUPPORTED, format("a write to the KV cache of layer %d whose cells are not known beforehand", f.l->il));
    }
    return f.by_element() ? cells_of_elements(f, (const int64_t *) cells) : cells;
}

// The index of a token as that of a row would be, where each of its elements has one: stream, element, cell (llama_kv_cache::set_input_v_idxs).
const void * store_graph::cells_of_elements(const found_node & f, const int64_t * indices) {
    std::vector<int64_t> & cells = token_cells_[f.node->src[1]];
    const int64_t          n = f.rows->tensor->ne[0], n_cells = f.l->n_cells;
    if (cells.empty()) {
        for (int64_t i = 0; i < f.n_tokens(); i++) {
            const int64_t first = indices[i * n];
            if (first % (n * n_cells) >= n_cells || indices[(i + 1) * n - 1] != first + (n - 1) * n_cells) {
                throw error(KVASIR_FAILED, format("llama.cpp wrote V of layer %d elsewhere than one element behind the other", f.l->il));
            }
            cells.push_back(first / (n * n_cells) * n_cells + first % n_cells);
        }
    }
    return cells.data();
}

// Masks of plain attentions are f32. What they hold, 0, -infinity or a distance, is what llama.cpp has in f16 elsewhere.
const char * store_graph::half_mask(const ggml_tensor * mask) {
    const auto * values = (const float *) host_data(mask);
    if (!values) {
        return nullptr;
    }
    std::vector<uint16_t> & half = half_masks_[mask];
    if (half.empty()) {
        half.resize(llama().ggml_nbytes(mask) / sizeof(float));
        for (size_t i = 0; i < half.size(); i++) {
            half[i] = values[i] == 0.0f ? 0 : llama().ggml_fp32_to_fp16(values[i]);
        }
    }
    return (const char *) half.data();
}

// Either all layers of the graph take memory or none does: tokens that would exceed the cache's limit leave the room to fewer.
void store_graph::require_room() {
    found_.front().l->cache->require_room([&] {
        size_t more = 0;
        for (const found_node & f : found_) {
            if (f.rows && f.rows->is_k) { // V has the same slots
                const placement & p = place(*f.l, f.node->src[1]->type, cells_of(f), f.n_tokens());
                count_slots(*f.l, p, f.l->in_order(p));
                more += f.l->rows->growth(wanted_.data());
            }
        }
        return more;
    });
}

// wanted_: the slots that the heads will have
void store_graph::count_slots(const layer & l, const placement & p, bool in_order) {
    wanted_ = l.lengths;
    for (int32_t stream = 0; in_order && stream < l.n_stream; stream++) {
        for (int32_t head = 0; head < l.n_head_kv; head++) {
            wanted_[(size_t) l.index(stream, head)] += p.count[(size_t) stream];
        }
    }
    for (size_t i = 0; !in_order && i < p.cell.size(); i++) {
        for (int32_t h = 0; h < l.n_head_kv; h++) {
            const auto index = (size_t) l.index(p.stream[i], h);
            wanted_[index] += l.slot_plus_1[index][p.cell[i]] == 0;
        }
    }
}

// Slots for the tokens, and memory for them.
void store_graph::append(layer & l, const placement & p, bool is_k) {
    const bool in_order = is_k && l.in_order(p);
    count_slots(l, p, in_order);
    l.rows->reserve(wanted_.data());
    l.placed = &p;
    if (!in_order) {
        for (size_t i = 0; i < p.cell.size(); i++) {
            for (int32_t h = 0; h < l.n_head_kv; h++) {
                l.slot_for(l.index(p.stream[i], h), p.cell[i], is_k ? l.query_pos[i] : -1);
            }
        }
        return;
    }
    if (on_gpu(l)) {
        unwritten_.push_back(&l); // while the GPU computes; before the slots are counted, as it may fail
    }
    l.append(p);
    if (!on_gpu(l)) {
        l.write_placed();
    }
}

void store_graph::write_placed() {
    for (layer * l : unwritten_) {
        l->write_placed();
    }
    unwritten_.clear();
}

void store_graph::prepare_append(const found_node & f) {
    side *        s     = f.rows;
    layer &       l     = *f.l;
    const int64_t n     = f.n_tokens();
    const void *  cells = cells_of(f);
    // where no layer has rotary positions (ALiBi, learned positions) a sequence fills cells in order
    const auto * positions = f.positions ? (const int32_t *) host_data(f.positions) : nullptr;
    if (s->is_k) {
        l.query_pos.resize((size_t) n);
    }
    if (std::find(appended_.begin(), appended_.end(), &l) == appended_.end()) {
        l.cache->begin_append(l);
        appended_.push_back(&l);
    }
    const placement & p = place(l, f.node->src[1]->type, cells, n);
    for (int64_t i = 0; s->is_k && i < n; i++) {
        l.query_pos[(size_t) i] = positions ? positions[i] : p.cell[(size_t) i];
    }
    if (l.placed != &p) {
        append(l, p, s->is_k);
    }
    if (on_gpu(l)) {
        return;
    }
    store_node & x = next();
    x.node = f.node;
    x.rows = s;
    x.l    = &l;
    x.over = nullptr;
    x.cells = cells;
    x.n_tokens    = n;
    x.token_bytes = f.by_element() ? (size_t) s->tensor->ne[0] * sizeof(float) : f.node->src[0]->nb[1];
}

static bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const auto end = [](const ggml_tensor * t) { return (const char *) t->data + llama().ggml_nbytes(t); };
    return (const char *) a->data < end(b) && (const char *) b->data < end(a);
}

void store_graph::prepare_attention(const found_node & f, int n_threads) {
    if (on_gpu(*f.l)) {
        return; // cuda_graph describes the node to itself
    }
    const attention_op & op = f.attention;
    ggml_tensor *       node = f.node;
    const ggml_tensor * q = op.q, * k = op.k, * mask = op.mask;
    layer &             l = *f.l;
    kvasir_cache &      c = *l.cache;
    const bool          native = has(l, row_kind::HOST);
    store_node &        x = next();
    x.node = node;
    x.rows = nullptr;
    x.l    = &l;
    x.over = &op;
    if (op.plain() && overlap(q, node)) { // see keep_queries
        throw error(KVASIR_FAILED, format("the queries of layer %d do not lie in memory until its attention", l.il));
    }
    attention_node a;
    a.k = l.k.format;
    a.v = l.v.format;
    const int32_t first = l.n_stream > 1 ? (int32_t) (k->view_offs / l.k.tensor->nb[2]) : 0;
    x.first_head = l.index(first, 0);
    a.heads     = l.heads.data() + x.first_head;
    a.n_stream  = (int32_t) q->ne[3];
    a.n_head_kv = l.n_head_kv;
    a.n_head    = l.n_head;
    a.n_tokens  = (int32_t) q->ne[1];
    a.q         = (const char *) q->data;
    std::copy(q->nb, q->nb + 4, a.q_nb);
    if (mask) {
        a.mask = op.plain() ? half_mask(mask) : (const char *) host_data(mask);
        if (!a.mask) {
            throw error(KVASIR_UNSUPPORTED, format("an attention of layer %d whose mask is not known beforehand", l.il));
        }
        std::transform(mask->nb, mask->nb + 4, a.mask_nb, [&](size_t bytes) { return op.plain() ? bytes / 2 : bytes; });
        a.mask_n_kv     = (int32_t) mask->ne[0];
        a.mask_n_head   = (int32_t) mask->ne[2];
        a.mask_n_stream = (int32_t) mask->ne[3];
        constexpr int32_t few_tokens = 8;
        if (native && a.n_stream == 1 && a.mask_n_head == 1 && a.n_tokens <= few_tokens) { // one mask serves many layers
            if (open_mask_ != mask->data) {
                open_mask_  = mask->data;
                open_cells_ = (int32_t) open_cells(a.mask, a.mask_nb[1], a.n_tokens, mask->ne[0]);
            }
            a.mask_open = open_cells_;
        }
    }
    a.out = (char *) node->data;
    std::copy(node->nb, node->nb + 4, a.out_nb);
    if (op.plain()) { // [dim][token][query head]
        std::swap(a.out_nb[1], a.out_nb[2]);
    }
    a.sinks    = op.sinks ? (const float *) op.sinks->data : nullptr;
    a.scale    = op.scale;
    a.max_bias = op.max_bias;
    a.softcap  = op.softcap;
    if (l.query_pos.size() == (size_t) a.n_tokens * (size_t) a.n_stream) {
        a.query_pos = l.query_pos.data();
    }
    if (c.statistic_on) {
        if (!a.query_pos) {
            throw error(KVASIR_UNSUPPORTED, format("the statistic of layer %d: its queries have no known positions", l.il));
        }
        x.stat = c.statistic_of(l);
        a.stat = &x.stat;
    }
    l.prepare_to_save(c.statistic_on);
    if (l.moved->recording()) {
        if (!a.query_pos) {
            throw error(KVASIR_UNSUPPORTED, format("moved queries of layer %d: its queries have no known positions", l.il));
        }
        l.moved->attention = {a.scale, a.softcap, a.max_bias, a.sinks};
        x.records = l.moved->begin_record(a.query_pos, a.n_tokens);
    }
    x.attention = a;
    if (native) {
        x.cpu.plan(x.attention, n_threads, workspace_);
    }
}

static bool is_view(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

bool store_graph::is_left_out(const ggml_tensor * node) const { return std::binary_search(left_out_.begin(), left_out_.end(), node); }

// What plain attentions have before their last operation is not computed: nothing else may need it.
void store_graph::require_left_out(const ggml_cgraph * graph, const std::vector<ggml_tensor *> & products) const {
    const auto refuse = [](const ggml_tensor * node, const kvasir_cache * cache) {
        const std::string reason = format("%s (%s), which needs more of a plain attention than its result", llama().ggml_op_name(node->op), node->name);
        refuse_graph(cache, reason);
        throw error(KVASIR_UNSUPPORTED, "the adaptive cache has no path for " + reason);
    };
    for (const ggml_tensor * product : products) {
        if (!is_left_out(product)) {
            refuse(product, cache_of(product));
        }
    }
    for (int i = 0; !left_out_.empty() && i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        for (const ggml_tensor * src : node->src) {
            if (src && is_left_out(src) && !is_left_out(node) && std::none_of(found_.begin(), found_.end(), [&](const found_node & f) { return f.node == node; })) {
                refuse(node, found_.front().l->cache);
            }
        }
    }
}

void store_graph::find_nodes(const ggml_cgraph * graph) {
    if (graph->uid != 0 && graph->uid == uid_) {
        return;
    }
    uid_ = 0;
    found_.clear();
    paged_.clear();
    left_out_.clear();
    any_buffers_ = false;
    std::vector<ggml_tensor *> products; // of K and Q
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = graph->nodes[i];
        if (is_view(node->op) || !touches_store(node)) {
            continue;
        }
        std::string reason;
        if (!accept_node(node, reason)) {
            refuse_graph(cache_of(node), reason);
            throw error(KVASIR_UNSUPPORTED, "the adaptive cache has no path for " + reason);
        }
        side *       rows = node->op == GGML_OP_SET_ROWS ? side_of(node) : nullptr;
        attention_op attention;
        if (!rows && !find_attention(node, attention)) {
            products.push_back(node);
            continue;
        }
        left_out_.insert(left_out_.end(), attention.inner.begin(), attention.inner.begin() + (ptrdiff_t) attention.n_inner);
        const ggml_tensor * rope = rows && rows->is_k ? find_positions(node->src[0], 8) : nullptr;
        const bool          each = rope && rope->type == GGML_TYPE_I32 && rope->ne[0] >= node->src[0]->ne[1];
        found_.push_back({i, node, (rows ? rows : side_of(attention.k))->owner, rows, each ? rope : nullptr, attention});
    }
    std::sort(left_out_.begin(), left_out_.end());
    require_left_out(graph, products);
    // the tokens of a layer without rotary positions have those that they have in other layers
    const auto turned = std::find_if(found_.begin(), found_.end(), [](const found_node & f) { return f.positions; });
    for (found_node & f : found_) {
        if (!f.positions && f.rows && f.rows->is_k && turned != found_.end() && turned->node->src[0]->ne[1] == f.node->src[0]->ne[1]) {
            f.positions = turned->positions;
        }
        any_buffers_ = any_buffers_ || has(*f.l, row_kind::BUFFERS);
        if (on_gpu(*f.l)) {
            paged_.push_back(f);
        }
    }
    uid_ = graph->uid;
}

ggml_status store_graph::compute(ggml_backend_t inner, ggml_cgraph * graph, int n_threads) {
    const int64_t begin = now_ns();
    inner_     = inner;
    used_      = 0;
    open_mask_ = nullptr;
    inputs_.clear();
    fetched_.clear();
    token_cells_.clear();
    half_masks_.clear();
    appended_.clear();
    unwritten_.clear();
    n_placements_ = 0;
    find_nodes(graph);
    if (found_.empty()) {
        return inner->iface.graph_compute(inner, graph);
    }
    kvasir_cache & cache = *found_.front().l->cache;
    ggml_status    status = GGML_STATUS_FAILED;
    if (refused_graph().cache == &cache) { // and llama.cpp went on
        const graph_refusal refused = std::exchange(refused_graph(), {});
        throw error(KVASIR_UNSUPPORTED, refused.reason);
    }
    const auto first = std::find_if(found_.begin(), found_.end(), [](const found_node & f) { return f.rows; });
    if (first != found_.end()) {
        cache.begin_graph(*first->l);
    }
    try {
        if (gpu_ && !paged_.empty() && !any_buffers_ && gpu_->begin(graph) != GGML_STATUS_SUCCESS) {
            roll_back();
            return GGML_STATUS_FAILED;
        }
        cache.report_failure();
        require_room();
        for (const found_node & f : found_) {
            if (f.rows) {
                prepare_append(f);
            } else {
                prepare_attention(f, n_threads);
            }
        }
        prepared_ns_ = now_ns();
        status = compute_nodes(graph);
    } catch (...) {
        roll_back();
        throw;
    }
    if (status != GGML_STATUS_SUCCESS) {
        roll_back();
        return status;
    }
    for (size_t i = 0; i < used_; i++) {
        const store_node & x  = nodes_[i];
        const int64_t      ns = x.end_ns - x.begin_ns;
        (x.rows ? cache.append_ns : cache.attention_ns) += ns;
    }
    for (const found_node & f : found_) {
        f.l->n_queries += cache.statistic_on && !f.rows ? f.n_tokens() : 0;
    }
    cache.graphs++;
    cache.prepare_ns += prepared_ns_ - begin;
    cache.graph_ns += now_ns() - begin;
    return status;
}

// A token that was not computed leaves no slots behind, and has been counted nowhere: on no device.
void store_graph::roll_back() {
    write_placed();
    found_.front().l->cache->cancel_micro_batch();
}

namespace {

// A node is GGML_OP_CUSTOM for as long as the graph runs, so that ggml's own threads execute it, or GGML_OP_NONE where it is left out.
// llama.cpp reuses its graphs: whatever happens, the nodes are then as they were.
class custom_nodes {
public:
    ~custom_nodes() {
        for (store_node * x : nodes_) {
            x->node->op = x->op;
            memcpy(x->node->op_params, x->params, sizeof x->params);
        }
        for (const auto & [node, op] : left_out_) {
            node->op = op;
        }
    }
    void leave_out(ggml_tensor * node) {
        left_out_.push_back({node, node->op});
        node->op = GGML_OP_NONE;
    }
    void add(store_node & x) {
        nodes_.push_back(&x);
        x.op = x.node->op;
        memcpy(x.params, x.node->op_params, sizeof x.params);
        ggml_custom_op_params custom{};
        custom.fun      = x.rows ? run_append : run_attention;
        custom.n_tasks  = GGML_N_TASKS_MAX;
        custom.userdata = &x;
        static_assert(sizeof custom <= sizeof x.params, "custom operations keep their parameters in the tensor");
        x.node->op = GGML_OP_CUSTOM;
        memcpy(x.node->op_params, &custom, sizeof custom);
    }

private:
    std::vector<store_node *> nodes_;
    std::vector<std::pair<ggml_tensor *, ggml_op>> left_out_;
};

} // namespace

ggml_status store_graph::compute_nodes(ggml_cgraph * graph) {
    custom_nodes custom;
    for (size_t i = 0; i < used_; i++) {
        if (has(*nodes_[i].l, row_kind::HOST)) {
            custom.add(nodes_[i]);
            const attention_op * over = nodes_[i].over;
            for (size_t j = 0; over && j < over->n_inner; j++) {
                custom.leave_out(over->inner[j]);
            }
        }
    }
    built_ = 0;
    return !paged_.empty() ? compute_on_gpu(graph) : any_buffers_ ? compute_portable(graph) : inner_->iface.graph_compute(inner_, graph);
}

// Layers of the portable path stand in what ggml computes between the layers that have kernels.
ggml_status store_graph::compute_on_gpu(ggml_cgraph * graph) {
    if (!gpu_) {
        gpu_ = std::make_unique<cuda::cuda_graph>(inner_);
    }
    const auto host = [this](const ggml_tensor * t) { return host_data(t); };
    cuda::cuda_graph::between compute_between;
    if (any_buffers_) {
        portable().begin(graph);
        compute_between = [this](const std::vector<ggml_tensor *> & nodes) {
            build_portable(nodes.data(), nodes.size());
            return portable().run();
        };
    }
    ggml_status status = gpu_->compute(graph, paged_, host, compute_between);
    if (any_buffers_ && status == GGML_STATUS_SUCCESS) {
        status = portable().finish();
    }
    write_placed();
    return status;
}

ggml_status store_graph::compute_portable(ggml_cgraph * graph) {
    portable().begin(graph);
    build_portable(graph->nodes, (size_t) graph->n_nodes);
    return portable().finish();
}

portable_attention & store_graph::portable() {
    if (!portable_) {
        portable_ = std::make_unique<portable_attention>(inner_);
    }
    return *portable_;
}

// Another graph is computed in place of llama.cpp's: its nodes, but ggml's operations over each head's rows in place of
// those over the whole cache.
void store_graph::build_portable(ggml_tensor * const * nodes, size_t n) {
    std::vector<int64_t> targets; // of an append: [token][KV head]
    for (size_t i = 0; i < n; i++) {
        const bool   ours = built_ < used_ && nodes[i] == nodes_[built_].node;
        store_node * x    = ours ? &nodes_[built_++] : nullptr;
        if (is_left_out(nodes[i])) {
            continue;
        }
        if (!x || !has(*x->l, row_kind::BUFFERS)) {
            portable_->pass(nodes[i]);
            continue;
        }
        layer & l    = *x->l;
        auto &  rows = static_cast<device_rows &>(*l.rows);
        if (!x->rows) {
            if (x->records) {
                auto & memory = static_cast<device_moved &>(*l.moved->memory());
                memory.note_sinks(x->over->sinks);
                portable_->record(x->attention, *x->over, l.moved->tokens(), memory.entry(l.moved->first_entry()));
            }
            portable_->attend(x->attention, *x->over, rows, x->first_head);
            continue;
        }
        targets.clear();
        for (int64_t t = 0; t < x->n_tokens; t++) {
            const int64_t row    = index_of(x->node->src[1]->type, x->cells, t);
            const auto    stream = (int32_t) (row / l.n_cells);
            for (int32_t h = 0; h < l.n_head_kv; h++) {
                const int     index = l.index(stream, h);
                const int32_t slot  = l.slot_plus_1[(size_t) index][row % l.n_cells] - 1;
                targets.push_back(rows.first_row(x->rows->is_k, index) + rows.row(index, slot));
                if (rows.has_values(x->rows->is_k)) {
                    rows.forget_norm(index, slot);
                }
            }
        }
        ggml_tensor values = *x->node->src[0];
        values.ne[0] = x->rows->tensor->ne[0];
        values.ne[1] = x->n_tokens;
        values.nb[1] = x->token_bytes;
        portable_->append(&values, rows, x->rows->is_k, l.n_head_kv, targets);
    }
}

} // namespace kvasir
