// The kernels of a backward pass that are not compiled for it, for intermediates of float and double.
#pragma once

namespace epiconv::backward {

struct Kernels {
  const void* sweep;       // Sweep, Actions, SweepLaunch; of any program
  const void* set_tables;  // NormLaunch
  const void* set_lines;   // NormLaunch; a block for each sample and group
  const void* add_affine;  // NormLaunch
};

const Kernels& float_kernels();
const Kernels& double_kernels();

}  // namespace epiconv::backward
