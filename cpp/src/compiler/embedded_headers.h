// The headers of kernels that are compiled at run time, as they were when the library was built.
#pragma once

#include <cstddef>

namespace epiconv {

// By the names under which they are included.
extern const char* const kEmbeddedNames[];
extern const char* const kEmbeddedTexts[];
extern const std::size_t kNumEmbedded;

}  // namespace epiconv
