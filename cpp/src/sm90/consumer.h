// A consumer warpgroup: has the products of a tile computed, and stores it, or takes its statistics, while
// the other warpgroup has the tensor cores.
#pragma once

#include <new>

#include "device/ptx/fences.h"
#include "sm90/mainloop.h"
#include "sm90/statistics.h"
#include "sm90/store.h"

namespace epiconv::sm90 {

// `Maths` are those that the kernel is for.
template <typename Maths, typename Evaluator>
class Consumer {
  static constexpr int kPhases = Evaluator::Shape::kPhases;
  static constexpr bool kMayHaveNorm = Evaluator::kMayHaveNorm;
  static constexpr bool kMayBeJoint = may_be_joint<Evaluator>();
  using Walk = TileWalk<kMayHaveNorm>;
  static_assert(sizeof(Walk) <= kWalkBytes);
  static constexpr int kAllRows = Mainloop<Maths, kPhases, kMayBeJoint>::kAllRows;

 public:
  __device__ __forceinline__ Consumer(const ConvParameters& p, const SharedMemory& shared,
                                      std::uint8_t* memory, int consumer)
      : p_(p),
        g_(p.geometry),
        consumer_(consumer),
        warp_{p.geometry, memory, consumer,
              __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / 32 % kWarpsPerGroup, 0)},
        memory_(memory),
        mainloop_(p, shared, consumer) {}

  __device__ __forceinline__ void run() {
    float accumulators[kAccumulators];
    std::uint32_t turns = 0;
    const BlockTiles tiles = block_tiles(p_);
    Walk own(tiles);
    Walk& walk = kMayHaveNorm ? *new (walk_memory()) Walk(own) : own;
    __syncwarp();
    for (; !walk.ended(); advance(walk, tiles)) {
      const Tile& tile = walk.tile;
      const int i = walk.index;
      const int sharer = share_of(g_, consumer_, kPhases == 1 ? 0 : i);
      const Share share = mainloop_.share_number(tile.filter_tile * g_.sharers + sharer);
      if (!computes(g_, consumer_, i)) {
        mainloop_.skip(share);
        continue;
      }
      const std::int32_t group = share.group * (kMayBeJoint ? g_.share_filters() : kGroupFilters);
      const std::int32_t pattern = offset_pattern(g_, tile);
      const std::int32_t image = held_image_of(walk);
      // The vote tells the compiler that the answer is one for the whole warp, as wgmma depends on.
      const bool fills = __any_sync(0xFFFFFFFF, pattern < 0 || pattern != held_pattern_ ||
                                                    group != held_group_ || image != held_image_);
      if (fills) fill(walk, share.row_phase, pattern, group, image);
      const int joint = kMayBeJoint ? WarpRows::of(g_, warp_.index).joint : 0;
      const bool is_joint = kMayBeJoint && g_.joint_rows > 1;
      Visit visit = walk.visit();
      // Once; or again for each joint row alone, and then for what is held twice.
      for (int row = kAllRows;;) {
        mainloop_.multiply(tile, sharer, share, row, turns, accumulators);
        if (row == kAllRows && fills) warp_.sync_group();
        const bool is_last =
            is_joint && row + 1 == g_.joint_rows && (visit == Visit::kStore || visit == walk.visit());
        if (is_last) mainloop_.release_slot();
        const bool is_whole = row == kAllRows, is_mine = is_whole || row == joint;
        const TileTables tables = tile_memory().tables(g_, tile, share.row_phase, joint);
        const bool is_done = !is_mine || prepare(visit, tables, group, is_whole, accumulators);
        if (has_statistics(visit) && (is_whole ? is_done : row + 1 == g_.joint_rows)) {
          publish(walk, share);
        }
        if (is_done && visit != Visit::kStatistics) {
          if (kMayHaveNorm && in_one_kernel(p_.norm.plan)) fill_of_norm(walk, group);
          if (is_mine) store(visit, tables, group, accumulators);
        }
        if (is_last || (is_whole && is_done)) break;
        if (is_whole && visit == Visit::kBoth) visit = Visit::kStatistics;
        if (++row < g_.joint_rows) continue;
        row = 0;
        visit = Visit::kStore;
      }
    }
    ptx::bulk_store_wait_read();  // shared memory lives as long as the block
  }

