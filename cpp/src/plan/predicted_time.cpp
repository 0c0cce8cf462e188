#include "epiconv/predicted_time.h"

#include <algorithm>
#include <cstdio>

namespace epiconv {
namespace {

constexpr std::string_view kNames[kNumCeilings] = {"tensor", "power", "shared memory",     "L2 fill",
                                                   "DRAM",   "issue", "special functions", "waves",
                                                   "passes", "launch"};

// With three digits or so.
std::string number_text(double us) {
  char text[32];
  std::snprintf(text, sizeof(text), us < 99.95 ? "%.1f" : "%.0f", us);
  return text;
}

}  // namespace

std::string us_text(double us) { return number_text(us) + " us"; }

std::string_view name_of(Ceiling ceiling) { return kNames[static_cast<std::size_t>(ceiling)]; }

Ceiling PredictedTime::limit() const {
  return static_cast<Ceiling>(std::max_element(of.begin(), of.end()) - of.begin());
}

std::string PredictedTime::text() const {
  constexpr double kLeast = 0.05;  // that is seen in the text
  std::string terms;
  for (std::size_t i = 0; i < kNumCeilings; ++i) {
    if (of[i] >= kLeast) terms.append(kNames[i]).append(" ").append(number_text(of[i])).append(", ");
  }
  if (terms.empty()) return us_text(us);
  terms.replace(terms.size() - 2, 2, "; limited by ").append(name_of(limit()));
  return us_text(us).append(" (").append(terms).append(")");
}

}  // namespace epiconv
