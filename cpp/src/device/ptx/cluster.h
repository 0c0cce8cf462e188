// PTX ISA: two or more blocks of a cluster, which reach each other's shared memory. sm_90.
#pragma once

#include <cstdint>

namespace epiconv::ptx {

// 10 "%cluster_ctarank": the block's number in its cluster.
__device__ __forceinline__ std::uint32_t block_of_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// 9.7.13.4 "barrier.cluster": waits for all threads of all blocks of the cluster.
__device__ __forceinline__ void synchronize_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// 9.7.9.22 "mapa", 9.7.13.15 "mbarrier.arrive": at the barrier that another block of the cluster has where
// this one has `barrier`. It orders no other memory of the thread across blocks, which would take as long as
// a way to the L2 cache.
__device__ __forceinline__ void mbarrier_arrive_at_if(bool wanted, std::uint32_t barrier,
                                                      std::uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b32 there;\n"
      "setp.ne.u32 p, %2, 0;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "@p mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(block), "r"(static_cast<int>(wanted))
      : "memory");
}

// 9.7.9.27.1.2 "cp.async.bulk.tensor": one box of a tensor of two dimensions to the same place of each block
// whose bit is set, whose barriers complete.
__device__ __forceinline__ void tensor_copy_to_all(std::uint32_t shared, const void* map, int x, int y,
                                                   std::uint32_t barrier, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

}  // namespace epiconv::ptx