 private:
  // Worked out where it is used: the compiler would keep it in registers throughout.
  __device__ __forceinline__ TileMemory tile_memory() const {
    int consumer = consumer_;
    ptx::keep_here(consumer);
    return TileMemory::at(memory_ + g_.tile_memory_offset + consumer * tile_memory_bytes(g_.joint_rows));
  }

  // A walk that lies in memory is that of all lanes, and one of them advances it.
  static __device__ __forceinline__ void advance(Walk& walk, const BlockTiles& tiles) {
    if constexpr (!kMayHaveNorm) {
      walk.advance(tiles);
      return;
    }
    __syncwarp();
    if (ptx::lane_here() == 0) walk.advance(tiles);
    __syncwarp();
  }

  // Of the warp: the walk of a kernel with a norm, whose registers are needed for other things between tiles.
  __device__ __forceinline__ void* walk_memory() const {
    return memory_ + g_.tile_memory_offset + (consumer_ + 1) * tile_memory_bytes(g_.joint_rows) -
           (kWarpsPerGroup - warp_.index) * kWalkBytes;
  }

  // The image whose operands of filters a visit needs: on a visit for statistics without those of the norm,
  // and so it is another one. What is held gets them later.
  __device__ __forceinline__ std::int32_t held_image_of(const Walk& walk) const {
    if (!kMayHaveNorm) return -1;
    const EpilogueParameters& pass = p_.epilogue;
    const bool holds = p_.norm.plan == NormPlan::kHold;
    const int last = pass.num_of_filters - (holds ? kNumNormOperands : 0);
    if (last == pass.num_of_all_images) return -1;
    return walk.visit() == Visit::kStatistics ? -2 - walk.tile.raster : walk.tile.raster;
  }

  __device__ __forceinline__ void fill(const Walk& walk, std::int32_t row_phase, std::int32_t pattern,
                                       std::int32_t group, std::int32_t image) {
    const EpilogueParameters& pass = p_.epilogue;
    const TileMemory memory = tile_memory();
    const TileTables tables = memory.tables(g_, walk.tile, row_phase, 0);
    const int thread = warp_.index * 32 + ptx::lane_here();
    warp_.sync_group();  // with the warps that still store the last tile
    if (pattern < 0 || pattern != held_pattern_) {
      memory.fill_offsets(pass, tables, kMayBeJoint ? g_.joint_rows : 1, thread);
      memory.fill_pairs(pass, tables, thread);
    }
    if (group != held_group_) {
      memory.fill_of_filters(pass, g_, group, 0, 0, pass.num_of_all_images, thread);
      normed_image_ = -1;
    }
    if (kMayHaveNorm && (image != held_image_ || group != held_group_)) {
      const bool has_norm = in_one_kernel(p_.norm.plan);
      const int last = pass.num_of_filters - (has_norm ? kNumNormOperands : 0);
      memory.fill_of_filters(pass, g_, group, walk.tile.raster, pass.num_of_all_images, last, thread);
    }
    held_pattern_ = pattern;
    held_group_ = group;
    held_image_ = image;
  }

  __device__ __forceinline__ int thread_here() const {
    return warp_.index * 32 + static_cast<int>(ptx::lane_here());
  }

  __device__ __forceinline__ bool has_statistics(Visit visit) const {
    return kMayHaveNorm && (p_.norm.plan == NormPlan::kOfStored || visit != Visit::kStore);
  }

  // By the whole group, whose warps have kept theirs.
  __device__ __forceinline__ void publish(const Walk& walk, const Share& share) const {
    if constexpr (!kMayHaveNorm) return;
    warp_.sync_group();
    const NormParameters& norm = p_.norm;
    const std::int64_t run = g_.filter_tiles.quotient(walk.number);
    publish_statistics(norm, g_, tile_memory(), run * g_.phases_h + share.row_phase, share.group,
                       thread_here());
    if (!in_one_kernel(norm.plan)) return;
    const std::int32_t image = walk.tile.raster;
    if (!warp_.any_of_group(thread_here() == 0 && is_last_of_image(norm, image))) return;
    constexpr int kGroups = kConsumerThreads / 2;  // at a time
    for (int first = 0; first < norm.groups; first += kGroups) {
      GroupMerge(norm, image, first, min(kGroups, norm.groups - first), thread_here(), kConsumerThreads)
          .run(g_.filters);
    }
  }

