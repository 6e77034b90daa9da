#include "cpu_attention.h"

#include "kernels.h"

#include <algorithm>
#include <new>
#include <thread>

namespace kvasir {

namespace {

constexpr std::align_val_t scratch_alignment{ 64 };
constexpr size_t  decode_unit_bytes    = 64 * 1024;   // K and V of the smallest decode unit: a few microseconds of memory time
constexpr size_t  prefill_group_bytes  = 256 * 1024;  // Q and O of a prefill unit: stays in the second-level cache
constexpr size_t  prefill_kept_bytes   = 2048 * 1024; // weights kept by a prefill unit; beyond it, shorter tiles of queries

bool is_half(ggml_type type) { return type == GGML_TYPE_F16 || type == GGML_TYPE_BF16; }

bool is_quantised(ggml_type type) {
    return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1;
}

} // namespace

bool cpu_attention_supports(const row_format & k, const row_format & v) {
    const auto side = [](const row_format & f) { return f.dim > 0 && (is_half(f.type) || (is_quantised(f.type) && f.dim % 32 == 0)); };
    return side(k) && side(v) && !v.tiled && (!k.tiled || (is_half(k.type) && !v.part));
}

cpu_workspace::~cpu_workspace() { ::operator delete(data_, scratch_alignment); }

void cpu_workspace::reserve(size_t bytes) {
    if (bytes <= size_) {
        return;
    }
    const size_t size = bytes + bytes / 4; // a growing cache asks for a little more at every step
    ::operator delete(data_, scratch_alignment);
    data_ = nullptr;
    size_ = 0;
    data_ = static_cast<char *>(::operator new(size, scratch_alignment));
    size_ = size;
}

struct cpu_attention::state {
    cpu_job job{};
    bool    decode = false;
    int32_t n_threads = 0;
    size_t  thread_floats = 0;      // scratch of a thread
    size_t  parts = 0, kept = 0;    // offsets in floats, behind the threads' scratch
    size_t  total = 0;
    const cpu_workspace * workspace = nullptr;

    std::vector<cpu_unit>      units;
    std::vector<cpu_head_work> work;
    std::vector<uint8_t>       views;
    std::atomic<int32_t>       next{ 0 };
    // decode: units of a head that are not finished; prefill: whose turn it is to add to a head's sums
    std::unique_ptr<std::atomic<int32_t>[]> count;
    size_t  count_size = 0;

    void counters(size_t n) {
        if (n > count_size) {
            count = std::make_unique<std::atomic<int32_t>[]>(n);
            count_size = n;
        }
    }

