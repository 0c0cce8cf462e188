// What tiles with boxes take (geometry.h), as BoxPlanner compares them.
#pragma once

#include "sm80/plan_geometry.h"

namespace epiconv::sm80 {

inline constexpr std::int32_t kMostSplits = 32;
inline constexpr std::int32_t kLeastSplitSteps = 4;  // fewer cost more in partial sums than they save

// Of an output's positions, in all phases.
double tiles_of_positions(const Geometry& geometry);

// Of the portable kernel: that share a multiprocessor.
int resident_blocks(const Geometry& geometry, bool takes_statistics);

// By warps' products, and by those of warpgroups, for which it sets in how many parts gemm_k is split. Of
// the geometry's divisors only the numbers are set.
PlannedClocks portable_clocks(const GeometryProblem& problem, const Geometry& geometry);
PlannedClocks warpgroup_clocks(const GeometryProblem& problem, Geometry& geometry);

// Of the block that comes last to a tile whose gemm_k is split, and adds the parts: the choice of tiles
// leaves it out.
double part_clocks(const Geometry& geometry);

}  // namespace epiconv::sm80
