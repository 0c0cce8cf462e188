// A GroupNorm's statistics, taken of the accumulators of a tile and merged over the tiles of an image.
//
// Each warp takes the mean of each of its filters over the positions that the tile stores, and the sum of
// squared distances from that mean, on a second pass over registers: nothing is lost where a mean is far from
// zero. The warpgroup merges those of a segment, filters of the same group that it has, and publishes them.
// Who normalises waits for what all tiles of the image have published, and merges it in the order of tiles
// and in float64, consumers each for themselves.
#pragma once

#include "device/elements.h"
#include "device/ptx/published_words.h"
#include "sm90/tile_memory.h"

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
  // Takes the means.
  __device__ __forceinline__ TileStatistics(const TileTables& tables, int lane,
                                            float (&accumulators)[kAccumulators])
      : tables_(tables), lane_(lane) {
    const float zeros[2] = {};
    float sums[2] = {};
    count_ = sum_of_lanes<4>(static_cast<float>(replace_dropped(zeros, accumulators)));
    add(accumulators, [](float value, int) { return value; }, sums);
#pragma unroll
    for (int h = 0; h < 2; ++h) means_[h] = count_ > 0 ? sum_of_lanes<4>(sums[h]) / count_ : 0.0f;
  }

  // Whether a value is NaN, or infinities are of both signs.
  __device__ __forceinline__ bool are_nan() const { return means_[0] != means_[0] || means_[1] != means_[1]; }

  // Leaves them where the warpgroup merges them.
  __device__ __forceinline__ void keep(const TileMemory& memory, int warp,
                                       float (&accumulators)[kAccumulators]) const {
    replace_dropped(means_, accumulators);
    float squares[2] = {};
    add(
        accumulators,
        [&](float value, int h) {
          const float distance = value - means_[h];
          return distance * distance;
        },
        squares);
    float2* const to = memory.statistics + warp * kWarpFilters + lane_ / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      squares[h] = sum_of_lanes<4>(squares[h]);
      if (lane_ % 4 == 0) to[8 * h] = {means_[h], squares[h]};
    }
    if (lane_ == 0) memory.counts[warp] = count_;
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

  const TileTables& tables_;
  const int lane_;
  float count_, means_[2];
};

// By a warpgroup whose warps have all kept theirs: what a tile adds to `row` of an image's partial results.
// `share_group` is the number of the warpgroup's filters among groups of share_filters().
__device__ __forceinline__ void publish_statistics(const NormParameters& norm, const HaloGeometry& g,
                                                   const TileMemory& memory, std::int64_t row,
                                                   std::int32_t share_group, int thread) {
  const std::int32_t filters = norm.segment_filters, first = thread * filters;
  const std::int32_t before = share_group * norm.share_segments;  // segments
  if (first >= min(g.share_filters(), g.filters - share_group * g.share_filters())) return;
  const float pivot = memory.statistics[first].x;
  float count = 0, sum = 0, squares = 0;
  for (int joint = 0; joint < g.joint_rows; ++joint) {
    const float of_filter = memory.counts[joint * g.share_filters() / kWarpFilters];
    const float2* const from = memory.statistics + joint * g.share_filters() + first;
    for (int i = 0; i < filters; ++i) {
      const float distance = from[i].x - pivot, weighted = of_filter * distance;
      count += of_filter;
      sum += weighted;
      squares += from[i].y + weighted * distance;
    }
  }
  const float distance = count > 0 ? sum / count : 0.0f;
  ptx::publish(norm.partials + row * norm.segments + before + thread, pivot + distance,
               squares - sum * distance);
  if (share_group == 0 && thread == 0) ptx::publish(norm.counts + row, count);
}

// By one thread of a warpgroup: until all tiles of an image have been published, about.
__device__ __forceinline__ void wait_for_statistics(const NormParameters& norm, std::int32_t image) {
  const ptx::PatientWait wait("statistics of image", image);
  for (bool all = false; !all; wait.go_on(all)) {
    all = ptx::load_counter(norm.arrived + image) == norm.all_arrived;
  }
}

// What normalises a filter: v = (v + -mean) * scale + shift.
struct Normalisation {
  float negated_mean, scale, shift;
};

