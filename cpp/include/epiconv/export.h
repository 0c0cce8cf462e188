// Symbols are hidden unless marked; the shared library exports only what the headers declare.
#pragma once

#if defined(__CUDACC_RTC__)
#define EPICONV_API
#else
#define EPICONV_API __attribute__((visibility("default")))
#endif

#if defined(__CUDACC__)
#define EPICONV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define EPICONV_HOST_DEVICE inline
#endif

// Before a loop whose counter is an index of registers.
#if defined(__CUDA_ARCH__)
#define EPICONV_UNROLL _Pragma("unroll")
#else
#define EPICONV_UNROLL
#endif
