// What the kernel reaches by advancing, by number.
#pragma once

#include <cstdint>

#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

inline Unit unit_number(const HaloGeometry& g, int u) {
  Unit unit = Unit::first();
  while (u-- > 0) unit.advance(g);
  return unit;
}

// Taps of a share before a unit.
inline std::int32_t taps_before(const HaloGeometry& g, const Unit& unit, std::int32_t row_phase) {
  std::int32_t taps = 0;
  for (Unit before = Unit::first(); before.channel_block != unit.channel_block ||
                                    before.group_r != unit.group_r || before.group_s != unit.group_s;
       before.advance(g)) {
    taps += before.taps(g, row_phase);
  }
  return taps;
}

}  // namespace epiconv::sm90
