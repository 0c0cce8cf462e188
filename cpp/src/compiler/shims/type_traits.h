// <type_traits> for the run-time compiler: what kernels ask of it.
#pragma once

namespace std {

template <typename First, typename Second>
inline constexpr bool is_same_v = false;
template <typename T>
inline constexpr bool is_same_v<T, T> = true;

template <bool kCondition, typename Then, typename Else>
struct conditional {
  using type = Then;
};
template <typename Then, typename Else>
struct conditional<false, Then, Else> {
  using type = Else;
};
template <bool kCondition, typename Then, typename Else>
using conditional_t = typename conditional<kCondition, Then, Else>::type;

template <typename T, typename... All>
inline constexpr bool is_one_of_v = (is_same_v<T, All> || ...);
template <typename T>
inline constexpr bool is_arithmetic_v =
    is_one_of_v<T, bool, char, signed char, unsigned char, short, unsigned short, int, unsigned int, long,
                unsigned long, long long, unsigned long long, float, double>;

}  // namespace std
