// The tiles that a block computes, in order, and what it does with each.
//
// A GroupNorm needs all of an image before anything of it can be stored. Where all consumers of the card hold
// an image in their registers, blocks take a tile each, of one image or as many as they hold, and a consumer
// takes a tile's statistics, waits for those of its image, and stores it. Meanwhile the blocks' other
// consumers have the next images. (Dealt out without gaps, an image would begin in one round and end in the
// next, and the consumers of the first would wait for the others to begin: half of the card's registers would
// be idle.) Nobody waits for ever: a consumer has one tile of an image, and begins it when an earlier image
// is complete.
//
// Where the image is larger and the convolution is cheap, tiles are visited twice: for the statistics of what
// comes before the norm, and, computed anew, to be stored. All blocks go through the images in chunks:
// statistics of a chunk, then stores of the one before it, so that nobody waits for what the others have just
// begun. A block's tiles of a chunk are consecutive, and chunks are dealt out one after another, each from
// the block on at which the one before ended.
#pragma once

#include "sm90/halo_geometry.h"

namespace epiconv::sm90 {

// How a kernel takes the statistics of a GroupNorm.
enum class NormPlan : std::uint8_t {
  kNone,       // not at all
  kOfStored,   // of what it stores, which a pass behind it normalises
  kHold,       // before it stores a tile, while it holds all of the image
  kRecompute,  // on visits of their own
};

// Whether one kernel takes the statistics and normalises.
EPICONV_HOST_DEVICE constexpr bool in_one_kernel(NormPlan plan) {
  return plan == NormPlan::kHold || plan == NormPlan::kRecompute;
}

// Of a whole card, for the planner. Where there are fewer, what cannot be held is computed twice, to the same
// bits.
inline constexpr std::int32_t kMultiprocessors = 132;

enum class Visit : std::uint8_t { kStore, kStatistics, kBoth };

// How a launch visits its tiles.
struct Visits {
  // Tiles that blocks hold together, of whole images, in one round or two; 0: none is held.
  std::int32_t held = 0, held_shift = 0;
  std::int32_t held_images = 0;  // 0 if one is held in two rounds
  std::int32_t chunk = 0;        // images; 0: every tile is visited once
  std::int32_t chunks = 0;
  std::int32_t image_tiles = 0, chunk_tiles = 0;
  std::int32_t share = 0;  // tiles of a chunk that a block takes
  std::int32_t dealt = 0;  // blocks that a chunk is dealt to, without whole rounds
  Divisor blocks{1};

  static Visits holding(const HaloGeometry& g, std::int32_t blocks) {
    Visits visits;
    const std::int32_t image_tiles = g.tiles / g.batch;
    visits.held = image_tiles < blocks ? blocks / image_tiles * image_tiles : image_tiles;
    visits.held_shift = visits.held > blocks ? 1 : 0;
    visits.held_images = visits.held > blocks ? 0 : visits.held / image_tiles;
    return visits;
  }
  // Whether so many blocks hold an image.
  static bool can_hold(const HaloGeometry& g, std::int32_t blocks) {
    return g.tiles / g.batch <= blocks * (g.sharers == 1 ? 2 : 1);
  }

  // Of tiles that are visited twice, in so many blocks. Chunks are as small as blocks can be kept busy with:
  // an image is stored soon after its statistics, while some of its input may be in the L2.
  static Visits twice(const HaloGeometry& g, std::int32_t blocks) {
    constexpr std::int32_t kGoodShare = 8;
    Visits visits;
    visits.image_tiles = g.tiles / g.batch;
    const std::int64_t wanted = std::int64_t{kGoodShare} * blocks;
    const std::int64_t chunk = (wanted + visits.image_tiles - 1) / visits.image_tiles;
    visits.chunk = static_cast<std::int32_t>(chunk < g.batch ? chunk : g.batch);
    visits.chunks = (g.batch + visits.chunk - 1) / visits.chunk;
    visits.chunk_tiles = visits.chunk * visits.image_tiles;
    visits.share = (visits.chunk_tiles + blocks - 1) / blocks;
    visits.dealt = (visits.chunk_tiles + visits.share - 1) / visits.share % blocks;
    visits.blocks = Divisor(static_cast<std::uint32_t>(blocks));
    return visits;
  }
};

// Consecutive tiles.
struct TileRange {
  std::int32_t first, last;
  Visit visit;

