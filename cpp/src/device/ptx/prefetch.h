// PTX ISA 9.7.9.16 "prefetch": asks for a line before it is read. sm_80 and newer.
#pragma once

namespace epiconv::ptx {

__device__ __forceinline__ void prefetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

}  // namespace epiconv::ptx
