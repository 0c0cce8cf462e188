# epiconv_compile_options: what every target of this project is compiled with.

add_library(epiconv_compile_options INTERFACE)

target_include_directories(epiconv_compile_options INTERFACE
  "${PROJECT_SOURCE_DIR}/cpp/include" "${PROJECT_SOURCE_DIR}/cpp/src")

# The strings go to C++ only, so that a new version number does not recompile the kernels.
target_compile_definitions(epiconv_compile_options INTERFACE
  EPICONV_HAS_CUDA=${EPICONV_HAS_CUDA}
  $<$<BOOL:${EPICONV_WATCHDOG}>:EPICONV_WATCHDOG>
  $<$<BOOL:${EPICONV_JITTER}>:EPICONV_JITTER>
  $<$<COMPILE_LANGUAGE:CXX>:EPICONV_VERSION="${PROJECT_VERSION}">
  "$<$<COMPILE_LANGUAGE:CXX>:EPICONV_CUDA_ARCHITECTURES_STRING=\"${EPICONV_CUDA_ARCHITECTURES_STRING}\">")

target_compile_options(epiconv_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;-lineinfo>)
if(EPICONV_WERROR)
  target_compile_options(epiconv_compile_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror;-Werror=all-warnings>)
endif()
