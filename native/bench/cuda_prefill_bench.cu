// Attention of 512 queries over the paged store, and the statistic beside it: median of 9 runs of 32 layers back to back.
//
// cuda_prefill_bench [text a kernel's shape must contain]
#include "../src/attention/cuda/prefill.cu"
#include "../src/attention/cuda/statistic.cu"

#include "../test/cuda/paged_store.h"

#include <functional>

using namespace kvasir::cuda;

// without a host copy: all pages may hold random numbers of the right size
extern "C" __global__ void fill(__half * x, size_t n, float amplitude) {
    for (size_t i = blockIdx.x * (size_t) blockDim.x + threadIdx.x; i < n; i += (size_t) gridDim.x * blockDim.x) {
        uint32_t z = (uint32_t) i * 2654435761u;
        z ^= z >> 15;
        z *= 2246822519u;
        z ^= z >> 13;
        x[i] = __float2half_rn(((float) z * (1.0f / 2147483648.0f) - 1.0f) * amplitude);
    }
}
extern "C" __global__ void label(layer_pages l) {
    const int32_t head = blockIdx.x / l.table_stride, page = blockIdx.x % l.table_stride, slot = page * PAGE_SLOTS + (int32_t) threadIdx.x;
    char * p = l.pool + (size_t) l.table[(size_t) head * l.table_stride + page] * l.format.bytes;
    ((int32_t *) (p + l.format.cell))[threadIdx.x] = slot;
    ((int32_t *) (p + l.format.pos))[threadIdx.x]  = slot;
    ((float *) (p + l.format.score))[threadIdx.x]  = 0;
}

namespace {

float median_us(const std::function<void()> & work) {
    cudaEvent_t e0, e1;
    CHECK(cudaEventCreate(&e0));
    CHECK(cudaEventCreate(&e1));
    std::vector<float> all;
    constexpr int layers = 32;
    for (int i = 0; i < 11; i++) {
        CHECK(cudaEventRecord(e0));
        for (int l = 0; l < layers; l++) {
            work();
        }
        CHECK(cudaEventRecord(e1));
        CHECK(cudaEventSynchronize(e1));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, e0, e1));
        if (i >= 2) {
            all.push_back(ms * 1000 / layers);
        }
    }
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
}

