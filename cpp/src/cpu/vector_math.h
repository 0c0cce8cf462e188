// Tells the compiler that these functions have vector versions in glibc's libmvec, so that it calls those in
// loops. glibc's own headers say so under -ffast-math alone, which would also change what the loops mean. The
// vector versions of expf and logf are left out: they break the bounds of exp and log in the operation table.
#pragma once

#include <cmath>

#if EPICONV_HAS_LIBMVEC
extern "C" {
__attribute__((simd("notinbranch"))) float log1pf(float) noexcept;
__attribute__((simd("notinbranch"))) float expm1f(float) noexcept;
__attribute__((simd("notinbranch"))) float tanhf(float) noexcept;
__attribute__((simd("notinbranch"))) float erff(float) noexcept;
}
#endif