// Merges the partial results of an image, in the order of its tiles, for the groups of filters from `first`
// up to `end`, by `threads` threads, whole warps; groups are at most half as many. Calls write(filter,
// normalisation), once for each filter.
class GroupMerge {
 public:
  __device__ __forceinline__ GroupMerge(const NormParameters& norm, std::int32_t image, std::int32_t first,
                                        std::int32_t end, int thread, int threads)
      : norm_(norm), first_(first), end_(end) {
    const auto first_group = static_cast<std::int32_t>(norm.group_filters.quotient(first));
    const std::int32_t groups =
        static_cast<std::int32_t>(norm.group_filters.quotient(end - 1)) + 1 - first_group;
    int shift = 5;
    while (groups << shift > threads) --shift;
    lanes_ = 1 << shift;
    const std::int32_t number = thread >> shift;
    group_ = first_group + number;
    lane_ = thread & (lanes_ - 1);
    rows_ = number < groups ? norm.image_rows : 0;
    const std::int64_t before = static_cast<std::int64_t>(image) * norm.image_rows;
    counts_ = norm.counts + before;
    partials_ = norm.partials + before * norm.segments + group_ * norm.group_segments;
  }

  // Calls write(filter, normalisation) with what affine(filter) returns made into that, once for each filter.
  template <typename GetAffine, typename Write>
  __device__ __forceinline__ void run(GetAffine&& affine, Write&& write) {
    const auto filters = static_cast<std::int32_t>(norm_.group_filters.divisor);
    // Distances are from a mean of one tile, so that their squares lose nothing where means are far from
    // zero.
    double pivot = 0, sum = 0, squares = 0;
    bool has_pivot = false;
    visit([&](double count, double mean, double of_squares) {
      if (!has_pivot) {
        pivot = __shfl_sync(0xFFFFFFFF, mean, 0, lanes_);
        has_pivot = true;
      }
      const double distance = mean - pivot;
      sum += count * distance;
      squares += of_squares + count * distance * distance;
    });
    for (int distance = 1; distance < lanes_; distance *= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
      squares += __shfl_xor_sync(0xFFFFFFFF, squares, distance);
    }
    const double distance = sum * norm_.inverse_count, mean = pivot + distance;
    double variance = squares - sum * distance;
    if (variance < 0.0) variance = 0.0;
    const double scale = inverse_root(variance * norm_.inverse_count + norm_.epsilon);
    if (rows_ == 0) return;
    // What the mean loses when it is rounded goes to the shift.
    const float rounded = static_cast<float>(-mean);
    for (std::int32_t i = lane_; i < filters; i += lanes_) {
      const std::int32_t filter = group_ * filters + i;
      if (filter < first_ || filter >= end_) continue;
      const auto [weight, shift] = affine(filter);
      write(filter, Normalisation{rounded, static_cast<float>(scale * weight),
                                  static_cast<float>(shift - (rounded + mean) * scale * weight)});
    }
  }

 private:
  static constexpr int kBatch = 4;  // loaded at a time

  // 1 / sqrt(x) to 2^-40 or so, of which float32 is made: a step of Newton's from that of float32, where it
  // has one, in a fraction of the time of rsqrt(double).
  static __device__ __forceinline__ double inverse_root(double x) {
    if (!(x > 1e-30 && x < 1e30)) return rsqrt(x);
    const double root = rsqrtf(static_cast<float>(x));
    return root * (1.5 - 0.5 * x * root * root);
  }

  // The lane's share of the group's partial results, those numbered lane, lane + lanes_ … among all
  // [row][segment]. Calls visitor(count, mean, squares) with each; with zeros where there are none any more.
  template <typename Visitor>
  __device__ __forceinline__ void visit(Visitor&& visitor) const {
    const std::int32_t segments = norm_.group_segments;
    const std::int32_t row_step = segments == 1 ? lanes_ : lanes_ / segments;
    const std::int32_t segment_step = lanes_ - row_step * segments;
    std::int32_t row = segments == 1 ? lane_ : lane_ / segments, segment = lane_ - row * segments;
    while (__any_sync(0xFFFFFFFF, row < rows_)) {
      float counts[kBatch];
      float2 values[kBatch];
      const std::int32_t first_row = row, first_segment = segment;
      const ptx::PatientWait wait("partial results of row", row);
      for (bool all = false; !all; wait.go_on(all)) {
        all = true;
        row = first_row;
        segment = first_segment;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          counts[i] = 0;
          values[i] = {};
          if (row < rows_) {
            counts[i] = ptx::load_published(counts_ + row);
            values[i] = ptx::load_published(partials_ + row * norm_.segments + segment);
          }
          row += row_step;
          segment += segment_step;
          if (segment >= segments) {
            segment -= segments;
            ++row;
          }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          all = all && ptx::is_published(counts[i]) && ptx::is_published(values[i].x) &&
                ptx::is_published(values[i].y);
        }
        all = __all_sync(0xFFFFFFFF, all);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) visitor(counts[i], values[i].x, values[i].y);
    }
  }

  const NormParameters& norm_;
  const std::int32_t first_, end_;
  std::int32_t lanes_;  // of a group
  std::int32_t group_, lane_, rows_;
  const float* counts_;
  const float2* partials_;  // the group's, of the image
};

}  // namespace epiconv::sm90
