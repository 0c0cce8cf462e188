# The Python module _core. It is torch-free: one build per Python serves every torch.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# scikit-build-core has put pybind11 on the search path; otherwise ask the interpreter.
find_package(pybind11 CONFIG QUIET)
if(NOT pybind11_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(pybind11 CONFIG QUIET)
endif()
if(NOT pybind11_FOUND)
  message(FATAL_ERROR "EPICONV_PYTHON=ON needs pybind11: ${Python_EXECUTABLE} -m pip install pybind11")
endif()

file(GLOB binding_sources CONFIGURE_DEPENDS cpp/src/python/*.cpp)
pybind11_add_module(_core MODULE NO_EXTRAS ${binding_sources})
target_link_libraries(_core PRIVATE epiconv epiconv_compile_options)
