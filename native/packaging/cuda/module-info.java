/** ggml's CUDA backend for one platform, to go beside {@code dev.kvasir.natives}. */
module dev.kvasir.natives.cuda {}
