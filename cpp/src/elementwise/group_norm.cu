#include <algorithm>

#include "elementwise/group_norm.h"
#include "elementwise/group_norm_kernels.h"
#include "elementwise/launch.h"

namespace epiconv {
namespace {

// Elements of a tile: enough that its merge is small beside it.
constexpr std::int64_t kTile = 32768;
constexpr std::int64_t kLeastPixels = 128;  // of a tile of many channels, for the same reason

// How the tensor is cut into tiles, and where things lie in the workspace; a function of the shape alone.
struct Layout {
  std::int64_t tile;     // elements of a group, or pixels of all channels
  std::int64_t tiles;    // of a group, or of a sample
  std::int64_t streams;  // partial results of a sample's tile
  int lanes = 0;
  std::int64_t blocks;
  std::int64_t partials;  // entries of all partial means
  std::int64_t table;     // entries of a table of one value per sample and channel

  Layout(const GroupNormShape& norm, int word) {
    if (norm.channels_last) {
      const std::int64_t channel_words = (norm.channels + word - 1) / word;
      for (lanes = 1; lanes < 32 && lanes < channel_words;) lanes *= 2;
      tile = std::max(kTile / norm.channels, kLeastPixels);
      tiles = (norm.pixels + tile - 1) / tile;
      streams = norm.channels;
      blocks = norm.samples * tiles * ((channel_words + lanes - 1) / lanes);
    } else {
      const std::int64_t length = norm.channels / norm.groups * norm.pixels;
      tile = kTile;
      tiles = (length + tile - 1) / tile;
      streams = norm.groups;
      blocks = norm.samples * norm.groups * tiles;
    }
    partials = aligned(norm.samples * tiles * streams);
    table = aligned(norm.samples * norm.channels);
  }

  std::int64_t entries() const { return 2 * partials + 3 * table; }

