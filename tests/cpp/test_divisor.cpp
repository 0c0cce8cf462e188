// Division by multiplication is division, at the ends of every quotient.
#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "device/divisor.h"

int main() {
  constexpr std::int64_t kLast = (std::int64_t{1} << 31) - 1;
  int failures = 0;
  const auto check = [&](std::uint32_t divisor, std::int64_t x) {
    const epiconv::Divisor by(divisor);
    const std::int64_t narrow = by.quotient(static_cast<std::int32_t>(x));
    const std::int64_t wide = by.quotient(x);
    if (narrow == x / divisor && wide == x / divisor) return;
    std::printf("FAILED %lld / %u: %lld, %lld\n", static_cast<long long>(x), divisor,
                static_cast<long long>(narrow), static_cast<long long>(wide));
    ++failures;
  };
  const auto check_divisor = [&](std::int64_t divisor) {
    for (std::int64_t quotient = 0; quotient <= kLast / divisor; quotient = quotient * 3 + 1) {
      for (const std::int64_t x : {quotient * divisor - 1, quotient * divisor, quotient * divisor + 1}) {
        check(static_cast<std::uint32_t>(divisor), std::clamp<std::int64_t>(x, 0, kLast));
      }
    }
    check(static_cast<std::uint32_t>(divisor), kLast / divisor * divisor);
    check(static_cast<std::uint32_t>(divisor), kLast);
  };
  for (std::int64_t divisor = 1; divisor <= 70000; ++divisor) check_divisor(divisor);
  for (std::int64_t power = 1; power <= kLast; power *= 2) {
    for (const std::int64_t divisor : {power - 1, power, power + 1}) {
      if (divisor >= 1) check_divisor(divisor);
    }
  }
  for (std::int64_t divisor = kLast - 1000; divisor <= kLast; ++divisor) check_divisor(divisor);
  return failures == 0 ? 0 : 1;
}
