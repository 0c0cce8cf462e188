// A GroupNorm's statistics, taken of the accumulators of a tile and merged over the tiles of an image.
//
// Each warp writes the mean of each of its filters over the positions that the tile stores, and the sum of
// squared distances from that mean, taken on a second pass over registers: nothing is lost where a mean is
// far from zero. Then it counts the tile as arrived. Of every image and group one warp of all blocks waits
// for all tiles and merges them, in their order and in float64, into what the normalising steps read.
#pragma once

#include "device/elements.h"
#include "device/ptx/global_counter.h"
#include "sm90/conv_chunk.h"

namespace epiconv::sm90 {

// Of a sum over the lanes of a power of two `kLanes`, in each of them.
template <int kLanes, typename T>
__device__ __forceinline__ T sum_of_lanes(T value) {
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    value += __shfl_xor_sync(0xFFFFFFFF, value, distance);
  }
  return value;
}

// A warp's statistics of a tile.
template <int kPhases>
class TileStatistics {
 public:
  // `filter` is the warp's first; `run` the tile's among all runs of all images.
  __device__ __forceinline__ TileStatistics(const NormParameters& norm, const TileTables& tables,
                                            std::int32_t run, std::int32_t filter, int lane)
      : norm_(norm), tables_(tables), run_(run), filter_(filter), lane_(lane) {}

  __device__ __forceinline__ void write(float (&accumulators)[kAccumulators]) const {
    if (filter_ >= tables_.g.filters) return;
    const float zeros[2] = {};
    float sums[2] = {};
    const float count = sum_of_lanes<4>(static_cast<float>(replace_dropped(zeros, accumulators)));
    add(accumulators, [](float value, int) { return value; }, sums);
    float means[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) means[h] = count > 0 ? sum_of_lanes<4>(sums[h]) / count : 0.0f;
    replace_dropped(means, accumulators);
    float squares[2] = {};
    add(
        accumulators,
        [&](float value, int h) {
          const float distance = value - means[h];
          return distance * distance;
        },
        squares);
#pragma unroll
    for (int h = 0; h < 2; ++h) squares[h] = sum_of_lanes<4>(squares[h]);
    const std::int64_t row = static_cast<std::int64_t>(run_) * tables_.g.output_rows() + tables_.row_phase;
    if (lane_ == 0 && filter_ == 0) norm_.counts[row] = count;
    const int filter = filter_ + lane_ / 4;
    float2* const to = norm_.partials + row * tables_.g.filters + filter;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane_ % 4 == 0 && filter + 8 * h < tables_.g.filters) to[8 * h] = {means[h], squares[h]};
    }
  }

 private:
  // Sums up what `of` makes of each value, in as many chains as keep the adders busy.
  template <typename Of>
  static __device__ __forceinline__ void add(const float (&accumulators)[kAccumulators], Of&& of,
                                             float (&sums)[2]) {
    constexpr int kChains = 4;
    float chains[2][kChains] = {};
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) {
      const int h = i / 2 % 2, chain = (i / 4 * 2 + i % 2) % kChains;
      chains[h][chain] += of(accumulators[i], h);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums[h] = (chains[h][0] + chains[h][1]) + (chains[h][2] + chains[h][3]);
    }
  }

  // Values at positions that are not stored become `by`; returns how many of the lane's positions are.
  __device__ __forceinline__ int replace_dropped(const float (&by)[2],
                                                 float (&accumulators)[kAccumulators]) const {
    int count = 0;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const std::int32_t* const offsets = tables_.offsets + piece * kPiecePixels;
      if (__all_sync(0xFFFFFFFF, offsets[lane_] >= 0)) {
        count += kPieceWord;
        continue;
      }
#pragma unroll
      for (int i = 0; i < kPieceWord; ++i) {
        const bool is_stored = offsets[piece_position<kPhases>(lane_ % 4, i)] >= 0;
        count += is_stored ? 1 : 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& value = accumulators[piece_accumulator<kPhases>(piece, h, i)];
          value = is_stored ? value : by[h];
        }
      }
    }
    return count;
  }

  const NormParameters& norm_;
  const TileTables& tables_;
  const std::int32_t run_, filter_;
  const int lane_;
};

// By one warp, of which all lanes call it: the statistics of a group of an image, from all of its tiles.
__device__ __forceinline__ void merge_group(const NormParameters& norm, std::int32_t filters,
                                            std::int32_t image, std::int32_t group, int lane) {
  const std::int64_t first = static_cast<std::int64_t>(image) * norm.image_rows;
  const float2* const partials = norm.partials + first * filters + group * norm.group_channels;
  const float* const counts = norm.counts + first;
  // Calls visitor(count, mean, squares) with this lane's share of the partial results.
  const auto visit = [&](auto&& visitor) {
    for (std::int32_t row = lane; row < norm.image_rows; row += 32) {
      const double count = __ldcg(counts + row);
      const float2* const from = partials + static_cast<std::int64_t>(row) * filters;
      for (std::int32_t channel = 0; channel < norm.group_channels; ++channel) {
        const float2 partial = __ldcg(from + channel);
        visitor(count, static_cast<double>(partial.x), static_cast<double>(partial.y));
      }
    }
  };
  double count = 0, sum = 0;
  visit([&](double of_row, double mean, double) {
    count += of_row;
    sum += of_row * mean;
  });
  count = sum_of_lanes<32>(count);
  const double mean = sum_of_lanes<32>(sum) / count;
  double squares = 0;
  visit([&](double of_row, double mean_of_row, double squares_of_row) {
    const double distance = mean_of_row - mean;
    squares += squares_of_row + of_row * distance * distance;
  });
  const double scale = rsqrt(sum_of_lanes<32>(squares) / count + norm.epsilon);
  for (std::int32_t i = lane; i < norm.group_channels; i += 32) {
    const std::int32_t channel = group * norm.group_channels + i;
    double weight = 1.0, shift = 0.0;
    if (norm.weight != nullptr) {
      weight = load_element<double>(norm.weight, norm.weight_dtype, channel * norm.weight_stride);
    }
    if (norm.shift != nullptr) {
      shift = load_element<double>(norm.shift, norm.shift_dtype, channel * norm.shift_stride);
    }
    const std::int64_t to = static_cast<std::int64_t>(image) * filters + channel;
    // What the mean loses when it is rounded goes to the shift.
    const float rounded = static_cast<float>(-mean);
    norm.means[to] = rounded;
    norm.scales[to] = static_cast<float>(scale * weight);
    norm.shifts[to] = static_cast<float>(shift - (rounded + mean) * scale * weight);
  }
}

// By warp 0 of every block, which has groups of images of its own: waits for each until all blocks have
// taken its statistics.
__device__ __forceinline__ void merge_statistics(const NormParameters& norm, std::int32_t images,
                                                 std::int32_t filters, int lane) {
  for (std::int64_t number = blockIdx.x; number < static_cast<std::int64_t>(images) * norm.groups;
       number += gridDim.x) {
    const auto image = static_cast<std::int32_t>(number / norm.groups);
    ptx::wait_for_count(norm.arrived + image, norm.all_arrived, "statistics", image);
    merge_group(norm, filters, image, static_cast<std::int32_t>(number - image * std::int64_t{norm.groups}),
                lane);
    __syncwarp();
    if (lane == 0) ptx::release_add(norm.merged + image, 1);
  }
}

}  // namespace epiconv::sm90
