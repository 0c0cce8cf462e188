// How the elements of a pass are walked: which dimensions, in which order, and which of them as one.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "pass.h"

namespace epiconv {

// A tensor of a pass: its strides for every dimension of the output, 0 where it is broadcast, and where its
// strides along the walk go.
struct WalkedTensor {
  std::vector<std::int64_t> strides;
  Access* access;
};

// Whether a channel's neighbour in memory is the next channel of the same pixel.
bool channels_are_innermost(const std::vector<std::int64_t>& extents,
                            const std::vector<std::int64_t>& strides);

// Dimensions from the outermost in memory to the innermost, without those of one element.
std::vector<int> memory_order(const std::vector<std::int64_t>& extents,
                              const std::vector<std::int64_t>& strides);

// The same, pixel after pixel of one channel or of all, whatever the strides: so are the statistics of a
// GroupNorm gathered.
std::vector<int> norm_order(const std::vector<std::int64_t>& extents,
                            const std::vector<std::int64_t>& strides);

// Throws InvalidArgument where elements of a tensor that is written share memory.
void check_no_overlap(std::string_view name, const std::vector<std::int64_t>& extents,
                      const std::vector<std::int64_t>& strides);

// Walks the dimensions in that order, neighbours as one where every tensor allows it.
Walk make_walk(const std::vector<std::int64_t>& extents, const std::vector<int>& order,
               const std::vector<WalkedTensor>& tensors);

}  // namespace epiconv
