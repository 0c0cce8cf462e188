// Compiles a kernel at run time, or finds what an earlier process has made of it.
#pragma once

#include <optional>
#include <string>

namespace epiconv {

struct KernelSource {
  std::string text;          // may include what cmake/EpiconvEmbed.cmake embeds
  std::string architecture;  // "sm_90a"
};

struct KernelCode {
  std::string machine_code;  // an ELF image
  int spilled_bytes;         // of a thread's registers, to memory
};

// nullopt, with a sentence in `why_not`, where there is no compiler or it does not take the source.
std::optional<KernelCode> compile_kernel(const KernelSource& source, std::string& why_not);

}  // namespace epiconv
