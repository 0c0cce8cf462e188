// What one thread of a warp does between the products of its warpgroup, without a branch: behind one that
// threads may take differently the compiler waits for each product. sm_90.
#pragma once

#include <cstdint>

#include "device/ptx/bulk_copy.h"
#include "device/ptx/mbarrier.h"

namespace epiconv::ptx {

__device__ __forceinline__ void mbarrier_arrive_if(bool wanted, std::uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}" ::"r"(barrier),
      "r"(static_cast<int>(wanted))
      : "memory");
}

// When the phase of that parity has ended, lets the copy engine bring bytes to `shared` and complete them on
// `full`, which expects them.
__device__ __forceinline__ void bulk_copy_when_if(bool wanted, std::uint32_t empty, std::uint32_t parity,
                                                  std::uint32_t shared, const void* global,
                                                  std::uint32_t bytes, std::uint32_t full) {
#if defined(EPICONV_WATCHDOG)
  if (!wanted) return;
  mbarrier_wait(empty, parity, "an empty stage");
  mbarrier_arrive_expect(full, bytes);
  bulk_copy(shared, global, bytes, full);
#else
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %6, 0;\n"
      "@!p bra done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 q, [%0], %1;\n"
      "@!q bra wait;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%5], %4;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%2], [%3], %4, [%5];\n"
      "done:\n"
      "}" ::"r"(empty),
      "r"(parity), "r"(shared), "l"(global), "r"(bytes), "r"(full), "r"(static_cast<int>(wanted))
      : "memory");
#endif
}

}  // namespace epiconv::ptx
