// The few vector operations that the kernels need, for the instruction set that this file is compiled for.
// Included by kernels_isa.h inside its unnamed namespace: nothing here may have external linkage, or the linker could let
// code for one instruction set serve another (for the same reason no inline function of the standard library is used).

#if defined(__AVX512F__)
constexpr int VL = 16; // lanes of a vector
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int chains = 4; // vectors worked on side by side: 32 registers
#else
constexpr int chains = 2;
#endif

typedef float    vf __attribute__((vector_size(VL * 4)));
typedef int32_t  vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef vf vf_any __attribute__((aligned(4), may_alias));
typedef vu vu_any __attribute__((aligned(2), may_alias));

static inline vf   vset(float x) { return x - vf{}; } // x + 0 would be an addition: it turns -0 into 0
static inline vf   vload(const float * p) { return *(const vf_any *) p; }
static inline void vstore(float * p, vf v) { *(vf_any *) p = v; }

#if defined(__AVX512F__)

static inline vf vmax(vf a, vf b) { return (vf) _mm512_max_ps((__m512) a, (__m512) b); }
static inline vf load_f16(const uint16_t * p) { return (vf) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
static inline vf load_bf16(const uint16_t * p) {
    return (vf) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16);
}
static inline void store_f16(uint16_t * p, vf v) {
    _mm256_storeu_si256((__m256i *) p, _mm512_cvtps_ph((__m512) v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vi load_i8(const char * p) { return (vi) _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)); }
static inline bool any_greater(vf a, vf b) { return _mm512_cmp_ps_mask((__m512) a, (__m512) b, _CMP_GT_OQ) != 0; }

#elif defined(__AVX2__)

static inline vf vmax(vf a, vf b) { return (vf) _mm256_max_ps((__m256) a, (__m256) b); }
static inline vf load_f16(const uint16_t * p) { return (vf) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline vf load_bf16(const uint16_t * p) {
    return (vf) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16);
}
static inline void store_f16(uint16_t * p, vf v) {
    _mm_storeu_si128((__m128i *) p, _mm256_cvtps_ph((__m256) v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vi load_i8(const char * p) { return (vi) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)); }
static inline bool any_greater(vf a, vf b) {
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256) a, (__m256) b, _CMP_GT_OQ)) != 0;
}

#elif defined(__aarch64__)

static inline vf vmax(vf a, vf b) { return (vf) vmaxq_f32((float32x4_t) a, (float32x4_t) b); }
static inline vf load_f16(const uint16_t * p) { return (vf) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf load_bf16(const uint16_t * p) { return (vf) vshll_n_u16(vld1_u16(p), 16); }
static inline void store_f16(uint16_t * p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t) v))); }
static inline vi load_i8(const char * p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return (vi) vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(x)))));
}
static inline bool any_greater(vf a, vf b) { return vmaxvq_u32(vcgtq_f32((float32x4_t) a, (float32x4_t) b)) != 0; }

#else // x86-64 without F16C

static inline vf vmax(vf a, vf b) { return (vf) _mm_max_ps((__m128) a, (__m128) b); }
static inline vf load_f16(const uint16_t * p) {
    const vu h = (vu) _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *) p), _mm_setzero_si128());
    const vu m = (h & 0x7fff) << 13;
    // 2^112 moves the exponent from f16's bias to f32's and turns subnormals into the normal numbers that they are
    const vu r = (vu) ((vf) m * 0x1p112f);
    return (vf) (r | ((h & 0x8000) << 16) | ((vu) ((vi) m >= (0x7c00 << 13)) & 0x7f800000u));
}
static inline vf load_bf16(const uint16_t * p) { return (vf) _mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *) p)); }
static inline vi load_i8(const char * p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    const __m128i b = _mm_cvtsi32_si128(x), h = _mm_unpacklo_epi8(b, b);
    return (vi) _mm_srai_epi32(_mm_unpacklo_epi16(h, h), 24);
}
static inline void store_f16(uint16_t * p, vf v) {
    for (int i = 0; i < VL; i++) {
        uint32_t u;
        const float x = v[i];
        __builtin_memcpy(&u, &x, 4);
        const uint32_t sign = u >> 16 & 0x8000;
        u &= 0x7fffffff;
        uint32_t h;
        if (u >= 0x7f800000) {
            h = u > 0x7f800000 ? 0x7e00 | (u >> 13 & 0x3ff) : 0x7c00;
        } else if (u < 0x38800000) { // subnormal in f16: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
            float y;
            __builtin_memcpy(&y, &u, 4);
            y += 0.5f;
            __builtin_memcpy(&u, &y, 4);
            h = u - 0x3f000000;
        } else {
            u += 0xfff + (u >> 13 & 1) - (112u << 23);
            h = u >> 13;
            h = h > 0x7c00 ? 0x7c00 : h;
        }
        p[i] = (uint16_t) (sign | h);
    }
}
static inline bool any_greater(vf a, vf b) { return _mm_movemask_ps(_mm_cmpgt_ps((__m128) a, (__m128) b)) != 0; }

