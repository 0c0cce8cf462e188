#include <span>
#include <sstream>
#include <utility>

#include "compiler/compile_kernel.h"
#include "epiconv/error.h"
#include "sm80/compiled_conv.h"
#include "sm80/im2col_geometry.h"

namespace epiconv::sm80 {
namespace {

constexpr const char* kName = "epiconv_conv";

const char* enumerator_of(ConvMath math) {
  switch (math) {
    case ConvMath::kTf32:
      return "kTf32";
    case ConvMath::kBf16:
      return "kBf16";
    case ConvMath::kFp16:
      return "kFp16";
    default:
      return "kIeee";
  }
}

// How many blocks share a multiprocessor, and whether what two pieces have is loaded while two others are
// multiplied (mainloop.h): from the fastest on.
struct Variant {
  int blocks;
  bool loads_ahead;
  int spilled_bytes;  // that it may have
};
constexpr Variant kVariants[] = {{3, false, 0}, {2, true, 0}, {1, true, 0}};
// A few registers in memory cost less than a block.
constexpr Variant kWarpgroupVariants[] = {{2, false, 32}, {1, false, 0}};
constexpr Variant kIm2colVariants[] = {{1, false, 0}};

std::span<const Variant> variants_of(const Geometry& geometry) {
  if (geometry.is_im2col) return kIm2colVariants;
  if (geometry.has_warpgroups) return kWarpgroupVariants;
  return kVariants;
}

// The header of the kernel, the function that is one, its threads, and what comes behind the evaluator among
// its template arguments.
struct KernelText {
  const char* header;
  const char* function;
  const char* threads;
  std::string arguments;
};
KernelText text_of(const Geometry& g, const Variant& variant) {
  if (g.is_im2col) {
    const std::int32_t rows = g.positions_are_rows() ? g.tile_positions : g.tile_filters;
    const std::int32_t columns = g.positions_are_rows() ? g.tile_filters : g.tile_positions;
    const bool shares = g.warpgroups_share_rows;
    return {"im2col_conv", "run_im2col_block",
            g.im2col_teams == 1 ? "Im2colBlock<1>::kBlockThreads" : "Im2colBlock<2>::kBlockThreads",
            concat(rows / (shares ? 1 : 2) / kProductRows, ", ", columns / (shares ? 2 : 1), ", ",
                   im2col_rank(g), ", ", g.im2col_teams)};
  }
  if (g.has_warpgroups) {
    return {"warpgroup_conv", "run_warpgroup_block", "kThreads",
            concat(g.tile_positions / (2 * kProductRows), ", ", g.tile_filters, ", ", g.interleave)};
  }
  return {"conv_kernel", "run_block", "kThreads", variant.loads_ahead ? "true" : "false"};
}

// The plan's bytes are written out as words: the compiler sees the structure's members as constants.
std::string source_of(const ConvParameters& parameters, int chunk_words, const Variant& variant) {
  static_assert(sizeof(ConvParameters) % sizeof(std::uint32_t) == 0);
  const KernelText text = text_of(parameters.geometry, variant);
  const bool has_maps = parameters.geometry.is_im2col;
  std::ostringstream out;
  out << "#define EPICONV_COMPILED_MATH " << enumerator_of(parameters.math) << R"(
#include "device/compiled_program.h"
#include "sm80/)"
      << text.header << R"(.h"

namespace epiconv::sm80 {

struct PlanWords {
  std::uint32_t words[sizeof(ConvParameters) / sizeof(std::uint32_t)];
};
__device__ constexpr ConvParameters kPlan = __builtin_bit_cast(ConvParameters, PlanWords{{)"
      << std::hex;
  const auto* const words = reinterpret_cast<const std::uint32_t*>(&parameters);
  for (std::size_t i = 0; i < sizeof(ConvParameters) / sizeof(std::uint32_t); ++i) {
    out << (i % 8 == 0 ? "\n    " : " ") << "0x" << words[i] << "u,";
  }
  out << std::dec << R"(
}});
__device__ constexpr EpilogueParameters kProgram = kPlan.epilogue;

extern "C" __global__ void __launch_bounds__()"
      << text.threads << ", " << variant.blocks << ") " << kName
      << "(const __grid_constant__ ConvLaunch launch"
      << (has_maps ? ", const __grid_constant__ Im2colMaps maps" : "") << R"() {
  )" << text.function
      << "<Compiled<ConvShape<" << chunk_words << ">, kProgram>, " << text.arguments << ">(kPlan, launch"
      << (has_maps ? ", maps" : "") << R"();
}

}  // namespace epiconv::sm80
)";
  return out.str();
}

}  // namespace

std::shared_ptr<const CompiledConv> CompiledConv::make(const ConvParameters& parameters, int chunk_sums,
                                                       int capability, std::string& why_not) {
  // The first variant that needs no more memory for registers than it may.
  std::optional<KernelCode> code;
  const std::string architecture = concat("sm_", capability, parameters.geometry.has_warpgroups ? "a" : "");
  for (const Variant& variant : variants_of(parameters.geometry)) {
    code =
        compile_kernel({source_of(parameters, chunk_sums / kWordElements, variant), architecture}, why_not);
    if (!code) return nullptr;
    if (code->spilled_bytes <= variant.spilled_bytes) break;
  }
  return std::shared_ptr<const CompiledConv>(new CompiledConv(std::move(code->machine_code), kName));
}

}  // namespace epiconv::sm80
