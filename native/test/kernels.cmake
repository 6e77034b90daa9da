add_subdirectory(kernels)
