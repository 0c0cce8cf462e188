// What a row of the operation table says about an operation besides its arithmetic.
#pragma once

#include <cstddef>
#include <string_view>

namespace epiconv {

// How an argument of an operation may be given.
enum class ArgumentKind {
  kTensor,           // a value or an operand; the first argument of every operation
  kAny,              // a value, an operand or a number
  kOptional,         // the same or None
  kNumber,           // a number written in the program
  kInteger,          // a positive integer written in the program
  kChannel,          // an operand of shape (K,): PReLU weight
  kOptionalChannel,  // the same or None: the GroupNorm affine
  kChoice,           // one of a few words; its index is the parameter's value
  kDType,            // the name of a floating dtype
};

struct ArgumentInfo {
  std::string_view name;
  ArgumentKind kind = ArgumentKind::kTensor;
  double default_value = 0.0;  // of kNumber, kChoice
  bool has_default = false;    // whether the argument may be left out
  std::string_view choices{};  // of kChoice, joined by '|'
};

inline constexpr int kMaxArguments = 5;

struct OperationInfo {
  std::string_view name;                  // torch's name
  std::string_view torch_path;            // where torch keeps it, under `torch.`: "add", "nn.functional.mish"
  ArgumentInfo arguments[kMaxArguments];  // in torch's order; unused rows have an empty name
  int max_ulp;                            // fp32 forward, against the torch operation of that name
  bool is_predicate;                      // the result is a bool
  std::string_view summary;               // one line for docstrings

  constexpr int num_arguments() const {
    int count = 0;
    while (count < kMaxArguments && !arguments[count].name.empty()) ++count;
    return count;
  }
};

// Rows of ArgumentInfo, short enough to be read as a signature.
constexpr ArgumentInfo tensor_argument(std::string_view name) { return {name, ArgumentKind::kTensor}; }
constexpr ArgumentInfo any_argument(std::string_view name) { return {name, ArgumentKind::kAny}; }
constexpr ArgumentInfo optional_argument(std::string_view name) {
  return {name, ArgumentKind::kOptional, 0.0, true};
}
constexpr ArgumentInfo number_argument(std::string_view name) { return {name, ArgumentKind::kNumber}; }
constexpr ArgumentInfo number_argument(std::string_view name, double default_value) {
  return {name, ArgumentKind::kNumber, default_value, true};
}
constexpr ArgumentInfo choice_argument(std::string_view name, std::string_view choices) {
  return {name, ArgumentKind::kChoice, 0.0, true, choices};
}

}  // namespace epiconv
