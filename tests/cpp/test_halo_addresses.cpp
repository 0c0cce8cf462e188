// Addresses within shared memory of the halo-tile convolution: who holds, writes and reads what there, and
// that no banks conflict.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <set>
#include <string>
#include <utility>

#include "epiconv/error.h"
#include "expectations.h"
#include "sm90/raw_rows.h"
#include "sm90/stored_pairs.h"

using namespace epiconv::sm90;
using namespace expectations;
using epiconv::concat;

namespace {

// As the figures of the PTX ISA have them: 16-byte piece j of row i.
void check_swizzle() {
  for (const std::int32_t row_bytes : {32, 64, 128}) {
    subject = concat("rows of ", row_bytes, " bytes");
    std::set<std::uint32_t> seen;
    for (std::uint32_t address = 0; address < 4 * kSwizzleAtom; ++address) {
      const std::uint32_t line = address / 128, byte = address % 128;
      const std::uint32_t pieces = static_cast<std::uint32_t>(row_bytes) / 16;
      const std::uint32_t piece = byte / 16, within = piece % pieces;
      // Lines of 128 bytes are numbered so that `pieces` of them bring every exchange once.
      const std::uint32_t exchanged = piece - within + (within ^ (line % pieces));
      const std::uint32_t to = swizzled(address, row_bytes);
      expect(to == line * 128 + exchanged * 16 + byte % 16, "byte ", address, " lies at ", to);
      expect(swizzled(to, row_bytes) == address, "byte ", address, " does not come back");
      seen.insert(to);
    }
    expect(seen.size() == 4 * kSwizzleAtom, "two bytes at one address");
  }
}

// Passes that shared memory needs for one access of a warp, in the worst group of lanes: lanes access in
// groups that bring 128 bytes, and a pass serves each of the 32 banks with one word. `address` is in bytes,
// of the first of `bytes` of a lane.
template <typename Address>
int passes(int bytes, const Address& address) {
  int most = 0;
  const int lanes = std::min(32, 128 / bytes);
  for (int first = 0; first < 32; first += lanes) {
    std::array<std::set<std::int32_t>, 32> banks;
    for (int lane = first; lane < first + lanes; ++lane) {
      const std::int32_t at = address(lane);
      expect(at % bytes == 0, bytes, " bytes at ", at);
      for (int byte = 0; byte < bytes; byte += 4) {
        const std::int32_t word = (at + byte) / 4;
        banks[static_cast<std::size_t>(word % 32)].insert(word);
      }
    }
    for (const auto& bank : banks) most = std::max(most, static_cast<int>(bank.size()));
  }
  return most;
}

// How elements pass through a warp's staging memory, a piece of filters or a run of pixels, and the passes
// that reading them takes.
struct StagedAccess {
  bool is_filters;
  int size, width, read_passes;
  int phases = 1;        // of columns
  int write_passes = 1;  // that writing takes

