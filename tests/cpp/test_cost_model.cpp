// What a plan is predicted to take, as it reads, and the order of what is predicted.
#include <algorithm>
#include <string>

#include "epiconv/conv_plan.h"
#include "expectations.h"

namespace {

using namespace epiconv;
using expectations::expect;

void check_text() {
  PredictedTime time;
  expect(time.text() == "0.0 us", time.text());
  time.us = 28.44;
  time[Ceiling::kTensor] = 21.02;
  time[Ceiling::kL2] = 125.1;
  time[Ceiling::kDram] = 0.04;  // too little to be seen
  time[Ceiling::kLaunch] = 0.5;
  expect(time.limit() == Ceiling::kL2, "limited by ", name_of(time.limit()));
  expect(time.text() == "28.4 us (tensor 21.0, L2 fill 125, launch 0.5; limited by L2 fill)", time.text());
}

ConvPlanProblem problem_of(std::int64_t batch) {
  ConvArguments arguments;
  arguments.input = {batch, 64, 56, 56};
  arguments.weight = {64, 64, 3, 3};
  arguments.stride = arguments.dilation = arguments.padding_begin = arguments.padding_end = {1, 1};
  arguments.output_padding = {0, 0};
  const Extents strides{64 * 56 * 56, 1, 56 * 64, 64};
  return {ConvProblem(arguments),
          ConvMath::kBf16,
          DType::kBFloat16,
          strides,
          16,
          PaddingMode::kZeros,
          Program(),
          std::nullopt,
          {},
          DType::kBFloat16,
          strides,
          {9, 0},
          ConvFamily::kAny,
          Compile::kAlways,
          false};
}

void check_ways() {
  double before = 0;
  for (const std::int64_t batch : {1, 8, 64}) {
    double least = 0;
    std::string names;
    for (const PredictedWay& way : predict_ways(problem_of(batch))) {
      names += way.name + " ";
      if (!way.why_not.empty()) continue;
      expect(way.time.us > 0, way.name, " takes ", way.time.us);
      least = least == 0 ? way.time.us : std::min(least, way.time.us);
    }
    expect(names == "sm90 sm90_im2col sm90_compiled sm80 cudnn+epilogue ", names);
    expect(least > before, "batch ", batch, " takes ", least, " after ", before);
    before = least;
  }
}

}  // namespace

int main() {
  check_text();
  check_ways();
  return expectations::failures == 0 ? 0 : 1;
}
