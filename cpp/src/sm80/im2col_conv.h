// The convolution as products of warpgroups whose two factors the copy engine brings, for channels that lie
// side by side; compiled for one plan on compute capability 9.0, and only so.
//
// A step of gemm_k is one tap and 128 bytes of channels. Of a tile's positions, which follow each other
// through rows and images, the copy engine brings what the tap meets, by its im2col mode, with zeros for what
// lies outside; of its filters the packed weights. Rows of the products' matrix are positions where filters
// lie side by side in the output, else filters; so a thread's sums are words of the output as they stand, or
// after one exchange with its neighbour, and are stored from registers.
//
// Blocks stay, one on each multiprocessor, and go through all tiles. A team is a thread that brings steps
// (im2col_producer.h), through a ring of its own, and two warpgroups, each with half of a tile's sums, that
// multiply and store. They wait for steps, and otherwise for nobody but their own threads: each has tables of
// its own. Of two teams one stores while the other multiplies.
#pragma once

#include "device/ptx/dependent_launch.h"
#include "sm80/im2col_consumer.h"
#include "sm80/im2col_producer.h"
#include "sm80/im2col_slices.h"

namespace epiconv::sm80 {

// Two warpgroups for each team, and one of which a thread for each team brings steps: that one leaves
// registers to the others, of 168 or 96 that all begin with.
template <int kTeams>
struct Im2colBlock {
  static constexpr int kConsumers = kTeams * kThreads;
  static constexpr int kBlockThreads = kConsumers + kGroupThreads;
  static constexpr int kProducerRegisters = kTeams == 1 ? 40 : 24,
                       kConsumerRegisters = kTeams == 1 ? 232 : 112;
};

template <typename Evaluator, typename Sums>
__device__ __forceinline__ void consume_tile(const Consumer<Sums>& consumer, Slices<Sums>& slices,
                                             Im2colRing& ring, const Im2colWalk& walk, std::int32_t worker,
                                             std::int32_t rank) {
  const ConvParameters& p = consumer.p;
  const Geometry& g = p.geometry;
  const Tile tile = im2col_tile(g, walk.tile, rank);
  const std::int32_t steps = steps_of(walk, im2col_phase(g, consumer.launch.weights, tile.phase));
  float held[Consumer<Sums>::kHeldOperands];
  consumer.load_filter_operands(tile, held);
  consumer.write_columns(tile);
  const TilePlace place{g, consumer.memory.tile(), consumer.memory.columns(),
                        consumer.memory.filter_operands(), consumer.memory.phases()[0].place};
  consumer.prefetch_operands(place);
  if (g.im2col_slots > 0) slices.begin(tile);
  Sums sums;
  visit_math(p.math, [&]<typename Math>() {
    if constexpr (!std::is_same_v<Math, Ieee>) consumer.template multiply<Math>(ring, steps, sums);
  });
  consumer.write_filter_operands(tile, held);
  consumer.synchronize();
  typename Consumer<Sums>::Parts parts{};
  bool is_stored = true;
  if (g.im2col_share > 0 && walk.end != Im2colWalk::kAllSteps && steps != g.most_steps) {
    parts = consumer.share(worker, rank, walk.tile, sums);
    is_stored = parts.are_needed;
  }
  if (g.im2col_slots > 0) {
    if (is_stored) {
      slices.template store<Evaluator>(place, sums, parts);
    } else {
      slices.drop();
    }
  } else if (is_stored) {
    consumer.template store<Evaluator>(place, sums, parts);
  }
  consumer.synchronize();  // the tables have been read
}

// `p` is a constant.
template <typename Evaluator, int kRowTiles, int kColumns, int kRank, int kTeams>
__device__ __forceinline__ void run_im2col_block(const ConvParameters& p, const ConvLaunch& launch,
                                                 const Im2colMaps& maps) {
  using Block = Im2colBlock<kTeams>;
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const int thread = threadIdx.x, producer = thread - Block::kConsumers;
  if (thread == Block::kConsumers) {
    for (std::int32_t i = 0; i < p.geometry.all_phases(); ++i) ptx::prefetch_map(&maps.of_phase[i]);
    for (int team = 0; team < kTeams; ++team) Im2colRing(p, shared, team).init();
    init_slices(p, shared);
  }
  const std::int32_t cluster = p.geometry.im2col_cluster, rank = cluster > 1 ? ptx::block_of_cluster() : 0;
  if (cluster > 1) {
    ptx::synchronize_cluster();
  } else {
    __syncthreads();
  }
  ptx::let_next_kernel_begin();
  ptx::wait_for_earlier_kernels();
  // First teams of all blocks come before the second ones.
  const std::int32_t blocks = gridDim.x / cluster, block = blockIdx.x / cluster;
  if (producer >= 0) {
    ptx::give_registers<Block::kProducerRegisters>();
    const int team = producer / kWarpThreads;
    if (team < kTeams && producer % kWarpThreads == 0) {
      Im2colRing ring(p, shared, team);
      Im2colWalk walk(p.geometry, block + team * blocks);
#pragma unroll 1
      while (walk.next()) bring_tile<kRank>(p, launch, maps, walk, rank, ring);
    }
  } else {
    ptx::take_registers<Block::kConsumerRegisters>();
    const int team = thread / kThreads;
    Im2colRing ring(p, shared, team);
    using Sums = WarpgroupSums<kRowTiles, kColumns>;
    const Consumer<Sums> consumer(p, launch, shared, thread);
    Slices<Sums> slices(consumer, maps, shared, thread / kWarpThreads);
    const std::int32_t worker = block + team * blocks;
    Im2colWalk walk(p.geometry, worker);
#pragma unroll 1
    while (walk.next()) consume_tile<Evaluator>(consumer, slices, ring, walk, worker, rank);
    slices.end();
  }
  // The other block may still write into this one's shared memory.
  if (cluster > 1) {
    __syncwarp();
    ptx::synchronize_cluster();
  }
}

}  // namespace epiconv::sm80
