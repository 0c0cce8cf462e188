// What a test expects; it goes on where that fails.
#pragma once

#include <cstdio>
#include <string>

#include "epiconv/error.h"

namespace expectations {

inline int failures = 0;
inline std::string subject;  // of what follows

template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition || ++failures > 20) return;
  std::printf("FAILED %s: %s\n", subject.c_str(), epiconv::concat(parts...).c_str());
}

}  // namespace expectations
