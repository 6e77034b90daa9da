#include "cuda_graph.h"

#include "../../error.h"
#include "../../store/cuda_moved.h"
#include "../kv_buffer.h"
#include "../mask.h"
#include "../rope.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <set>

namespace kvasir::cuda {

namespace {

constexpr int32_t FEW_TOKENS = 8; // of a stream: the decode kernel's

bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

cuda_rows * rows_of(const layer & l) {
    if (!l.rows || l.rows->kind() != row_kind::PAGES) {
        throw error(KVASIR_FAILED, format("layer %d has no rows in pages", l.il));
    }
    return static_cast<cuda_rows *>(l.rows.get());
}

event event_of(ggml_backend_event_t e) { return (event) e->context; }

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const api &  g = llama();
    const char * a0 = (const char *) a->data, * b0 = (const char *) b->data;
    return a0 < b0 + g.ggml_nbytes(b) && b0 < a0 + g.ggml_nbytes(a);
}

template <typename P> void set_output(P & p, const ggml_tensor * node) {
    p.out              = (float *) node->data;
    p.out_head_bytes   = (int64_t) node->nb[1];
    p.out_token_bytes  = (int64_t) node->nb[2];
    p.out_stream_bytes = (int64_t) node->nb[3];
}

// the rows that two SET_ROWS append
template <typename P> void set_appended(P & p, const ggml_tensor * k, const ggml_tensor * v, const layer & l) {
    p.k             = (const char *) k->src[0]->data;
    p.v             = (const char *) v->src[0]->data;
    p.k_token_bytes = (int64_t) k->src[0]->nb[1];
    p.v_token_bytes = (int64_t) v->src[0]->nb[1];
    p.k_head_bytes  = (int64_t) l.k.format.dim * (int64_t) sizeof(float);
    p.v_head_bytes  = (int64_t) l.v.format.dim * (int64_t) sizeof(float);
}

ggml_tensor * rope_behind(const ggml_tensor * t) {
    const ggml_tensor * root = t ? root_of(t) : nullptr;
    return root && root->op == GGML_OP_ROPE ? const_cast<ggml_tensor *>(root) : nullptr;
}

bool turns_halves(const ggml_tensor * rope) { return rope_number(rope, 2) == GGML_ROPE_TYPE_NEOX; }

// Whether the decode kernel can do what a ROPE does: over whole heads of f32, in ggml's normal and NEOX order, from inputs and weights, and
// its result lies as its source does. n_tokens: of all streams
bool can_turn(const ggml_tensor * rope, const page_format & f, int64_t n_tokens) {
    const ggml_tensor * x = rope->src[0], * pos = rope->src[1], * factors = rope->src[2];
    const int32_t mode = rope_number(rope, 2), n_dims = rope_number(rope, 1), offset = rope_number(rope, 15);
    return rope->type == GGML_TYPE_F32 && x->type == GGML_TYPE_F32 && std::equal(x->nb, x->nb + GGML_MAX_DIMS, rope->nb) &&
           (uintptr_t) x->data % 16 == 0 && (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && offset == 0 && rope->ne[0] == f.dim_k &&
           (turns_halves(rope) ? n_dims == f.dim_k : n_dims % 2 == 0 && n_dims <= f.dim_k) && decode_turns(f.type_k, f.dim_k, turns_halves(rope)) &&
           rope->ne[2] == n_tokens && rope->ne[3] == 1 && pos->type == GGML_TYPE_I32 && pos->ne[0] == n_tokens && root_of(pos)->op == GGML_OP_NONE &&
           (!factors || (factors->type == GGML_TYPE_F32 && root_of(factors)->op == GGML_OP_NONE && factors->ne[0] >= n_dims / 2)) &&
           !(rope->flags & GGML_TENSOR_FLAG_OUTPUT);
}

// ggml-cuda's own switch for its graphs is one for ours too
bool graphs_wanted() {
    static const bool wanted = !getenv("GGML_CUDA_DISABLE_GRAPHS");
    return wanted;
}

device_limits limits_of(const gpu & device) { return {device.multiprocessors(), device.shared_per_multiprocessor()}; }

bool element_of(ggml_type type, int32_t & element) {
    element = type == GGML_TYPE_Q8_0 ? Q8_0 : F16;
    return type == GGML_TYPE_F16 || type == GGML_TYPE_Q8_0;
}

} // namespace

bool supports(const gpu & device, ggml_type type_k, ggml_type type_v, int32_t dim_k, int32_t dim_v, int32_t n_head, int32_t n_head_kv, page_format & format) {
    int32_t k = 0, v = 0;
    if (!element_of(type_k, k) || !element_of(type_v, v)) {
        return false;
    }
    format = make_page_format(k, v, dim_k, dim_v);
    attention_params a{};
    a.pages.format    = format;
    a.pages.n_head_kv = n_head_kv;
    a.n_head          = n_head;
    a.n_tokens        = 512;
    a.n_stream        = 1;
    const auto fits = [&](const kvasir::cuda::launch & l) { return l.kernel && l.shared <= device.shared_limit(); };
    bool ok = fits(prefill_launch(a, limits_of(device))) && fits(statistic_launch(a, 1));
    a.n_tokens = 1;
    return ok && fits(prefill_launch(a, limits_of(device))) && make_decode_shape(format, n_head / n_head_kv, 1, 1, device.shared_limit()).kernel[0];
}

cuda_graph::cuda_graph(ggml_backend_t inner) : inner_(inner) {
    ggml_backend_dev_t d = inner->device;
    for (ggml_backend_event_t * e : {&to_us_, &to_ggml_, &captured_to_us_, &captured_to_ggml_}) {
        *e = d->iface.event_new(d);
        if (!*e) {
            throw error(KVASIR_FAILED, "ggml's CUDA backend has no events");
        }
    }
}

cuda_graph::~cuda_graph() {
    if (gpu_) {
        cu().cuCtxSetCurrent(gpu_->primary());
        if (ready_) {
            cu().cuGraphExecDestroy(ready_);
        }
    }
    ggml_backend_dev_t d = inner_->device;
    for (ggml_backend_event_t e : {to_us_, to_ggml_, captured_to_us_, captured_to_ggml_}) {
        if (e) {
            d->iface.event_free(d, e);
        }
    }
}

// ---- what is to be computed ----

void cuda_graph::find_operations(ggml_cgraph * graph, const std::vector<found_node> & found) {
    operations_.clear();
    for (size_t i = 0; i < found.size(); i++) {
        operation op;
        op.first = found[i].index;
        for (; i < found.size() && found[i].rows; i++) {
            (found[i].rows->is_k ? op.k : op.v) = found[i].node;
        }
        if (i < found.size()) {
            op.last = found[i].index;
            op.node = found[i].node;
            op.l    = found[i].l;
        }
        const bool whole = op.node && !op.k == !op.v && (!op.k || (side_of(op.k)->owner == op.l && side_of(op.v)->owner == op.l)) &&
                           std::all_of(graph->nodes + op.first, graph->nodes + op.last, [&](const ggml_tensor * t) { return is_view(t) || t == op.k || t == op.v; });
        if (!whole) {
            throw error(KVASIR_UNSUPPORTED, format("writes to the KV cache that do not stand before the attention that reads them (%s)", graph->nodes[op.first]->name));
        }
        op.rows = rows_of(*op.l);
        operations_.push_back(op);
    }
}

size_t cuda_graph::add(size_t bytes) {
    const size_t at = (step_.size() + 15) / 16 * 16;
    step_.resize(at + bytes);
    return at;
}

// What stays the same for as long as llama.cpp reuses the graph.
void cuda_graph::describe(ggml_cgraph * graph, const std::vector<found_node> & found) {
    find_operations(graph, found);
    store_ = operations_.front().rows->store().get();
    gpu_   = &store_->device();
    masks_.clear();
    for (operation & op : operations_) {
        describe(op);
    }
    for (size_t i = 0; i < operations_.size(); i++) {
        const int32_t mask = operations_[i].mask;
        operations_[i].mask_stays = mask < 0 || std::any_of(operations_.begin() + (ptrdiff_t) i + 1, operations_.end(), [mask](const operation & o) { return o.mask == mask; });
    }
    rotaries_.clear();
    if (std::any_of(operations_.begin(), operations_.end(), [](const operation & op) { return op.shape.kernel[0] == 0; })) {
        for (operation & op : operations_) { // one kind of kernel for all
            op.shape = {};
            op.fused = false;
        }
    } else {
        find_ropes(graph);
    }
    described_++;
    segments_nodes_.assign(operations_.size() + 1, {});
    int first = 0;
    for (size_t i = 0; i <= operations_.size(); i++) {
        const operation * op = i < operations_.size() ? &operations_[i] : nullptr;
        std::copy_if(graph->nodes + first, graph->nodes + (op ? op->first : graph->n_nodes), std::back_inserter(segments_nodes_[i]),
                     [op](const ggml_tensor * t) { return !op || (t != op->rope_q && t != op->rope_k); });
        first = op ? op->last + 1 : 0;
    }
}

// Which ROPEs the decode kernel does in place of ggml: those that nothing but the attention and its append reads, while their source is still
// there when these run.
void cuda_graph::find_ropes(const ggml_cgraph * graph) {
    std::set<const ggml_tensor *> alone; // the ROPEs that may be left out
    int begin = 0;
    for (operation & op : operations_) {
        const int64_t n_tokens = (int64_t) op.attention.n_tokens * op.attention.n_stream;
        const ggml_tensor * q = op.node->src[0];
        ggml_tensor * rope = rope_behind(q);
        if (rope && can_turn(rope, op.rows->format(), n_tokens) && q->data == rope->data && q->nb[1] == rope->nb[2] && q->nb[2] == rope->nb[1] && q->ne[2] == rope->ne[1] &&
            (q->ne[3] == 1 || q->nb[3] == rope->nb[2] * (size_t) q->ne[1])) {
            op.rope_q = rope;
        }
        rope = op.fused ? rope_behind(op.k->src[0]) : nullptr;
        if (rope && can_turn(rope, op.rows->format(), op.n_append) && op.k->src[0]->data == rope->data && op.k->src[0]->nb[1] == rope->nb[2] && rope->ne[1] == op.l->n_head_kv) {
            op.rope_k = rope;
        }
        for (ggml_tensor ** r : {&op.rope_q, &op.rope_k}) {
            const auto found = std::find(graph->nodes + begin, graph->nodes + op.first, *r);
            const auto over = [&](const ggml_tensor * t) {
                return !is_view(t) && !(t->op == GGML_OP_SET_ROWS && side_of(t)) && overlap(t, (*r)->src[0]);
            };
            if (*r && (found == graph->nodes + op.first || std::any_of(found + 1, graph->nodes + op.last + 1, over))) {
                *r = nullptr;
            }
            if (*r) {
                alone.insert(*r);
            }
        }
        begin = op.last + 1;
    }
    for (int i = 0; i < graph->n_nodes && !alone.empty(); i++) {
        const ggml_tensor * t = graph->nodes[i];
        for (const ggml_tensor * source : t->src) {
            ggml_tensor * rope = is_view(t) ? nullptr : rope_behind(source);
            const auto ours = [&](const operation & op) { return (rope == op.rope_q && t == op.node) || (rope == op.rope_k && t == op.k); };
            if (rope && alone.count(rope) && std::none_of(operations_.begin(), operations_.end(), ours)) {
                alone.erase(rope);
            }
        }
    }
    for (operation & op : operations_) {
        for (ggml_tensor ** r : {&op.rope_q, &op.rope_k}) {
            if (*r && (!alone.count(*r) || !share_rotary(op, *r))) {
                *r = nullptr;
            }
        }
    }
}

// The cosines and sines for a ROPE of an operation; false: it has others already.
bool cuda_graph::share_rotary(operation & op, const ggml_tensor * rope) {
    rotary_params p{};
    p.factors     = rope->src[2] ? (const float *) rope->src[2]->data : nullptr;
    p.n_tokens    = (int32_t) rope->ne[2];
    p.dim         = (int32_t) rope->ne[0];
    p.n_dims      = rope_number(rope, 1);
    p.halves      = turns_halves(rope);
    p.freq_scale  = rope_float(rope, 6);
    p.ext_factor  = rope_float(rope, 7);
    p.attn_factor = rope_float(rope, 8);
    p.theta_scale = powf(rope_float(rope, 5), -2.0f / (float) p.n_dims);
    float ends[2];
    llama().ggml_rope_yarn_corr_dims(p.n_dims, rope_number(rope, 4), rope_float(rope, 5), rope_float(rope, 9), rope_float(rope, 10), ends);
    p.low  = ends[0];
    p.high = ends[1];
    const auto same = std::find_if(rotaries_.begin(), rotaries_.end(), [&](const rotary & r) { return r.rope->src[1] == rope->src[1] && memcmp(&r.params, &p, sizeof p) == 0; });
    const auto at = (int32_t) (same - rotaries_.begin());
    if (op.rotary >= 0 && op.rotary != at) {
        return false;
    }
    if (same == rotaries_.end()) {
        rotaries_.push_back({rope, p, 0, 0});
    }
    op.rotary = at;
    return true;
}

void cuda_graph::describe(operation & op) {
    layer &             l = *op.l;
    const ggml_tensor * q = op.node->src[0], * k = op.node->src[1], * mask = op.node->src[3], * sinks = op.node->src[4];
    attention_params &  a = op.attention;
    op.first_stream = l.n_stream > 1 ? (int32_t) (k->view_offs / l.k.tensor->nb[2]) : 0;
    a.q             = (const char *) q->data;
    a.q_token_bytes = (int64_t) q->nb[1];
    a.q_head_bytes  = (int64_t) q->nb[2];
    a.q_stream_bytes = (int64_t) q->nb[3];
    a.sinks    = sinks ? (const float *) sinks->data : nullptr;
    a.n_stream = (int32_t) q->ne[3];
    a.n_head   = l.n_head;
    a.n_tokens = (int32_t) q->ne[1];
    a.causal   = 0;
    memcpy(&a.scale, (const float *) op.node->op_params + 0, sizeof(float));
    memcpy(&a.max_bias, (const float *) op.node->op_params + 1, sizeof(float));
    memcpy(&a.softcap, (const float *) op.node->op_params + 2, sizeof(float));
    if (mask) {
        a.mask = {(const char *) mask->data, (int64_t) mask->nb[1], (int64_t) mask->nb[2], (int64_t) mask->nb[3], (int32_t) mask->ne[0], (int32_t) mask->ne[2],
                  (int32_t) mask->ne[3], nullptr};
        const auto same = std::find_if(masks_.begin(), masks_.end(), [&](const seen_mask & m) { return m.tensor->data == mask->data; });
        op.mask = (int32_t) (same - masks_.begin());
        if (same == masks_.end()) {
            masks_.push_back({mask, a.n_tokens, {}, 0, false});
        }
    }
    if (a.n_tokens <= FEW_TOKENS && !statistic_) {
        op.shape = make_decode_shape(op.rows->format(), l.n_head / l.n_head_kv, a.n_tokens, gpu_->multiprocessors(), gpu_->shared_limit());
    }
    if (op.k) {
        op.n_append = (int32_t) op.k->src[0]->ne[1];
        op.fused    = op.shape.kernel[0] && !overlap(op.k->src[0], op.node) && !overlap(op.v->src[0], op.node);
    }
}

void cuda_graph::read(seen_mask & m, const inputs & host) {
    const ggml_tensor * mask   = m.tensor;
    const char *        values = m.n_tokens <= FEW_TOKENS && mask->ne[2] == 1 ? (const char *) host(mask) : nullptr;
    m.open.clear();
    for (int64_t stream = 0; values && stream < mask->ne[3]; stream++) {
        m.open.push_back((int32_t) open_cells(values + stream * (int64_t) mask->nb[3], mask->nb[1], m.n_tokens, mask->ne[0]));
    }
}

// The lengths of all heads; which are tracked; and for each operation its tokens, their slots, positions, and whether every slot is
// seen by every query.
void cuda_graph::fill_step(const inputs & host) {
    step_.assign(store_->step_begin(), 0);
    track_at_ = add(store_->step_begin());
    placed_.clear();
    tracking_ = false;
    for (const cuda_rows * rows : store_->all()) {
        if (!rows) {
            continue;
        }
        const layer & l = rows->books();
        memcpy(step_.data() + (size_t) rows->first_head() * sizeof(int32_t), l.lengths.data(), l.lengths.size() * sizeof(int32_t));
        int32_t region = 0;
        for (int32_t h = 0; l.n_tracked > 0 && h < rows->n_heads(); h++) {
            ((int32_t *) (step_.data() + track_at_))[rows->first_head() + h] = l.heads[(size_t) h].track ? ++region : 0;
        }
        tracking_ = tracking_ || l.n_tracked > 0;
    }
    for (rotary & r : rotaries_) {
        const void * pos = host(r.rope->src[1]);
        if (!pos) {
            throw error(KVASIR_UNSUPPORTED, "rotary positions that are not known beforehand");
        }
        r.pos_at = add((size_t) r.params.n_tokens * sizeof(int32_t));
        memcpy(step_.data() + r.pos_at, pos, (size_t) r.params.n_tokens * sizeof(int32_t));
    }
    for (operation & op : operations_) {
        layer &       l = *op.l;
        const int32_t n_queries = op.attention.n_tokens * op.attention.n_stream;
        if (op.k) {
            const placement & p    = *l.placed;
            const auto        same = std::find_if(placed_.begin(), placed_.end(), [&](const placed_tokens & t) { return t.placed == &p && t.first_stream == op.first_stream; });
            if (same != placed_.end()) {
                op.tokens_at = same->at;
            } else {
                op.tokens_at = add((size_t) op.n_append * sizeof(token_label));
                auto * token = (token_label *) (step_.data() + op.tokens_at);
                for (size_t i = 0; i < (size_t) op.n_append; i++) {
                    token[i] = {p.stream[i] - op.first_stream, p.cell[i], l.query_pos[i], 0};
                }
                placed_.push_back({&p, op.first_stream, op.tokens_at});
            }
            op.slots_at = add((size_t) op.n_append * (size_t) l.n_head_kv * sizeof(int32_t));
            auto * slot = (int32_t *) (step_.data() + op.slots_at);
            for (size_t i = 0; i < (size_t) op.n_append; i++) {
                const int first = l.index(p.stream[i], 0);
                for (int index = first; index < first + l.n_head_kv; index++) {
                    *slot++ = l.appended ? l.slots_before(index) + p.rank[i] : l.slot_plus_1[(size_t) index][p.cell[i]] - 1;
                }
            }
        }
        if (!op.shape.kernel[0]) {
            op.pos_at  = add((size_t) n_queries * sizeof(int32_t));
            auto * pos = (int32_t *) (step_.data() + op.pos_at);
            if (l.query_pos.size() == (size_t) n_queries) {
                std::copy(l.query_pos.begin(), l.query_pos.end(), pos);
            } else if (statistic_) {
                throw error(KVASIR_UNSUPPORTED, format("the statistic of layer %d: its queries have no known positions", l.il));
            }
        } else {
            op.open_at = add(sizeof(int32_t));
            bool open  = op.mask < 0 || !masks_[(size_t) op.mask].open.empty();
            for (int32_t s = 0; op.mask >= 0 && open && s < op.attention.n_stream; s++) {
                const std::vector<int32_t> & first = masks_[(size_t) op.mask].open;
                open = l.max_cell[(size_t) (op.first_stream + s)] < first[(size_t) s % first.size()];
            }
            *(int32_t *) (step_.data() + op.open_at) = open;
        }
        if (recording_) {
            fill_record(op);
        }
    }
}

// The tokens whose queries are recorded: a list of them for a kernel of its own, or where the decode kernel puts each one's.
void cuda_graph::fill_record(operation & op) {
    layer &       l = *op.l;
    const int32_t n_queries = op.attention.n_tokens * op.attention.n_stream;
    const bool    few = op.shape.kernel[0] != 0;
    op.n_record  = 0;
    op.record_at = add((size_t) n_queries * (few ? sizeof(uint64_t) : sizeof(int32_t)));
    if (l.query_pos.size() != (size_t) n_queries) {
        throw error(KVASIR_UNSUPPORTED, format("moved queries of layer %d: its queries have no known positions", l.il));
    }
    l.moved->attention = {op.attention.scale, op.attention.softcap, op.attention.max_bias, op.attention.sinks};
    if (!l.moved->begin_record(l.query_pos.data(), n_queries)) {
        return;
    }
    const std::vector<int32_t> & tokens = l.moved->tokens();
    op.first_entry = l.moved->first_entry();
    if (!few) {
        op.n_record = (int32_t) tokens.size();
        std::copy(tokens.begin(), tokens.end(), (int32_t *) (step_.data() + op.record_at));
        return;
    }
    const auto & memory = static_cast<const cuda_moved &>(*l.moved->memory());
    for (size_t i = 0; i < tokens.size(); i++) {
        ((uint64_t *) (step_.data() + op.record_at))[tokens[i]] = memory.entry(op.first_entry + (int32_t) i);
    }
}

bool cuda_graph::grow(device_buffer & buffer, size_t bytes, bool zero) {
    if (bytes <= buffer.size()) {
        return false;
    }
    store_->synchronize();
    buffer.reserve(bytes);
    if (zero) {
        check(cu().cuMemsetD8Async(buffer.at(), 0, buffer.size(), store_->queue()), "clearing device memory");
    }
    store_->addresses_changed();
    return true;
}

void cuda_graph::prepare_few() {
    size_t segments = 0, scores = 0, exchange = 0;
    for (operation & op : operations_) {
        const layer & l = *op.l;
        const int32_t n_heads = op.attention.n_stream * l.n_head_kv, columns = l.n_head / l.n_head_kv * op.attention.n_tokens;
        op.segments_at = segments;
        segments += decode_segments(op.shape, n_heads) * sizeof(decode_segment);
        exchange = std::max(exchange, decode_exchange_bytes(op.shape, op.rows->format().dim_k));
        if (tracking_) {
            const int32_t regions = l.n_tracked;
            int32_t       longest = 0;
            for (const head_store & head : l.heads) {
                longest = head.track ? std::max(longest, head.n) : longest;
            }
            int64_t & stride = score_strides_[&l]; // heads grow and shrink by a few slots: addresses are to stay
            if (longest > stride) {
                stride = ((int64_t) longest + longest / 16 + 256 + 255) / 256 * 256;
            }
            op.score_stride = stride;
            op.scores_at    = scores;
            op.lse_at       = scores + (size_t) regions * (size_t) columns * (size_t) op.score_stride * sizeof(float);
            scores          = op.lse_at + ((size_t) regions * (size_t) columns * sizeof(float) + 255) / 256 * 256;
        }
    }
    grow(segments_, segments);
    grow(exchange_, exchange, true);
    grow(epoch_, 256, true);
    grow(scores_, scores);
    size_t turns = 0;
    for (rotary & r : rotaries_) {
        r.table_at = turns;
        turns += (size_t) r.params.n_tokens * (size_t) r.params.dim * sizeof(float);
    }
    grow(turns_, turns);

    std::vector<decode_layer> layers;
    std::vector<bool> turned(rotaries_.size());
    for (operation & op : operations_) {
        decode_layer d{};
        d.pages   = op.attention.pages;
        d.n_stream = op.attention.n_stream;
        d.n_pass   = op.shape.n_pass;
        d.columns  = op.shape.columns;
        d.group    = op.l->n_head / op.l->n_head_kv;
        d.n_column = d.group * op.attention.n_tokens;
        d.open     = (const int32_t *) (store_->step() + op.open_at);
        if (op.fused) {
            d.slot     = (const int32_t *) (store_->step() + op.slots_at);
            d.token    = (const token_label *) (store_->step() + op.tokens_at);
            d.n_append = op.n_append;
        }
        d.segments = (decode_segment *) segments_.at(op.segments_at);
        if (tracking_) {
            d.track  = (const int32_t *) (store_->step() + track_at_) + op.rows->first_head() + (size_t) op.first_stream * op.l->n_head_kv;
            d.scores = (float *) scores_.at(op.scores_at);
            d.lse    = (float *) scores_.at(op.lse_at);
            d.score_stride = op.score_stride;
        }
        if (op.rotary >= 0 && !turned[(size_t) op.rotary]) {
            const rotary & r = rotaries_[(size_t) op.rotary];
            turned[(size_t) op.rotary] = true;
            d.rotary       = r.params;
            d.rotary.table = (float *) turns_.at(r.table_at);
            d.rotary.pos   = (const int32_t *) (store_->step() + r.pos_at);
        }
        layers.push_back(d);
    }
    const size_t bytes = layers.size() * sizeof(decode_layer);
    if (plan_.size() != bytes || memcmp(plan_.data(), layers.data(), bytes) != 0) {
        plan_.assign((const char *) layers.data(), (const char *) layers.data() + bytes);
        grow(plan_memory_, bytes);
        const device_ptr data = store_->upload(plan_.data(), bytes);
        check(cu().cuMemcpyDtoDAsync(plan_memory_.at(), data, bytes, store_->queue()), "the layers' descriptions");
        drop_capture(); // parameters of its launches go with them
    }
}

void cuda_graph::prepare_many() {
    size_t partial = 0, tiles = 0, rows = 0, views = 0, workspace = 0;
    for (operation & op : operations_) {
        if (op.shape.kernel[0]) {
            continue;
        }
        partial = std::max(partial, prefill_workspace_bytes(op.attention, limits_of(*gpu_)));
        tiles   = std::max(tiles, (size_t) prefill_tiles(op.attention));
        rows    = std::max(rows, (size_t) op.attention.n_stream * (size_t) op.attention.n_head * (size_t) op.attention.n_tokens);
        if (statistic_ || tracking_) {
            workspace = std::max(workspace, statistic_workspace_bytes(op.attention));
        }
        if (op.mask >= 0 && !masks_[(size_t) op.mask].viewed) {
            masks_[(size_t) op.mask].viewed   = true;
            masks_[(size_t) op.mask].views_at = views;
            views += (mask_view_bytes(op.attention.mask, op.attention.n_tokens) + 255) / 256 * 256;
        }
    }
    grow(partial_, partial);
    grow(arrived_, tiles * sizeof(int32_t), true);
    grow(lse_, rows * sizeof(float));
    grow(views_, views);
    grow(statistic_memory_, workspace);
}

// ---- running it ----

void cuda_graph::launch_plan() {
    const decode_shape & shape = operations_.front().shape;
    uint32_t heads = 0;
    for (const operation & o : operations_) {
        heads = std::max(heads, (uint32_t) (o.attention.n_stream * o.l->n_head_kv * o.shape.n_pass));
    }
    const plan_params p{(const decode_layer *) plan_memory_.at(), (uint32_t *) epoch_.at(), (void *) exchange_.at(), exchange_.size(),
                        (int32_t) shape.grid, shape.min_blocks, shape.head_blocks};
    gpu_->launch(store_->queue(), "plan", (uint32_t) operations_.size(), PLAN_CTAS, 1, PLAN_THREADS, plan_shared((int32_t) shape.grid, (int32_t) heads), p);
}

void cuda_graph::launch_few(operation & op) {
    layer &       l = *op.l;
    decode_params p{};
    p.a                = op.attention;
    p.group            = l.n_head / l.n_head_kv;
    set_output(p, op.node);
    if (op.fused) {
        set_appended(p, op.k, op.v, l);
        p.slot     = (const int32_t *) (store_->step() + op.slots_at);
        p.token    = (const token_label *) (store_->step() + op.tokens_at);
        p.n_append = op.n_append;
    }
    if (op.rotary >= 0) {
        const rotary & r     = rotaries_[(size_t) op.rotary];
        const auto *   table = (const float *) turns_.at(r.table_at);
        p.halves = r.params.halves;
        if (op.rope_q) {
            p.turn_q = table;
            p.a.q    = (const char *) op.rope_q->src[0]->data;
        }
        if (op.rope_k) {
            p.turn_k = table;
            p.k      = (const char *) op.rope_k->src[0]->data;
        }
    }
    p.by_group = reciprocal(p.group);
    p.stages   = op.shape.stages;
    p.ring     = op.shape.ring;
    p.segments = (const decode_segment *) segments_.at(op.segments_at);
    p.exchange = (void *) exchange_.at();
    if (tracking_) {
        p.scores = (float *) scores_.at(op.scores_at);
        p.lse    = (float *) scores_.at(op.lse_at);
        p.score_stride = op.score_stride;
    }
    p.record = recording_ ? (const uint64_t *) (store_->step() + op.record_at) : nullptr;
    gpu_->launch_together(store_->queue(), op.shape.kernel, op.shape.grid, op.shape.block, op.shape.shared, p);
}

void cuda_graph::launch_many(operation & op) {
    attention_params & a = op.attention;
    if (recording_ && op.n_record > 0) {
        const auto & memory = static_cast<const cuda_moved &>(*op.l->moved->memory());
        const moved_record_params p{a.q, a.q_token_bytes, a.q_head_bytes, (const int32_t *) (store_->step() + op.record_at), (uint16_t *) memory.entry(op.first_entry), a.n_head,
                                    op.rows->format().dim_k};
        start(moved_record_launch(op.n_record), p);
    }
    if (op.mask >= 0) {
        seen_mask & m = masks_[(size_t) op.mask];
        uint8_t * views = (uint8_t *) views_.at(m.views_at);
        if (m.viewed) { // by the first operation that uses it
            m.viewed = false;
            const mask_views_params p{a.mask, views, a.n_tokens};
            start(mask_views_launch(a.mask, a.n_tokens), p);
        }
        a.mask.views = views;
    }
    prefill_params p{};
    p.a                = a;
    set_output(p, op.node);
    p.lse              = scored(op) ? (float *) lse_.at() : nullptr;
    p.partial          = (float *) partial_.at();
    p.arrived          = (int32_t *) arrived_.at();
    p.stages           = prefill_stages(a, limits_of(*gpu_));
    start(prefill_launch(a, limits_of(*gpu_)), p);
    if (scored(op)) { // ggml may write over the queries as soon as it goes on
        start(statistic_queries_launch(a), statistic_of(op));
    }
}

bool cuda_graph::scored(const operation & op) const { return !op.shape.kernel[0] && (statistic_ || op.l->n_tracked > 0); }

statistic_params cuda_graph::statistic_of(const operation & op) const {
    const layer &    l = *op.l;
    statistic_params s{};
    s.a         = op.attention;
    s.lse       = (float *) lse_.at();
    s.workspace = (char *) statistic_memory_.at();
    s.track     = (const int32_t *) (store_->step() + track_at_) + op.rows->first_head() + (size_t) op.first_stream * l.n_head_kv;
    if (statistic_) {
        const statistic_columns & c = op.rows->columns();
        const size_t              heads = (size_t) op.first_stream * (size_t) l.n_head_kv, column = (size_t) c.capacity * (size_t) c.rows;
        s.buckets     = c.buckets + heads * column * (size_t) (c.n_bounds + 1);
        s.recent      = c.recent ? c.recent + heads * column : nullptr;
        s.bounds      = op.rows->bounds();
        s.n_bounds    = c.n_bounds;
        s.rows        = c.rows;
        s.recent_from = l.cache->recent_from;
        s.capacity    = c.capacity;
        s.track       = nullptr;
    }
    return s;
}

void cuda_graph::launch_statistic(const operation & op) { start(statistic_launch(op.attention, gpu_->multiprocessors()), statistic_of(op)); }

void cuda_graph::launch(operation & op) {
    layer & l = *op.l;
    if (op.k && !op.fused) {
        append_params p{};
        p.pages         = op.attention.pages;
        set_appended(p, op.k, op.v, l);
        p.slots         = (const int32_t *) (store_->step() + op.slots_at);
        p.tokens        = (const token_label *) (store_->step() + op.tokens_at);
        p.n_tokens      = op.n_append;
        start(append_launch(p), p);
    }
    if (op.shape.kernel[0]) {
        launch_few(op);
    } else {
        launch_many(op);
    }
}

ggml_status cuda_graph::run_segment(ggml_cgraph * graph, size_t index, bool capture) {
    std::vector<ggml_tensor *> & computed = segments_nodes_[index];
    if (std::all_of(computed.begin(), computed.end(), is_view)) {
        return GGML_STATUS_SUCCESS;
    }
    if (between_ && *between_) {
        return (*between_)(computed);
    }
    ggml_cgraph segment = *graph;
    segment.size    = 0;
    segment.n_leafs = 0;
    segment.leafs = segment.grads = segment.grad_accs = nullptr;
    if (capture) {
        // ggml-cuda finds its own captures by a graph's first node. One that it has never seen, or that has changed since,
        // makes it run directly, and not begin a capture inside of ours.
        captured_keys_.emplace_back();
        ggml_tensor & key = captured_keys_.back();
        key    = ggml_tensor{};
        key.op = GGML_OP_NONE;
        memcpy(key.op_params, &++segments_captured_, sizeof segments_captured_);
        for (int d = 0; d < GGML_MAX_DIMS; d++) {
            key.ne[d] = 1;
            key.nb[d] = sizeof(float);
        }
        captured_nodes_.emplace_back();
        std::vector<ggml_tensor *> & nodes = captured_nodes_.back();
        nodes.push_back(&key);
        nodes.insert(nodes.end(), computed.begin(), computed.end());
        segment.nodes   = nodes.data();
        segment.n_nodes = (int) nodes.size();
        segment.uid     = 0;
    } else {
        segment.nodes   = computed.data();
        segment.n_nodes = (int) computed.size();
        // Without one of its own ggml-cuda would compare every node at every call. It counts on as many nodes as it has seen under it, and
        // the same graph has others with the statistic and without.
        segment.uid = graph->uid == 0 ? 0 : ((uint64_t) 1 << 62) + described_ * 4096 + (uint64_t) index;
    }
    return inner_->iface.graph_compute(inner_, &segment);
}

ggml_status cuda_graph::run(ggml_cgraph * graph, bool capture) {
    ggml_backend_event_t to_us = capture ? captured_to_us_ : to_us_, to_ggml = capture ? captured_to_ggml_ : to_ggml_;
    const auto ggml_then_us = [&] {
        inner_->iface.event_record(inner_, to_us);
        check(cu().cuStreamWaitEvent(store_->queue(), event_of(to_us), 0), "waiting for ggml's stream");
    };
    const auto us_then_ggml = [&] {
        check(cu().cuEventRecord(event_of(to_ggml), store_->queue()), "an event");
        inner_->iface.event_wait(inner_, to_ggml);
    };
    if (capture) {
        us_then_ggml(); // ggml's stream joins the capture
    }
    const bool few = operations_.front().shape.kernel[0] != 0;
    if (few && !capture) {
        launch_plan(); // while ggml computes up to the first attention
    }
    size_t index = 0;
    for (operation & op : operations_) {
        const bool        done   = begun_ && index == 0;
        const ggml_status status = done ? GGML_STATUS_SUCCESS : run_segment(graph, index, capture);
        index++;
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        ggml_then_us();
        launch(op);
        if (scored(op) && !op.mask_stays) {
            launch_statistic(op);
        }
        us_then_ggml();
        if (scored(op) && op.mask_stays) { // while ggml goes on
            launch_statistic(op);
        }
    }
    const ggml_status status = run_segment(graph, index, capture);
    if (status != GGML_STATUS_SUCCESS) {
        return status; // and nothing has been counted
    }
    if (few && tracking_) {
        uint32_t heads = 0;
        for (const operation & o : operations_) {
            heads = std::max(heads, (uint32_t) (o.attention.n_stream * o.l->n_head_kv));
        }
        const auto * layers = (const decode_layer *) plan_memory_.at();
        gpu_->launch(store_->queue(), "accumulate_scores", 8, heads, (uint32_t) operations_.size(), SCORE_THREADS, 0, layers);
    }
    if (capture) {
        ggml_then_us();
    }
    return status;
}

void cuda_graph::drop_capture() {
    captured_uid_ = 0;
    captured_nodes_.clear();
    captured_keys_.clear();
}

// What was recorded, ready for launches. The next graph of llama.cpp mostly has the same nodes with other parameters: the one
// that is ready takes these on, in a fraction of the time that a new one needs.
bool cuda_graph::make_ready(cuda::graph recorded) {
    graph_update update{};
    if (ready_ && cu().cuGraphExecUpdate(ready_, recorded, &update) == SUCCESS) {
        return true;
    }
    if (ready_) {
        cu().cuGraphExecDestroy(ready_);
        ready_ = nullptr;
    }
    if (cu().cuGraphInstantiateWithFlags(&ready_, recorded, 0) != SUCCESS) {
        ready_ = nullptr;
    }
    return ready_;
}

// All but the first segment, which has begun. false: it could not be recorded, and nothing of it has been computed
bool cuda_graph::capture(ggml_cgraph * graph) {
    drop_capture();
    const std::shared_lock<std::shared_mutex> recording(captures());
    if (cu().cuStreamBeginCapture(store_->queue(), CAPTURE_RELAXED) != SUCCESS) {
        return false;
    }
    ggml_status          status = GGML_STATUS_FAILED;
    const kvasir_status  done   = guarded([&] { status = run(graph, true); });
    cuda::graph          recorded = nullptr;
    const bool ended = cu().cuStreamEndCapture(store_->queue(), &recorded) == SUCCESS && recorded;
    const bool ready = ended && done == KVASIR_OK && status == GGML_STATUS_SUCCESS && make_ready(recorded);
    if (recorded) {
        cu().cuGraphDestroy(recorded);
    }
    if (!ready) {
        drop_capture();
        return false;
    }
    captured_uid_       = graph->uid;
    captured_addresses_ = store_->addresses();
    operations_.front().l->cache->captures++;
    return true;
}

void cuda_graph::settle_addresses() {
    for (operation & op : operations_) {
        op.attention.pages   = op.rows->pages();
        op.attention.pages.table += (size_t) op.first_stream * (size_t) op.l->n_head_kv * (size_t) op.attention.pages.table_stride;
        op.attention.pages.n     += (size_t) op.first_stream * (size_t) op.l->n_head_kv;
        op.attention.query_pos = (const int32_t *) (store_->step() + op.pos_at);
    }
}

ggml_status cuda_graph::begin(ggml_cgraph * graph) {
    between_ = nullptr;
    begun_ = graph->uid != 0 && graph->uid == uid_ && operations_.front().shape.kernel[0] && operations_.front().l->cache->statistic_on == statistic_ &&
             operations_.front().l->moved->recording() == recording_;
    return begun_ ? run_segment(graph, 0, false) : GGML_STATUS_SUCCESS;
}

ggml_status cuda_graph::compute(ggml_cgraph * graph, const std::vector<found_node> & found, const inputs & host, const between & compute_between) {
    between_ = &compute_between;
    begun_   = begun_ && !compute_between; // another graph than the one that began
    const bool statistic = found.front().l->cache->statistic_on, recording = found.front().l->moved->recording(), tracked = tracking_;
    const bool again     = graph->uid != 0 && graph->uid == uid_ && statistic == statistic_ && recording == recording_;
    if (!again) {
        uid_       = 0; // until all is described
        statistic_ = statistic;
        if (recording != recording_) {
            drop_capture(); // it has where queries go, or that they are not recorded
            recording_ = recording;
        }
        describe(graph, found);
        uid_ = graph->uid;
    }
    current_context current(gpu_->primary());
    for (seen_mask & mask : masks_) {
        read(mask, host);
    }
    fill_step(host);
    const bool few = operations_.front().shape.kernel[0] != 0;
    if (few) {
        store_->flush_for_step();
    } else {
        store_->flush();
    }
    store_->put_step(step_);
    const kvasir_cache & cache = *operations_.front().l->cache;
    // A graph for few tokens over all layers adds to scores at its very end: nothing can fail after that.
    if ((statistic_ || tracking_) && (cache.marked || !few || operations_.size() < cache.layers.size())) {
        for (operation & op : operations_) {
            op.rows->save_counts();
        }
    }
    if (!again || !few || tracking_ || tracked || settled_addresses_ != store_->addresses()) {
        settled_addresses_ = 0; // until all is prepared
        settle_addresses();
        if (few) {
            prepare_few();
        } else {
            prepare_many();
        }
        settled_addresses_ = store_->addresses();
    }
    if (few && begun_ && again && graphs_wanted() && refused_uid_ != graph->uid && (captured_uid_ != graph->uid || captured_addresses_ != store_->addresses()) && !capture(graph)) {
        refused_uid_ = graph->uid;
    }
    if (few && begun_ && captured_uid_ == graph->uid && captured_addresses_ == store_->addresses()) {
        launch_plan(); // while ggml computes what it has begun
        inner_->iface.event_record(inner_, to_us_);
        check(cu().cuStreamWaitEvent(store_->queue(), event_of(to_us_), 0), "waiting for ggml's stream");
        check(cu().cuGraphLaunch(ready_, store_->queue()), "the captured graph");
        check(cu().cuEventRecord(event_of(to_ggml_), store_->queue()), "an event");
        inner_->iface.event_wait(inner_, to_ggml_);
        store_->map_ahead();
        return GGML_STATUS_SUCCESS;
    }
    const ggml_status status = run(graph, false);
    if (!few && status == GGML_STATUS_SUCCESS) {
        store_->settle();
    }
    return status;
}

void cuda_graph::optimize(ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = graph->nodes[i];
        if (node->op != GGML_OP_FLASH_ATTN_EXT || !side_of(node->src[1])) {
            continue;
        }
        const bool few       = node->src[0]->ne[1] <= FEW_TOKENS;
        const auto keep_rope = [&](const ggml_tensor * x) {
            if (const ggml_tensor * rope = few ? rope_behind(x) : nullptr) {
                params->add_alloc_dep(params->user_data, const_cast<ggml_tensor *>(root_of(rope->src[0])), node);
            }
        };
        keep_rope(node->src[0]);
        const layer * l = side_of(node->src[1])->owner;
        for (int j = i - 1; j >= 0 && (is_view(graph->nodes[j]) || graph->nodes[j]->op == GGML_OP_SET_ROWS); j--) {
            ggml_tensor * written = graph->nodes[j];
            if (written->op == GGML_OP_SET_ROWS && side_of(written) && side_of(written)->owner == l) {
                params->add_alloc_dep(params->user_data, const_cast<ggml_tensor *>(root_of(written->src[0])), node);
                keep_rope(written->src[0]);
            }
        }
    }
}

} // namespace kvasir::cuda
