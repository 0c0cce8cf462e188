# Sets EPICONV_HAS_LIBMVEC (0 or 1): whether glibc has vector versions of the functions in
# cpp/src/cpu/vector_math.h (2.35 and newer, on x86-64), and the compiler is one that calls them.

include(CheckCXXSourceCompiles)

set(CMAKE_REQUIRED_LIBRARIES mvec m)
check_cxx_source_compiles("
  #if !defined(__GNUC__) || defined(__clang__)
  #error only GCC reads attribute simd
  #endif
  #include <immintrin.h>
  extern \"C\" __m128 _ZGVbN4v_log1pf(__m128);
  extern \"C\" __m128 _ZGVbN4v_expm1f(__m128);
  extern \"C\" __m128 _ZGVbN4v_tanhf(__m128);
  extern \"C\" __m128 _ZGVbN4v_erff(__m128);
  int main() { return _mm_cvtsi128_si32(_mm_castps_si128(
    _ZGVbN4v_log1pf(_ZGVbN4v_expm1f(_ZGVbN4v_tanhf(_ZGVbN4v_erff(_mm_setzero_ps())))))); }
" epiconv_libmvec)
unset(CMAKE_REQUIRED_LIBRARIES)
set(EPICONV_HAS_LIBMVEC 0)
if(epiconv_libmvec)
  set(EPICONV_HAS_LIBMVEC 1)
endif()
