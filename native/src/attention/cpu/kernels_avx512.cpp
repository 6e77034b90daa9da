#define KVASIR_KERNELS cpu_kernels_avx512
#define KVASIR_KERNELS_NAME "avx512"
#include "kernels_isa.h"
