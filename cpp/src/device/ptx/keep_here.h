// What keeps the compiler from moving code.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// The value is computed at this place, and on no other path, and what is made of it begins with it.
__device__ __forceinline__ void keep_here(float& value) { asm volatile("" : "+f"(value)); }

template <typename T>
__device__ __forceinline__ void keep_here(T*& pointer) {
  asm volatile("" : "+l"(pointer));
}
__device__ __forceinline__ void keep_here(int& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void keep_here(std::uintptr_t& address) { asm volatile("" : "+l"(address)); }

// PTX ISA 10 "%laneid", read at this place: what is computed from it is not kept in registers from one loop
// to the next, as all that follows from threadIdx may be.
__device__ __forceinline__ int lane_here() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// The thread's number. What is made of it is made here, and not kept in registers from before a loop on.
__device__ __forceinline__ int thread_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// 0, which the compiler does not know. What is indexed with it is loaded here, and not kept in registers from
// before a loop on for a place in it that is hardly ever reached.
__device__ __forceinline__ int zero_here() {
  int zero;
  asm volatile("mov.u32 %0, 0;" : "=r"(zero));
  return zero;
}

// What was read of memory before is read again behind this, and nothing from behind it comes before.
__device__ __forceinline__ void forget_memory() { asm volatile("" ::: "memory"); }

}  // namespace epiconv::ptx