  std::string text() const {
    return concat(width, is_filters ? " filters" : " pixels", " of ", size, " bytes, ", phases, " phases");
  }
  StoredElements elements(int lane, int turn) const {
    return is_filters ? StoredElements::filters(width, lane, turn)
                      : StoredElements::pixels(width, lane, turn);
  }
  int offset(int filter, int pixel) const {
    return is_filters
               ? filters_offset(filter, pixel)
               : visit_phases([&]<int kPhases>() { return pixels_offset<kPhases>(size, filter, pixel); });
  }
  template <typename Visitor>
  int visit_phases(Visitor&& visitor) const {
    if (phases == 1) return visitor.template operator()<1>();
    if (phases == 2) return visitor.template operator()<2>();
    return visitor.template operator()<4>();
  }
  int position(int lane, int i) const {
    return visit_phases([&]<int kPhases>() { return piece_position<kPhases>(lane % 4, i); });
  }
  int matrix_row(int lane) const {
    return visit_phases([&]<int kPhases>() { return matrix_position<kPhases>(lane); });
  }
  bool in_matrices() const { return size == 2 && (is_filters || phases == 1); }
  int pixels() const { return is_filters ? kPiecePixels : kRunPixels; }
  int turns() const { return stored_turns(width) * (is_filters ? 1 : kRunPieces); }
  int staging_bytes() const { return is_filters ? filters_staging_bytes() : pixels_staging_bytes(size); }
};
constexpr StagedAccess kStagedAccesses[] = {
    {true, 2, 8, 2},        {false, 4, 2, 1},       {false, 4, 1, 1},       {false, 2, 2, 1},
    {false, 2, 1, 1},       {true, 2, 8, 2, 2, 2},  {false, 4, 2, 1, 2, 1}, {false, 4, 1, 1, 2, 1},
    {false, 2, 2, 1, 2, 1}, {false, 2, 1, 1, 2, 1}, {true, 2, 8, 2, 4, 4},  {false, 4, 2, 1, 4, 1},
    {false, 4, 1, 1, 4, 1}, {false, 2, 2, 1, 4, 1}, {false, 2, 1, 1, 4, 1}};

// A matrix's rows of 16 bytes are written at once.
int matrix_write_passes(const StagedAccess& access) {
  int most = 0;
  for (int first = 0; first < access.pixels(); first += kPiecePixels) {
    for (int h = 0; h < 2; ++h) {
      most = std::max(most, passes(16, [&](int lane) {
                        return access.is_filters ? access.offset(8 * h, first + access.matrix_row(lane))
                                                 : access.offset(8 * h + lane % 8, first + lane / 8 * 8);
                      }));
    }
  }
  return most;
}

// Pixels of a filter that lie side by side, 16 bytes at most.
int word_write_passes(const StagedAccess& access) {
  const int together = std::min(2 * access.phases, 16 / access.size);
  int most = 0;
  for (int first = 0; first < access.pixels(); first += kPiecePixels) {
    for (int i = 0; i < kPieceWord; i += together) {
      most = std::max(most, passes(together * access.size, [&](int lane) {
                        const int offset = access.offset(lane / 4, first + access.position(lane, i));
                        for (int k = 0; k < together; ++k) {
                          expect(access.offset(lane / 4, first + access.position(lane, i + k)) ==
                                     offset + k * access.size,
                                 "value ", i + k, " does not lie beside value ", i);
                        }
                        return offset;
                      }));
    }
  }
  return most;
}

void check_staging_banks() {
  for (const StagedAccess& access : kStagedAccesses) {
    subject = concat("banks of staging memory, ", access.text());
    const int needed = access.in_matrices() ? matrix_write_passes(access) : word_write_passes(access);
    expect(needed == access.write_passes, "a write takes ", needed, " passes");
    int most = 0;
    for (int turn = 0; turn < access.turns(); ++turn) {
      most = std::max(most, passes(access.width * access.size, [&](int lane) {
                        const StoredElements read = access.elements(lane, turn);
                        return access.offset(read.filter, read.pixel);
                      }));
    }
    expect(most == access.read_passes, "a read takes ", most, " passes");
  }
}

// Rings of pairs, of filters whose shifts are all even or all odd. A lane writes a pair of its filter, at
// whatever number the piece begins with, and reads two of another.
void check_ring_banks() {
  for (std::uint32_t first = 0; first < kRingPairs; ++first) {
    for (std::uint32_t step = 0; step < kSectorPairs; step += 2) {
      for (std::uint32_t odd = 0; odd < 2; ++odd) {
        subject =
            concat("banks of a ring from pair ", first, " on, shifts of ", odd, " + ", step, " * filter");
        const auto shift = [&](std::uint32_t filter) { return (odd + step * filter) % kSectorPairs; };
        const int writes = passes(kPairBytes, [&](int lane) {
          const auto filter = static_cast<std::uint32_t>(lane) / 4, x = static_cast<std::uint32_t>(lane) % 4;
          const std::uint32_t places =
              turned_places((first + x) % kRingPairs * kPairBytes, ring_turn(lane / 4, shift(filter)));
          return static_cast<std::int32_t>(filter * kRingBytes + (places & 0xFF));
        });
        expect(writes == 1, "a write takes ", writes, " passes");
        const int reads = passes(2 * kPairBytes, [&](int lane) {
          const auto filter = static_cast<std::uint32_t>(lane) / 8;
          const std::uint32_t pair = static_cast<std::uint32_t>(whole_sectors(static_cast<int>(first))) +
                                     static_cast<std::uint32_t>(lane) % 8 * 2;
          const std::uint32_t place = pair - shift(filter) + ring_turn(lane / 8, shift(filter));
          return static_cast<std::int32_t>(filter * kRingBytes + place % kRingPairs * kPairBytes);
        });
        expect(reads == 1, "a read takes ", reads, " passes");
      }
    }
  }
}

// A warp's filters of a piece, as box_store.h stages them.
template <int kPhases>
void check_box_banks() {
  for (int warp_filter = 0; warp_filter < kGroupFilters; warp_filter += kWarpFilters) {
    subject = concat("banks of a box, filters from ", warp_filter, " on, ", kPhases, " phases");
    for (int h = 0; h < 2; ++h) {
      const int of_matrices = passes(16, [&](int lane) {
        return static_cast<std::int32_t>(box_offset(2, matrix_position<kPhases>(lane), warp_filter) ^
                                         static_cast<std::uint32_t>(16 * h));
      });
      expect(of_matrices == kPhases, "a matrix takes ", of_matrices, " passes");
      for (int i = 0; i < kPieceWord; ++i) {
        const int of_words = passes(4, [&](int lane) {
          const int filter = warp_filter + lane / 4 + 8 * h;
          return static_cast<std::int32_t>(box_offset(4, piece_position<kPhases>(lane % 4, i), filter));
        });
        expect(of_words == kPhases, "a write takes ", of_words, " passes");
      }
    }
  }
}

// Every element of a box has a place of its own; lines begin where a swizzle does.
void check_boxes() {
  for (const int size : {2, 4}) {
    subject = concat("boxes of ", size, " bytes");
    std::set<std::uint32_t> places;
    for (int pixel = 0; pixel < box_pixels(size); ++pixel) {
      for (int filter = 0; filter < kGroupFilters; ++filter) {
        const std::uint32_t place = box_offset(size, pixel, filter);
        expect(place % static_cast<std::uint32_t>(size) == 0, "an element at ", place);
        places.insert(place);
      }
    }
    expect(static_cast<int>(places.size()) == box_pixels(size) * kGroupFilters, places.size(), " places");
    expect(static_cast<int>(*places.rbegin()) == kBoxBytes - size, "the last at ", *places.rbegin());
    expect(kBoxBytes % kSwizzleAtom == 0, "a box of ", kBoxBytes, " bytes");
    for (int first = 0; first < kGroupFilters; first += line_filters(size)) {
      expect(box_offset(size, 0, first) % kSwizzleAtom == 0, "lines at ", box_offset(size, 0, first));
    }
  }
}

// A gathering warp's lanes hold consecutive pixels, and store the same 16 bytes of each.
void check_gather_banks() {
  for (const std::int32_t row_bytes : {32, 64, 128}) {
    subject = concat("gathered rows of ", row_bytes, " bytes");
    for (int pixel = 0; pixel < 64; ++pixel) {
      for (int byte = 0; byte < row_bytes; byte += 16) {
        const int needed = passes(16, [&](int lane) {
          const auto address = static_cast<std::uint32_t>((pixel + lane) * row_bytes + byte);
          return static_cast<std::int32_t>(swizzled(address, row_bytes));
        });
        expect(needed == 1, "a store from pixel ", pixel, " on takes ", needed);
      }
    }
  }
}

// ldmatrix reads 16 bytes of each of 8 channels of a raw stage at once, and stmatrix writes those of 8
// pixels.
void check_turned_banks() {
  for (int width = 8; width <= kMaxPitch; width += 16) {  // an odd number of 16 bytes
    subject = concat("raw rows of ", width);
    HaloGeometry g{};
    g.raw_width = width;
    for (const std::uint32_t pitch : {8U, 16U, 128U}) {
      g.pitch = epiconv::Divisor(pitch);
      if (static_cast<int>(pitch) > width) continue;
      const int needed = passes(16, [&](int lane) { return RawMatrixLane::of(g, lane).from(g); });
      expect(needed == 1, "a matrix of rows of ", pitch, " takes ", needed, " passes");
    }
  }
  for (const std::int32_t row_bytes : {32, 64, 128}) {
    subject = concat("turned rows of ", row_bytes, " bytes");
    for (int pixel = 0; pixel < 64; ++pixel) {
      const int needed = passes(16, [&](int lane) {
        const auto row = static_cast<std::uint32_t>((pixel + lane) * row_bytes);
        return static_cast<std::int32_t>(swizzled(row, row_bytes));
      });
      expect(needed == 1, "a store from pixel ", pixel, " on takes ", needed);
    }
  }
}

// Every value of a warp has one accumulator, which is where pieces look for it.
template <int kPhases>
void check_fragments() {
  subject = concat("fragments of ", kPhases, " phases");
  std::set<std::pair<int, int>> held;
  std::set<int> taken;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < kAccumulators; ++i) {
      const int position = accumulator_position<kPhases>(lane, i);
      expect(position % kPhases == i / kPhaseAccumulators<kPhases>, "accumulator ", i, " has position ",
             position);
      held.emplace(accumulator_filter(lane, i), position);
    }
    for (int piece = 0; piece < kPieces; ++piece) {
      for (int j = 0; j < kPieceAccumulators; ++j) {
        const int half = j / kPieceWord, i = piece_accumulator<kPhases>(piece, half, j % kPieceWord);
        const int position = piece * kPiecePixels + piece_position<kPhases>(lane % 4, j % kPieceWord);
        expect(accumulator_filter(lane, i) == lane / 4 + 8 * half &&
                   accumulator_position<kPhases>(lane, i) == position,
               "value ", j, " of piece ", piece, " is accumulator ", i);
        taken.insert(i);
      }
    }
    // Lane 8 * j + r names the row of what lanes with quad r / 2 have as value 2 * j + r % 2.
    expect(matrix_position<kPhases>(lane) == piece_position<kPhases>(lane % 8 / 2, lane / 8 * 2 + lane % 2),
           "row ", lane, " of a matrix");
  }
  expect(held.size() == std::size_t{kWarpFilters} * kTilePixels, held.size(), " values are held");
  expect(held.rbegin()->first == kWarpFilters - 1, "filter ", held.rbegin()->first);
  expect(taken.size() == std::size_t{kAccumulators}, taken.size(), " accumulators are stored");
}

