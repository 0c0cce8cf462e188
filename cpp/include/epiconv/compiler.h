// The compiler with which kernels are compiled for one plan, at run time: NVRTC, of CUDA 12.8 or newer,
// loaded when it is first needed. What it made is kept in a directory and serves later processes.
#pragma once

#include <string>

#include "epiconv/export.h"

namespace epiconv {

struct CompilerSettings {
  std::string library;          // path of libnvrtc.so; "": where the loader looks
  std::string cache_directory;  // is made when it is missing; "": nothing is kept
};

// Before the first kernel is compiled; later calls change the directory only. Safe to call from several
// threads.
EPICONV_API void set_compiler(CompilerSettings settings);

// Why nothing can be compiled, "" if it can: loads the library.
EPICONV_API std::string why_no_compiler();

}  // namespace epiconv
