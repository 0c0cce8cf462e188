// A GroupNorm's statistics, taken of the accumulators of a tile and merged over the tiles of an image.
//
// Each warp takes the mean of each of its filters over the positions that the tile stores, and the sum of
// squared distances from that mean; nothing is lost where a mean is far from zero. The warpgroup merges those
// of a segment, filters of the same group that it has, and publishes them. Who publishes the last tile of an
// image merges all of them, in the order of tiles and in float64, and publishes what normalises its filters.
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
  // Each lane takes differences from a value of its own, a pivot: where that lies far from the lane's mean,
  // so do its squares, but their sum is at most so many times the one around the mean as there are values.
  __device__ __forceinline__ TileStatistics(const TileTables& tables, int lane,
                                            const float (&accumulators)[kAccumulators])
      : lane_(lane) {
    int count = 0;
    Sums sums[2];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const std::int32_t* const offsets = tables.offsets + piece * kPiecePixels;
      const auto value = [&](int h, int i) { return accumulators[piece_accumulator<kPhases>(piece, h, i)]; };
      if (__all_sync(0xFFFFFFFF, offsets[lane] >= 0)) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sums[h].pivot = count == 0 ? value(h, 0) : sums[h].pivot;
#pragma unroll
          for (int i = 0; i < kPieceWord; ++i) sums[h].add(i % Sums::kChains, value(h, i));
        }
        count += kPieceWord;
        continue;
      }
#pragma unroll
      for (int i = 0; i < kPieceWord; ++i) {
        if (offsets[piece_position<kPhases>(lane % 4, i)] < 0) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sums[h].pivot = count == 0 ? value(h, i) : sums[h].pivot;
          sums[h].add(0, value(h, i));
        }
        ++count;
      }
    }
    count_ = static_cast<float>(count);
    const float inverse = count > 0 ? 1.0f / count_ : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) sums[h].finish(inverse, means_[h], squares_[h]);
    merge_lanes<1>();
    merge_lanes<2>();
  }

  // Whether a value is NaN; where one is infinite, perhaps.
  __device__ __forceinline__ bool are_nan() const { return means_[0] != means_[0] || means_[1] != means_[1]; }

  // Leaves them where the warpgroup merges them: of each `segment` filters, or of all that the warp has.
  __device__ __forceinline__ void keep(const TileMemory& memory, int warp, int segment) {
    const float positions = count_;
    if (segment >= 2) merge_rows<4>();
    if (segment >= 4) merge_rows<8>();
    if (segment >= 8) merge_rows<16>();
    if (segment >= 16) merge(count_, means_[1], squares_[1], means_[0], squares_[0]);
    const bool is_first = lane_ % 4 == 0 && (lane_ / 4 & (segment - 1) & 7) == 0;
    float2* const to = memory.statistics + warp * kWarpFilters + lane_ / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (is_first) to[8 * h] = {means_[h], squares_[h]};
    }
    if (lane_ == 0) memory.counts[warp] = positions;
  }

 private:
  // Of a lane and a filter, around the pivot, in as many chains as keep the adders busy.
  struct Sums {
    static constexpr int kChains = 2;
    float pivot = 0;
    float distances[kChains] = {}, squares[kChains] = {};

    __device__ __forceinline__ void add(int chain, float value) {
      const float distance = value - pivot;
      distances[chain] += distance;
      squares[chain] = fmaf(distance, distance, squares[chain]);
    }
    __device__ __forceinline__ void finish(float inverse_count, float& mean, float& square) const {
      const float sum = distances[0] + distances[1], distance = sum * inverse_count;
      mean = pivot + distance;
      square = squares[0] + squares[1] - sum * distance;
    }
  };

  // The lanes of a row of M, kDistance apart: of other positions, more of them or fewer.
  template <int kDistance>
  __device__ __forceinline__ void merge_lanes() {
    const float other_count = __shfl_xor_sync(0xFFFFFFFF, count_, kDistance), count = count_ + other_count;
    const float share = count > 0 ? other_count / count : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float distance = __shfl_xor_sync(0xFFFFFFFF, means_[h], kDistance) - means_[h];
      // In this order a lane without positions adds nothing, however far from zero the other's mean is.
      squares_[h] +=
          __shfl_xor_sync(0xFFFFFFFF, squares_[h], kDistance) + (distance * count_) * (distance * share);
      means_[h] += distance * share;
    }
    count_ = count;
  }
  // Rows of M, of the same positions.
  template <int kDistance>
  __device__ __forceinline__ void merge_rows() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      merge(count_, __shfl_xor_sync(0xFFFFFFFF, means_[h], kDistance),
            __shfl_xor_sync(0xFFFFFFFF, squares_[h], kDistance), means_[h], squares_[h]);
    }
    count_ += count_;
  }
  // `count` elements of each.
  static __device__ __forceinline__ void merge(float count, float other_mean, float other_squares,
                                               float& mean, float& squares) {
    const float distance = other_mean - mean;
    squares += other_squares + distance * distance * (0.5f * count);
    mean += 0.5f * distance;
  }

  const int lane_;
  float count_, means_[2], squares_[2];
};

