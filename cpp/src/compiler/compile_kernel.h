// Compiles a kernel at run time, or finds what an earlier process has made of it.
#pragma once

#include <optional>
#include <string>

namespace epiconv {

struct KernelSource {
  std::string text;  // may include what cmake/EpiconvEmbed.cmake embeds
  int capability;    // of the card: 90 for 9.0
};

struct KernelCode {
  std::string machine_code;  // an ELF image
  bool spills;               // registers to memory
};

// nullopt, with a sentence in `why_not`, where there is no compiler or it does not take the source.
std::optional<KernelCode> compile_kernel(const KernelSource& source, std::string& why_not);

}  // namespace epiconv
