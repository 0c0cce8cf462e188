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
      // Once, or again for each joint row alone.
      for (int row = kAllRows;;) {
        mainloop_.multiply(tile, sharer, share, row, turns, accumulators);
        if (row == kAllRows && fills) warp_.sync_group();
        bool is_computed = row == kAllRows || row == joint, is_last = true;
        if (kMayBeJoint && g_.joint_rows > 1) {
          if (row == kAllRows) {
            is_computed = !__any_sync(0xFFFFFFFF, warp_.any_of_group(!are_finite(accumulators)));
          }
          is_last = row == kAllRows ? is_computed : row + 1 == g_.joint_rows;
          if (is_last) mainloop_.release_slot();
        }
        if (is_computed)
          finish(walk, tile_memory().tables(g_, tile, share.row_phase, joint), group, accumulators);
        if (is_last) break;
        ++row;
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

  // A walk that lies in memory is that of all lanes, which read it before any of them writes it.
  static __device__ __forceinline__ void advance(Walk& walk, const BlockTiles& tiles) {
    if constexpr (!kMayHaveNorm) {
      walk.advance(tiles);
      return;
    }
    __syncwarp();
    Walk next = walk;
    next.advance(tiles);
    __syncwarp();
    walk = next;
    __syncwarp();
  }

  // Of the warp: the walk of a kernel with a norm, whose registers are needed for other things between tiles.
  __device__ __forceinline__ void* walk_memory() const {
    return memory_ + g_.tile_memory_offset + (consumer_ + 1) * tile_memory_bytes(g_.joint_rows) -
           (kWarpsPerGroup - warp_.index) * kWalkBytes;
  }

  // The image whose operands of filters a visit needs. On a visit for statistics there are none of the norm,
  // and so it is another one.
  __device__ __forceinline__ std::int32_t held_image_of(const Walk& walk) const {
    const EpilogueParameters& pass = p_.epilogue;
    if (!kMayHaveNorm || pass.num_of_filters == pass.num_of_all_images) return -1;
    return walk.stores() ? walk.tile.raster : -2 - walk.tile.raster;
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
    }
    if (kMayHaveNorm && (image != held_image_ || group != held_group_)) {
      int last = pass.num_of_filters;
      if constexpr (kMayHaveNorm) {
        if (p_.norm.plan == NormPlan::kRecompute) {
          if (walk.stores()) {
            ptx::wait_for_count(p_.norm.merged + walk.tile.raster, p_.norm.groups, "norm", walk.tile.raster);
          } else {
            last -= kNumNormOperands;
          }
        }
      }
      memory.fill_of_filters(pass, g_, group, walk.tile.raster, pass.num_of_all_images, last, thread);
    }
    held_pattern_ = pattern;
    held_group_ = group;
    held_image_ = image;
  }

  // What a tile is computed for.
  __device__ __forceinline__ void finish(const Walk& walk, const TileTables& tables, std::int32_t group,
                                         float (&accumulators)[kAccumulators]) {
    const TileStore<Evaluator> store(p_, tables, group, warp_);
    if constexpr (kMayHaveNorm) {
      const NormParameters& norm = p_.norm;
      const bool is_stored = norm.plan == NormPlan::kOfStored;
      if (is_stored || !walk.stores()) {
        store.template compute<Part::kBeforeNorm>(accumulators);
        const std::int32_t filter = group + WarpRows::of(g_, warp_.index).filter;
        TileStatistics<kPhases>(norm, tables, g_.filter_tiles.quotient(walk.number), filter, ptx::lane_here())
            .write(accumulators);
        if (!is_stored) {
          arrive(walk);
        } else if constexpr (Evaluator::kTakesFoldedSteps) {  // no static program stores before its norm
          store.store(accumulators);
        }
        return;
      }
    }
    store.run(accumulators);
  }

  // Counts visits for statistics when the warp has made the last of an image for a while: what it wrote must
  // have reached the memory first.
  __device__ __forceinline__ void arrive(const Walk& walk) {
    ++pending_visits_;
    const std::int32_t next = walk.number + (g_.sharers == 1 ? 2 : 1);
    const std::int32_t image_end = (walk.tile.raster + 1) * p_.visits.image_tiles;
    if (next < min(walk.range.last, image_end)) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::release_add(p_.norm.arrived + walk.tile.raster, pending_visits_);
    pending_visits_ = 0;
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
  std::uint32_t pending_visits_ = 0;
};

}  // namespace epiconv::sm90
