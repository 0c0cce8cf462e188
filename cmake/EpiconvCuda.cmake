# Decides whether the CUDA kernels are built, and for which cards.
# Sets EPICONV_HAS_CUDA (0 or 1) and EPICONV_CUDA_ARCHITECTURES_STRING; with CUDA, enables the language and
# finds the toolkit.

# Entries as in CMAKE_CUDA_ARCHITECTURES: "80" is machine code and PTX, "80-real" machine code only,
# "80-virtual" PTX only.
#   80       machine code for 8.x, and the PTX from which the driver compiles for every newer card that has
#            no machine code here (10.x, 12.x…). PTX of compute_90 would serve the same cards less one
#            generation and nothing in the portable kernels needs it; PTX of compute_90a runs on 9.0 only.
#   90a-real machine code for 9.0 with wgmma and the other instructions of that one generation.
set(epiconv_default_architectures "80;90a-real")
if(CMAKE_CUDA_ARCHITECTURES)
  set(epiconv_default_architectures "${CMAKE_CUDA_ARCHITECTURES}")
endif()
set(EPICONV_CUDA_ARCHITECTURES "${epiconv_default_architectures}" CACHE STRING
  "CUDA architectures, in the form of CMAKE_CUDA_ARCHITECTURES")

if(NOT EPICONV_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "EPICONV_CUDA is ${EPICONV_CUDA}; it must be AUTO, ON or OFF.")
endif()

# Not check_language(): that also answers no when an nvcc is there but does not work, and the build would
# go on silently without CUDA.
set(EPICONV_HAS_CUDA 0)
if(NOT EPICONV_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
  elseif(NOT CMAKE_CUDA_COMPILER)
    find_program(EPICONV_NVCC nvcc
      HINTS ENV CUDA_HOME ENV CUDA_PATH ENV CUDAToolkit_ROOT
      PATHS /usr/local/cuda /opt/cuda
      PATH_SUFFIXES bin
      DOC "nvcc")
    mark_as_advanced(EPICONV_NVCC)
    if(EPICONV_NVCC)
      set(CMAKE_CUDA_COMPILER "${EPICONV_NVCC}")
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    set(EPICONV_HAS_CUDA 1)
  elseif(EPICONV_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "EPICONV_CUDA=ON, but no nvcc was found. Install the CUDA toolkit (12.8 or newer) and put nvcc on "
      "PATH, or set CUDACXX=/path/to/nvcc. EPICONV_CUDA=OFF builds for the CPU only.")
  endif()
endif()

if(EPICONV_HAS_CUDA)
  # Asked before the language is enabled, which fails less clearly when nvcc does not know an architecture.
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  if(nvcc_version MATCHES "release ([0-9]+\\.[0-9]+)" AND CMAKE_MATCH_1 VERSION_LESS 12.8)
    message(FATAL_ERROR
      "${CMAKE_CUDA_COMPILER} is of CUDA toolkit ${CMAKE_MATCH_1}; epiconv needs 12.8 or newer. Set "
      "CUDACXX=/path/to/newer/nvcc, or build for the CPU only with EPICONV_CUDA=OFF.")
  endif()

  # Set before the language is enabled: CMake would otherwise try its compiler on a default of its own,
  # which newer toolkits may have dropped.
  set(CMAKE_CUDA_ARCHITECTURES "${EPICONV_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  # CMake 3.25 does not know this option of nvcc yet.
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  find_package(CUDAToolkit 12.8 REQUIRED)

  # As nvcc names them, for epiconv.info(): "sm_80, compute_80, sm_90a".
  set(names "")
  foreach(architecture IN LISTS EPICONV_CUDA_ARCHITECTURES)
    string(REGEX REPLACE "-.*" "" number "${architecture}")
    if(NOT architecture MATCHES "-virtual$")
      list(APPEND names "sm_${number}")
    endif()
    if(NOT architecture MATCHES "-real$")
      list(APPEND names "compute_${number}")
    endif()
  endforeach()
  list(JOIN names ", " EPICONV_CUDA_ARCHITECTURES_STRING)
  message(STATUS "epiconv: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, ${EPICONV_CUDA_ARCHITECTURES_STRING}")
else()
  set(EPICONV_CUDA_ARCHITECTURES_STRING "")
  message(STATUS "epiconv: CPU only (EPICONV_CUDA=${EPICONV_CUDA})")
endif()
