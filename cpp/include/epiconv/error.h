// Checks that throw. The library never exits and never prints.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "epiconv/export.h"

namespace epiconv {

// The caller gave something that is not allowed; the message says what was given, what is
// allowed and what to do. ValueError in Python.
class EPICONV_API InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Valid input that this build or this card cannot run. NotImplementedError in Python.
class EPICONV_API NotSupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A CUDA call failed; the message names the kernel and the problem. epiconv.CudaError in Python.
class EPICONV_API CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Joins its arguments with operator<<.
template <typename... Parts>
std::string concat(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

// Throws InvalidArgument with the joined message unless `condition` holds.
template <typename... Parts>
void require(bool condition, Parts&&... message) {
  if (!condition) throw InvalidArgument(concat(std::forward<Parts>(message)...));
}

}  // namespace epiconv
