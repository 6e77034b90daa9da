#include "words.h"

using namespace kvasir::cuda;

extern "C" __global__ void __launch_bounds__(WORDS_THREADS) write_words(const __grid_constant__ words_params p) {
    const int32_t i = (int32_t) (blockIdx.x * WORDS_THREADS + threadIdx.x);
    if (i < p.n) {
        *p.words[i].at = p.words[i].value;
    }
}
