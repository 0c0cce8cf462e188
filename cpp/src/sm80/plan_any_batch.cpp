// Plans in which an image's sums are added in the same order whatever the batch is. Tile, boxes, the order of
// steps and how a tile is stored are those of one usual batch; steps of a tile are never shared.
#include <algorithm>
#include <limits>

#include "sm80/im2col_geometry.h"
#include "sm80/plan_geometry.h"

namespace epiconv::sm80 {
namespace {

constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// So large that tiles run through as many images as they can, if numbers of positions stay small.
std::int64_t usual_batch(const GeometryProblem& p) {
  constexpr std::int64_t kMostImages = 256, kLeastImages = 2, kPositions = 1 << 24;
  std::int64_t image = 1;
  for (const std::int64_t extent : p.output) {
    image = std::min(image * std::max<std::int64_t>(extent, 1), kPositions);
  }
  return std::clamp(kPositions / image, kLeastImages, kMostImages);
}

}  // namespace

std::string plan_geometry(const GeometryProblem& p, Geometry& g) {
  if (!p.is_batch_invariant) return plan_for_batch(p, g);
  GeometryProblem usual = p;
  usual.batch = usual_batch(p);
  usual.filter_operands = p.image_filter_operands;
  usual.stages_operand = p.stages_image_operand;
  if (std::string why = plan_for_batch(usual, g); !why.empty()) return why;
  constexpr const char* kTooLarge = "the batch is too large for the kernel's 32-bit index arithmetic";
  if (p.batch > (kMostInt - g.tile_positions) / g.image_positions()) return kTooLarge;
  // Linear tiles have numbers of the pixels of all boxes.
  const std::int64_t box = std::int64_t{g.box[0]} * g.box[1] * g.box[2];
  if (!g.is_im2col && g.is_linear && p.batch + 2 > (kMostInt - g.tile_positions) / box) return kTooLarge;
  g.batch = p.batch;
  g.filter_operands = p.filter_operands;  // no more than there was memory for
  g.patches[0] = Divisor(static_cast<std::uint32_t>(
      g.is_linear ? up(p.batch * g.image_positions(), g.tile_positions) : up(p.batch, g.patch(0))));
  std::int64_t tiles = 1;
  for (const Divisor& patches : g.patches) tiles = std::min(tiles * patches.divisor, kMostInt);
  if ((tiles + 1) * g.position_blocks() > kMostInt) return kTooLarge;
  g.position_tiles = static_cast<std::int32_t>(tiles);
  if (g.is_im2col) share_no_tiles(g);
  return "";
}

}  // namespace epiconv::sm80
