// Division by a number that is fixed for a launch. Of 32-bit integers it is a multiplication and a shift
// (Granlund and Montgomery, 1994).
#pragma once

#include <cstdint>

#include "epiconv/export.h"

namespace epiconv {

struct Divisor {
  std::uint32_t divisor = 1;
  std::uint32_t multiplier = 1;
  std::uint32_t shift = 0;

  Divisor() = default;

  // 1 <= divisor < 2^31
  explicit Divisor(std::uint32_t value) : divisor(value) {
    while ((std::uint64_t{1} << shift) < value) ++shift;
    multiplier = static_cast<std::uint32_t>((((std::uint64_t{1} << shift) - value) << 32) / value + 1);
  }

  // x / divisor for x >= 0
  EPICONV_HOST_DEVICE std::int32_t quotient(std::int32_t x) const {
    const auto n = static_cast<std::uint32_t>(x);  // below 2^31, so that the sum does not overflow
#if defined(__CUDA_ARCH__)
    return static_cast<std::int32_t>((__umulhi(n, multiplier) + n) >> shift);
#else
    return static_cast<std::int32_t>(((static_cast<std::uint64_t>(n) * multiplier >> 32) + n) >> shift);
#endif
  }
  EPICONV_HOST_DEVICE std::int64_t quotient(std::int64_t x) const {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(x) / divisor);
  }
};

}  // namespace epiconv
