// What the installed driver and a card must offer.
#pragma once

#include <string>

#include "epiconv/export.h"

namespace epiconv {

// "13.0": the toolkit that built the kernels, "" without CUDA.
EPICONV_API std::string cuda_toolkit_version();
// "13.0": the newest CUDA that the installed driver supports, "" without a driver.
EPICONV_API std::string cuda_driver_version();
// Why this build has no machine code or PTX for a card of that compute capability, or "".
EPICONV_API std::string why_not_on_card(int major, int minor);
// Why a driver cannot run this build, or ""; `driver` is as of cuda_driver_version().
EPICONV_API std::string why_not_on_driver(const std::string& driver);

}  // namespace epiconv
