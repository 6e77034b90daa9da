#define KVASIR_KERNELS cpu_kernels_baseline
#define KVASIR_KERNELS_NAME "baseline"
#include "kernels_isa.h"
