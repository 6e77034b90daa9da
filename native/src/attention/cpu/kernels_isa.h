// The attention kernels. Compiled once per instruction set by kernels_<name>.cpp, which defines KVASIR_KERNELS.
//
// Decode: a block of 64 slots at a time, the scores of all query rows that share it, online softmax, then the weighted
// sum of V. With tiled K a vector holds one element of neighbouring slots, the query's element is a broadcast operand, and
// no sum across a vector is needed. While a block's K (V) is used the next block's is prefetched, so that memory never
// rests: hardware prefetchers stop at every 4 KiB page.
//
// Prefill: S^T = K Q^T, so that the lanes of a vector are queries and softmax, too, needs nothing across a vector.
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

namespace kvasir {
namespace {

#include "vec.h"

constexpr float no_score   = -1e30f; // the running maximum before the first score: finite, so that -inf - no_score is -inf
constexpr float rescale_at = 8.0f;   // the running maximum may lag by this much: weights stay below 2^8 and rescaling is rare
constexpr float negligible = -40.0f; // a block of weights below 2^-40 of the maximum is skipped: 64 * 2^-40 < 2^-24 / 2^10

constexpr int visible = 1, hidden = 2, mixed = 3; // 0: unknown

inline int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
inline int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }

inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 x;
    __builtin_memcpy(&x, &h, 2);
    return x;
#else
    uint16_t x[VL] = { h };
    return load_f16(x)[0];
#endif
}

struct row_f16  { typedef uint16_t element; static inline vf load(const element * p) { return load_f16(p); } };
struct row_bf16 { typedef uint16_t element; static inline vf load(const element * p) { return load_bf16(p); } };
struct row_f32  { typedef float    element; static inline vf load(const element * p) { return vload(p); } };

// ---- rows to floats ----

template <class L> inline void halves_to_f32(const uint16_t * src, int32_t n, float * dst) {
    int32_t d = 0;
    for (; d + VL <= n; d += VL) {
        vstore(dst + d, L::load(src + d));
    }
    if (d < n) {
        uint16_t x[VL] = {};
        float y[VL];
        __builtin_memcpy(x, src + d, (size_t) (n - d) * 2);
        vstore(y, L::load(x));
        __builtin_memcpy(dst + d, y, (size_t) (n - d) * 4);
    }
}

// blocks of 32 elements: ggml-common.h, block_q8_0 to block_q5_1, and dequantize_row_* of ggml-quants.c
template <int BITS, bool MIN> inline void nibbles_to_f32(const char * src, int32_t dim, float * dst) {
    constexpr size_t head = (MIN ? 4 : 2) + (BITS == 5 ? 4 : 0);
    vi lane{};
    for (int i = 0; i < VL; i++) {
        lane[i] = i;
    }
    for (int32_t b = 0; b < dim; b += 32, src += head + 16) {
        uint16_t h[2];
        uint32_t high = 0;
        __builtin_memcpy(h, src, MIN ? 4 : 2);
        if (BITS == 5) {
            __builtin_memcpy(&high, src + (MIN ? 4 : 2), 4);
        }
        const float d = half_to_float(h[0]);
        const float m = MIN ? half_to_float(h[1]) : 0.0f;
        for (int i = 0; i < 16; i += VL) {
            const vi q = load_i8(src + head + i);
            vi lo = q & 15, hi = (q >> 4) & 15;
            if (BITS == 5) {
                const vu bit = (vu) (lane + i);
                lo |= (vi) ((((vu{} + high) >> bit) & 1u) << 4);
                hi |= (vi) ((((vu{} + high) >> (bit + 16u)) & 1u) << 4);
            }
            if (!MIN) {
                lo -= BITS == 5 ? 16 : 8;
                hi -= BITS == 5 ? 16 : 8;
            }
            vstore(dst + b + i,      __builtin_convertvector(lo, vf) * d + m);
            vstore(dst + b + i + 16, __builtin_convertvector(hi, vf) * d + m);
        }
    }
}

inline void q8_0_to_f32(const char * src, int32_t dim, float * dst) {
    for (int32_t b = 0; b < dim; b += 32, src += 34) {
        uint16_t h;
        __builtin_memcpy(&h, src, 2);
        const float d = half_to_float(h);
        for (int i = 0; i < 32; i += VL) {
            vstore(dst + b + i, __builtin_convertvector(load_i8(src + 2 + i), vf) * d);
        }
    }
}

void rows_to_f32(ggml_type type, const char * src, size_t row_bytes, int32_t n, int32_t dim, float * dst, int32_t ld) {
    for (int32_t i = 0; i < n; i++, src += row_bytes, dst += ld) {
        switch (type) {
            case GGML_TYPE_F16:  halves_to_f32<row_f16>((const uint16_t *) src, dim, dst); break;
            case GGML_TYPE_BF16: halves_to_f32<row_bf16>((const uint16_t *) src, dim, dst); break;
            case GGML_TYPE_Q8_0: q8_0_to_f32(src, dim, dst); break;
            case GGML_TYPE_Q4_0: nibbles_to_f32<4, false>(src, dim, dst); break;
            case GGML_TYPE_Q4_1: nibbles_to_f32<4, true>(src, dim, dst); break;
            case GGML_TYPE_Q5_0: nibbles_to_f32<5, false>(src, dim, dst); break;
            case GGML_TYPE_Q5_1: nibbles_to_f32<5, true>(src, dim, dst); break;
            default: break;
        }
    }
}

// rows of a block, padded with zeros to ld
inline void block_to_f32(const row_format & f, const char * src, int32_t n, float * dst, int32_t ld) {
    rows_to_f32(f.type, src, f.row_bytes, n, f.dim, dst, ld);
    if (ld > f.dim) {
        for (int32_t i = 0; i < n; i++) {
            __builtin_memset(dst + (size_t) i * ld + f.dim, 0, (size_t) (ld - f.dim) * 4);
        }
    }
}

void f32_to_f16(const float * x, uint16_t * y, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        store_f16(y + i, vload(x + i));
    }
    if (i < n) {
        float a[VL] = {};
        uint16_t b[VL];
        __builtin_memcpy(a, x + i, (size_t) (n - i) * 4);
        store_f16(b, vload(a));
        __builtin_memcpy(y + i, b, (size_t) (n - i) * 2);
    }
}

