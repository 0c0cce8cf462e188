// What the kernel in im2col_conv.h takes, as Im2colPlanner compares its tiles.
#pragma once

#include "sm80/im2col_geometry.h"
#include "sm80/plan_geometry.h"

namespace epiconv::sm80 {

inline constexpr std::int32_t kMultiprocessors = 132;  // that tiles are dealt out to

inline std::int32_t im2col_workers(const Geometry& g) {
  return kMultiprocessors / g.im2col_cluster * g.im2col_teams;
}

// What the card does at most, as the model has it.
struct Im2colRates;
// By which tiles are compared: found by measuring tiles of one layer beside each other.
extern const Im2colRates kRatesOfTiles;
// By which the kernel is compared to other families: fitted to times of layers (docs/planner.md).
extern const Im2colRates kRatesOfLayers;

// What a tile costs a multiprocessor.
class Im2colTileClocks {
 public:
  Im2colTileClocks(const Im2colRates& rates, const GeometryProblem& problem, const Geometry& geometry);

  // Of all tiles, by who multiplies which steps: from the launch on, and with the copy of an input. Only what
  // the geometry says of that may differ from the one that it was made for.
  double all(const Geometry& geometry) const;
  // Of all tiles, and of each ceiling, without the copy of an input.
  PlannedClocks planned(const Geometry& geometry) const;

 private:
  const Im2colRates& rates_;
  double begin_, copy_;         // of the launch; of the input's copy
  double step_, steps_;         // of a step; of a tile's
  double products_, fill_;      // of a step: multiplied; brought
  double power_, port_;         // of a step: what bytes take from products; of the port of shared memory
  double store_, outputs_;      // of a tile
  double unkept_weight_bytes_;  // that do not stay in the L2 cache
};

}  // namespace epiconv::sm80
