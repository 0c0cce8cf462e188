// What follows a sweep: partial sums become gradients, and those of a GroupNorm what its steps read.
#pragma once

#include "backward/parameters.h"
#include "epiconv/export.h"

namespace epiconv::backward {

// The offset of an element, counted in the order of the dimensions.
template <int kRank>
EPICONV_HOST_DEVICE std::int64_t offset_of(std::int64_t element, int rank,
                                           const std::int64_t (&extents)[kRank],
                                           const std::int64_t (&strides)[kRank]) {
  std::int64_t offset = 0;
  for (int d = rank - 1; d >= 0; --d) {
    offset += element % extents[d] * strides[d];
    element /= extents[d];
  }
  return offset;
}

// Adds up every step-th partial sum of an element from the first one on.
EPICONV_HOST_DEVICE double added_up(const Reduction& reduction, std::int64_t element, std::int64_t first,
                                    std::int64_t step) {
  const double* const sums =
      reduction.partial_sums +
      offset_of(element, reduction.kept_rank, reduction.kept_extents, reduction.kept_strides);
  double total = 0.0;
  for (std::int64_t i = first; i < reduction.summed_count; i += step) {
    total += sums[offset_of(i, reduction.summed_rank, reduction.summed_extents, reduction.summed_strides)];
  }
  return total;
}

template <typename Memory>
EPICONV_HOST_DEVICE void give_sum(const Reduction& reduction, std::int64_t element, double total) {
  const std::int64_t place =
      offset_of(element, reduction.kept_rank, reduction.kept_extents, reduction.output_strides);
  if (reduction.more != nullptr) total += reduction.more[place];
  Memory::template store<double>(reduction.output, reduction.dtype, place, total);
}

// `block`: of so many elements of a reduction as it has threads, or of one. `shared` has a value per thread.
template <typename Memory, typename Crew>
EPICONV_HOST_DEVICE void reduce_block(const Reduction& reduction, std::int64_t block, double* shared,
                                      Crew& crew) {
  if (!reduction.by_block) {
    crew.each([&](int thread, auto&) {
      const std::int64_t element = block * kMostThreads + thread;
      if (element < reduction.kept_count) {
        give_sum<Memory>(reduction, element, added_up(reduction, element, 0, 1));
      }
    });
    return;
  }
  crew.each([&](int thread, auto&) { shared[thread] = added_up(reduction, block, thread, kMostThreads); });
  for (int half = kMostThreads / 2; half >= 1; half /= 2) {
    crew.each([&](int thread, auto&) {
      if (thread < half) shared[thread] += shared[thread + half];
    });
  }
  crew.each([&](int thread, auto&) {
    if (thread == 0) give_sum<Memory>(reduction, block, shared[0]);
  });
}

EPICONV_HOST_DEVICE std::int64_t reduction_blocks(const Reduction& reduction) {
  return reduction.by_block ? reduction.kept_count : (reduction.kept_count + kMostThreads - 1) / kMostThreads;
}

template <typename Memory>
EPICONV_HOST_DEVICE double affine_weight(const NormLaunch& norm, std::int64_t channel) {
  if (norm.weight == nullptr) return 1.0;
  return Memory::template load<double>(norm.weight, norm.weight_dtype, channel * norm.weight_stride);
}

// The tables of one sample and channel; offset and slope are zero until `set_lines`.
template <typename T, typename Memory>
EPICONV_HOST_DEVICE void set_tables(const NormLaunch& norm, std::int64_t entry) {
  const std::int64_t entries = norm.samples * norm.channels;
  const std::int64_t channel = entry % norm.channels;
  const std::int64_t group = entry / norm.channels * norm.groups + channel / (norm.channels / norm.groups);
  T* const tables = static_cast<T*>(norm.tables) + entry;
  tables[0] = -static_cast<const T*>(norm.mean)[group];
  const double rstd = static_cast<double>(static_cast<const T*>(norm.rstd)[group]);
  tables[entries] = static_cast<T>(rstd * affine_weight<Memory>(norm, channel));
  tables[2 * entries] = norm.shift == nullptr ? T(0)
                                              : Memory::template load<T>(norm.shift, norm.shift_dtype,
                                                                         channel * norm.shift_stride);
  tables[3 * entries] = T(0);
  tables[4 * entries] = T(0);
}

// Offset and slope of a group's channels, by one block; `shared` has two values per thread.
template <typename T, typename Memory, typename Crew>
EPICONV_HOST_DEVICE void set_lines(const NormLaunch& norm, std::int64_t group, double* shared, Crew& crew) {
  const std::int64_t group_channels = norm.channels / norm.groups;
  const std::int64_t channel = group % norm.groups * group_channels;
  const std::int64_t entry = group / norm.groups * norm.channels + channel;
  double* const of_value = shared;
  double* const of_slope = shared + kMostThreads;
  crew.each([&](int thread, auto&) {
    of_value[thread] = of_slope[thread] = 0.0;
    for (std::int64_t k = thread; k < group_channels; k += kMostThreads) {
      const double weight = affine_weight<Memory>(norm, channel + k);
      of_value[thread] += weight * norm.shift_sums[entry + k];
      of_slope[thread] += weight * norm.scale_sums[entry + k];
    }
  });
  for (int half = kMostThreads / 2; half >= 1; half /= 2) {
    crew.each([&](int thread, auto&) {
      if (thread >= half) return;
      of_value[thread] += of_value[thread + half];
      of_slope[thread] += of_slope[thread + half];
    });
  }
  crew.each([&](int thread, auto&) {
    const double elements = static_cast<double>(group_channels * norm.pixels);
    const double rstd = static_cast<double>(static_cast<const T*>(norm.rstd)[group]);
    const std::int64_t entries = norm.samples * norm.channels;
    T* const tables = static_cast<T*>(norm.tables) + entry;
    for (std::int64_t k = thread; k < group_channels; k += kMostThreads) {
      tables[3 * entries + k] = static_cast<T>(-rstd / elements * of_value[0]);
      tables[4 * entries + k] = static_cast<T>(-rstd * rstd * rstd / elements * of_slope[0]);
    }
  });
}

// The gradients of a channel's affine.
template <typename T>
EPICONV_HOST_DEVICE void add_affine(const NormLaunch& norm, std::int64_t channel) {
  double weight = 0.0, shift = 0.0;
  for (std::int64_t sample = 0; sample < norm.samples; ++sample) {
    const std::int64_t group = sample * norm.groups + channel / (norm.channels / norm.groups);
    const std::int64_t entry = sample * norm.channels + channel;
    weight += static_cast<double>(static_cast<const T*>(norm.rstd)[group]) * norm.scale_sums[entry];
    shift += norm.shift_sums[entry];
  }
  if (norm.weight_gradient != nullptr) norm.weight_gradient[channel] = weight;
  if (norm.shift_gradient != nullptr) norm.shift_gradient[channel] = shift;
}

}  // namespace epiconv::backward
