#define KVASIR_KERNELS cpu_kernels_avx2
#define KVASIR_KERNELS_NAME "avx2"
#include "kernels_isa.h"
