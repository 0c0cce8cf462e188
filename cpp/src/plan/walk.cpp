#include "plan/walk.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "epiconv/error.h"
#include "plan/operand_strides.h"

namespace epiconv {

using Extents = std::vector<std::int64_t>;

namespace {

std::vector<int> without_single_elements(const Extents& extents, std::vector<int> order) {
  std::erase_if(order, [&](int d) { return extents[d] == 1; });
  return order;
}

void set_access(Access& access, const Extents& strides, const std::vector<std::vector<int>>& merged,
                const Walk& walk) {
  std::int64_t dense = 1;
  access.linear = true;
  for (int d = walk.rank - 1; d >= 0; --d) {
    access.strides[d] = strides[merged[d].back()];
    access.linear &= access.strides[d] == dense;
    dense *= walk.extents[d];
  }
}

}  // namespace

bool channels_are_innermost(const Extents& extents, const Extents& strides) {
  bool has_pixels = false;
  for (std::size_t d = 2; d < extents.size(); ++d) {
    if (extents[d] == 1) continue;
    has_pixels = true;
    if (strides[d] <= strides[1]) return false;
  }
  return has_pixels && extents[1] != 1;
}

std::vector<int> memory_order(const Extents& extents, const Extents& strides) {
  std::vector<int> order(extents.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return strides[a] > strides[b]; });
  return without_single_elements(extents, order);
}

std::vector<int> norm_order(const Extents& extents, const Extents& strides) {
  std::vector<int> order(extents.size());
  std::iota(order.begin(), order.end(), 0);
  if (channels_are_innermost(extents, strides))
    std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  return without_single_elements(extents, order);
}

void check_no_overlap(std::string_view name, const Extents& extents, const Extents& strides) {
  std::int64_t reach = 0;
  const std::vector<int> order = memory_order(extents, strides);
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    require(strides[*d] > reach, name, "'s elements overlap: shape ", shape_text(extents), ", strides ",
            shape_text(strides));
    reach += strides[*d] * (extents[*d] - 1);
  }
}

Walk make_walk(const Extents& extents, const std::vector<int>& order,
               const std::vector<WalkedTensor>& tensors) {
  std::vector<std::vector<int>> merged;  // groups of dimensions that every tensor walks as one
  std::vector<std::int64_t> sizes;
  for (const int d : order) {
    bool merge = !merged.empty() && sizes.back() * extents[d] <= std::numeric_limits<std::int32_t>::max();
    if (merge) {
      const int outer = merged.back().back();
      merge = std::all_of(tensors.begin(), tensors.end(), [&](const WalkedTensor& tensor) {
        return tensor.strides[outer] == tensor.strides[d] * extents[d];
      });
    }
    if (merge) {
      merged.back().push_back(d);
      sizes.back() *= extents[d];
    } else {
      merged.push_back({d});
      sizes.push_back(extents[d]);
    }
  }
  if (merged.empty()) {  // one element
    merged.push_back({0});
    sizes.push_back(1);
  }
  Walk walk;
  walk.rank = static_cast<int>(merged.size());
  walk.count = 1;
  for (int d = 0; d < walk.rank; ++d) {
    walk.extents[d] = sizes[d];
    walk.count *= sizes[d];
  }
  for (const WalkedTensor& tensor : tensors) set_access(*tensor.access, tensor.strides, merged, walk);
  return walk;
}

}  // namespace epiconv
