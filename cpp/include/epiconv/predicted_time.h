// What a plan is predicted to take, by a model made of what the card can do at most (docs/planner.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "epiconv/export.h"

namespace epiconv {

// What a card has only so much of.
enum class Ceiling : std::uint8_t {
  kTensor,            // products, with what fills up tiles and steps
  kPower,             // what moving bytes takes from the products
  kSharedMemory,      // its port
  kL2,                // what the L2 cache brings to multiprocessors
  kDram,              // what comes from memory or goes there
  kIssue,             // instructions of the store stage
  kSpecialFunctions,  // exponentials, reciprocals and their like
  kWaves,             // what the slowest multiprocessor has to do beyond the others
  kPasses,            // kernels before and behind
  kLaunch,
};
inline constexpr std::size_t kNumCeilings = 10;
EPICONV_API std::string_view name_of(Ceiling ceiling);  // "L2 fill"

// "28.4 us"
EPICONV_API std::string us_text(double us);

struct PredictedTime {
  double us = 0.0;  // microseconds
  // Of each ceiling, if nothing else took time and all multiprocessors had as much to do. Most of it happens
  // at the same time, so that `us` is not their sum.
  std::array<double, kNumCeilings> of{};

  double& operator[](Ceiling ceiling) { return of[static_cast<std::size_t>(ceiling)]; }
  double operator[](Ceiling ceiling) const { return of[static_cast<std::size_t>(ceiling)]; }
  // The largest.
  EPICONV_API Ceiling limit() const;
  // "28.4 us (tensor 21.0, L2 fill 25.1, DRAM 6.2, launch 2.2; limited by L2 fill)"
  EPICONV_API std::string text() const;
};

}  // namespace epiconv
