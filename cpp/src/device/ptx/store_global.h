// Stores to global memory: through a pointer of which the compiler has lost sight that it is one, or of a
// structure that it would store member by member.
#pragma once

#include <cstdint>
#include <cstring>

namespace epiconv::ptx {

// PTX ISA 9.7.9.11 "st"; `to` is aligned to the value's 2, 4, 8 or 16 bytes.
template <typename Value>
__device__ __forceinline__ void store_global(void* to, const Value& value) {
  if constexpr (sizeof(Value) == 2) {
    std::uint16_t bits;
    memcpy(&bits, &value, 2);
    asm volatile("st.global.b16 [%0], %1;" ::"l"(to), "h"(bits) : "memory");
  } else {
    std::uint32_t words[sizeof(Value) / 4];
    memcpy(words, &value, sizeof(Value));
    if constexpr (sizeof(Value) == 4) {
      asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(words[0]) : "memory");
    } else if constexpr (sizeof(Value) == 8) {
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]) : "memory");
    } else {
      static_assert(sizeof(Value) == 16);
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
                   "r"(words[2]), "r"(words[3])
                   : "memory");
    }
  }
}

}  // namespace epiconv::ptx
