// Waiting for a time.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// PTX ISA 10 "%clock": waits for so many clocks of the SM, in a loop that the compiler does not see.
__device__ __forceinline__ void wait_clocks(std::uint32_t clocks) {
  asm volatile(
      "{\n"
      ".reg .u32 begin, now;\n"
      ".reg .pred p;\n"
      "mov.u32 begin, %%clock;\n"
      "wait:\n"
      "mov.u32 now, %%clock;\n"
      "sub.u32 now, now, begin;\n"
      "setp.lt.u32 p, now, %0;\n"
      "@p bra wait;\n"
      "}" ::"r"(clocks)
      : "memory");
}

}  // namespace epiconv::ptx
