// Bandwidth of the decode kernels against that of the device: cuda_decode_bench CUBIN [REPEATS [short]]
// For tuning, the environment: DECODE_TURNED (1: queries and rows come turned), DECODE_WARPS, DECODE_STAGES, DECODE_MIN_BLOCKS, DECODE_HEAD_BLOCKS.
// 32 layers one after another in a CUDA graph, pages in random order, one row appended to each head, it and the queries turned (ROPE) by the kernel; medians.
#include "decode.h"
#include "../test/cuda/device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

using namespace kvasir::cuda;

namespace {

constexpr int32_t n_layer = 32;

__global__ void fill(uint32_t * x, size_t n) { // halves of [-1, 1)
    for (size_t i = blockIdx.x * (size_t) blockDim.x + threadIdx.x; i < n; i += (size_t) gridDim.x * blockDim.x) {
        uint32_t z = (uint32_t) i * 0x9e3779b9u;
        z = (z ^ (z >> 16)) * 0x85ebca6bu;
        z = (z ^ (z >> 13)) * 0xc2b2ae35u;
        x[i] = (z & 0x83ff83ffu) | 0x34003400u;
    }
}

__global__ void read(const uint4 * x, size_t n, uint32_t * out) {
    const size_t stride = (size_t) gridDim.x * blockDim.x;
    uint32_t all = 0;
    for (size_t i = blockIdx.x * (size_t) blockDim.x + threadIdx.x; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int u = 0; u < 8; u++) {
            v[u] = __ldcs(x + i + u * stride);
        }
#pragma unroll
        for (int u = 0; u < 8; u++) {
            all ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
        }
    }
    if (all == 0x12345678u) {
        *out = all;
    }
}

