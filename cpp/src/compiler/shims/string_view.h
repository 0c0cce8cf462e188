// <string_view> for the run-time compiler: as much as constants of host code take.
#pragma once

namespace std {

class string_view {
 public:
  constexpr string_view() = default;
  constexpr string_view(const char* text) : text_(text) {}
  constexpr bool empty() const { return text_ == nullptr || *text_ == 0; }

 private:
  const char* text_ = nullptr;
};

}  // namespace std