  // When the statistics of the tile's image are complete. By the whole group.
  __device__ __forceinline__ void fill_of_norm(const Walk& walk, std::int32_t group) {
    if constexpr (!kMayHaveNorm) return;
    const std::int32_t image = walk.tile.raster;
    if (normed_image_ == image) return;
    normed_image_ = image;
    const int thread = thread_here();
    const std::int32_t filters = min(g_.share_filters(), g_.filters - group);
    warp_.sync_group();  // with the warps that still store the last tile
    if (thread < filters) {
      const std::int64_t at = static_cast<std::int64_t>(image) * g_.filters + group + thread;
      const Normalisation found = Normalisation::wait_for(p_.norm, image, at);
      float* const to = tile_memory().of_filters + thread;
      to[kMeanOperand * kGroupFilters] = found.negated_mean;
      to[kScaleOperand * kGroupFilters] = found.scale;
      to[kShiftOperand * kGroupFilters] = found.shift;
    }
    warp_.sync_group();
  }

  // Takes the warp's statistics where there are any, and leaves in the accumulators what they are of. Returns
  // false where joint rows have to be computed each alone; `is_whole`: they have not been.
  __device__ __forceinline__ bool prepare(Visit visit, const TileTables& tables, std::int32_t group,
                                          bool is_whole, float (&accumulators)[kAccumulators]) {
    if constexpr (kMayHaveNorm) {
      const bool may_repeat = kMayBeJoint && is_whole && g_.joint_rows > 1;
      // Where the program keeps a NaN, the statistics tell.
      const bool statistics_tell = Evaluator::kKeepsNan && has_statistics(visit);
      const auto repeats = [&](bool is_bad) { return may_repeat && warp_.any_of_group(is_bad); };
      if (!statistics_tell && repeats(may_repeat && !are_finite(accumulators))) return false;
      const bool before_norm = has_statistics(visit) || Evaluator::kIsStatic;
      if (before_norm) {
        TileStore<Evaluator>(p_, tables, group, warp_).compute(Part::kBeforeNorm, accumulators);
      }
      if (has_statistics(visit)) {
        TileStatistics<kPhases> statistics(tables, ptx::lane_here(), accumulators);
        if (statistics_tell && repeats(statistics.are_nan())) return false;
        if (is_whole && !may_repeat) warp_.sync_group();  // with the warp that publishes the last tile's
        statistics.keep(tile_memory(), warp_.index, p_.norm.segment_filters);
      }
      if (may_repeat) mainloop_.release_slot();
    }
    return true;
  }

  // What has been prepared.
  __device__ __forceinline__ void store(Visit visit, const TileTables& tables, std::int32_t group,
                                        float (&accumulators)[kAccumulators]) const {
    const bool is_behind = kMayHaveNorm && (Evaluator::kIsStatic || has_statistics(visit));
    TileStore<Evaluator>(p_, tables, group, warp_)
        .run(is_behind ? Part::kBehindNorm : Part::kAll, accumulators);
  }

  // ---- Joint rows.

  static __device__ __forceinline__ bool are_finite(const float (&accumulators)[kAccumulators]) {
    float zeros[4] = {};
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) zeros[i % 4] = fmaf(accumulators[i], 0.0f, zeros[i % 4]);
    return (zeros[0] + zeros[1]) + (zeros[2] + zeros[3]) == 0.0f;
  }

  const ConvParameters& p_;
  const HaloGeometry& g_;
  const int consumer_;
  const ConsumerWarp warp_;
  std::uint8_t* const memory_;
  Mainloop<Maths, kPhases, kMayBeJoint> mainloop_;
  // Of the last tile: whose offsets and operands of filters the tables hold.
  std::int32_t held_pattern_ = -1, held_group_ = -1, held_image_ = -1;
  std::int32_t normed_image_ = -1;  // whose operands of the norm they hold
};

}  // namespace epiconv::sm90
