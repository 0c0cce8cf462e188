// Count, mean and sum of squared distances from the mean, and how two sets are merged (Chan, Golub and
// LeVeque, 1983).
#pragma once

#include <cstdint>

#include "epiconv/export.h"

namespace epiconv {

template <typename T>
struct Moments {
  T count = 0;
  T mean = 0;
  T squares = 0;

  EPICONV_HOST_DEVICE void merge(const Moments& other) {
    if (other.count == 0) return;
    const T total = count + other.count;
    const T weight = other.count / total;
    const T distance = other.mean - mean;
    mean = count == 0 ? other.mean : mean + distance * weight;
    squares = count == 0 ? other.squares : squares + other.squares + distance * distance * count * weight;
    count = total;
  }
};

// Sums of distances from a value of the set itself, so that nothing is lost where the mean is far from zero.
template <typename T>
struct ShiftedSums {
  T pivot = 0;
  T sum = 0;
  T squares = 0;

  EPICONV_HOST_DEVICE void add(T value) {
    const T distance = value - pivot;
    sum += distance;
    squares += distance * distance;
  }

  EPICONV_HOST_DEVICE Moments<T> moments(int count) const {
    if (count == 0) return {};
    const T distance = sum / static_cast<T>(count);
    const T left = squares - sum * distance;
    return {static_cast<T>(count), pivot + distance, left < T(0) ? T(0) : left};  // NaN stays
  }
};

}  // namespace epiconv