template <class F> double median_seconds(int repeats, F f) {
    cudaEvent_t begin, end;
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    std::vector<double> times;
    for (int i = 0; i < repeats + 1; i++) {
        CUDA(cudaEventRecord(begin));
        f();
        CUDA(cudaEventRecord(end));
        CUDA(cudaEventSynchronize(end));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i) {
            times.push_back((double) ms * 1e-3);
        }
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

struct shape_case {
    const char * name;
    int32_t type, dim, n_head_kv, group, slots;
    double  kept; // of the slots, different for each head
};

} // namespace

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: cuda_decode_bench CUBIN [REPEATS [short]]\n");
        return 2;
    }
    const int repeats = argc > 2 ? atoi(argv[2]) : 15;
    const bool short_list = argc > 3;
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    kernel_library library(argv[1]);
    std::mt19937 rng(1);

    constexpr size_t pool_bytes = (size_t) 18 << 30, copy_bytes = (size_t) 8 << 30;
    char * pool;
    CUDA(cudaMalloc((void **) &pool, pool_bytes));
    fill<<<device.multiProcessorCount * 8, 256>>>((uint32_t *) pool, pool_bytes / 4);
    device_array<uint32_t> sink(1);
    const double copied = 2.0 * (double) copy_bytes / median_seconds(repeats, [&] { CUDA(cudaMemcpyAsync(pool, pool + copy_bytes, copy_bytes, cudaMemcpyDeviceToDevice)); });
    const double bandwidth = (double) copy_bytes / median_seconds(repeats, [&] { read<<<device.multiProcessorCount * 4, 512>>>((const uint4 *) pool, copy_bytes / 16, sink.data()); });
    printf("%s: copy %.3f TB/s (read + written), plain read %.3f TB/s\n", device.name, copied * 1e-12, bandwidth * 1e-12);
    printf("%-8s %-5s d   heads  group  slots  kept | us/layer  TB/s  of read | MB/layer | plan of %d layers, us\n", "model", "type", n_layer);

    std::vector<shape_case> cases = {
        {"7B", F16, 128, 32, 1, 32768, 1}, {"8B", F16, 128, 8, 4, 32768, 1}, {"8B", F16, 128, 8, 4, 16384, 1},
        {"8B", F16, 128, 8, 4, 32768, 0.5}, {"8B", F16, 128, 8, 4, 16384, 0.25}, {"8B", F16, 128, 8, 4, 16, 1},
        {"8B", F16, 128, 8, 4, 200, 1}, {"8B", F16, 128, 8, 4, 300, 1}, {"8B", F16, 128, 8, 4, 500, 1}, {"8B", F16, 128, 8, 4, 1000, 1}, {"8B", F16, 128, 8, 4, 3000, 1},
    };
    if (!short_list) {
        for (const shape_case & c : std::vector<shape_case>{
            {"7B", F16, 128, 32, 1, 32768, 0.5}, {"7B", F16, 128, 32, 1, 32768, 0.25}, {"7B", F16, 128, 32, 1, 16384, 1},
            {"8B", F16, 128, 8, 4, 16384, 0.5}, {"8B", F16, 128, 8, 4, 4096, 1}, {"7B", F16, 128, 32, 1, 4096, 1}, {"7B", F16, 128, 32, 1, 16, 1},
            {"8B", Q8_0, 128, 8, 4, 32768, 1}, {"7B", Q8_0, 128, 32, 1, 32768, 1}, {"d64", F16, 64, 8, 4, 32768, 1}, {"d80", F16, 80, 32, 1, 16384, 1},
            {"d96", F16, 96, 32, 1, 16384, 1}, {"d256", F16, 256, 4, 2, 16384, 1}, {"d256", Q8_0, 256, 4, 2, 16384, 1}, {"16 rows", F16, 128, 8, 16, 32768, 1}, {"32 rows", F16, 128, 8, 32, 32768, 1}}) {
            cases.push_back(c);
        }
    }
    for (const shape_case & c : cases) {
        const page_format format = make_page_format(c.type, c.type, c.dim, c.dim);
        decode_shape shape = make_decode_shape(format, c.group, 1, device.multiProcessorCount, (uint32_t) device.sharedMemPerBlockOptin);
        const auto tuned = [](const char * what, int32_t or_else) { return getenv(what) ? atoi(getenv(what)) : or_else; };
        const int32_t warps = tuned("DECODE_WARPS", (int32_t) shape.block / 32), tiles = shape.columns / 8;
        shape.stages = tuned("DECODE_STAGES", shape.stages);
        shape.block = (uint32_t) warps * 32;
        shape.ring = (int32_t) decode_fixed_bytes(c.dim, tiles, warps, shape.stages);
        shape.shared = (uint32_t) shape.ring + (uint32_t) (warps * shape.stages) * decode_stage_bytes(c.type, c.type, c.dim);
        shape.min_blocks = tuned("DECODE_MIN_BLOCKS", warps);
        shape.head_blocks = tuned("DECODE_HEAD_BLOCKS", shape.head_blocks);
        if (shape.shared > device.sharedMemPerBlockOptin) {
            printf("%s: needs %u bytes of shared memory\n", c.name, shape.shared);
            continue;
        }
        const int32_t heads = c.n_head_kv, n_head = heads * c.group;
        std::vector<int32_t> free_pages((size_t) (pool_bytes / format.bytes));
        std::iota(free_pages.begin(), free_pages.end(), 0);
        std::shuffle(free_pages.begin(), free_pages.end(), rng);
        const int32_t stride = c.slots / PAGE_SLOTS + 1;
        device_array<float> q(std::vector<float>((size_t) (n_head * c.dim), 0.1f)), rows(std::vector<float>((size_t) (heads * c.dim), 0.1f)), out((size_t) (n_head * c.dim));
        device_array<char> exchange(decode_exchange_bytes(shape, c.dim));
        device_array<uint32_t> epoch(2);
        device_array<token_label> token(1);
        device_array<int32_t> pos(std::vector<int32_t>(1, c.slots));
        device_array<float> turns((size_t) c.dim);
        std::vector<device_array<int32_t>> tables, counts, slots;
        std::vector<device_array<decode_segment>> segments;
        std::vector<decode_layer> layers;
        std::vector<decode_params> params;
        double bytes = 0;
        for (int32_t l = 0; l < n_layer; l++) {
            std::vector<int32_t> n((size_t) heads, c.slots), table((size_t) (heads * stride));
            if (c.kept < 1) {
                double sum = 0;
                std::vector<double> share((size_t) heads);
                for (double & x : share) {
                    sum += x = 0.2 + 1.6 * (double) rng() / 4294967296.0;
                }
                for (int32_t h = 0; h < heads; h++) {
                    n[(size_t) h] = (int32_t) std::min((double) c.slots, share[(size_t) h] / sum * heads * c.kept * c.slots);
                }
            }
            std::vector<int32_t> slot;
            for (int32_t h = 0; h < heads; h++) {
                bytes += (double) n[(size_t) h] * 2 * c.dim * (c.type == Q8_0 ? 34.0 / 32 : 2.0);
                slot.push_back(n[(size_t) h] - 1);
                for (int32_t i = 0; i * PAGE_SLOTS < n[(size_t) h]; i++) {
                    if (free_pages.empty()) {
                        fprintf(stderr, "the pool is too small\n");
                        return 2;
                    }
                    table[(size_t) (h * stride + i)] = free_pages.back();
                    free_pages.pop_back();
                }
            }
            tables.emplace_back(table);
            counts.emplace_back(n);
            slots.emplace_back(slot);
            segments.emplace_back(decode_segments(shape, heads));
            decode_layer layer{};
            layer.pages = {format, pool, tables.back().data(), counts.back().data(), stride, heads};
            layer.n_stream = 1;
            layer.n_pass = shape.n_pass;
            layer.columns = shape.columns;
            layer.n_column = layer.group = c.group;
            layer.slot = slots.back().data();
            layer.token = token.data();
            layer.n_append = 1;
            layer.segments = segments.back().data();
            if (l == 0) {
                layer.rotary = {turns.data(), pos.data(), nullptr, 1, c.dim, c.dim, 0, std::pow(10000.0f, -2.0f / (float) c.dim), 1, 0, 1, 0, 0};
            }
            layers.push_back(layer);
            decode_params p{};
            p.a.pages = layer.pages;
            p.a.q = (const char *) q.data();
            p.a.q_head_bytes = p.out_head_bytes = p.k_head_bytes = p.v_head_bytes = c.dim * 4;
            p.a.n_stream = p.a.n_tokens = 1;
            p.a.n_head = n_head;
            p.a.scale = 1.0f / std::sqrt((float) c.dim);
            p.out = out.data();
            p.k = p.v = (const char *) rows.data();
            p.slot = slots.back().data();
            p.token = token.data();
            p.n_append = 1;
            p.turn_q = p.turn_k = getenv("DECODE_TURNED") ? nullptr : turns.data();
            p.group = c.group;
            p.by_group = reciprocal(p.group);
            p.stages = shape.stages;
            p.ring = shape.ring;
            p.segments = segments.back().data();
            p.exchange = exchange.data();
            params.push_back(p);
        }
        device_array<decode_layer> d_layers(layers);
        const plan_params plan{d_layers.data(), epoch.data(), exchange.data(), exchange.size(), (int32_t) shape.grid, shape.min_blocks, shape.head_blocks};
        cudaStream_t stream;
        CUDA(cudaStreamCreate(&stream));
        const auto captured = [&](auto f) {
            cudaGraph_t graph;
            cudaGraphExec_t exec;
            CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
            f();
            CUDA(cudaStreamEndCapture(stream, &graph));
            CUDA(cudaGraphInstantiate(&exec, graph, 0));
            return exec;
        };
        const auto run_plan = [&] { library.launch("plan", dim3(n_layer, PLAN_CTAS), PLAN_THREADS, plan_shared((int32_t) shape.grid, heads * shape.n_pass), plan, stream); };
        const auto run_layers = [&](bool cooperative) {
            for (const decode_params & p : params) {
                library.launch(shape.kernel, dim3(shape.grid), shape.block, shape.shared, p, stream, cooperative);
            }
        };
        // times of plan + layers, less plan alone in a chain of 8
        cudaGraphExec_t plans = captured([&] { for (int i = 0; i < 8; i++) { run_plan(); } });
        cudaGraphExec_t whole = captured([&] { run_plan(); run_layers(false); });
        const double plan_seconds = median_seconds(repeats, [&] { CUDA(cudaGraphLaunch(plans, nullptr)); }) / 8;
        const double seconds = (median_seconds(repeats, [&] { CUDA(cudaGraphLaunch(whole, nullptr)); }) - plan_seconds) / n_layer;
        double cooperative_seconds = 0;
        if (short_list) {
            cudaGraphExec_t cooperative = captured([&] { run_plan(); run_layers(true); });
            cooperative_seconds = (median_seconds(repeats, [&] { CUDA(cudaGraphLaunch(cooperative, nullptr)); }) - plan_seconds) / n_layer;
        }
        bytes /= n_layer;
        printf("%-8s %-5s %-3d %5d  %5d  %5d  %4.2f | %8.2f %5.2f  %6.1f%% | %8.1f | %.1f", c.name, c.type == Q8_0 ? "q8_0" : "f16", c.dim, heads, c.group, c.slots, c.kept,
               seconds * 1e6, bytes / seconds * 1e-12, bytes / seconds / bandwidth * 100, bytes * 1e-6, plan_seconds * 1e6);
        if (short_list) {
            printf(" | cooperative %.2f us", cooperative_seconds * 1e6);
        }
        printf("\n");
        fflush(stdout);
        CUDA(cudaStreamDestroy(stream));
    }
    return 0;
}
