/* The kernels' fat binaries, as the driver loads them: each file of kernels is a module. */
#define KVASIR_TEXT(file) #file
#define KVASIR_EMBED(name) \
    .balign 64; \
    .global kvasir_cuda_##name; \
    .hidden kvasir_cuda_##name; \
    kvasir_cuda_##name: \
    .incbin KVASIR_TEXT(name.fatbin)

    .section .rodata
KVASIR_EMBED(words)
KVASIR_EMBED(store)
KVASIR_EMBED(prefill)
KVASIR_EMBED(statistic)
KVASIR_EMBED(moved)
KVASIR_EMBED(decode)
    .section .note.GNU-stack,"",@progbits
