#include "compiler/compile_kernel.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <utility>
#include <vector>

#include "compiler/embedded_headers.h"
#include "compiler/kernel_files.h"
#include "epiconv/compiler.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

// What is used of NVRTC's interface, which is plain C.
using NvrtcProgram = struct NvrtcProgramState*;
struct Nvrtc {
  int (*version)(int*, int*);
  int (*create)(NvrtcProgram*, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(NvrtcProgram*);
  int (*compile)(NvrtcProgram, int, const char* const*);
  int (*log_size)(NvrtcProgram, std::size_t*);
  int (*log)(NvrtcProgram, char*);
  int (*code_size)(NvrtcProgram, std::size_t*);
  int (*code)(NvrtcProgram, char*);
  const char* (*error)(int);
  int major = 0, minor = 0;
};

struct Compiler {
  std::mutex mutex;
  CompilerSettings settings;
  bool is_sought = false;
  std::optional<Nvrtc> nvrtc;
  std::string why_not;
};

Compiler& compiler() {
  static Compiler* const only = new Compiler;  // is there as long as the process
  return *only;
}

// NVRTC loads a second library by its name alone: where both lie outside of the loader's paths, it has to be
// loaded before.
void load_builtins(const std::string& library) {
  namespace fs = std::filesystem;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(fs::path(library).parent_path(), failed)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("libnvrtc-builtins.so", 0) == 0) dlopen(entry.path().c_str(), RTLD_NOW | RTLD_GLOBAL);
  }
}

std::optional<Nvrtc> load(const std::string& library, std::string& why_not) {
  void* handle = nullptr;
  if (!library.empty()) {
    load_builtins(library);
    handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}) {
    if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (handle == nullptr) {
    why_not = concat("NVRTC is not there (", dlerror(), "): pip install nvidia-cuda-nvrtc");
    return std::nullopt;
  }
  Nvrtc nvrtc{};
  bool is_complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    is_complete = is_complete && function != nullptr;
  };
  find(nvrtc.version, "nvrtcVersion");
  find(nvrtc.create, "nvrtcCreateProgram");
  find(nvrtc.destroy, "nvrtcDestroyProgram");
  find(nvrtc.compile, "nvrtcCompileProgram");
  find(nvrtc.log_size, "nvrtcGetProgramLogSize");
  find(nvrtc.log, "nvrtcGetProgramLog");
  find(nvrtc.code_size, "nvrtcGetCUBINSize");
  find(nvrtc.code, "nvrtcGetCUBIN");
  find(nvrtc.error, "nvrtcGetErrorString");
  if (!is_complete || nvrtc.version(&nvrtc.major, &nvrtc.minor) != 0) {
    why_not = "this NVRTC lacks functions";
    return std::nullopt;
  }
  if (std::pair(nvrtc.major, nvrtc.minor) < std::pair(12, 8)) {
    why_not = concat("NVRTC is of CUDA ", nvrtc.major, ".", nvrtc.minor, ", and 12.8 is needed");
    return std::nullopt;
  }
  return nvrtc;
}

// The compiler, and where its work is kept; nullptr with a sentence.
const Nvrtc* find_compiler(std::string& directory, std::string& why_not) {
  Compiler& it = compiler();
  const std::lock_guard lock(it.mutex);
  if (!it.is_sought) it.nvrtc = load(it.settings.library, it.why_not);
  it.is_sought = true;
  directory = it.settings.cache_directory;
  why_not = it.why_not;
  return it.nvrtc ? &*it.nvrtc : nullptr;
}

// Of all embedded headers.
const std::string& headers_digest() {
  static const std::string digest = [] {
    std::string all;
    for (std::size_t i = 0; i < kNumEmbedded; ++i) all += concat(kEmbeddedNames[i], "\n", kEmbeddedTexts[i]);
    return digest_of(all);
  }();
  return digest;
}

std::string log_of(const Nvrtc& nvrtc, NvrtcProgram program) {
  std::size_t size = 0;
  if (nvrtc.log_size(program, &size) != 0 || size == 0) return "";
  std::string log(size, '\0');
  nvrtc.log(program, log.data());
  log.resize(log.find_last_not_of(std::string_view("\n\0", 2)) + 1);
  return log;
}

// What its log says: "…, 16 bytes spill stores, …".
int spilled_bytes(const std::string& log) {
  const std::size_t end = log.find(" bytes spill stores");
  if (end == std::string::npos) return 0;
  const std::size_t before = log.find_last_not_of("0123456789", end - 1);
  return std::atoi(log.c_str() + (before == std::string::npos ? 0 : before + 1));
}

std::optional<KernelCode> compile(const Nvrtc& nvrtc, const KernelSource& source,
                                  const std::vector<std::string>& options, std::string& why_not) {
  NvrtcProgram program = nullptr;
  std::vector<const char*> given;
  for (const std::string& option : options) given.push_back(option.c_str());
  int status = nvrtc.create(&program, source.text.c_str(), "epiconv_kernel.cu",
                            static_cast<int>(kNumEmbedded), kEmbeddedTexts, kEmbeddedNames);
  KernelCode code;
  if (status == 0) {
    status = nvrtc.compile(program, static_cast<int>(given.size()), given.data());
    const std::string log = log_of(nvrtc, program);
    code.spilled_bytes = spilled_bytes(log);
    std::size_t size = 0;
    if (status == 0) status = nvrtc.code_size(program, &size);
    code.machine_code.resize(size);
    if (status == 0) status = nvrtc.code(program, code.machine_code.data());
    if (status != 0) why_not = concat("NVRTC says ", nvrtc.error(status), ": ", log.substr(0, 500));
    nvrtc.destroy(&program);
  } else {
    why_not = concat("NVRTC says ", nvrtc.error(status));
  }
  if (status != 0) return std::nullopt;
  return code;
}

}  // namespace

void set_compiler(CompilerSettings settings) {
  Compiler& it = compiler();
  const std::lock_guard lock(it.mutex);
  it.settings = std::move(settings);
}

std::string why_no_compiler() {
  std::string directory, why_not;
  find_compiler(directory, why_not);
  return why_not;
}

std::optional<KernelCode> compile_kernel(const KernelSource& source, std::string& why_not) {
  std::string directory;
  const Nvrtc* const nvrtc = find_compiler(directory, why_not);
  if (nvrtc == nullptr) return std::nullopt;
  std::vector<std::string> options = {concat("-arch=", source.architecture),
                                      "-std=c++20",
                                      "-default-device",
                                      "-lineinfo",
                                      "--fmad=false",
                                      "--ptxas-options=-v"};
#ifdef EPICONV_WATCHDOG
  options.emplace_back("-DEPICONV_WATCHDOG");
#endif
#ifdef EPICONV_JITTER
  options.emplace_back("-DEPICONV_JITTER");
#endif
  std::string key = concat("NVRTC ", nvrtc->major, ".", nvrtc->minor, " headers ", headers_digest());
  for (const std::string& option : options) key += " " + option;
  key += "\n" + source.text;
  const KernelFiles files(directory);
  if (std::optional<std::string> kept = files.find(key); kept) {
    if (const std::size_t end = kept->find('\n'); end != std::string::npos) {
      return KernelCode{kept->substr(end + 1), std::atoi(kept->c_str())};
    }
  }
  std::optional<KernelCode> code = compile(*nvrtc, source, options, why_not);
  if (code) files.keep(key, concat(code->spilled_bytes, "\n") + code->machine_code);
  return code;
}

}  // namespace epiconv
