#define KVASIR_KERNELS cpu_kernels_neon
#define KVASIR_KERNELS_NAME "neon"
#include "kernels_isa.h"
