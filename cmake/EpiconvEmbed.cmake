# The headers that kernels compiled at run time include, as strings in a source file of the library.

# Adds a header to the lists `names` and `texts` of the caller, as C++ literals.
macro(epiconv_embed_header name path)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${path}")
  file(READ "${path}" text)
  string(APPEND names "    \"${name}\",\n")
  string(APPEND texts "    R\"embedded(${text})embedded\",\n")
  math(EXPR count "${count} + 1")
endmacro()

# Writes the file, and sets `result` to its path.
function(epiconv_embed_kernel_headers result)
  set(names "")
  set(texts "")
  set(count 0)
  foreach(root "${PROJECT_SOURCE_DIR}/cpp/include" "${PROJECT_SOURCE_DIR}/cpp/src")
    file(GLOB_RECURSE headers CONFIGURE_DEPENDS
      "${root}/epiconv/*.h" "${root}/backward/*.h" "${root}/device/*.h" "${root}/sm80/*.h")
    file(GLOB own CONFIGURE_DEPENDS "${root}/step.h" "${root}/operation_dispatch.h"
      "${root}/backward_step.h" "${root}/gradient.h")
    foreach(header IN LISTS headers own)
      cmake_path(RELATIVE_PATH header BASE_DIRECTORY "${root}" OUTPUT_VARIABLE name)
      epiconv_embed_header("${name}" "${header}")
    endforeach()
  endforeach()
  # Stand-ins for headers of CUDA, and of the standard library, whose names have no suffix.
  file(GLOB shims CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cpp/src/compiler/shims/*.h")
  foreach(header IN LISTS shims)
    cmake_path(GET header FILENAME name)
    if(NOT name MATCHES "^cuda_")
      cmake_path(GET header STEM name)
    endif()
    epiconv_embed_header("${name}" "${header}")
  endforeach()
  set(file "${CMAKE_CURRENT_BINARY_DIR}/embedded_headers.cpp")
  file(CONFIGURE OUTPUT "${file}" @ONLY CONTENT [[
#include "compiler/embedded_headers.h"

namespace epiconv {

const char* const kEmbeddedNames[] = {
@names@};
const char* const kEmbeddedTexts[] = {
@texts@};
const std::size_t kNumEmbedded = @count@;

}  // namespace epiconv
]])
  set(${result} "${file}" PARENT_SCOPE)
endfunction()
