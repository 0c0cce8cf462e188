#include <cstdlib>

#include "architectures.h"
#include "epiconv/device.h"
#include "epiconv/error.h"

namespace epiconv {
namespace {

// "12.8" -> 1208.
int version_number(const std::string& version) {
  const std::size_t dot = version.find('.');
  if (dot == std::string::npos) return 0;
  return 100 * std::atoi(version.c_str()) + std::atoi(version.c_str() + dot + 1);
}

}  // namespace

std::string why_not_on_card(int major, int minor) {
  if (!EPICONV_HAS_CUDA) {
    return "this build of epiconv has no CUDA kernels: install the CUDA toolkit (12.8 or newer), put nvcc on "
           "PATH and build again";
  }
  if (major < 8) {
    return concat("the card has compute capability ", major, ".", minor,
                  ", and epiconv's kernels need 8.0 or newer");
  }
  if (has_code_for(EPICONV_CUDA_ARCHITECTURES_STRING, 10 * major + minor)) return "";
  return concat("this build of epiconv is for ", EPICONV_CUDA_ARCHITECTURES_STRING,
                ", and the card has compute capability ", major, ".", minor,
                ": build with EPICONV_CUDA_ARCHITECTURES=", major, minor, "-real among others");
}

std::string why_not_on_driver(const std::string& driver) {
  const std::string toolkit = cuda_toolkit_version();
  if (toolkit.empty()) return "";
  if (driver.empty()) return "no NVIDIA driver is installed";
  // Kernels of one major version run on every driver of that version; PTX needs one as new as the toolkit.
  if (version_number(driver) / 100 >= version_number(toolkit) / 100) return "";
  return concat("the NVIDIA driver supports CUDA ", driver, ", and this build of epiconv is of CUDA ",
                toolkit, ": update the driver, or build with an older toolkit (12.8 or newer)");
}

}  // namespace epiconv
