// A kernel that was compiled at run time, as the runtime launches it.
#pragma once

#include <mutex>
#include <string>
#include <utility>

namespace epiconv {

class LoadedKernel {
 public:
  // `name`: of its function, which is extern "C".
  LoadedKernel(std::string machine_code, const char* name)
      : machine_code_(std::move(machine_code)), name_(name) {}

  // What cudaLaunchKernel takes. Loaded at the first call, and not unloaded: graphs may hold it.
  const void* function() const;

 private:
  std::string machine_code_;
  const char* name_;
  mutable std::once_flag is_loaded_;
  mutable const void* function_ = nullptr;
};

}  // namespace epiconv
