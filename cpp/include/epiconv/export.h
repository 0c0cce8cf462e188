// Symbols are hidden unless marked; the shared library exports only what the headers declare.
#pragma once

#define EPICONV_API __attribute__((visibility("default")))

#if defined(__CUDACC__)
#define EPICONV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define EPICONV_HOST_DEVICE inline
#endif
