#include "moved_sums.h"

#include "../alibi.h"
#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

namespace kvasir {

namespace {

constexpr std::align_val_t scratch_alignment{ 64 };
constexpr size_t kept_bytes   = 2048 * 1024; // exponentials kept by a unit; twice as many before a tile has less than 32 queries
constexpr size_t enough_units = 16;          // for the threads to end at about the same time

struct aligned_delete {
    void operator()(float * p) const { ::operator delete(p, scratch_alignment); }
};
typedef std::unique_ptr<float[], aligned_delete> scratch_memory;

// each thread's piece begins at a cache line
scratch_memory scratch_of(size_t floats) {
    return scratch_memory(static_cast<float *>(::operator new(floats * sizeof(float), scratch_alignment)));
}

// f(thread) on so many threads, or on as many as the system has
template <typename F> void on_threads(int n, F && f) {
    std::vector<std::thread> threads;
    threads.reserve((size_t) n);
    try {
        for (int i = 1; i < n; i++) {
            threads.emplace_back([&f, i] { f(i); });
        }
    } catch (const std::system_error &) { // the work is shared by those there are
    }
    f(0);
    for (std::thread & t : threads) {
        t.join();
    }
}

// How the work is cut depends on the work alone, as the order of additions follows from it.
void plan(const moved_sums_node & node, moved_job & job, std::vector<moved_unit> & units) {
    int32_t most = 0, longest = 0;
    for (int32_t i = 0; i < node.n_head_kv; i++) {
        most = std::max(most, node.heads[i].n);
    }
    for (const moved_block & b : node.blocks) {
        longest = std::max(longest, b.n);
    }
    job.n_slots = round_up(most, slot_block);
    const size_t query_bytes = (size_t) job.n_slots * sizeof(float);
    job.tile = std::clamp(round_up(longest, 16), 16, query_tile);
    while (job.tile > 16 && (size_t) job.tile * query_bytes > (job.tile > 32 ? kept_bytes : 2 * kept_bytes)) {
        job.tile = round_up(job.tile / 2, 16);
    }
    const auto tiles = [&] {
        size_t n = 0;
        for (const moved_block & b : node.blocks) {
            n += (size_t) ((b.n + job.tile - 1) / job.tile);
        }
        return n * (size_t) node.n_head_kv;
    };
    const auto fitting = (int32_t) std::clamp<size_t>(kept_bytes / std::max<size_t>((size_t) job.tile * query_bytes, 1), 1, (size_t) job.group);
    int32_t parts = (job.group + fitting - 1) / fitting;
    // too few units: first give up sharing converted keys between query heads, then shorten the tiles
    while (tiles() * (size_t) parts < enough_units && parts < job.group) {
        parts = std::min(2 * parts, job.group);
    }
    while (tiles() * (size_t) parts < enough_units && job.tile > 16) {
        job.tile = round_up(job.tile / 2, 16);
    }
    job.n_group = (job.group + parts - 1) / parts;
    parts = (job.group + job.n_group - 1) / job.n_group;

    int32_t turn = 0;
    for (size_t b = 0; b < node.blocks.size(); b++) {
        const moved_block & block = node.blocks[b];
        for (int32_t t = 0; t < block.n; t += job.tile, turn++) {
            for (int32_t part = 0; part < parts; part++) {
                const int32_t g = part * job.n_group;
                for (int32_t head = 0; head < node.n_head_kv; head++) {
                    units.push_back({ head, g, std::min(job.n_group, job.group - g), (int32_t) b, block.begin, block.first + t, std::min(job.tile, block.n - t),
                                      block.outputs, head * parts + part, turn });
                }
            }
        }
    }
}

} // namespace

void moved_sums(const moved_sums_node & node, int n_threads) {
    const rotation & r = *node.turned;
    moved_job job{};
    job.k        = node.k;
    job.v        = node.v;
    job.heads    = node.heads;
    job.n_head   = node.n_head;
    job.group    = node.n_head / node.n_head_kv;
    job.dkp      = round_up(node.k.dim, 16);
    job.dvp      = round_up(node.v.dim, 16);
    job.queries  = node.queries;
    job.pos      = node.pos;
    job.end      = node.end;
    job.window   = node.window;
    job.scale    = node.scale;
    job.softcap  = node.softcap;
    job.pairs    = (int32_t) r.omega.size();
    job.offset   = r.offset;
    job.halves   = r.halves;
    job.hadamard = r.hadamard;
    job.sinks    = node.sinks;
    job.p        = node.p;
    job.squares  = node.squares;
    job.capacity = node.capacity;
    job.output   = node.output;
    job.length2  = node.length2;

    std::vector<moved_unit> units;
    plan(node, job, units);
    std::vector<float> turns, slopes;
    turns.reserve(node.blocks.size() * 2 * r.omega.size());
    for (const moved_block & b : node.blocks) {
        const turn t = turn_by(r, node.end - b.begin);
        turns.insert(turns.end(), t.cosine.begin(), t.cosine.end());
        turns.insert(turns.end(), t.sine.begin(), t.sine.end());
    }
    job.turns = turns.data();
    if (node.max_bias > 0) {
        for (int32_t h = 0; h < node.n_head; h++) {
            slopes.push_back(alibi_slope(node.max_bias, h, node.n_head));
        }
        job.slopes = slopes.data();
    }

    const int n = (int) std::min<size_t>((size_t) std::max(n_threads, 1), std::max<size_t>(units.size(), 1));
    const size_t floats = moved_scratch_of(job.tile, job.n_group, job.dkp, job.dvp, job.n_slots).total;
    const scratch_memory scratch = scratch_of(floats * (size_t) n);
    // whose turn it is to add to the sums of a ticket
    std::vector<std::atomic<int32_t>> turn_of((size_t) node.n_head);
    std::atomic<size_t> next{ 0 };
    const cpu_kernels & kernels = cpu_kernels_active();
    on_threads(n, [&](int thread) noexcept {
        float * mine = scratch.get() + floats * (size_t) thread;
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < units.size();) {
            const moved_unit & unit = units[i];
            kernels.moved(job, unit, mine);
            // units are taken in their order, so the one that is waited for is running and waits for none that is not
            std::atomic<int32_t> & turn = turn_of[(size_t) unit.ticket];
            while (turn.load(std::memory_order_acquire) != unit.turn) {
                std::this_thread::yield();
            }
            kernels.moved_add(job, unit, mine);
            turn.store(unit.turn + 1, std::memory_order_release);
        }
    });
}