#endif

static inline float lane_max(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512) v);
#else
    float m = v[0];
    for (int i = 1; i < VL; i++) {
        m = v[i] > m ? v[i] : m;
    }
    return m;
#endif
}

static inline float lane_sum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512) v);
#elif defined(__aarch64__)
    return vaddvq_f32((float32x4_t) v);
#else
    float s = v[0];
    for (int i = 1; i < VL; i++) {
        s += v[i];
    }
    return s;
#endif
}

// 2^x for x < 128; exactly 0 below 2^-126 and for -inf. The polynomial is the minimax of relative error on [-1/2, 1/2]
// with p(0) = 1 (2.6e-9, so that f32 rounding is what is left).
// N vectors step by step: one chain of dependent operations alone leaves the units idle.
template <int N> static inline void vexp2(vf * x) {
    vf r[N], p[N];
#if defined(__AVX512F__)
    for (int i = 0; i < N; i++) {
        r[i] = (vf) _mm512_reduce_ps((__m512) x[i], 0);
    }
#else
    vf t[N];
    for (int i = 0; i < N; i++) {
        x[i] = vmax(vset(-127.0f), x[i]);
        t[i] = x[i] + 12582912.0f; // 1.5 * 2^23: the low bits of t are round(x)
        r[i] = x[i] - (t[i] - 12582912.0f);
    }
#endif
    constexpr float c[] = { 0.00015594677824992687f, 0.0013406643411144614f, 0.009617692790925503f, 0.055503103882074356f, 0.24022652208805084f, 0.6931472420692444f, 1.0f };
    for (int i = 0; i < N; i++) {
        p[i] = vset(c[0]) * r[i] + c[1];
    }
    for (int k = 2; k < 7; k++) {
        for (int i = 0; i < N; i++) {
            p[i] = p[i] * r[i] + c[k];
        }
    }
    for (int i = 0; i < N; i++) {
#if defined(__AVX512F__)
        // scalef takes the floor of its exponent, which is round(x) here; not-less-than lets a NaN through
        x[i] = (vf) _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512) x[i], _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), (__m512) p[i], (__m512) (x[i] - r[i]));
#else
        x[i] = p[i] * (vf) (((vu) t[i] + 127u) << 23); // round(x) = -127 gives the factor 0
#endif
    }
}

static inline vf vexp2(vf x) {
    vexp2<1>(&x);
    return x;
}

static inline float exp2_scalar(float x) { return vexp2(vset(x))[0]; }

// tanh through e^2x: absolute error 1e-7
static inline vf vtanh(vf x) {
    const vf lim = vset(20.0f);
    x = vmax(-lim, -vmax(-x, -lim));
    return 1.0f - 2.0f / (vexp2(x * 2.885390081777927f) + 1.0f);
}

template <int... I> struct index_list {};
template <int N, int... I> struct lanes_up_to : lanes_up_to<N - 1, N - 1, I...> {};
template <int... I> struct lanes_up_to<0, I...> { typedef index_list<I...> type; };
template <int N> using lanes = typename lanes_up_to<N>::type;

// lanes i and i + K of two vectors, interleaved: one level of the transposing sum below
template <int K, int D> struct pair_up {
    template <int... I> static inline vf take(vf a, vf b, index_list<I...>) {
        return __builtin_shufflevector(a, b, ((I & K) ? VL : 0) + (I & ~K) + D...);
    }
};
template <int K> static inline vf add_pairs(vf a, vf b) {
    return pair_up<K, 0>::take(a, b, lanes<VL>()) + pair_up<K, K>::take(a, b, lanes<VL>());
}
// lane i of the result is the sum over the lanes of v[i]
template <int K> static inline vf sums(vf * v) {
    if constexpr (K < VL) {
        for (int i = 0; i < VL / K / 2; i++) {
            v[i] = add_pairs<K>(v[2*i], v[2*i + 1]);
        }
        return sums<2 * K>(v);
    } else {
        return v[0];
    }
}
