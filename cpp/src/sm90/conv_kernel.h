// Convolution, and transposed convolution, which is what computes the gradient of a convolution's input, as
// implicit GEMM over halo tiles (halo_geometry.h), with the epilogue in its store stage.
//
// One block per SM computes a range of tiles. Its three warpgroups:
//   producer   warp 0 streams weights; the other warps load input boxes: by TMA (one thread), by TMA as raw
//              rows that they turn, or by gathering
//   consumers  each 64 filters x 256 pixels in registers. They take turns at the tensor cores, so that the
//              epilogue of one runs while the other multiplies: with two sharers both compute every tile,
//              each its own filters or rows, and change after each unit; with one, they compute tiles in
//              turns. (mainloop.h says where they need not take turns.)
//
// Shared memory: input slots, weight stages, raw stages, staging of the consumer warps, tables of the gather,
// barriers.
//
// Who waits for whom (pipeline.h):
//   input producer  -- slot_full -->  consumers       -- slot_empty -->  input producer
//   copy engine     -- raw_full -->   warp that turns, which then asks for the next raw row
//   weight producer -- stage_full --> its consumer    -- stage_empty --> weight producer
//   consumer        -- turn -->       other consumer
// and, of a GroupNorm, across all blocks (statistics.h):
//   consumers       -- partial results -->      the one that is the last of an image
//   the last one    -- what normalises it -->   the consumers of that image
#pragma once

#include "sm90/consumer.h"
#include "sm90/conv_kernels.h"
#include "sm90/gather_producer.h"
#include "sm90/row_producer.h"
#include "sm90/statistics.h"
#include "sm90/tma_producer.h"
#include "sm90/weight_producer.h"

namespace epiconv::sm90 {

// Of a thread. The launch gives every warpgroup 168; they must not take more than three times that.
inline constexpr int kProducerRegisters = 104;
inline constexpr int kConsumerRegisters = 200;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168);

template <typename Maths, bool kGeneral>
__device__ __forceinline__ void produce(const ConvParameters& p, const SharedMemory& shared,
                                        std::uint8_t* memory) {
  const int thread = threadIdx.x;
  if (thread < 32) {
    if (thread == 0) produce_weights<kGeneral>(p, shared);
  } else if (p.load == InputLoad::kBoxes) {
    if (thread == 32) produce_by_tma<kGeneral>(p, shared);
  } else {
    Maths::visit(p.math, [&]<typename Math>() {
      visit_input<Math>(p.geometry.input_bytes, [&]<typename In>() {
        if (p.load == InputLoad::kRows) {
          RowProducer<Math, In, kGeneral>(p, shared, memory, thread - 32).run();
        } else {
          GatherProducer<Math, In, kGeneral>(p, shared, memory, thread - 32).run();
        }
      });
    });
  }
}

template <typename Maths, typename Evaluator>
__global__ void __launch_bounds__(kThreads, 1) halo_conv(const __grid_constant__ ConvParameters p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(kSwizzleAtom) std::uint8_t memory[];
  const SharedMemory shared{p.geometry, ptx::shared_address(memory)};
  if (threadIdx.x == 0) shared.init_barriers(p.load);
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    ptx::give_registers<kProducerRegisters>();
    produce<Maths, Evaluator::kMayHaveNorm>(p, shared, memory);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    // Told to be one for the whole warp, as the compiler must know for the wgmma that depend on it.
    const int consumer = __shfl_sync(0xFFFFFFFF, threadIdx.x / kConsumerThreads, 0) - 1;
    Consumer<Maths, Evaluator>(p, shared, memory, consumer).run();
  }
#endif
}

template <typename Maths, typename Evaluator>
ConvKernel conv_kernel(const char* evaluator) {
  return {evaluator, reinterpret_cast<const void*>(&halo_conv<Maths, Evaluator>),
          Evaluator::kTakesFoldedSteps, Evaluator::kIsStatic};
}

}  // namespace epiconv::sm90
