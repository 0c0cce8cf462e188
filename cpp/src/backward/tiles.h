// A backward pass as sweeps over tiles: how elements are cut, where sums go, what a run launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backward/parameters.h"
#include "backward_pass.h"

namespace epiconv::backward {

// Most shared memory of a block.
inline constexpr std::size_t kSharedBytes = 96 << 10;

struct PlannedSweep {
  Sweep sweep{};
  Actions actions{};
  std::int64_t num_partial_sums = 0;
  // Of the summed gradients that come out; without addresses.
  struct OfPlace {
    int place;
    std::int64_t begin;  // among the partial sums
    Reduction reduction;
  };
  std::vector<OfPlace> reductions;
  std::size_t shared_bytes = 0;
};

// `in_registers`: slots and sums of a thread, whose program is known when the kernel is compiled.
PlannedSweep plan_sweep(const BackwardPass& pass, const BackwardProgram& program, bool in_registers);

struct PlannedBackward {
  explicit PlannedBackward(const BackwardPass& pass, bool in_registers);

  bool double_precision;
  GroupNormShape norm;
  PlannedSweep norm_sweep;  // without actions where no gradient reaches a GroupNorm
  PlannedSweep sweep;
  // In the workspace, in bytes, behind the partial sums, which begin it.
  std::size_t norm_sums, affine_sums, norm_tables;
  std::size_t workspace_bytes;
};

// What runs the parts of a backward pass, in the order in which they are given.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void run_sweep(const PlannedSweep& planned, const SweepLaunch& launch) = 0;
  virtual void reduce(const Reductions& reductions) = 0;
  virtual void set_tables(const NormLaunch& norm) = 0;
  virtual void set_lines(const NormLaunch& norm) = 0;  // and the gradients of the affine
};

// `workspace`: of the plan's size, aligned to 16 bytes.
void run_backward(const PlannedBackward& plan, const BackwardAddresses& addresses, void* workspace,
                  Executor& executor);

}  // namespace epiconv::backward
