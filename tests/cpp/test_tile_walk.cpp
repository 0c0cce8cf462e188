// In what order blocks visit tiles: whether all of them are visited, and whether no block waits for what can
// only come later.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "epiconv/error.h"
#include "expectations.h"
#include "sm90/tile_walk.h"

using namespace epiconv::sm90;
using namespace expectations;
using epiconv::concat;

namespace {

HaloGeometry geometry(int images, int height, int width, int filters) {
  const HaloPlan plan = plan_halo({.batch = images,
                                   .channels = 8,
                                   .height = height,
                                   .width = width,
                                   .filters = filters,
                                   .taps_r = 3,
                                   .taps_s = 3,
                                   .dilation_h = 1,
                                   .dilation_w = 1,
                                   .pad_top = 1,
                                   .pad_left = 1,
                                   .out_height = height,
                                   .out_width = width,
                                   .element_bytes = 4,
                                   .input_bytes = 4,
                                   .load = InputLoad::kBoxes,
                                   .stores_filters = false,
                                   .output_bytes = 4,
                                   .by_image = true});
  expect(plan.why_not.empty(), plan.why_not);
  return plan.geometry;
}

void check_tile(const HaloGeometry& g, const Tile& tile, std::int32_t number) {
  const Tile direct = Tile::of(g, number);
  expect(tile.filter_tile == direct.filter_tile && tile.strip == direct.strip &&
             tile.raster == direct.raster && tile.first_row == direct.first_row &&
             tile.offset == direct.offset,
         "tile ", number, " is another one");
}

void check_once(const HaloGeometry& g, int blocks) {
  std::vector<int> times(static_cast<std::size_t>(g.tiles), 0);
  const Visits once;
  for (int block = 0; block < blocks; ++block) {
    std::int32_t last = -1, index = 0;
    const BlockTiles tiles{g, once, block, blocks};
    for (TileWalk<true> walk(tiles); !walk.ended(); walk.advance(tiles), ++index) {
      expect(walk.visit() == Visit::kStore && walk.index == index && walk.follows == (index > 0), "visit ",
             index);
      expect(last < 0 || walk.number == last + 1, "tile ", walk.number, " behind ", last);
      check_tile(g, walk.tile, walk.number);
      last = walk.number;
      ++times[static_cast<std::size_t>(last)];
    }
  }
  for (const int count : times) expect(count == 1, "a tile is visited ", count, " times");
}

// Walks of all blocks, each of which goes on until it has to wait for statistics that are not complete.
void check_twice(const HaloGeometry& g, int blocks) {
  const Visits visits = Visits::twice(g, blocks);
  std::vector<TileWalk<true>> walks;
  for (int block = 0; block < blocks; ++block) walks.emplace_back(BlockTiles{g, visits, block, blocks});
  const auto size = static_cast<std::size_t>(g.tiles);
  std::vector<int> taken(size, 0), stored(size, 0);
  std::vector<std::int64_t> done(static_cast<std::size_t>(g.batch), 0);
  const std::int64_t all = g.tiles / g.batch;
  std::int64_t most = 0;
  for (bool goes_on = true; goes_on;) {
    goes_on = false;
    for (int block = 0; block < blocks; ++block) {
      TileWalk<true>& walk = walks[static_cast<std::size_t>(block)];
      while (!walk.ended()) {
        const auto number = static_cast<std::size_t>(walk.number);
        const auto image = static_cast<std::size_t>(walk.tile.raster);
        const bool stores = walk.visit() == Visit::kStore;
        if (stores && done[image] < all) break;
        check_tile(g, walk.tile, walk.number);
        if (stores) {
          ++stored[number];
        } else {
          ++taken[number];
          ++done[image];
        }
        const std::int32_t last = walk.number;
        walk.advance({g, visits, block, blocks});
        expect(walk.ended() || walk.follows == (walk.number == last + 1) || !walk.follows, "follows");
        expect(walk.ended() || !walk.follows || walk.number == last + 1, "tile ", walk.number,
               " does not follow ", last);
        goes_on = true;
      }
    }
  }
  for (std::size_t i = 0; i < size; ++i) {
    expect(taken[i] == 1 && stored[i] == 1, "tile ", i, " is visited ", taken[i], " and ", stored[i],
           " times");
  }
  for (const TileWalk<true>& walk : walks) {
    expect(walk.ended(), "a block waits for ever");
    most = std::max<std::int64_t>(most, walk.index);
  }
  const double mean = 2.0 * g.tiles / blocks;
  expect(most <= 1.1 * mean + 2 * visits.share, "a block makes ", most, " visits, and ", mean, " on average");
}

// Both consumers of all blocks, each of which begins a tile when the one before is stored, that is when all
// of its image has been begun, and when the block's tile before has been begun.
void check_held(const HaloGeometry& g, int blocks) {
  const Visits visits = Visits::holding(g, blocks);
  const int in_turns = g.sharers == 1 ? 2 : 1;
  std::vector<TileWalk<true>> walks;
  for (int block = 0; block < blocks; ++block) walks.emplace_back(BlockTiles{g, visits, block, blocks});
  std::vector<std::int64_t> begun(static_cast<std::size_t>(g.batch), 0);
  std::vector<std::vector<std::int32_t>> held(static_cast<std::size_t>(blocks));  // images, by visits
  const std::int64_t all = g.tiles / g.batch;
  std::vector<int> times(static_cast<std::size_t>(g.tiles), 0);
  std::vector<std::int32_t> rounds(static_cast<std::size_t>(g.batch), -1);
  for (bool goes_on = true; goes_on;) {
    goes_on = false;
    for (int block = 0; block < blocks; ++block) {
      TileWalk<true>& walk = walks[static_cast<std::size_t>(block)];
      auto& images = held[static_cast<std::size_t>(block)];
      while (!walk.ended()) {
        expect(walk.visit() == Visit::kBoth && !walk.follows, "a held tile");
        const int before = walk.index - in_turns;
        if (before >= 0) {
          const auto image = static_cast<std::size_t>(images[static_cast<std::size_t>(before)]);
          if (begun[image] < all) break;
        }
        check_tile(g, walk.tile, walk.number);
        // Images are held in whole rounds, so that those of the next round are computed meanwhile.
        std::int32_t& round = rounds[static_cast<std::size_t>(walk.tile.raster)];
        if (round < 0) round = walk.index;
        expect(all > blocks || walk.index == round, "image ", walk.tile.raster, " in rounds ", round, " and ",
               walk.index);
        ++times[static_cast<std::size_t>(walk.number)];
        ++begun[static_cast<std::size_t>(walk.tile.raster)];
        images.push_back(walk.tile.raster);
        walk.advance({g, visits, block, blocks});
        goes_on = true;
      }
    }
  }
  for (const int count : times) expect(count == 1, "a tile is visited ", count, " times");
  for (const TileWalk<true>& walk : walks) expect(walk.ended(), "a block waits for ever");
}

}  // namespace

int main() {
  int count = 0, held = 0;
  for (const int images : {1, 2, 5, 128, 300}) {
    for (const int height : {1, 7, 56, 254}) {
      for (const int filters : {8, 32, 64, 192}) {
        const HaloGeometry g = geometry(images, height, height == 254 ? 254 : height + 3, filters);
        for (const int all_blocks : {1, 2, 78, 132}) {
          const int blocks = std::min(all_blocks, g.tiles);
          subject = concat(images, " images of ", height, ", ", filters, " filters, ", blocks, " blocks");
          check_once(g, blocks);
          check_twice(g, blocks);
          if (Visits::can_hold(g, blocks)) {
            check_held(g, blocks);
            ++held;
          }
          ++count;
        }
      }
    }
  }
  expect(held > count / 4 && held < count, held, " of ", count, " are held");
  std::printf("%d walks, %d of them held, %d failures\n", count, held, failures);
  return failures == 0 ? 0 : 1;
}
