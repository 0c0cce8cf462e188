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

// Taps of a filter group before a unit.
inline std::int32_t taps_before(const HaloGeometry& g, const Unit& unit) {
  return unit.channel_block * g.taps_r * g.taps_s + unit.group_r * g.group_r * g.taps_s +
         unit.group_s * g.group_s * unit.rows(g);
}

}  // namespace epiconv::sm90