// By a warpgroup whose warps have all kept theirs: what a tile adds to `row` of an image's partial results.
// `share_group` is the number of the warpgroup's filters among groups of share_filters().
__device__ __forceinline__ void publish_statistics(const NormParameters& norm, const HaloGeometry& g,
                                                   const TileMemory& memory, std::int64_t row,
                                                   std::int32_t share_group, int thread) {
  const std::int32_t filters = norm.segment_filters, first = thread * filters;
  const std::int32_t kept = min(filters, kWarpFilters);           // together
  const std::int32_t before = share_group * norm.share_segments;  // segments
  if (first >= min(g.share_filters(), g.filters - share_group * g.share_filters())) return;
  const float pivot = memory.statistics[first].x;
  float count = 0, sum = 0, squares = 0;
  for (int joint = 0; joint < g.joint_rows; ++joint) {
    const float of_kept = memory.counts[joint * g.share_filters() / kWarpFilters] * static_cast<float>(kept);
    const float2* const from = memory.statistics + joint * g.share_filters() + first;
    for (int i = 0; i < filters; i += kept) {
      const float distance = from[i].x - pivot, weighted = of_kept * distance;
      count += of_kept;
      sum += weighted;
      squares += from[i].y + weighted * distance;
    }
  }
  const float distance = count > 0 ? sum / count : 0.0f;
  ptx::publish(norm.partials + row * norm.segments + before + thread, pivot + distance,
               squares - sum * distance);
  if (share_group == 0 && thread == 0) ptx::publish(norm.counts + row, count);
}

// What normalises a filter of an image: v = (v + -mean) * scale + shift.
struct Normalisation {
  float negated_mean, scale, shift;

  // Waits until it has been published.
  __device__ __forceinline__ static Normalisation wait_for(const NormParameters& norm, std::int32_t image,
                                                           std::int64_t at) {
    const ptx::PatientWait wait("statistics of image", image);
    for (;;) {
      const Normalisation found{ptx::load_published(norm.negated_means + at),
                                ptx::load_published(norm.scales + at), ptx::load_published(norm.shifts + at)};
      const bool is_there = ptx::is_published(found.negated_mean) && ptx::is_published(found.scale) &&
                            ptx::is_published(found.shift);
      wait.go_on(is_there);
      if (is_there) return found;
    }
  }
};

// What a GroupNorm multiplies a filter by, and what it adds.
__device__ __forceinline__ float2 norm_affine(const NormParameters& norm, std::int32_t filter) {
  float2 result{1.0f, 0.0f};
  if (norm.weight != nullptr) {
    result.x = load_element<float>(norm.weight, norm.weight_dtype, filter * norm.weight_stride);
  }
  if (norm.shift != nullptr) {
    result.y = load_element<float>(norm.shift, norm.shift_dtype, filter * norm.shift_stride);
  }
  return result;
}

// By one thread of a consumer that has published a tile of an image: whether all others of that image had
// been before. Exactly one consumer is the last.
__device__ __forceinline__ bool is_last_of_image(const NormParameters& norm, std::int32_t image) {
  return ptx::count_up(norm.arrived + image) == norm.last_arrives;
}

// Merges the partial results of an image, in the order of its tiles, for so many groups of filters from
// `first_group` on, by `threads` threads, whole warps, at least twice as many; and publishes what normalises
// the groups' filters.
class GroupMerge {
 public:
  __device__ __forceinline__ GroupMerge(const NormParameters& norm, std::int32_t image,
                                        std::int32_t first_group, std::int32_t groups, int thread,
                                        int threads)
      : norm_(norm), image_(image) {
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

  // `filters` of the image.
  __device__ __forceinline__ void run(std::int32_t filters) const {
    const auto group_filters = static_cast<std::int32_t>(norm_.group_filters.divisor);
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
    for (std::int32_t i = lane_; i < group_filters; i += lanes_) {
      const std::int32_t filter = group_ * group_filters + i;
      const auto [weight, shift] = norm_affine(norm_, filter);
      const std::int64_t to = static_cast<std::int64_t>(image_) * filters + filter;
      ptx::publish(norm_.negated_means + to, rounded);
      ptx::publish(norm_.scales + to, static_cast<float>(scale * weight));
      ptx::publish(norm_.shifts + to, static_cast<float>(shift - (rounded + mean) * scale * weight));
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
  const std::int32_t image_;
  std::int32_t lanes_;  // of a group
  std::int32_t group_, lane_, rows_;
  const float* counts_;
  const float2* partials_;  // the group's, of the image
};

}  // namespace epiconv::sm90