 private:
  static std::int64_t aligned(std::int64_t entries) { return (entries + 3) / 4 * 4; }  // to 16 bytes
};

template <typename T>
struct FinishParameters {
  const T* means;
  const T* squares;
  const float* counts;  // elements of each tile, (sample, tile); or nullptr, and
  std::int64_t size;    // elements that a stream has in all
  std::int64_t tile;    // elements that a stream has in a tile, except the last
  std::int32_t tiles;
  std::int32_t streams;        // of a sample
  std::int32_t group_streams;  // of a group
  std::int32_t groups;
  std::int32_t channels;
  double epsilon;
  const void* weight;  // or nullptr
  const void* shift;
  DType weight_dtype, shift_dtype;
  std::int64_t weight_stride, shift_stride;
  T* mean_table;
  T* scale_table;
  T* shift_table;
  T* mean;  // (sample, group); or nullptr, as rstd
  T* rstd;
};

// One block for each sample and group: merges its partial results, and writes its channels' table entries.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    finish_group_norm(const __grid_constant__ FinishParameters<T> parameters) {
  const int sample = blockIdx.x / parameters.groups;
  const int group = blockIdx.x % parameters.groups;
  Moments<double> moments;
  const std::int64_t entries = static_cast<std::int64_t>(parameters.tiles) * parameters.group_streams;
  for (std::int64_t i = threadIdx.x; i < entries; i += kBlockThreads) {
    const std::int64_t tile = i / parameters.group_streams;
    const std::int64_t stream = group * parameters.group_streams + i % parameters.group_streams;
    const std::int64_t entry =
        (static_cast<std::int64_t>(sample) * parameters.tiles + tile) * parameters.streams + stream;
    const double count =
        parameters.counts != nullptr
            ? parameters.counts[static_cast<std::int64_t>(sample) * parameters.tiles + tile]
            : static_cast<double>(min(parameters.tile, parameters.size - tile * parameters.tile));
    moments.merge({count, parameters.means[entry], parameters.squares[entry]});
  }
  moments = merge_block(moments);
  __shared__ double mean, scale;
  if (threadIdx.x == 0) {
    mean = moments.mean;
    scale = rsqrt(moments.squares / moments.count + parameters.epsilon);
    if (parameters.mean != nullptr) parameters.mean[blockIdx.x] = static_cast<T>(mean);
    if (parameters.rstd != nullptr) parameters.rstd[blockIdx.x] = static_cast<T>(scale);
  }
  __syncthreads();
  const int group_channels = parameters.channels / parameters.groups;
  for (int i = threadIdx.x; i < group_channels; i += kBlockThreads) {
    const int channel = group * group_channels + i;
    double weight = 1.0;
    double shift = 0.0;
    if (parameters.weight != nullptr) {
      weight = load_element<double>(parameters.weight, parameters.weight_dtype,
                                    channel * parameters.weight_stride);
    }
    if (parameters.shift != nullptr) {
      shift =
          load_element<double>(parameters.shift, parameters.shift_dtype, channel * parameters.shift_stride);
    }
    const std::int64_t entry = static_cast<std::int64_t>(sample) * parameters.channels + channel;
    // What the mean loses when it is rounded goes to the shift.
    const T rounded = static_cast<T>(-mean);
    parameters.mean_table[entry] = rounded;
    parameters.scale_table[entry] = static_cast<T>(scale * weight);
    parameters.shift_table[entry] = static_cast<T>(shift - (rounded + mean) * scale * weight);
  }
}

// Of statistics that are set in `finish`; the tables of the norm's operands are `distance` entries apart.
template <typename T>
void launch_finish(const GroupNormShape& norm, FinishParameters<T>& finish, T* tables, std::int64_t distance,
                   PassPointers& pointers, void* stream) {
  finish.groups = static_cast<std::int32_t>(norm.groups);
  finish.channels = static_cast<std::int32_t>(norm.channels);
  finish.epsilon = norm.epsilon;
  if (norm.weight_operand >= 0) finish.weight = pointers.operands[norm.weight_operand];
  if (norm.shift_operand >= 0) finish.shift = pointers.operands[norm.shift_operand];
  finish.weight_dtype = norm.weight_dtype;
  finish.shift_dtype = norm.shift_dtype;
  finish.weight_stride = norm.weight_stride;
  finish.shift_stride = norm.shift_stride;
  finish.mean_table = tables;
  finish.scale_table = tables + distance;
  finish.shift_table = tables + 2 * distance;
  finish.mean = static_cast<T*>(pointers.mean);
  finish.rstd = static_cast<T*>(pointers.rstd);
  void* arguments[] = {&finish};
  Pass named;  // for an error
  named.walk.rank = 2;
  named.walk.extents[0] = norm.samples;
  named.walk.extents[1] = norm.groups;
  launch_kernel("finish_group_norm", "", named, reinterpret_cast<const void*>(&finish_group_norm<T>),
                norm.samples * norm.groups, kBlockThreads, arguments, stream);
  pointers.operands[kMeanOperand] = finish.mean_table;
  pointers.operands[kScaleOperand] = finish.scale_table;
  pointers.operands[kShiftOperand] = finish.shift_table;
}

template <typename Parameters>
void launch(const Pass& pass, const PassKernels& kernels, PassPointers& pointers, void* stream) {
  using T = typename Parameters::T;
  const GroupNormShape& norm = pass.norm;
  const Layout layout(norm, kernels.word);
  T* const means = static_cast<T*>(pointers.workspace);
  T* const squares = means + layout.partials;
  T* const tables = squares + layout.partials;

  // By channels, a word begins at a multiple of its elements in its pixel, wherever that begins.
  const bool words_are_aligned = !norm.channels_last || norm.channels % kernels.word == 0;
  auto parameters = prepare_parameters<Parameters>(pass, kernels, words_are_aligned);
  set_pointers(parameters, pass, pointers, kernels);
  const auto group_channels = static_cast<std::int32_t>(norm.channels / norm.groups);
  StatisticsParameters<T> statistics{norm.pixels,
                                     static_cast<std::int32_t>(norm.channels),
                                     group_channels,
                                     static_cast<std::int32_t>(layout.tiles),
                                     static_cast<std::int32_t>(layout.tile),
                                     layout.lanes,
                                     means,
                                     squares};
  void* gather_arguments[] = {&parameters, &statistics};
  launch_kernel("group_norm_statistics_cuda_", kernels.name, pass,
                norm.channels_last ? kernels.channel_statistics : kernels.range_statistics, layout.blocks,
                kBlockThreads, gather_arguments, stream);

  FinishParameters<T> finish{};
  finish.means = means;
  finish.squares = squares;
  finish.size = norm.channels_last ? norm.pixels : group_channels * norm.pixels;
  finish.tile = layout.tile;
  finish.tiles = static_cast<std::int32_t>(layout.tiles);
  finish.streams = static_cast<std::int32_t>(layout.streams);
  finish.group_streams = norm.channels_last ? group_channels : 1;
  launch_finish(norm, finish, tables, layout.table, pointers, stream);
}

}  // namespace

std::size_t group_norm_workspace_bytes(const Pass& pass) {
  // The layout does not depend on the kernels but for `lanes` and `blocks`.
  return Layout(pass.norm, 1).entries() * (pass.double_precision ? sizeof(double) : sizeof(float));
}

void launch_group_norm_statistics(const Pass& pass, const PassKernels& kernels, PassPointers& pointers,
                                  void* stream) {
  visit_parameters(kernels,
                   [&]<typename Parameters>() { launch<Parameters>(pass, kernels, pointers, stream); });
}

void finish_statistics(const GroupNormShape& norm, const TileMoments& moments, float* tables,
                       PassPointers& pointers, void* stream) {
  FinishParameters<float> finish{};
  finish.means = moments.means;
  finish.squares = moments.squares;
  finish.counts = moments.counts;
  finish.tiles = static_cast<std::int32_t>(moments.rows);
  finish.streams = static_cast<std::int32_t>(norm.channels);
  finish.group_streams = static_cast<std::int32_t>(norm.channels / norm.groups);
  launch_finish(norm, finish, tables, norm.samples * norm.channels, pointers, stream);
}

}  // namespace epiconv