  EPICONV_HOST_DEVICE static TileRange of_block(const HaloGeometry& g, std::int32_t block,
                                                std::int32_t blocks) {
    const auto begin = [&](std::int32_t index) {
      return static_cast<std::int32_t>(static_cast<std::int64_t>(index) * g.tiles / blocks);
    };
    return {begin(block), begin(block + 1), Visit::kStore};
  }

  // Number `index` of a block, of 2 * chunks.
  EPICONV_HOST_DEVICE static TileRange of_visits(const HaloGeometry& g, const Visits& visits,
                                                 std::int32_t index, std::int32_t block) {
    const bool is_last = index == 2 * visits.chunks - 1;
    const bool is_store = is_last || (index > 0 && index % 2 == 0);
    const std::int32_t chunk = !is_store ? (index + 1) / 2 : is_last ? visits.chunks - 1 : index / 2 - 1;
    const std::int32_t begin = chunk * visits.chunk_tiles, left = g.tiles - begin;
    const std::int32_t tiles = left < visits.chunk_tiles ? left : visits.chunk_tiles;
    const auto blocks = static_cast<std::int32_t>(visits.blocks.divisor);
    const std::int32_t dealt = chunk * visits.dealt;  // blocks, of all chunks before
    std::int32_t rank = block - (dealt - visits.blocks.quotient(dealt) * blocks);
    if (rank < 0) rank += blocks;
    const auto within = [&](std::int32_t tile) { return begin + (tile < tiles ? tile : tiles); };
    return {within(rank * visits.share), within(rank * visits.share + visits.share),
            is_store ? Visit::kStore : Visit::kStatistics};
  }
};

// What a walk is through: the tiles of one of so many blocks.
struct BlockTiles {
  const HaloGeometry& g;
  const Visits& visits;
  std::int32_t block, blocks;
};

// `kGeneral`: of a kernel for joint rows, and for tiles that are visited twice; others spend nothing on that.
template <bool kGeneral>
struct TileWalk {
  std::int32_t ranges = 0;  // that have begun
  TileRange range{};
  std::int32_t number = 0;  // of the tile
  std::int32_t index = 0;   // of the visit in the block
  bool follows = false;     // the block's tile before is the one before this
  Tile tile{};

  EPICONV_HOST_DEVICE explicit TileWalk(const BlockTiles& of) { enter_range(of); }
  EPICONV_HOST_DEVICE bool ended() const { return number >= range.last; }
  EPICONV_HOST_DEVICE void advance(const BlockTiles& of) {
    ++index;
    if (kGeneral && of.visits.held_images > 0) {  // of which the block has the same tile each time
      number += of.visits.held;
      tile.raster += of.visits.held_images;
      range.last = number < of.g.tiles ? number + 1 : number;
      return;
    }
    ++number;
    follows = true;
    if (!kGeneral || !ended()) {
      tile.advance(of.g);
    } else {
      enter_range(of);
    }
  }
  EPICONV_HOST_DEVICE Visit visit() const { return kGeneral ? range.visit : Visit::kStore; }

 private:
  // The next one that is not empty.
  EPICONV_HOST_DEVICE void enter_range(const BlockTiles& of) {
    if (kGeneral && of.visits.held > 0) {
      range = next_held(of);
    } else if (!kGeneral || of.visits.chunk == 0) {
      if (ranges++ > 0) return;
      range = TileRange::of_block(of.g, of.block, of.blocks);
    } else {
      do {
        if (ranges == 2 * of.visits.chunks) {
          number = range.last;
          return;
        }
        range = TileRange::of_visits(of.g, of.visits, ranges++, of.block);
      } while (range.first == range.last);
    }
    number = range.first;
    follows = false;
    if (!ended()) tile = Tile::of(of.g, number);
  }

  EPICONV_HOST_DEVICE TileRange next_held(const BlockTiles& of) {
    for (;; ++ranges) {
      const std::int32_t begin = (ranges >> of.visits.held_shift) * of.visits.held;
      const std::int32_t at = (ranges & of.visits.held_shift) * of.blocks + of.block;
      if (begin >= of.g.tiles) return {begin, begin, Visit::kBoth};
      if (at >= of.visits.held || begin + at >= of.g.tiles) continue;
      ++ranges;
      return {begin + at, begin + at + 1, Visit::kBoth};
    }
  }
};

}  // namespace epiconv::sm90