// to nearest even, NaN made quiet (ggml_compute_fp32_to_bf16)
void f32_to_bf16(const float * x, uint16_t * y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        __builtin_memcpy(&u, x + i, 4);
        y[i] = (uint16_t) ((u & 0x7fffffff) > 0x7f800000 ? (u >> 16 | 64) : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
}

// ---- what both kernels need of a node ----

// ggml_compute_forward_flash_attn_ext: ALiBi
inline float mask_slope(const attention_node & n, int32_t query_head) {
    if (n.max_bias <= 0.0f) {
        return 1.0f;
    }
    int32_t pow2 = 1;
    while (2 * pow2 <= n.n_head) {
        pow2 *= 2;
    }
    const float m0 = __builtin_powf(2.0f, -n.max_bias / (float) pow2), m1 = __builtin_powf(2.0f, -(n.max_bias / 2.0f) / (float) pow2);
    return query_head < pow2 ? __builtin_powf(m0, (float) (query_head + 1)) : __builtin_powf(m1, (float) (2 * (query_head - pow2) + 1));
}

inline const uint16_t * mask_row(const attention_node & n, int32_t stream, int32_t query_head, int32_t token) {
    return (const uint16_t *) (n.mask + (size_t) token * n.mask_nb[1] + (size_t) (query_head % n.mask_n_head) * n.mask_nb[2] +
                               (size_t) (stream % n.mask_n_stream) * n.mask_nb[3]);
}

inline const float * query_row(const attention_node & n, int32_t stream, int32_t query_head, int32_t token) {
    return (const float *) (n.q + (size_t) token * n.q_nb[1] + (size_t) query_head * n.q_nb[2] + (size_t) stream * n.q_nb[3]);
}

inline float * output_row(const attention_node & n, int32_t stream, int32_t query_head, int32_t token) {
    return (float *) (n.out + (size_t) query_head * n.out_nb[1] + (size_t) token * n.out_nb[2] + (size_t) stream * n.out_nb[3]);
}

inline float query_scale(const attention_node & n) { return n.softcap != 0.0f ? n.scale / n.softcap : n.scale * log2_e; }

inline bool cells_contiguous(const head_store & h, int32_t slot, int32_t n) {
    return h.ascending && h.cell[slot + n - 1] - h.cell[slot] == n - 1;
}

inline void apply_softcap(float * s, int32_t n, float softcap) {
    const float f = softcap * log2_e;
    for (int32_t i = 0; i < n; i += VL) {
        vstore(s + i, vtanh(vload(s + i)) * f);
    }
}

// adds the sink's share to the sum; returns what the accumulator has to be multiplied with (ggml: sinks)
inline float apply_sink(const attention_node & n, int32_t query_head, float & max, float & sum) {
    if (!n.sinks) {
        return 1.0f;
    }
    const float s = n.sinks[query_head] * log2_e, m = s > max ? s : max, f = exp2_scalar(max - m);
    sum = sum * f + exp2_scalar(s - m);
    max = m;
    return f;
}

inline void write_row(float * out, const float * acc, float factor, int32_t dv) {
    for (int32_t d = 0; d < dv; d++) {
        out[d] = acc[d] * factor;
    }
}

// ---- the statistic ----

inline int32_t bucket_of(const statistic & st, int32_t distance) {
    int32_t b = 0;
    while (b < st.n_bounds && st.bounds[b] <= distance) {
        b++;
    }
    return b;
}

inline float * bucket_row(const statistic & st, const head_store & h, int32_t row, int32_t bucket) {
    return h.buckets + ((size_t) row * (size_t) (st.n_bounds + 1) + (size_t) bucket) * st.capacity;
}

inline void add_to(float * dst, const float * w, int32_t n) {
    int32_t i = 0;
    for (; i + VL <= n; i += VL) {
        vstore(dst + i, vload(dst + i) + vload(w + i));
    }
    for (; i < n; i++) {
        dst[i] += w[i];
    }
}

inline void span_of(const int32_t * p, int32_t n, int32_t & lo, int32_t & hi) {
    lo = hi = p[0];
    for (int32_t i = 1; i < n; i++) {
        lo = min_of(lo, p[i]);
        hi = max_of(hi, p[i]);
    }
}

// ---- decode ----

// What is prefetched goes to the second-level cache: the first level would lose it again before it is used (measured on
// Zen 4: 24 GB/s of 27 from one thread against 16). One block ahead; two are slower.
constexpr int prefetch_level = 2;

inline void prefetch_rows(const row_format & f, const char * p, int32_t n) {
    for (size_t at = 0; at < (size_t) n * own_bytes(f); at += 64) { // a part of K's rows comes with these
        __builtin_prefetch(p + at, 0, prefetch_level);
    }
}

// scores of RB query rows with NT tiles of 16 slots; next: as many bytes to prefetch, or k itself
template <class K, int RB, int NT>
inline void qk_tiles(float * s, const uint16_t * k, int32_t dk, const float * q, int32_t ldq, const char * next) {
    constexpr int NV = 16 / VL, N = NT * NV;
    vf a[RB][N];
    for (int r = 0; r < RB; r++) {
        for (int i = 0; i < N; i++) {
            a[r][i] = vf{};
        }
    }
    const size_t tile = (size_t) dk * 16;
    for (int32_t d = 0; d < dk; d++, k += 16) {
        for (int b = 0; b < NT * 32; b += 64) {
            __builtin_prefetch(next + (size_t) d * (NT * 32) + b, 0, prefetch_level);
        }
        vf x[N];
        for (int i = 0; i < N; i++) {
            x[i] = K::load(k + (size_t) (i / NV) * tile + (i % NV) * VL);
        }
        for (int r = 0; r < RB; r++) {
            const vf b = vset(q[(size_t) r * ldq + d]);
            for (int i = 0; i < N; i++) {
                a[r][i] += x[i] * b;
            }
        }
    }
    for (int r = 0; r < RB; r++) {
        for (int i = 0; i < N; i++) {
            vstore(s + r * slot_block + i * VL, a[r][i]);
        }
    }
}

#if defined(__AVX512F__)
constexpr int decode_rows = 6; // query rows whose accumulators fit the registers
template <int RB> constexpr int qk_width() { return RB <= 4 ? 4 : 2; } // tiles at once
template <int RB> constexpr int pv_width() { return RB <= 5 ? 4 : 3; } // vectors of V at once
#elif defined(__aarch64__)
constexpr int decode_rows = 4;
template <int RB> constexpr int qk_width() { return RB <= 2 ? 2 : 1; }
template <int RB> constexpr int pv_width() { return 4; }
#elif defined(__AVX2__)
constexpr int decode_rows = 4;
template <int RB> constexpr int qk_width() { return RB == 1 ? 4 : RB <= 3 ? 2 : 1; }
template <int RB> constexpr int pv_width() { return RB <= 2 ? 4 : 2; }
#else
constexpr int decode_rows = 3;
template <int RB> constexpr int qk_width() { return RB == 1 ? 2 : 1; }
template <int RB> constexpr int pv_width() { return 4; }
#endif

template <class K, int RB>
inline void qk_rows(float * s, const uint16_t * k, int32_t dk, int32_t n, const float * q, int32_t ldq, const char * next) {
    constexpr int NT = qk_width<RB>();
    int32_t t = 0;
    for (; t + NT * 16 <= round_up(n, 16); t += NT * 16) {
        qk_tiles<K, RB, NT>(s + t, k + (size_t) t * dk, dk, q, ldq, next + (size_t) t * dk * 2);
    }
    for (; t < n; t += 16) {
        qk_tiles<K, RB, 1>(s + t, k + (size_t) t * dk, dk, q, ldq, next + (size_t) t * dk * 2);
    }
}

// the same for rows of floats: sums over the lanes are taken for VL dot products at once
template <int RB> inline void qk_dots(float * s, const float * k, int32_t dkp, int32_t n, const float * q) {
    constexpr int RP = RB == 3 ? 4 : RB, SB = VL / RP; // RB <= 4 <= VL
    for (int32_t t = 0; t < n; t += SB) {
        vf a[VL];
        for (int i = 0; i < VL; i++) {
            a[i] = vf{};
        }
        for (int32_t d = 0; d < dkp; d += VL) {
            vf x[RB];
            for (int r = 0; r < RB; r++) {
                x[r] = vload(q + (size_t) r * dkp + d);
            }
            for (int j = 0; j < SB; j++) {
                const vf y = vload(k + (size_t) (t + j) * dkp + d);
                for (int r = 0; r < RB; r++) {
                    a[j * RP + r] += y * x[r];
                }
            }
        }
        const vf b = sums<1>(a);
        for (int j = 0; j < SB; j++) {
            for (int r = 0; r < RB; r++) {
                s[r * slot_block + t + j] = b[j * RP + r];
            }
        }
    }
}

template <class V, int RB, int NV>
inline void pv_columns(float * acc, int32_t ldacc, const float * p, const char * v, size_t row_bytes, int32_t n, const char * next) {
    vf o[RB][NV];
    for (int r = 0; r < RB; r++) {
        for (int j = 0; j < NV; j++) {
            o[r][j] = vload(acc + (size_t) r * ldacc + j * VL);
        }
    }
    for (int32_t t = 0; t < n; t++) {
        const typename V::element * row = (const typename V::element *) (v + (size_t) t * row_bytes);
        if (sizeof(typename V::element) == 2) { // floats are scratch
            for (int b = 0; b < NV * VL * 2; b += 64) {
                __builtin_prefetch(next + (size_t) t * row_bytes + b, 0, prefetch_level);
            }
        }
        vf x[NV];
        for (int j = 0; j < NV; j++) {
            x[j] = V::load(row + j * VL);
        }
        for (int r = 0; r < RB; r++) {
            const vf w = vset(p[r * slot_block + t]);
            for (int j = 0; j < NV; j++) {
                o[r][j] += w * x[j];
            }
        }
    }
    for (int r = 0; r < RB; r++) {
        for (int j = 0; j < NV; j++) {
            vstore(acc + (size_t) r * ldacc + j * VL, o[r][j]);
        }
    }
}

template <class V, int RB>
inline void pv_rows(float * acc, int32_t dvp, const float * p, const char * v, size_t row_bytes, int32_t n, const char * next) {
    constexpr int NV = pv_width<RB>();
    constexpr size_t size = sizeof(typename V::element);
    int32_t d = 0;
    for (; d + NV * VL <= dvp; d += NV * VL) {
        pv_columns<V, RB, NV>(acc + d, dvp, p, v + d * size, row_bytes, n, next + d * size);
    }
    for (; d < dvp; d += VL) {
        pv_columns<V, RB, 1>(acc + d, dvp, p, v + d * size, row_bytes, n, next + d * size);
    }
}

// calls f with the constants row, rows: row blocks of nearly equal size
template <int MAX, class F> inline void for_row_blocks(int32_t rows, F && f) {
    int32_t blocks = (rows + MAX - 1) / MAX;
    for (int32_t r = 0; r < rows; blocks--) {
        const int32_t n = (rows - r + blocks - 1) / blocks;
        f(r, n);
        r += n;
    }
}

template <class K>
inline void qk_block(float * s, const uint16_t * k, int32_t dk, int32_t n, const float * q, int32_t ldq, int32_t rows, const char * next) {
    for_row_blocks<decode_rows>(rows, [&](int32_t r, int32_t count) {
        float * sr = s + r * slot_block;
        const float * qr = q + (size_t) r * ldq;
        const char * pf = r == 0 ? next : (const char *) k;
        switch (count) {
            case 1: qk_rows<K, 1>(sr, k, dk, n, qr, ldq, pf); break;
            case 2: qk_rows<K, 2>(sr, k, dk, n, qr, ldq, pf); break;
            case 3: qk_rows<K, 3>(sr, k, dk, n, qr, ldq, pf); break;
            case 4: qk_rows<K, 4>(sr, k, dk, n, qr, ldq, pf); break;
            case 5: qk_rows<K, 5>(sr, k, dk, n, qr, ldq, pf); break;
            case 6: qk_rows<K, 6>(sr, k, dk, n, qr, ldq, pf); break;
        }
    });
}

inline void qk_block_f32(float * s, const float * k, int32_t dkp, int32_t n, const float * q, int32_t rows) {
    for_row_blocks<4>(rows, [&](int32_t r, int32_t count) {
        float * sr = s + r * slot_block;
        const float * qr = q + (size_t) r * dkp;
        switch (count) {
            case 1: qk_dots<1>(sr, k, dkp, n, qr); break;
            case 2: qk_dots<2>(sr, k, dkp, n, qr); break;
            case 3: qk_dots<3>(sr, k, dkp, n, qr); break;
            case 4: qk_dots<4>(sr, k, dkp, n, qr); break;
        }
    });
}

template <class V>
inline void pv_block(float * acc, int32_t dvp, const float * p, const char * v, size_t row_bytes, int32_t n, int32_t rows, const char * next) {
    for_row_blocks<decode_rows>(rows, [&](int32_t r, int32_t count) {
        float * ar = acc + (size_t) r * dvp;
        const float * pr = p + r * slot_block;
        const char * pf = r == 0 ? next : v;
        switch (count) {
            case 1: pv_rows<V, 1>(ar, dvp, pr, v, row_bytes, n, pf); break;
            case 2: pv_rows<V, 2>(ar, dvp, pr, v, row_bytes, n, pf); break;
            case 3: pv_rows<V, 3>(ar, dvp, pr, v, row_bytes, n, pf); break;
            case 4: pv_rows<V, 4>(ar, dvp, pr, v, row_bytes, n, pf); break;
            case 5: pv_rows<V, 5>(ar, dvp, pr, v, row_bytes, n, pf); break;
            case 6: pv_rows<V, 6>(ar, dvp, pr, v, row_bytes, n, pf); break;
        }
    });
}

// adds the mask of a block of slots to the scores of all rows; m: room for a block of f16
void decode_mask(const cpu_job & job, const head_store & h, int32_t stream, int32_t head, int32_t slot, int32_t n, float * s, uint16_t * m) {
    const attention_node & node = job.node;
    const bool contiguous = cells_contiguous(h, slot, n) && h.cell[slot + n - 1] < node.mask_n_kv;
    const bool per_head = node.mask_n_head > 1;
    __builtin_memset(m, 0, slot_block * 2);
    for (int32_t t = 0; t < node.n_tokens; t++) {
        bool all_zero = false;
        for (int32_t g = 0; g < job.group; g++) {
            const int32_t query_head = head * job.group + g;
            if (g == 0 || per_head) {
                const uint16_t * row = mask_row(node, stream, query_head, t);
                if (contiguous) {
                    __builtin_memcpy(m, row + h.cell[slot], (size_t) n * 2);
                } else {
                    for (int32_t i = 0; i < n; i++) {
                        const int32_t c = h.cell[slot + i];
                        m[i] = c < node.mask_n_kv ? row[c] : (uint16_t) 0xfc00;
                    }
                }
                uint16_t any = 0;
                for (int32_t i = 0; i < slot_block; i++) {
                    any |= m[i];
                }
                all_zero = any == 0;
            }
            if (all_zero) {
                continue;
            }
            const float f = mask_slope(node, query_head) * log2_e;
            float * sr = s + (size_t) (t * job.group + g) * slot_block;
            for (int32_t i = 0; i < slot_block; i += VL) {
                vstore(sr + i, vload(sr + i) + load_f16(m + i) * f);
            }
        }
    }
}

void decode(const cpu_job & job, const cpu_unit & unit, int32_t unit_index, float * scratch) {
    const attention_node & node = job.node;
    const head_store & h = node.heads[unit.head];
    const int32_t stream = unit.head / node.n_head_kv, head = unit.head % node.n_head_kv;
    const int32_t rows = job.group * node.n_tokens, dkp = job.dkp, dvp = job.dvp;
    const decode_scratch l = decode_scratch_of(rows, dkp, dvp);
    float * q = scratch + l.q, * acc = scratch + l.acc, * max = scratch + l.max, * sum = scratch + l.sum;
    const bool keep = job.keep && (h.track || node.stat);
    const bool masked = node.mask && !(h.max_cell < node.mask_open);
    const bool half_v = (node.v.type == GGML_TYPE_F16 || node.v.type == GGML_TYPE_BF16) && node.v.dim % 16 == 0;

    prefetch_rows(node.k, h.k + (size_t) unit.begin * node.k.row_bytes, min_of(slot_block, unit.end - unit.begin));
    prefetch_rows(node.v, h.v + (size_t) unit.begin * node.v.row_bytes, min_of(slot_block, unit.end - unit.begin));
    const float f = query_scale(node);
    for (int32_t r = 0; r < rows; r++) {
        const float * src = query_row(node, stream, head * job.group + r % job.group, r / job.group);
        for (int32_t d = 0; d < node.k.dim; d++) {
            q[(size_t) r * dkp + d] = src[d] * f;
        }
        for (int32_t d = node.k.dim; d < dkp; d++) {
            q[(size_t) r * dkp + d] = 0.0f;
        }
        max[r] = no_score;
    }
    __builtin_memset(sum, 0, (size_t) rows * 16 * 4);
    __builtin_memset(acc, 0, (size_t) rows * dvp * 4);

    for (int32_t slot = unit.begin; slot < unit.end; slot += slot_block) {
        const int32_t n = min_of(slot_block, unit.end - slot), block = slot / slot_block;
        const bool more = unit.end - slot >= 2 * slot_block;
        const char * k = h.k + (size_t) slot * node.k.row_bytes, * v = h.v + (size_t) slot * node.v.row_bytes;
        float * s = scratch + l.s, * kept_max = nullptr;
        if (keep) {
            float * kept = job.kept + job.work[unit.head].kept;
            s = kept + (size_t) block * rows * slot_block;
            kept_max = kept + (size_t) round_up(h.n, slot_block) * rows + (size_t) block * rows;
        }
        if (node.k.tiled) {
            const char * next = more ? k + slot_block * node.k.row_bytes : k;
            if (node.k.type == GGML_TYPE_F16) {
                qk_block<row_f16>(s, (const uint16_t *) k, node.k.dim, n, q, dkp, rows, next);
            } else {
                qk_block<row_bf16>(s, (const uint16_t *) k, node.k.dim, n, q, dkp, rows, next);
            }
        } else {
            if (more) {
                prefetch_rows(node.k, k + slot_block * node.k.row_bytes, slot_block);
            }
            block_to_f32(node.k, k, n, scratch + l.k, dkp);
            qk_block_f32(s, scratch + l.k, dkp, n, q, rows);
        }
        if (node.softcap != 0.0f) {
            apply_softcap(s, rows * slot_block, node.softcap);
        }
        if (masked) {
            decode_mask(job, h, stream, head, slot, n, s, (uint16_t *) (scratch + l.mask));
        }
        bool any = false;
        for (int32_t r = 0; r < rows; r++) {
            float * sr = s + (size_t) r * slot_block;
            for (int32_t i = n; i < slot_block; i++) {
                sr[i] = -__builtin_inff();
            }
            vf top = vload(sr);
            for (int i = VL; i < slot_block; i += VL) {
                top = vmax(top, vload(sr + i));
            }
            if (any_greater(top, vset(max[r] + rescale_at))) {
                const float m = lane_max(top), f = exp2_scalar(max[r] - m);
                max[r] = m;
                vstore(sum + r * 16, vload(sum + r * 16) * f);
                for (int32_t d = 0; d < dvp; d += VL) {
                    vstore(acc + (size_t) r * dvp + d, vload(acc + (size_t) r * dvp + d) * f);
                }
            }
            any |= any_greater(top, vset(max[r] + negligible));
        }
        if (keep) {
            __builtin_memcpy(kept_max, max, (size_t) rows * 4);
        }
        if (!any) {
            if (keep) {
                __builtin_memset(s, 0, (size_t) rows * slot_block * 4);
            }
            continue;
        }
        for (int32_t r = 0; r < rows; r++) {
            float * sr = s + (size_t) r * slot_block;
            const vf m = vset(max[r]);
            vf z = vload(sum + r * 16);
            for (int i = 0; i < slot_block; i += chains * VL) {
                vf p[chains];
                for (int j = 0; j < chains; j++) {
                    p[j] = vload(sr + i + j * VL) - m;
                }
                vexp2<chains>(p);
                for (int j = 0; j < chains; j++) {
                    vstore(sr + i + j * VL, p[j]);
                    z += p[j];
                }
            }
            vstore(sum + r * 16, z);
        }
        if (half_v) {
            const char * next = more && !node.v.part ? v + slot_block * node.v.row_bytes : v;
            if (node.v.type == GGML_TYPE_F16) {
                pv_block<row_f16>(acc, dvp, s, v, node.v.row_bytes, n, rows, next);
            } else {
                pv_block<row_bf16>(acc, dvp, s, v, node.v.row_bytes, n, rows, next);
            }
        } else if (node.v.part) { // K's floats are there
            pv_block<row_f32>(acc, dvp, s, (const char *) (scratch + l.k), (size_t) dkp * 4, n, rows, v);
        } else {
            if (more) {
                prefetch_rows(node.v, v + slot_block * node.v.row_bytes, slot_block);
            }
            block_to_f32(node.v, v, n, scratch + l.v, dvp);
            pv_block<row_f32>(acc, dvp, s, (const char *) (scratch + l.v), (size_t) dvp * 4, n, rows, v);
        }
    }

    float * part = job.parts + (size_t) unit_index * rows * (2 + dvp);
    for (int32_t r = 0; r < rows; r++, part += 2 + dvp) {
        part[0] = max[r];
        part[1] = lane_sum(vload(sum + r * 16));
        __builtin_memcpy(part + 2, acc + (size_t) r * dvp, (size_t) dvp * 4);
    }
}

// the weights of one token for the slots of a block, averaged over the group or of one query head
void decode_add(const attention_node & node, const head_store & h, int32_t query_pos, int32_t row, int32_t slot, int32_t n, const float * w) {
    if (!node.stat) {
        add_to(h.score + slot, w, n);
        return;
    }
    const statistic & st = *node.stat;
    int32_t lo, hi;
    span_of(h.pos + slot, n, lo, hi);
    const int32_t b = bucket_of(st, query_pos - hi);
    if (b == bucket_of(st, query_pos - lo)) {
        add_to(bucket_row(st, h, row, b) + slot, w, n);
    } else {
        for (int32_t i = 0; i < n; i++) {
            bucket_row(st, h, row, bucket_of(st, query_pos - h.pos[slot + i]))[slot + i] += w[i];
        }
    }
    if (h.recent && st.recent_from >= 0 && query_pos >= st.recent_from) {
        add_to(h.recent + (size_t) row * st.capacity + slot, w, n);
    }
}

void decode_merge(const cpu_job & job, int32_t head_index, float * scratch) {
    const attention_node & node = job.node;
    const head_store & h = node.heads[head_index];
    const cpu_head_work & work = job.work[head_index];
    const int32_t stream = head_index / node.n_head_kv, head = head_index % node.n_head_kv;
    const int32_t rows = job.group * node.n_tokens, dvp = job.dvp;
    const decode_scratch l = decode_scratch_of(rows, job.dkp, dvp);
    float * max = scratch + l.max, * inverse = scratch + l.sum;
    const size_t part_row = 2 + (size_t) dvp, part = part_row * rows;

    for (int32_t r = 0; r < rows; r++) {
        const float * p = job.parts + (size_t) work.first_unit * part + r * part_row;
        float * acc = scratch + l.acc, m = no_score, z = 0.0f;
        for (int32_t u = 0; u < work.n_units; u++) {
            m = p[u * part] > m ? p[u * part] : m;
        }
        __builtin_memset(acc, 0, (size_t) dvp * 4);
        for (int32_t u = 0; u < work.n_units; u++) {
            const float * pu = p + u * part;
            const float f = exp2_scalar(pu[0] - m);
            z += pu[1] * f;
            for (int32_t d = 0; d < dvp; d += VL) {
                vstore(acc + d, vload(acc + d) + vload(pu + 2 + d) * f);
            }
        }
        const int32_t query_head = head * job.group + r % job.group, token = r / job.group;
        const float f = apply_sink(node, query_head, m, z);
        write_row(output_row(node, stream, query_head, token), acc, z > 0.0f ? f / z : 0.0f, node.v.dim);
        max[r] = m;
        inverse[r] = z > 0.0f ? 1.0f / z : 0.0f;
    }

    if (!job.keep || !(h.track || node.stat)) {
        return;
    }
    const float * kept = job.kept + work.kept, * kept_max = kept + (size_t) round_up(h.n, slot_block) * rows;
    const bool per_head = node.stat && node.stat->rows > 1;
    float * factor = scratch + l.q, * factor_max = factor + rows; // dkp >= 16 floats per row
    for (int32_t r = 0; r < rows; r++) {
        factor_max[r] = __builtin_nanf("");
    }
    for (int32_t slot = 0; slot < h.n; slot += slot_block, kept += rows * slot_block, kept_max += rows) {
        const int32_t n = min_of(slot_block, h.n - slot);
        for (int32_t r = 0; r < rows; r++) {
            if (kept_max[r] != factor_max[r]) { // it changes rarely
                factor_max[r] = kept_max[r];
                factor[r] = exp2_scalar(kept_max[r] - max[r]) * inverse[r] * (per_head ? 1.0f : 1.0f / (float) job.group);
            }
        }
        for (int32_t t = 0; t < node.n_tokens; t++) {
            const int32_t pos = node.stat ? node.query_pos[stream * node.n_tokens + t] : 0;
            alignas(64) float w[slot_block];
            for (int32_t g = 0; g < job.group; g++) {
                const int32_t r = t * job.group + g;
                const float * p = kept + (size_t) r * slot_block;
                for (int i = 0; i < slot_block; i += VL) {
                    const vf x = vload(p + i) * factor[r];
                    vstore(w + i, g == 0 || per_head ? x : vload(w + i) + x);
                }
                if (per_head) {
                    decode_add(node, h, pos, g, slot, n, w);
                }
            }
            if (!per_head) {
                decode_add(node, h, pos, 0, slot, n, w);
            }
        }
    }
}

// ---- prefill ----

// C[MR][NV vectors] (+)= sum over k of A(k, m) * B[k][n], with A(k, m) = a[k * ak + m * am]
template <int MR, int NV, bool ADD>
inline void gemm_tile(float * c, int32_t ldc, const float * a, int32_t ak, int32_t am, const float * b, int32_t ldb, int32_t n) {
    vf x[MR][NV];
    for (int m = 0; m < MR; m++) {
        for (int j = 0; j < NV; j++) {
            x[m][j] = ADD ? vload(c + (size_t) m * ldc + j * VL) : vf{};
        }
    }
    for (int32_t k = 0; k < n; k++, a += ak, b += ldb) {
        vf y[NV];
        for (int j = 0; j < NV; j++) {
            y[j] = vload(b + j * VL);
        }
        for (int m = 0; m < MR; m++) {
            const vf w = vset(a[(size_t) m * am]);
            for (int j = 0; j < NV; j++) {
                x[m][j] += w * y[j];
            }
        }
    }
    for (int m = 0; m < MR; m++) {
        for (int j = 0; j < NV; j++) {
            vstore(c + (size_t) m * ldc + j * VL, x[m][j]);
        }
    }
}

#if defined(__AVX512F__)
constexpr int gemm_rows = 8, gemm_vectors = 2;
#elif defined(__aarch64__)
constexpr int gemm_rows = 4, gemm_vectors = 4;
#else
constexpr int gemm_rows = 4, gemm_vectors = 2;
#endif

// rows a multiple of 8, columns of 16
template <bool ADD>
inline void gemm(float * c, int32_t ldc, const float * a, int32_t ak, int32_t am, const float * b, int32_t ldb, int32_t rows, int32_t columns, int32_t n) {
    int32_t j = 0;
    for (; j + gemm_vectors * VL <= columns; j += gemm_vectors * VL) {
        for (int32_t m = 0; m < rows; m += gemm_rows) {
            gemm_tile<gemm_rows, gemm_vectors, ADD>(c + (size_t) m * ldc + j, ldc, a + (size_t) m * am, ak, am, b + j, ldb, n);
        }
    }
    for (; j < columns; j += VL) {
        for (int32_t m = 0; m < rows; m += gemm_rows) {
            gemm_tile<gemm_rows, 1, ADD>(c + (size_t) m * ldc + j, ldc, a + (size_t) m * am, ak, am, b + j, ldb, n);
        }
    }
}

// f16 tiles of K to floats in the same layout
template <class L> inline void tiles_to_f32(const uint16_t * src, int32_t n, float * dst) {
    for (int32_t i = 0; i < n; i += VL) {
        vstore(dst + i, L::load(src + i));
    }
}

// ORs and ANDs n values of a mask into pairs of lanes
inline void scan_mask(const uint16_t * m, int32_t n, vu & any, vu & all) {
    constexpr int step = 2 * VL;
    uint16_t few[step];
    if (n < step) {
        for (int i = 0; i < step; i++) {
            few[i] = m[i < n ? i : 0];
        }
        m = few;
        n = step;
    }
    int32_t i = 0;
    for (; i + step <= n; i += step) {
        const vu x = *(const vu_any *) (m + i);
        any |= x;
        all &= x;
    }
    if (i < n) { // overlaps the one before
        const vu x = *(const vu_any *) (m + n - step);
        any |= x;
        all &= x;
    }
}

inline int view_of(vu any, vu all) {
    uint32_t some = any[0], every = all[0];
    for (int i = 1; i < VL; i++) {
        some |= any[i];
        every &= all[i];
    }
    return some == 0 ? visible : every == 0xfc00fc00u && some == 0xfc00fc00u ? hidden : mixed;
}

// whether the queries of a unit see all, none or some of the slots
int classify(const attention_node & node, const head_store & h, int32_t stream, int32_t query_head, const cpu_unit & u, int32_t slot, int32_t n) {
    const int32_t * cell = h.cell + slot;
    int32_t lo = cell[0], hi = cell[n - 1];
    if (!h.ascending) {
        span_of(cell, n, lo, hi);
    }
    if (lo >= node.mask_n_kv) {
        return hidden;
    }
    if (hi >= node.mask_n_kv) {
        return mixed;
    }
    const uint16_t * first = mask_row(node, stream, query_head, u.token);
    const size_t stride = node.mask_nb[1] / sizeof(uint16_t);
    if (hi - lo < 16 * slot_block) { // every cell of the range is looked at, held or not: cheaper than a gather
        // rows are far apart, so that no hardware prefetcher sees what the next block needs
        const int32_t next = slot + n < h.n ? h.cell[slot + n] : -1;
        vu any{}, all = ~any;
        const uint16_t * m = first;
        for (int32_t q = 0; q < u.n_tokens; q++, m += stride) {
            if (next >= 0) {
                __builtin_prefetch(m + next, 0, 2);
                __builtin_prefetch(m + next + slot_block / 2, 0, 2);
            }
            scan_mask(m + lo, hi - lo + 1, any, all);
        }
        const int view = view_of(any, all);
        if (view != mixed || hi - lo == n - 1) {
            return view;
        }
    }
    uint16_t any = 0, all = 0xffff;
    for (int32_t q = 0; q < u.n_tokens; q++) {
        const uint16_t * m = first + (size_t) q * stride;
        for (int32_t i = 0; i < n; i++) {
            any |= m[cell[i]];
            all &= m[cell[i]];
        }
        if (any != 0 && all != 0xfc00) {
            return mixed;
        }
    }
    return any == 0 ? visible : any == 0xfc00 ? hidden : mixed;
}

// the same, looked up where another head has found out: most heads hold the same cells until they evict
inline int view_block(const cpu_job & job, const head_store & h, int32_t stream, int32_t query_head, const cpu_unit & u, int32_t slot, int32_t n) {
    const int32_t cell = h.cell[slot];
    if (n != slot_block || cell % slot_block != 0 || !cells_contiguous(h, slot, n) || cell / slot_block >= job.n_view) {
        return classify(job.node, h, stream, query_head, u, slot, n);
    }
    uint8_t * known = job.views + ((size_t) stream * job.n_tiles + u.token / job.tile) * job.n_view + cell / slot_block;
    int view = __atomic_load_n(known, __ATOMIC_RELAXED);
    if (view == 0) {
        view = classify(job.node, h, stream, query_head, u, slot, n);
        __atomic_store_n(known, (uint8_t) view, __ATOMIC_RELAXED);
    }
    return view;
}

// the mask of a block as floats, [slot][lanes], times log2 e
void prefill_mask(const attention_node & node, const head_store & h, int32_t stream, int32_t query_head, const cpu_unit & u, int32_t slot, int32_t n, int32_t lanes, float * dst) {
    const int32_t * cell = h.cell + slot;
    const bool contiguous = cells_contiguous(h, slot, n) && cell[n - 1] < node.mask_n_kv;
    alignas(64) uint16_t gathered[slot_block] = {};
    alignas(64) float row[slot_block];
    for (int32_t q = 0; q < lanes; q++) {
        if (q < u.n_tokens) {
            const uint16_t * m = mask_row(node, stream, query_head, u.token + q);
            if (contiguous) {
                __builtin_memcpy(gathered, m + cell[0], (size_t) n * 2);
            } else {
                for (int32_t i = 0; i < n; i++) {
                    gathered[i] = cell[i] < node.mask_n_kv ? m[cell[i]] : (uint16_t) 0xfc00;
                }
            }
            for (int i = 0; i < slot_block; i += VL) {
                vstore(row + i, load_f16(gathered + i) * log2_e);
            }
        } else {
            __builtin_memset(row, 0, sizeof row);
        }
        for (int32_t i = 0; i < n; i++) {
            dst[i * lanes + q] = row[i];
        }
    }
}

// scores of N vectors of queries to weights
template <int N> inline void exponentials(float * s, int32_t n, int32_t lanes, const float * max, float * sum) {
    vf m[N], z[N];
    for (int i = 0; i < N; i++) {
        m[i] = vload(max + i * VL);
        z[i] = vload(sum + i * VL);
    }
    for (int32_t t = 0; t < n; t++, s += lanes) {
        vf p[N];
        for (int i = 0; i < N; i++) {
            p[i] = vload(s + i * VL) - m[i];
        }
        vexp2<N>(p);
        for (int i = 0; i < N; i++) {
            vstore(s + i * VL, p[i]);
            z[i] += p[i];
        }
    }
    for (int i = 0; i < N; i++) {
        vstore(sum + i * VL, z[i]);
    }
}

// the running maximum, and with it sum and outputs, follow the scores; false: all weights of the block are negligible
inline bool follow_maximum(const float * s, int32_t n, int32_t lanes, float * max, float * sum, float * o, int32_t dvp) {
    bool any = false;
    for (int32_t c = 0; c < lanes; c += VL) {
        vf top = vload(s + c), odd = top;
        int32_t t = 1;
        for (; t + 1 < n; t += 2) {
            top = vmax(top, vload(s + t * lanes + c));
            odd = vmax(odd, vload(s + (t + 1) * lanes + c));
        }
        top = vmax(top, odd);
        if (t < n) {
            top = vmax(top, vload(s + t * lanes + c));
        }
        const vf old = vload(max + c);
        if (any_greater(top, old + rescale_at)) {
            const vf m = vmax(old, top), f = vexp2(old - m);
            vstore(max + c, m);
            vstore(sum + c, vload(sum + c) * f);
            for (int i = 0; o && i < VL; i++) {
                if (f[i] != 1.0f) {
                    float * row = o + (size_t) (c + i) * dvp;
                    for (int32_t d = 0; d < dvp; d += VL) {
                        vstore(row + d, vload(row + d) * f[i]);
                    }
                }
            }
        }
        any |= any_greater(top, vload(max + c) + negligible);
    }
    return any;
}

inline void block_exponentials(float * s, int32_t n, int32_t lanes, const float * max, float * sum) {
    int32_t c = 0;
    for (; c + chains * VL <= lanes; c += chains * VL) {
        exponentials<chains>(s + c, n, lanes, max + c, sum + c);
    }
    for (; c < lanes; c += VL) {
        exponentials<1>(s + c, n, lanes, max + c, sum + c);
    }
}

// keys of n slots from slot on, a multiple of 16 where they are tiled, to floats; where they are not [n][dkp]
inline void keys_to_f32(const row_format & f, const head_store & h, int32_t slot, int32_t n, int32_t dkp, float * k) {
    const char * src = h.k + (size_t) slot * f.row_bytes;
    if (!f.tiled) {
        block_to_f32(f, src, n, k, dkp);
    } else if (f.type == GGML_TYPE_F16) {
        tiles_to_f32<row_f16>((const uint16_t *) src, round_up(n, 16) * f.dim, k);
    } else {
        tiles_to_f32<row_bf16>((const uint16_t *) src, round_up(n, 16) * f.dim, k);
    }
}

void prefill(const cpu_job & job, const cpu_unit & unit, float * scratch) {
    const attention_node & node = job.node;
    const head_store & h = node.heads[unit.head];
    const int32_t stream = unit.head / node.n_head_kv, first_head = unit.head % node.n_head_kv * job.group + unit.group;
    const int32_t dk = node.k.dim, dkp = job.dkp, dvp = job.dvp, lanes = round_up(unit.n_tokens, 16);
    const bool keep = job.keep && (h.track || node.stat), per_head_mask = node.mask_n_head > 1;
    const prefill_scratch l = prefill_scratch_of(job.tile, unit.n_group, dkp, dvp, job.keep ? round_up(h.n, slot_block) / slot_block : 1);
    float * q = scratch + l.q, * o = scratch + l.o, * max = scratch + l.max, * sum = scratch + l.sum;
    float * mask = scratch + l.mask, * k = scratch + l.k, * v = scratch + l.v;

    const float scale = query_scale(node);
    for (int32_t g = 0; g < unit.n_group; g++) {
        float * qg = q + (size_t) g * dkp * lanes;
        for (int32_t t = 0; t < lanes; t++) {
            if (t < unit.n_tokens) {
                const float * src = query_row(node, stream, first_head + g, unit.token + t);
                for (int32_t d = 0; d < dk; d++) {
                    qg[(size_t) d * lanes + t] = src[d] * scale;
                }
            } else {
                for (int32_t d = 0; d < dk; d++) {
                    qg[(size_t) d * lanes + t] = 0.0f;
                }
            }
        }
    }
    __builtin_memset(o, 0, (size_t) unit.n_group * lanes * dvp * 4);
    for (int32_t i = 0; i < unit.n_group * lanes; i++) {
        max[i] = no_score;
        sum[i] = 0.0f;
    }

    for (int32_t slot = 0; slot < h.n; slot += slot_block) {
        const int32_t n = min_of(slot_block, h.n - slot), block = keep ? slot / slot_block : 0;
        float * s = scratch + l.s + (size_t) block * slot_block * lanes, * s_max = scratch + l.s_max + (size_t) block * lanes;
        if (keep) {
            s_max[0] = __builtin_inff(); // nothing kept
        }
        int view = visible;
        if (node.mask && !per_head_mask) {
            view = view_block(job, h, stream, first_head, unit, slot, n);
            if (view == hidden) {
                continue;
            }
            if (view == mixed) {
                prefill_mask(node, h, stream, first_head, unit, slot, n, lanes, mask);
            }
        }
        keys_to_f32(node.k, h, slot, n, dkp, k);
        bool have_v = false;

        for (int32_t g = 0; g < unit.n_group; g++) {
            if (node.mask && per_head_mask) {
                view = classify(node, h, stream, first_head + g, unit, slot, n);
                if (view == hidden) {
                    continue;
                }
                if (view == mixed) {
                    prefill_mask(node, h, stream, first_head + g, unit, slot, n, lanes, mask);
                }
            }
            const float * qg = q + (size_t) g * dkp * lanes;
            float * og = o + (size_t) g * lanes * dvp, * mg = max + (size_t) g * lanes, * zg = sum + (size_t) g * lanes;
            if (node.k.tiled) {
                for (int32_t t = 0; t < n; t += 16) {
                    gemm<false>(s + t * lanes, lanes, k + (size_t) t * dk, 16, 1, qg, lanes, 16, lanes, dk);
                }
            } else {
                gemm<false>(s, lanes, k, 1, dkp, qg, lanes, round_up(n, 8), lanes, dk);
            }
            if (node.softcap != 0.0f) {
                apply_softcap(s, n * lanes, node.softcap);
            }
            if (view == mixed) {
                const float f = mask_slope(node, first_head + g);
                for (int32_t i = 0; i < n * lanes; i += VL) {
                    vstore(s + i, vload(s + i) + vload(mask + i) * f);
                }
            }
            if (!follow_maximum(s, n, lanes, mg, zg, og, dvp)) {
                continue;
            }
            block_exponentials(s, n, lanes, mg, zg);
            if (keep) {
                __builtin_memcpy(s_max, mg, (size_t) lanes * 4);
            }
            if (!have_v && !node.v.part) {
                block_to_f32(node.v, h.v + (size_t) slot * node.v.row_bytes, n, v, dvp);
                have_v = true;
            }
            const bool part = node.v.part;
            gemm<true>(og, dvp, s, lanes, 1, part ? k : v, part ? dkp : dvp, round_up(unit.n_tokens, 8), dvp, n);
        }
    }

    for (int32_t g = 0; g < unit.n_group; g++) {
        for (int32_t t = 0; t < unit.n_tokens; t++) {
            float * m = max + (size_t) g * lanes + t, * z = sum + (size_t) g * lanes + t;
            const float f = apply_sink(node, first_head + g, *m, *z);
            write_row(output_row(node, stream, first_head + g, unit.token + t), o + ((size_t) g * lanes + t) * dvp, *z > 0.0f ? f / *z : 0.0f, node.v.dim);
        }
    }
}

// w[i] = sum over the lanes of p[i][lane] * f[lane], for VL slots
inline vf column_sums(const float * p, const float * f, int32_t lanes) {
    vf a[VL];
    for (int i = 0; i < VL; i++, p += lanes) {
        vf x = vload(p) * vload(f);
        for (int32_t c = VL; c < lanes; c += VL) {
            x += vload(p + c) * vload(f + c);
        }
        a[i] = x;
    }
    return sums<1>(a);
}

inline void add_columns(float * dst, vf w, int32_t n) {
    if (n >= VL) {
        vstore(dst, vload(dst) + w);
    } else {
        for (int32_t i = 0; i < n; i++) {
            dst[i] += w[i];
        }
    }
}

void prefill_accumulate(const cpu_job & job, const cpu_unit & unit, float * scratch) {
    const attention_node & node = job.node;
    const head_store & h = node.heads[unit.head];
    const int32_t lanes = round_up(unit.n_tokens, 16);
    const prefill_scratch l = prefill_scratch_of(job.tile, unit.n_group, job.dkp, job.dvp, round_up(h.n, slot_block) / slot_block);
    const float * max = scratch + l.max, * sum = scratch + l.sum;
    const statistic * st = node.stat;
    const bool per_head = st && st->rows > 1;
    const int32_t row = per_head ? unit.group : 0;
    const float share = per_head ? 1.0f : 1.0f / (float) job.group;

    alignas(64) float inverse[query_tile], factor[query_tile], recent[query_tile];
    alignas(64) int32_t pos[query_tile];
    int32_t first = 0, last = 0;
    bool any_recent = false;
    for (int32_t t = 0; t < lanes; t++) {
        inverse[t] = t < unit.n_tokens && sum[t] > 0.0f ? share / sum[t] : 0.0f;
    }
    if (st) {
        const int32_t * p = node.query_pos + unit.head / node.n_head_kv * node.n_tokens + unit.token;
        for (int32_t t = 0; t < lanes; t++) {
            pos[t] = p[t < unit.n_tokens ? t : 0];
            any_recent |= h.recent && st->recent_from >= 0 && pos[t] >= st->recent_from;
        }
        span_of(pos, lanes, first, last);
    }

    for (int32_t slot = 0, block = 0; slot < h.n; slot += slot_block, block++) {
        const int32_t n = min_of(slot_block, h.n - slot);
        float * s = scratch + l.s + (size_t) block * slot_block * lanes;
        const float * s_max = scratch + l.s_max + (size_t) block * lanes;
        if (s_max[0] == __builtin_inff()) {
            continue;
        }
        if (n % VL != 0) { // what lies behind the last slot is multiplied, but not used
            __builtin_memset(s + n * lanes, 0, (size_t) (round_up(n, VL) - n) * lanes * 4);
        }
        for (int32_t c = 0; c < lanes; c += VL) {
            vstore(factor + c, vexp2(vload(s_max + c) - vload(max + c)) * vload(inverse + c));
        }
        if (any_recent) {
            for (int32_t t = 0; t < lanes; t++) {
                recent[t] = pos[t] >= st->recent_from ? factor[t] : 0.0f;
            }
        }
        for (int32_t i = 0; i < n; i += VL) {
            const float * p = s + i * lanes;
            const int32_t count = min_of(VL, n - i), at = slot + i;
            if (any_recent) {
                add_columns(h.recent + (size_t) row * st->capacity + at, column_sums(p, recent, lanes), count);
            }
            if (!st) {
                add_columns(h.score + at, column_sums(p, factor, lanes), count);
                continue;
            }
            int32_t lo, hi;
            span_of(h.pos + at, count, lo, hi);
            const int32_t b = bucket_of(*st, first - hi);
            if (b == bucket_of(*st, last - lo)) {
                add_columns(bucket_row(*st, h, row, b) + at, column_sums(p, factor, lanes), count);
                continue;
            }
            for (int32_t j = 0; j < count; j++, p += lanes) { // a bucket's bound lies among the distances
                const int32_t key = h.pos[at + j], b1 = bucket_of(*st, last - key);
                for (int32_t b0 = bucket_of(*st, first - key); b0 <= b1; b0++) {
                    const int32_t from = b0 == 0 ? INT32_MIN : st->bounds[b0 - 1], to = b0 == st->n_bounds ? INT32_MAX : st->bounds[b0];
                    vf x{};
                    for (int32_t c = 0; c < lanes; c += VL) {
                        const vi d = *(const vi *) (pos + c) - key;
                        const vi in = (vi) (d >= from) & (vi) (d < to);
                        x += (vf) ((vi) (vload(p + c) * vload(factor + c)) & in);
                    }
                    bucket_row(*st, h, row, b0)[at + j] += lane_sum(x);
                }
            }
        }
    }
}

#include "kernels_moved.h"

} // namespace

extern const cpu_kernels KVASIR_KERNELS;
const cpu_kernels KVASIR_KERNELS = {
    KVASIR_KERNELS_NAME, decode, decode_merge, prefill, prefill_accumulate, f32_to_f16, f32_to_bf16, rows_to_f32,
    moved, moved_add, moved_losses,
};

} // namespace kvasir
