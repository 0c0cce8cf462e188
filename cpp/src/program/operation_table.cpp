#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "epiconv/epilogue.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

constexpr ArgumentInfo kEpsilon = number_argument("eps", 1e-5);

constexpr OperationInfo kGroupNormInfo{
    "group_norm",
    "nn.functional.group_norm",
    {tensor_argument("input"), ArgumentInfo{"num_groups", ArgumentKind::kInteger},
     ArgumentInfo{"weight", ArgumentKind::kOptionalChannel, 0.0, true},
     ArgumentInfo{"bias", ArgumentKind::kOptionalChannel, 0.0, true}, kEpsilon},
    8,
    false,
    "normalises each group of channels of a sample, then scales and shifts each channel"};

constexpr std::array<const OperationInfo*, kNumOperations> kTable{
#define EPICONV_ROW(Operation) &ops::Operation::kInfo,
    EPICONV_OPERATIONS(EPICONV_ROW)
#undef EPICONV_ROW
    & kGroupNormInfo};

// Levenshtein distance, for "did you mean".
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

const OperationInfo& operation_info(Opcode op) { return *kTable.at(static_cast<std::size_t>(op)); }

Opcode find_operation(std::string_view name) {
  for (int i = 0; i < kNumOperations; ++i) {
    if (kTable[i]->name == name) return static_cast<Opcode>(i);
  }
  std::string close;
  std::string all;
  for (const OperationInfo* info : kTable) {
    all.append(all.empty() ? "" : ", ").append(info->name);
    if (edit_distance(name, info->name) <= 2) close.append(close.empty() ? "" : ", ").append(info->name);
  }
  if (!close.empty())
    throw InvalidArgument(concat("unknown operation '", name, "'; did you mean ", close, "?"));
  throw InvalidArgument(concat("unknown operation '", name, "'; the operations are ", all));
}

}  // namespace epiconv