// Every element of a piece or run has a place of its own in staging memory, and one lane stores it once, with
// those that lie beside it there.
void check_staged(const StagedAccess& access) {
  subject = concat("staging memory, ", access.text());
  const auto offset = [&](int filter, int pixel) { return access.offset(filter, pixel); };
  const std::size_t elements =
      static_cast<std::size_t>(kWarpFilters) * static_cast<std::size_t>(access.pixels());
  std::set<int> places;
  for (int filter = 0; filter < kWarpFilters; ++filter) {
    for (int pixel = 0; pixel < access.pixels(); ++pixel) places.insert(offset(filter, pixel));
  }
  expect(places.size() == elements, places.size(), " places");
  int behind = 0;
  for (const int place : places) {
    expect(place >= behind, "elements overlap at ", place);
    behind = place + access.size;
  }
  expect(behind <= access.staging_bytes(), behind, " bytes are taken");
  std::multiset<std::pair<int, int>> stored;
  for (int turn = 0; turn < access.turns(); ++turn) {
    for (int lane = 0; lane < 32; ++lane) {
      const StoredElements first = access.elements(lane, turn);
      for (int k = 0; k < access.width; ++k) {
        const int filter = first.filter + (access.is_filters ? k : 0);
        const int pixel = first.pixel + (access.is_filters ? 0 : k);
        expect(offset(filter, pixel) == offset(first.filter, first.pixel) + k * access.size, "element ", k,
               " of lane ", lane, " does not lie beside its first");
        stored.emplace(filter, pixel);
      }
    }
  }
  expect(stored.size() == elements, stored.size(), " stores");
  for (int filter = 0; filter < kWarpFilters; ++filter) {
    for (int pixel = 0; pixel < access.pixels(); ++pixel) {
      expect(stored.count({filter, pixel}) == 1, "filter ", filter, " of pixel ", pixel, " is stored ",
             stored.count({filter, pixel}), " times");
    }
  }
}

}  // namespace

int main() {
  check_swizzle();
  check_fragments<1>();
  check_fragments<2>();
  check_fragments<4>();
  for (const StagedAccess& access : kStagedAccesses) check_staged(access);
  check_staging_banks();
  check_boxes();
  check_ring_banks();
  check_box_banks<1>();
  check_box_banks<2>();
  check_box_banks<4>();
  check_gather_banks();
  check_turned_banks();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
