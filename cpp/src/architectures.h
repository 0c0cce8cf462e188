// Which cards the code of a build runs on.
#pragma once

#include <charconv>
#include <string_view>

namespace epiconv {

// `architectures`: what a build has, "sm_80, compute_80, sm_90a": machine code, which runs on later cards of
// the same generation; PTX, which runs on every later card; machine code of one capability alone.
// `capability`: of the card, 90 for 9.0.
inline bool has_code_for(std::string_view architectures, int capability) {
  while (!architectures.empty()) {
    const std::size_t end = architectures.find(", ");
    const std::string_view name = architectures.substr(0, end);
    architectures.remove_prefix(end == std::string_view::npos ? architectures.size() : end + 2);
    const std::string_view number = name.substr(name.find('_') + 1);
    int from = 0;
    const char* const last = std::from_chars(number.data(), number.data() + number.size(), from).ptr;
    const bool is_of_one = last != number.data() + number.size();  // "90a"
    if (from == capability) return true;
    if (is_of_one || from > capability) continue;
    if (name.starts_with("compute_") || from / 10 == capability / 10) return true;
  }
  return false;
}

}  // namespace epiconv
