# Two components: "core" is the C++ package that find_package(epiconv) finds, "python" the compiled part of
# the Python package (pip installs only that one, into epiconv/).

include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/epiconv")

install(TARGETS epiconv EXPORT epiconv-targets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT core NAMELINK_COMPONENT core)
install(DIRECTORY cpp/include/epiconv DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT core
  FILES_MATCHING PATTERN "*.h")
install(EXPORT epiconv-targets NAMESPACE epiconv:: DESTINATION "${package_dir}" COMPONENT core)
configure_package_config_file(cmake/epiconv-config.cmake.in epiconv-config.cmake
  INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(epiconv-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/epiconv-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/epiconv-config-version.cmake"
  DESTINATION "${package_dir}" COMPONENT core)

if(EPICONV_PYTHON)
  if(DEFINED SKBUILD)
    set(python_dir ".")  # wheel.install-dir in pyproject.toml
  else()
    set(python_dir "${CMAKE_INSTALL_LIBDIR}/python/epiconv")
  endif()
  install(TARGETS epiconv LIBRARY DESTINATION "${python_dir}" COMPONENT python NAMELINK_SKIP)
  install(TARGETS _core LIBRARY DESTINATION "${python_dir}" COMPONENT python)
endif()
