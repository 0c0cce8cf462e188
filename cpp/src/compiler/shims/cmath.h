// <cmath> for the run-time compiler, which has the functions themselves.
#pragma once

#define INFINITY __builtin_bit_cast(float, 0x7f800000u)
#define NAN __builtin_bit_cast(float, 0x7fc00000u)

namespace std {

using ::abs;
using ::erf;
using ::exp;
using ::expm1;
using ::fma;
using ::log;
using ::log1p;
using ::pow;
using ::signbit;
using ::sqrt;
using ::tanh;

}  // namespace std
