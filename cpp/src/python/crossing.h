// How arguments cross from Python: addresses of tensors as integers, enumerators as words.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "epiconv/conv_problem.h"
#include "epiconv/epilogue.h"
#include "epiconv/error.h"

namespace epiconv::python {

namespace py = pybind11;

inline bool is_cuda(const std::string& device) {
  require(device == "cpu" || device == "cuda", "device is 'cpu' or 'cuda', not '", device, "'");
  return device == "cuda";
}

// Operands as they cross: addresses, and floats for those that are numbers.
struct CrossedOperands {
  std::array<const void*, kMaxOperands> addresses{};
  std::array<double, kMaxOperands> numbers{};
  std::size_t count = 0;

  explicit CrossedOperands(const py::tuple& operands) {
    require(operands.size() <= kMaxOperands, "a program has at most ", kMaxOperands, " operands, got ",
            operands.size());
    for (const py::handle operand : operands) {
      if (PyFloat_Check(operand.ptr())) {
        numbers[count] = PyFloat_AS_DOUBLE(operand.ptr());
      } else {
        addresses[count] = reinterpret_cast<const void*>(operand.cast<std::uintptr_t>());
      }
      ++count;
    }
  }

  template <typename Pointers>
  void give(Pointers& pointers) const {
    pointers.operands = {addresses.data(), count};
    pointers.numbers = {numbers.data(), count};
  }
};

// The index of a word in a list of words, for an enum whose values stand in that order.
template <typename Enum, std::size_t kCount>
Enum parse_word(const char* what, const std::string& word, const char* const (&words)[kCount]) {
  for (std::size_t i = 0; i < kCount; ++i) {
    if (word == words[i]) return static_cast<Enum>(i);
  }
  throw InvalidArgument(concat("there is no ", what, " '", word, "'"));
}

}  // namespace epiconv::python