    void plan_decode();
    void plan_prefill();
};

// Units shrink as the work runs out (guided self-scheduling): few merges, and no thread waits long for another's last one.
void cpu_attention::state::plan_decode() {
    const attention_node & node = job.node;
    const int32_t n_heads = node.n_stream * node.n_head_kv, rows = job.group * node.n_tokens;
    const size_t slot_bytes = own_bytes(node.k) + own_bytes(node.v);
    const int32_t smallest = round_up((int32_t) std::max<size_t>(decode_unit_bytes / slot_bytes, 1), slot_block);
    int64_t left = 0;
    for (int32_t i = 0; i < n_heads; i++) {
        left += node.heads[i].n;
    }
    size_t kept_floats = 0;
    counters(n_heads);
    for (int32_t i = 0; i < n_heads; i++) {
        const head_store & h = node.heads[i];
        cpu_head_work & w = work[i];
        w.first_unit = (int32_t) units.size();
        w.kept = kept_floats;
        if (node.stat || h.track) {
            const int32_t slots = round_up(h.n, slot_block);
            kept_floats += (size_t) rows * (slots + slots / slot_block);
        }
        int32_t begin = 0;
        do {
            const int64_t share = n_threads == 1 ? h.n : left / (2 * n_threads);
            int32_t size = round_up((int32_t) std::max<int64_t>(share, smallest), slot_block);
            if (h.n - begin - size < smallest / 2) {
                size = h.n - begin;
            }
            units.push_back({ i, begin, begin + size, 0, node.n_tokens, 0, job.group, 0, 0 });
            begin += size;
            left -= size;
        } while (begin < h.n);
        w.n_units = (int32_t) units.size() - w.first_unit;
        count[i].store(w.n_units, std::memory_order_relaxed);
    }
    thread_floats = decode_scratch_of(rows, job.dkp, job.dvp).total;
    parts = thread_floats * n_threads;
    kept = parts + ((size_t) units.size() * rows * (2 + job.dvp) + 15) / 16 * 16;
    job.keep = kept_floats > 0;
    total = kept + kept_floats;
}

// Later tiles of queries see more keys, so they go first.
void cpu_attention::state::plan_prefill() {
    const attention_node & node = job.node;
    const int32_t n_heads = node.n_stream * node.n_head_kv;
    int32_t n_max = 0;
    job.keep = false;
    for (int32_t i = 0; i < n_heads; i++) {
        n_max = std::max(n_max, node.heads[i].n);
        job.keep |= node.stat || node.heads[i].track;
    }
    job.tile = query_tile;
    while (job.tile > 16 && job.keep && (size_t) job.tile * n_max * sizeof(float) > prefill_kept_bytes) {
        job.tile /= 2;
    }
    const auto tiles = [&] { return (node.n_tokens + job.tile - 1) / job.tile; };
    const size_t head_bytes = (size_t) job.tile * (job.dkp + job.dvp) * sizeof(float);
    int32_t most = job.keep ? 1 : (int32_t) std::min<size_t>(std::max<size_t>(prefill_group_bytes / head_bytes, 1), job.group);
    int32_t groups = (job.group + most - 1) / most;
    // too few units for the threads: first give up sharing converted K and V between query heads, then shorten the tiles
    while (n_heads * groups * tiles() < 4 * n_threads && groups < job.group) {
        groups = std::min(2 * groups, job.group);
    }
    while (n_heads * groups * tiles() < 4 * n_threads && job.tile > 16) {
        job.tile /= 2;
    }
    most = (job.group + groups - 1) / groups;

    job.n_tiles = tiles();
    job.n_view = node.mask ? node.mask_n_kv / slot_block : 0;
    views.assign((size_t) node.n_stream * job.n_tiles * job.n_view, 0);

    const bool per_head = node.stat && node.stat->rows > 1;
    const int32_t n_tickets = n_heads * (per_head ? job.group : 1);
    counters(n_tickets);
    for (int32_t i = 0; i < n_tickets; i++) {
        count[i].store(0, std::memory_order_relaxed);
    }
    for (int32_t t = tiles() - 1, turn = 0; t >= 0; t--) {
        const int32_t token = t * job.tile, n = std::min(job.tile, node.n_tokens - token);
        for (int32_t g = 0; g < job.group; g += most) {
            for (int32_t i = 0; i < n_heads; i++) {
                const int32_t ticket = per_head ? i * job.group + g : i;
                units.push_back({ i, 0, node.heads[i].n, token, n, g, std::min(most, job.group - g), ticket, turn });
            }
            turn += per_head ? 0 : 1;
        }
        turn += per_head ? 1 : 0;
    }
    thread_floats = prefill_scratch_of(job.tile, most, job.dkp, job.dvp, job.keep ? round_up(n_max, slot_block) / slot_block : 1).total;
    parts = kept = total = thread_floats * n_threads;
}

cpu_attention::cpu_attention() : s_(std::make_unique<state>()) {}
cpu_attention::~cpu_attention() = default;
cpu_attention::cpu_attention(cpu_attention &&) noexcept = default;
cpu_attention & cpu_attention::operator=(cpu_attention &&) noexcept = default;

void cpu_attention::plan(const attention_node & node, int n_threads, cpu_workspace & workspace) {
    state & s = *s_;
    s.job.node = node;
    s.job.group = node.n_head / node.n_head_kv;
    s.job.dkp = round_up(node.k.dim, 16);
    s.job.dvp = round_up(node.v.dim, 16);
    s.n_threads = n_threads;
    s.workspace = &workspace;
    s.decode = node.n_tokens <= decode_tokens;
    for (int32_t i = 0; !s.decode && i < node.n_stream * node.n_head_kv; i++) {
        node.heads[i].saved.save(); // a prompt takes far longer
    }
    s.units.clear();
    s.work.resize((size_t) node.n_stream * node.n_head_kv);
    if (s.decode) {
        s.plan_decode();
    } else {
        s.plan_prefill();
    }
    workspace.reserve(s.total * sizeof(float));
    s.next.store(0, std::memory_order_release);
}

void cpu_attention::run(int ith, int nth) noexcept {
    (void) nth;
    state & s = *s_;
    if (ith >= s.n_threads) {
        return;
    }
    const cpu_kernels & kernels = cpu_kernels_active();
    float * base = reinterpret_cast<float *>(s.workspace->data()), * scratch = base + s.thread_floats * ith;
    cpu_job job = s.job; // a copy, because the workspace may have moved since this node was planned
    job.units = s.units.data();
    job.work  = s.work.data();
    job.views = s.views.data();
    job.parts = base + s.parts;
    job.kept  = base + s.kept;
    const int32_t n_units = (int32_t) s.units.size();
    for (int32_t u; (u = s.next.fetch_add(1, std::memory_order_relaxed)) < n_units;) {
        const cpu_unit & unit = s.units[u];
        if (s.decode) {
            kernels.decode(job, unit, u, scratch);
            if (s.count[unit.head].fetch_sub(1, std::memory_order_acq_rel) == 1) {
                job.node.heads[unit.head].saved.save();
                kernels.decode_merge(job, unit.head, scratch);
            }
            continue;
        }
        kernels.prefill(job, unit, scratch);
        if (job.keep && (job.node.stat || job.node.heads[unit.head].track)) {
            // units are taken in their order, so the one that is waited for is running and waits for none that is not
            while (s.count[unit.ticket].load(std::memory_order_acquire) != unit.turn) {
                std::this_thread::yield();
            }
            kernels.prefill_accumulate(job, unit, scratch);
            s.count[unit.ticket].store(unit.turn + 1, std::memory_order_release);
        }
    }
}

} // namespace kvasir