void moved_losses(const moved_losses_node & node, int n_threads) {
    constexpr int32_t piece = 16 * slot_block; // slots of a unit
    struct unit {
        int32_t head, begin, end;
    };
    std::vector<unit> units;
    for (int32_t head = 0; head < node.n_head_kv; head++) {
        for (int32_t begin = 0; begin < node.heads[head].n; begin += piece) {
            units.push_back({ head, begin, std::min(begin + piece, node.heads[head].n) });
        }
    }
    const int n = (int) std::min<size_t>((size_t) std::max(n_threads, 1), std::max<size_t>(units.size(), 1));
    const size_t floats = moved_losses_scratch(node.v.dim, node.group);
    const scratch_memory scratch = scratch_of(floats * (size_t) n);
    std::atomic<size_t> next{ 0 };
    const cpu_kernels & kernels = cpu_kernels_active();
    on_threads(n, [&](int thread) noexcept {
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < units.size();) {
            const unit & u = units[i];
            const size_t first_head = (size_t) u.head * (size_t) node.group;
            kernels.moved_losses(node.v, node.heads[u.head], u.begin, u.end, node.group, node.squares[u.head], node.capacity[u.head],
                                 node.output + first_head * (size_t) node.v.dim, node.weights + first_head, node.heads[u.head].score,
                                 scratch.get() + floats * (size_t) thread);
        }
    });
}

} // namespace kvasir
