// PTX ISA 9.7.13.13 "griddepcontrol": kernels of a stream that overlap, where they are launched with the
// attribute programmatic stream serialization. sm_90; nothing on older cards.
#pragma once

namespace epiconv::ptx {

// The stream's next kernel may begin, if it is launched so: its blocks take the place of those that end.
__device__ __forceinline__ void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the stream's earlier kernels have ended, and what they wrote is there. Behind it memory is as without
// overlap; a kernel that is launched so has every thread wait before it reads or writes any.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace epiconv::ptx