void bench(const char * name, int32_t dim, int32_t type, int32_t n_head_kv, int32_t group, int32_t tokens, int32_t slots, device_limits limits, bool causal) {
    std::mt19937 random(1);
    const page_format f = make_page_format(type, type, dim, dim);
    const int32_t stride = (slots + PAGE_SLOTS - 1) / PAGE_SLOTS, n_head = n_head_kv * group;
    std::vector<int32_t> table((size_t) n_head_kv * (size_t) stride);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random);
    device_array<char> pool(table.size() * f.bytes);
    device_array<int32_t> d_table(table), n(std::vector<int32_t>((size_t) n_head_kv, slots));
    device_array<float> q((size_t) tokens * n_head * dim), out(q.n), lse((size_t) tokens * n_head);
    std::vector<int32_t> pos((size_t) tokens);
    std::iota(pos.begin(), pos.end(), slots - tokens);
    device_array<int32_t> d_pos(pos);
    fill<<<1024, 256>>>((__half *) pool.data, pool.n / 2, 1.0f);
    prefill_params p{};
    attention_params & a = p.a;
    a.pages = {f, pool.data, d_table.data, n.data, stride, n_head_kv};
    label<<<(uint32_t) table.size(), PAGE_SLOTS>>>(a.pages);
    std::vector<float> host_q(q.n);
    std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);
    for (float & x : host_q) {
        x = uniform(random);
    }
    q.set(host_q);
    a.q = (const char *) q.data;
    a.q_token_bytes = (int64_t) n_head * dim * 4, a.q_head_bytes = dim * 4, a.q_stream_bytes = (int64_t) tokens * n_head * dim * 4;
    a.query_pos = d_pos.data;
    a.n_stream = 1, a.n_head = n_head, a.n_tokens = tokens, a.causal = causal;
    a.scale = 1.0f / std::sqrt((float) dim);
    p.out = out.data, p.out_head_bytes = dim * 4, p.out_token_bytes = (int64_t) n_head * dim * 4, p.out_stream_bytes = (int64_t) tokens * n_head * dim * 4;
    device_array<char> partial(prefill_workspace_bytes(a, limits)), workspace(statistic_workspace_bytes(a));
    device_array<int32_t> arrived((size_t) prefill_tiles(a));
    p.partial = (float *) partial.data, p.arrived = arrived.data, p.lse = lse.data, p.stages = prefill_stages(a, limits);

    std::vector<int32_t> bounds = {16, 32, 64};
    for (int32_t i = 1; i <= 6; i++) {
        bounds.push_back(64 + i * (slots - 64) / 8);
    }
    device_array<int32_t> d_bounds(bounds);
    device_array<float> buckets((size_t) n_head_kv * (bounds.size() + 1) * stride * PAGE_SLOTS), recent((size_t) n_head_kv * stride * PAGE_SLOTS);
    statistic_params st{};
    st.a = a, st.lse = lse.data, st.workspace = workspace.data, st.buckets = buckets.data, st.recent = recent.data;
    st.bounds = d_bounds.data, st.n_bounds = (int32_t) bounds.size(), st.rows = 1, st.recent_from = slots - 32, st.capacity = (int64_t) stride * PAGE_SLOTS;

    const double pairs = causal ? (double) tokens * (slots - tokens) + 0.5 * (double) tokens * (tokens + 1) : (double) tokens * slots;
    const double flop = 4.0 * pairs * dim * n_head;
    const float us = median_us([&] { start(prefill_launch(a, limits), p); });
    const float queries_us = median_us([&] { start(statistic_queries_launch(a), st); });
    const float statistic_us = median_us([&] {
        start(statistic_queries_launch(a), st);
        start(statistic_launch(a, limits.n_sm), st);
    });
    CHECK(cudaDeviceSynchronize());
    printf("%-34s %4d queries %6d slots %-6s: %8.1f us %6.1f TFLOP/s; statistic %8.1f us (queries %4.1f) = %5.1f%% (%6.1f TFLOP/s)\n", name, tokens, slots, causal ? "causal" : "all",
           (double) us, flop / (double) us * 1e-6, (double) statistic_us, (double) queries_us, 100.0 * (double) statistic_us / (double) us, flop / 2 / (double) statistic_us * 1e-6);
}

} // namespace

int main(int argc, char ** argv) {
#define KERNEL(name) kernels()[#name] = (const void *) name;
    KERNEL(prefill_64_128) KERNEL(prefill_128_128) KERNEL(prefill_64_64) KERNEL(prefill_128_64) KERNEL(prefill_256_64)
    KERNEL(statistic_64) KERNEL(statistic_128) KERNEL(statistic_256) KERNEL(statistic_queries)
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    const struct { const char * name; int32_t dim, type, n_head_kv, group, tokens, slots; bool causal; } all[] = {
        {"7B f16 d128 32 heads G1", 128, F16, 32, 1, 512, 4096, true},   {"7B f16 d128 32 heads G1", 128, F16, 32, 1, 512, 4096, false},
        {"7B f16 d128 32 heads G1", 128, F16, 32, 1, 512, 32768, true},  {"8B f16 d128 8 heads G4", 128, F16, 8, 4, 512, 4096, true},
        {"8B f16 d128 8 heads G4", 128, F16, 8, 4, 512, 32768, true},    {"7B f16 d128 32 heads G1", 128, F16, 32, 1, 512, 512, true},
        {"8B f16 d128 8 heads G4", 128, F16, 8, 4, 16, 32768, true},     {"8B f16 d128 8 heads G4", 128, F16, 8, 4, 1, 32768, true},
        {"8B q8_0 d128 8 heads G4", 128, Q8_0, 8, 4, 512, 4096, true},   {"f16 d64 32 heads G1", 64, F16, 32, 1, 512, 4096, true},
        {"f16 d256 16 heads G1", 256, F16, 16, 1, 512, 4096, true},
    };
    for (const auto & b : all) {
        if (argc < 2 || strstr(b.name, argv[1])) {
            bench(b.name, b.dim, b.type, b.n_head_kv, b.group, b.tokens, b.slots, {device.multiProcessorCount, (uint32_t) device.sharedMemPerMultiprocessor}, b.causal);
        }
    }
    return 0;
}
