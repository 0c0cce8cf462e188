// Probe: what may run on an SM beside the tensor cores, and what does it cost them? sm_90a.
//
// In every block two warpgroups issue m64n256 wgmma back to back from random data in shared memory, and a
// third warpgroup does one thing in a loop until they have finished. Three sections:
//   A  Instructions, mostly integer, as fast as they go ("full") and once per 100 clocks and warp ("rare"):
//      which of them slow the wgmma itself (clocks per wgmma rise), and which only cost power (the SM clock
//      falls)?
//   B  A gather producer (NCHW fp32 -> tf32 rows, 128B swizzle) and row stores of awkward widths: the rate
//      they reach, and what they cost.
//   C  Bulk copies at given rates: reads and writes, of memory and of what stays in L2. What does a byte of
//      each cost in TFLOP/s?
//
// Build: nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -o beside_mma tests/probes/beside_mma.cu
// Run:   beside_mma [--quick]        about 50 s; --quick about 20 s, with the card less warm.
//
// The card is limited by power: rows are comparable with the "nothing" rows of the same section and math
// only, and only after the load has run for a while, so every row runs 0.3 s before it is measured.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../cpp/src/device/ptx/bulk_copy.h"
#include "../../cpp/src/device/ptx/fences.h"
#include "../../cpp/src/device/ptx/mbarrier.h"
#include "../../cpp/src/device/ptx/wgmma.h"
#include "check.h"

namespace {

using namespace epiconv::ptx;
using Counter = unsigned long long;

// Shared memory. Each consumer has four A tiles (64 rows of 128 bytes); both read B (256 rows) starting at a
// moving row, as the taps of a convolution do. The third warpgroup owns the work area.
constexpr std::uint32_t kTileA = 64 * 128;
constexpr std::uint32_t kB = 2 * 4 * kTileA;
constexpr std::uint32_t kWork = kB + (256 + 8) * 128 + 7 * 1024;
constexpr std::uint32_t kWorkBytes = 64 * 1024;
constexpr std::uint32_t kControl = kWork + kWorkBytes;  // six barriers
constexpr std::uint32_t kFlags = kControl + 6 * 8;      // "finished", for each warp of the third warpgroup
constexpr std::uint32_t kSharedBytes = kFlags + 4 * 4;
static_assert(kWork % 1024 == 0 && kSharedBytes <= 232448);

constexpr std::uint32_t kChunk = 8192;  // one bulk copy
constexpr std::uint32_t kSlots = 6;
static_assert(kSlots * kChunk <= kWorkBytes);

constexpr int kGroups = 8000;  // groups of four wgmma per consumer and launch: about 5 ms
// The third warpgroup stops here whatever happens. About fifty times a launch's length, and far enough below
// 2^31 for differences of 32-bit clocks to be signed.
constexpr std::uint32_t kClockLimit = 400'000'000;

constexpr std::uint32_t kInputChannels = 64;  // of the gathered tensor
constexpr std::uint32_t kFilters = 128;       // of the stored tensor

enum Stat { kClocks, kCount, kOverrun, kStats };

struct Job {
  const uint4* operands;  // kSharedBytes of them
  std::uint8_t* memory;   // what the third warpgroup reads or writes
  std::uint32_t* sink;    // results nobody reads, so that they have to be computed
  Counter* stat;
  int tf32;
  std::uint32_t seed;
  std::uint32_t gap;    // clocks from one step of a warp to its next; 0: no waiting
  std::uint32_t warps;  // of the third warpgroup that work
  // Sections B: rows of row_bytes, `height` to a plane, planes of all channels behind one another.
  std::uint32_t row_bytes, height, rows;
  // Section C: each block's own part of `memory`.
  std::uint32_t block_bytes;
  int write;
};

// 32 bits: the measured loops should have little arithmetic of their own.
__device__ __forceinline__ std::uint32_t now() {
  std::uint32_t clock;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(clock));
  return clock;
}

// What the third warpgroup knows of its surroundings.
struct Place {
  const std::uint8_t* shared;
  std::uint32_t address;  // of `shared`
  std::uint32_t begin, warp, lane;

  __device__ __forceinline__ bool go_on() const {
    std::uint32_t finished;
    asm volatile("ld.volatile.shared.u32 %0, [%1];"
                 : "=r"(finished)
                 : "r"(address + kFlags + 4 * warp)
                 : "memory");
    return finished == 0 && now() - begin < kClockLimit;
  }
  // The same answer for all lanes of a warp, all of which ask.
  __device__ __forceinline__ bool go_on_together() const { return __all_sync(0xFFFFFFFF, go_on()); }
};

// 64 bits here: a 32-bit clock in this place would be read through the uniform registers (S2UR), where the
// consumers compute their descriptors.
__device__ __forceinline__ void spin_until(long long due) {
  while (clock64() < due) {
  }
}

__device__ __forceinline__ void add_count(const Job& job, const Place& place, Counter count) {
  if (place.lane == 0) atomicAdd(&job.stat[kCount], count);
}

// ---------------------------------------------------------------------------------------------------------
// The consumers

// The sum starts anew every 64 wgmma: values as large as those of a convolution, not of an endless sum.
template <bool kTf32>
__device__ __forceinline__ void multiply(float (&d)[128], std::uint32_t a, std::uint32_t b) {
#pragma unroll 1
  for (int group = 0; group < kGroups; ++group) {
    const std::uint64_t rows_a = wgmma_descriptor(a + group % 4 * kTileA, 128);
    const std::uint64_t rows_b = wgmma_descriptor(b + group % 8 * 128, 128);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 32 bytes of K are 2 of the descriptor's units
      const int accumulate = k > 0 ? 1 : group % 16 != 0;
      if constexpr (kTf32) {
        wgmma_tf32(d, rows_a + 2 * k, rows_b + 2 * k, accumulate);
      } else {
        wgmma_bf16(d, rows_a + 2 * k, rows_b + 2 * k, accumulate);
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
  }
}

template <class Task>
__global__ void __launch_bounds__(384, 1) beside(const __grid_constant__ Job job) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const std::uint32_t address = shared_address(shared);
  volatile int* const finished = reinterpret_cast<volatile int*>(shared + kFlags);

  for (std::uint32_t i = threadIdx.x; i < kControl / 16; i += blockDim.x) {
    reinterpret_cast<uint4*>(shared)[i] = job.operands[i];
  }
  if (threadIdx.x == 0) {
    if (address % 1024 != 0) __trap();
    for (int i = 0; i < 4; ++i) finished[i] = 0;
    for (std::uint32_t i = 0; i < kSlots; ++i) mbarrier_init(address + kControl + 8 * i, 1);
    mbarrier_init_fence();
  }
  fence_async_shared();
  __syncthreads();

  const std::uint32_t group = threadIdx.x / 128;
  if (group < 2) {
    take_registers<(504 - Task::kRegisters) / 2>();
    float d[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) d[i] = 0;
    named_barrier<1, 256>();
    const long long begin = clock64();
    const std::uint32_t a = address + group * 4 * kTileA;
    if (job.tf32) {
      multiply<true>(d, a, address + kB);
    } else {
      multiply<false>(d, a, address + kB);
    }
    named_barrier<1, 256>();
    const long long end = clock64();
    if (threadIdx.x < 4) finished[threadIdx.x] = 1;
    if (threadIdx.x == 0) atomicAdd(&job.stat[kClocks], static_cast<Counter>(end - begin));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) sum += d[i];
    job.sink[blockIdx.x * blockDim.x + threadIdx.x] = __float_as_uint(sum);
  } else {
    give_registers<Task::kRegisters>();
    const Place place{shared, address, now(), threadIdx.x % 128 / 32, threadIdx.x % 32};
    if (place.warp < job.warps) Task::run(job, place);
    if (now() - place.begin >= kClockLimit && place.lane == 0) atomicAdd(&job.stat[kOverrun], Counter{1});
  }
}

struct Nothing {
  static constexpr int kRegisters = 56;
  static __device__ __forceinline__ void run(const Job&, const Place&) {}
};

// The waiting of the "rare" rows, without what they wait for.
struct Spin {
  static constexpr int kRegisters = 56;
  static __device__ __forceinline__ void run(const Job& job, const Place& place) {
    Counter count = 0;
    long long due = clock64();
    while (place.go_on()) {
      due += job.gap;
      spin_until(due);
      ++count;
    }
    add_count(job, place, count);
  }
};

// ---------------------------------------------------------------------------------------------------------
// Section A: one kind of instruction

// Four independent chains x[0..3] keep the pipelines full; `a` and `b` differ from thread to thread. The
// steps are PTX, so that the compiler does not replace them by something cheaper.
template <class Op>
struct Instructions {
  static constexpr int kRegisters = 56;
  static __device__ __forceinline__ void run(const Job& job, const Place& place) {
    using Word = typename Op::Word;
    Word x[4];
    const std::uint32_t* random = reinterpret_cast<const std::uint32_t*>(place.shared) + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = static_cast<Word>(random[i] * std::uint64_t{0x9E3779B97F4A7C15});
    const Word a = static_cast<Word>((random[4] + job.seed) * std::uint64_t{0xD1B54A32D192ED03}) | 1;
    const Word b = static_cast<Word>((random[5] + job.seed) * std::uint64_t{0x8CB92BA72F3D8DD7}) | 1;
    std::uint32_t count = 0;
    if (job.gap == 0) {
      while (place.go_on()) {
#pragma unroll
        for (int step = 0; step < Op::kUnroll; ++step) Op::step(x, step % 4, a, b);
        count += Op::kUnroll;
      }
    } else {
      long long due = clock64();
      while (place.go_on()) {
        Op::step(x, 0, a, b);
        ++count;
        due += job.gap;
        spin_until(due);
      }
    }
    const Word all = x[0] ^ x[1] ^ x[2] ^ x[3];
    const Word folded = all ^ (all >> (4 * sizeof all));
    job.sink[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<std::uint32_t>(folded);
    add_count(job, place, count);
  }
};

struct Op32 {
  using Word = std::uint32_t;
  static constexpr int kUnroll = 256;
};
struct Op64 {
  using Word = std::uint64_t;
  static constexpr int kUnroll = 256;
};

struct MadLow : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word b) {
    asm volatile("mad.lo.u32 %0, %0, %1, %2;" : "+r"(x[i]) : "r"(a), "r"(b));
  }
};
struct MadHigh : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word b) {
    asm volatile("mad.hi.u32 %0, %0, %1, %2;" : "+r"(x[i]) : "r"(a), "r"(b));
  }
};
// With an addend, as addresses are computed; both halves of a result are factors of the next, or the
// instruction would be a narrower one. In C++: of PTX's mad.wide the compiler makes a product and a 64-bit
// sum. (It adds a zero to the upper half of each result nevertheless: one IADD3.)
struct MadWideUnsigned : Op64 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word b) {
    x[i] = (x[i] & 0xFFFFFFFF) * (x[i] >> 32) + b;
  }
};
// Without an addend; the product is folded to 32 bits by an exclusive or.
struct MulWideUnsigned : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    std::uint64_t product;
    asm volatile("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(x[i]), "r"(a));
    x[i] = static_cast<Word>(product ^ (product >> 32));
  }
};
struct MulWideSigned : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    std::uint64_t product;
    asm volatile("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(x[i]), "r"(a));
    x[i] = static_cast<Word>(product ^ (product >> 32));
  }
};
struct Product64 : Op64 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("mul.lo.u64 %0, %0, %1;" : "+l"(x[i]) : "l"(a));
  }
};
// The chains feed each other: a sum of equal terms could become a product. The compiler makes an IADD3 and an
// IMAD.X or IADD3.X of it.
struct Add64 : Op64 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word) {
    asm volatile("add.u64 %0, %0, %1;" : "+l"(x[i]) : "l"(x[(i + 1) % 4]));
  }
};
struct Compare64 : Op64 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.lt.s64 p, %0, %1;\n"
        "selp.b64 %0, %1, %2, p;\n"
        "}"
        : "+l"(x[i])
        : "l"(x[(i + 1) % 4]), "l"(a));
  }
};
struct Add3 : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile(
        "{\n"
        ".reg .u32 t;\n"
        "add.u32 t, %1, %2;\n"
        "add.u32 %0, %0, t;\n"
        "}"
        : "+r"(x[i])
        : "r"(x[(i + 1) % 4]), "r"(a));
  }
};
struct Logic3 : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(x[i]) : "r"(x[(i + 1) % 4]), "r"(a));
  }
};
struct FunnelShift : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("shf.l.wrap.b32 %0, %0, %1, %2;" : "+r"(x[i]) : "r"(x[(i + 1) % 4]), "r"(a));
  }
};
struct Divide : Op32 {  // the divisor changes: nothing about it can be computed ahead
  static constexpr int kUnroll = 32;
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word b) {
    asm volatile("div.u32 %0, %1, %0;" : "+r"(x[i]) : "r"(b));
  }
};
struct ToFloatAndBack : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word) {
    asm volatile(
        "{\n"
        ".reg .f32 t;\n"
        "cvt.rn.f32.s32 t, %0;\n"
        "cvt.rzi.s32.f32 %0, t;\n"
        "}"
        : "+r"(x[i]));
  }
};
struct Fma : Op32 {  // for comparison: known to cost power only
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word b) {
    asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+r"(x[i]) : "r"(a), "r"(b));
  }
};
struct FloatAdd : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("add.rn.f32 %0, %0, %1;" : "+r"(x[i]) : "r"(a));
  }
};
struct FloatProduct : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("mul.rn.f32 %0, %0, %1;" : "+r"(x[i]) : "r"(a));
  }
};
struct FloatMaximum : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word) {
    asm volatile("max.NaN.f32 %0, %0, 0f3F800000;" : "+r"(x[i]));
  }
};
struct PackBf16 : Op32 {
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word a, Word) {
    asm volatile("cvt.rn.bf16x2.f32 %0, %0, %1;" : "+r"(x[i]) : "r"(a));
  }
};
struct ReadClock64 : Op64 {  // xor, because a clock that nobody uses is not read
  static __device__ __forceinline__ void step(Word (&x)[4], int i, Word, Word) {
    Word clock;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock));
    x[i] ^= clock;
  }
};
// The mixture that was seen to slow the wgmma by a sixth: a clock, a 64-bit product, a 64-bit comparison,
// each waiting for the one before.
struct ClockProduct : Op64 {
  static constexpr int kUnroll = 32;
  static __device__ __forceinline__ void step(Word (&x)[4], int, Word a, Word b) {
    Word clock;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock));
    const auto product = static_cast<std::int64_t>((clock - x[0]) * a);
    x[0] += product < static_cast<std::int64_t>(b) ? 1 : 0;
  }
};
// The same but for the comparison.
struct ClockProductOnly : Op64 {
  static constexpr int kUnroll = 32;
  static __device__ __forceinline__ void step(Word (&x)[4], int, Word a, Word) {
    Word clock;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock));
    x[0] = (clock - x[0]) * a;
  }
};

// ---------------------------------------------------------------------------------------------------------
// Section B: a gather producer, and stores

// Walks over the rows [first, last) of a block's share of a tensor, round and round, in 32-bit byte offsets
// that are only ever added to.
struct RowWalk {
  std::uint32_t first, last, first_offset, first_y;
  std::uint32_t row, offset, y;

  __device__ __forceinline__ RowWalk(const Job& job, std::uint32_t channels) {
    first = static_cast<std::uint32_t>(std::uint64_t{job.rows} * blockIdx.x / gridDim.x);
    last = static_cast<std::uint32_t>(std::uint64_t{job.rows} * (blockIdx.x + 1) / gridDim.x);
    first_y = first % job.height;
    first_offset = (first / job.height * channels * job.height + first_y) * job.row_bytes;
    row = first, offset = first_offset, y = first_y;
  }
  // `to_next_sample`: the bytes of all planes of a sample but one.
  __device__ __forceinline__ void advance(const Job& job, std::uint32_t to_next_sample) {
    offset += job.row_bytes;
    if (++y == job.height) y = 0, offset += to_next_sample;
    if (++row == last) row = first, offset = first_offset, y = first_y;
  }
};

// A warp's step: 32 pixels of a row times 32 channels, that is, 32 rows of shared memory. A lane reads its
// pixel's channels, kLoads at a time, and stores four of them at once where the 128-byte swizzle wants them.
template <int kLoads>
struct Gather {
  static constexpr int kRegisters = kLoads == 16 ? 56 : 72;
  static __device__ __forceinline__ void run(const Job& job, const Place& place) {
    const std::uint32_t plane = job.height * job.row_bytes;
    const std::uint32_t half = 32 * plane, other_planes = (kInputChannels - 1) * plane;
    const std::uint32_t width = job.row_bytes / 4, segments = (width + 31) / 32;
    RowWalk walk(job, kInputChannels);
    std::uint32_t segment = place.warp, block = 0;
    long long due = clock64();
    Counter count = 0;
    while (place.go_on_together()) {
      while (segment >= segments) {
        segment -= segments;
        block ^= 1;
        if (block == 0) walk.advance(job, other_planes);
      }
      const std::uint32_t pixel = segment * 32 + place.lane;
      const bool inside = pixel < width;
      // Lanes past the row's end repeat its last pixel, which costs no bytes, and store nothing.
      std::uint32_t from = walk.offset + (block != 0 ? half : 0) + min(pixel, width - 1) * 4;
      // Four slots of 128 pixels: two rows, two blocks of channels.
      const std::uint32_t to = place.address + kWork + ((walk.row % 2 * 2 + block) * 128 + pixel) * 128;
#pragma unroll 1  // or the compiler would join the passes and have 32 loads in flight
      for (std::uint32_t c = 0; c < 32; c += kLoads) {
        float value[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          asm volatile("ld.global.f32 %0, [%1];" : "=f"(value[i]) : "l"(job.memory + from) : "memory");
          from += plane;
        }
        __syncwarp();  // or it would move the later loads behind the earlier stores
        if (inside) {
#pragma unroll
          for (int i = 0; i < kLoads; i += 4) {
            std::uint32_t rounded[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              asm volatile("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded[j]) : "f"(value[i + j]));
            }
            const std::uint32_t chunk = c / 4 + i / 4;
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + ((chunk ^ pixel % 8) * 16)),
                         "r"(rounded[0]), "r"(rounded[1]), "r"(rounded[2]), "r"(rounded[3])
                         : "memory");
          }
        }
      }
      fence_async_shared();
      count += min(32u, width - segment * 32) * 128;
      segment += job.warps;
      if (job.gap != 0) {
        due += job.gap;
        spin_until(due);
      }
    }
    add_count(job, place, count);
  }
};

template <int kBytes>
__device__ __forceinline__ void store(std::uint8_t* to, std::uint32_t low, std::uint32_t high) {
  if constexpr (kBytes == 2) {
    asm volatile("st.global.b16 [%0], %1;" ::"l"(to), "h"(static_cast<std::uint16_t>(low)) : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(low) : "memory");
  } else {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(low), "r"(high) : "memory");
  }
}

// A warp's step: one row of four filters each, in pieces of 32 lanes x kLaneBytes. All filters' rows at one y
// come before the next y, as a tile's epilogue writes them.
template <int kLaneBytes>
struct StoreRows {
  static constexpr int kRegisters = 56;
  static constexpr std::uint32_t kRowsPerStep = 4;
  static __device__ __forceinline__ void run(const Job& job, const Place& place) {
    const std::uint32_t plane = job.height * job.row_bytes, other_planes = (kFilters - 1) * plane;
    const std::uint32_t stride = plane * job.warps;
    const std::uint32_t lane_offset = place.lane * kLaneBytes, warp_offset = place.warp * plane + lane_offset;
    const std::uint32_t* random = reinterpret_cast<const std::uint32_t*>(place.shared) + threadIdx.x * 4;
    const std::uint32_t value[4] = {random[0], random[1], random[2], random[3]};
    RowWalk walk(job, kFilters);
    std::uint32_t at = walk.offset + warp_offset, filter = place.warp;
    long long due = clock64();
    Counter count = 0;
    while (place.go_on()) {
#pragma unroll 1
      for (std::uint32_t i = 0; i < kRowsPerStep; ++i) {
#pragma unroll
        for (std::uint32_t piece = 0; piece < 4; ++piece) {
          const std::uint32_t x = piece * 32 * kLaneBytes;
          if (x + lane_offset < job.row_bytes) {
            store<kLaneBytes>(job.memory + (at + x), value[piece], value[(piece + 1) % 4]);
          }
        }
        at += stride;
        filter += job.warps;
        if (filter >= kFilters) {
          walk.advance(job, other_planes);
          filter = place.warp;
          at = walk.offset + warp_offset;
        }
      }
      count += kRowsPerStep * job.row_bytes;
      if (job.gap != 0) {
        due += job.gap;
        spin_until(due);
      }
    }
    add_count(job, place, count);
  }
};

// ---------------------------------------------------------------------------------------------------------
// Section C: bulk copies, one every `gap` clocks, by one thread

struct Bulk {
  static constexpr int kRegisters = 40;

  static __device__ __forceinline__ bool arrived(const Place& place, std::uint32_t slot,
                                                 std::uint32_t parity) {
    while (!mbarrier_try_wait(place.address + kControl + 8 * slot, parity)) {
      if (now() - place.begin >= kClockLimit) return false;
    }
    return true;
  }

  static __device__ __forceinline__ Counter read(const Job& job, const Place& place) {
    const std::uint8_t* const from = job.memory + std::uint64_t{blockIdx.x} * job.block_bytes;
    std::uint32_t offset = 0, slot = 0, use = 0;  // `use`: how often `slot` was filled
    long long due = clock64();
    Counter count = 0;
    while (place.go_on()) {
      if (use > 0 && !arrived(place, slot, (use - 1) % 2)) break;
      spin_until(due);
      due += job.gap;
      const std::uint32_t barrier = place.address + kControl + 8 * slot;
      mbarrier_arrive_expect(barrier, kChunk);
      bulk_copy(place.address + kWork + slot * kChunk, from + offset, kChunk, barrier);
      count += kChunk;
      offset += kChunk;
      if (offset == job.block_bytes) offset = 0;
      if (++slot == kSlots) slot = 0, ++use;
    }
    // The block must not end under its copies.
    for (std::uint32_t s = 0; s < kSlots; ++s) {
      const std::uint32_t uses = s < slot ? use + 1 : use;
      if (uses > 0) arrived(place, s, (uses - 1) % 2);
    }
    return count;
  }

  static __device__ __forceinline__ Counter write(const Job& job, const Place& place) {
    std::uint8_t* const to = job.memory + std::uint64_t{blockIdx.x} * job.block_bytes;
    std::uint32_t offset = 0, slot = 0;
    long long due = clock64();
    Counter count = 0;
    while (place.go_on()) {
      spin_until(due);
      due += job.gap;
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to + offset),
                   "r"(place.address + kWork + slot * kChunk), "r"(kChunk)
                   : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      asm volatile("cp.async.bulk.wait_group.read 3;" ::: "memory");
      count += kChunk;
      offset += kChunk;
      if (offset == job.block_bytes) offset = 0;
      if (++slot == kSlots) slot = 0;
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    return count;
  }

  static __device__ __forceinline__ void run(const Job& job, const Place& place) {
    if (place.lane == 0) add_count(job, place, job.write ? write(job, place) : read(job, place));
  }
};

// ---------------------------------------------------------------------------------------------------------
// Host

// Uniform in [-1, 1), the low `zero_bits` of the pattern cleared.
__host__ __device__ std::uint32_t random_pattern(std::uint32_t i, int zero_bits) {
  i = (i ^ (i >> 16)) * 0x7FEB352Du;
  i = (i ^ (i >> 15)) * 0x846CA68Bu;
  i ^= i >> 16;
  const float value = static_cast<float>(static_cast<std::int32_t>(i)) * (1.0f / 2147483648.0f);
#if defined(__CUDA_ARCH__)
  const std::uint32_t bits = __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
#endif
  return bits >> zero_bits << zero_bits;
}

__global__ void fill(std::uint32_t* to, std::size_t words, int zero_bits) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += stride) {
    to[i] = random_pattern(static_cast<std::uint32_t>(i), zero_bits);
  }
}

constexpr std::size_t kMemory = std::size_t{1} << 30;  // section C; section B uses the first quarter
constexpr std::size_t kLarge = std::size_t{256} << 20;
constexpr std::size_t kSmall = std::size_t{20} << 20;  // stays in L2

enum Unit { kNone, kPerWarp, kBytes };

struct Row {
  char section;
  bool tf32;
  std::string what;
  Unit unit;
  double clocks, slower, tflops, rate;  // `slower`: clocks per wgmma against the section's first such row
};

class Probe {
 public:
  explicit Probe(bool quick) : warm_ms_(quick ? 110 : 300), timed_ms_(quick ? 40 : 60) {
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    blocks_ = properties.multiProcessorCount;
    if (properties.major != 9) {
      std::printf("%s: this probe needs compute capability 9.0\n", properties.name);
      std::exit(1);
    }
    std::printf("%s, %d SMs; every row: %.0f ms of load, then %.0f ms measured\n", properties.name, blocks_,
                warm_ms_, timed_ms_);
    for (int tf32 = 0; tf32 < 2; ++tf32) {
      // bf16: pairs. tf32: rounded, as a producer delivers it.
      std::vector<std::uint32_t> words(kSharedBytes / 4);
      for (std::uint32_t i = 0; i < words.size(); ++i) {
        words[i] =
            tf32 ? random_pattern(i, 13) : random_pattern(2 * i, 16) | random_pattern(2 * i + 1, 16) >> 16;
      }
      CHECK(cudaMalloc(&operands_[tf32], kSharedBytes));
      CHECK(cudaMemcpy(operands_[tf32], words.data(), kSharedBytes, cudaMemcpyHostToDevice));
    }
    CHECK(cudaMalloc(&memory_, kMemory));
    fill<<<4096, 256>>>(reinterpret_cast<std::uint32_t*>(memory_), kMemory / 4, 0);
    CHECK(cudaGetLastError());
    CHECK(cudaMalloc(&target_, kMemory));
    CHECK(cudaMemset(target_, 0, kMemory));
    CHECK(cudaMalloc(&sink_, static_cast<std::size_t>(blocks_) * 384 * 4));
    CHECK(cudaMalloc(&stat_, kStats * sizeof(Counter)));
    CHECK(cudaEventCreate(&begin_));
    CHECK(cudaEventCreate(&end_));
    CHECK(cudaDeviceSynchronize());
    started_ = std::chrono::steady_clock::now();
  }

  int blocks() const { return blocks_; }
  std::uint8_t* memory() { return memory_; }
  std::uint8_t* target() { return target_; }
  const std::vector<Row>& rows() const { return rows_; }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }

  void heading(const char* text) {
    std::printf("\n%s\n%-43s %9s %7s %8s %5s  %s\n", text, "", "clk/wgmma", "slower", "TFLOP/s", "MHz",
                "beside it");
  }

  template <class Task>
  void measure(char section, bool tf32, const std::string& what, Unit unit, Job job) {
    if (seconds() > 54) {  // a minute is what a run may take
      std::printf("%c %s %-36s left out: no time\n", section, tf32 ? "tf32" : "bf16", what.c_str());
      return;
    }
    job.operands = operands_[tf32];
    job.sink = sink_;
    job.stat = stat_;
    job.tf32 = tf32;
    job.seed = 12345;
    CHECK(cudaFuncSetAttribute(beside<Task>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    const auto launch = [&](int times) {
      for (int i = 0; i < times; ++i) {
        beside<Task><<<blocks_, 384, kSharedBytes>>>(job);
        CHECK(cudaGetLastError());
      }
    };
    const auto timed = [&](int times) {
      CHECK(cudaMemsetAsync(stat_, 0, kStats * sizeof(Counter)));
      CHECK(cudaEventRecord(begin_));
      launch(times);
      CHECK(cudaEventRecord(end_));
      CHECK(cudaDeviceSynchronize());
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      return static_cast<double>(ms);
    };
    launch(1);  // loads the code
    const double one = timed(1);
    launch(std::max(1, static_cast<int>(warm_ms_ / one)));
    const int times = std::max(1, static_cast<int>(timed_ms_ / one));
    const double ms = timed(times) / times;
    Counter stat[kStats];
    CHECK(cudaMemcpy(stat, stat_, sizeof stat, cudaMemcpyDeviceToHost));

    const double per_block = static_cast<double>(stat[kClocks]) / (static_cast<double>(times) * blocks_);
    Row row{section, tf32, what, unit};
    row.clocks = per_block / (kGroups * 8.0);
    row.tflops = blocks_ * kGroups * 8.0 * 2 * 64 * 256 * (tf32 ? 8 : 16) / (ms * 1e9);
    row.rate = static_cast<double>(stat[kCount]) / static_cast<double>(stat[kClocks]);
    if (unit == kPerWarp) row.rate /= job.warps;
    const auto first = std::find_if(rows_.begin(), rows_.end(),
                                    [&](const Row& r) { return r.section == section && r.tf32 == tf32; });
    row.slower = first == rows_.end() ? 0 : row.clocks / first->clocks - 1;
    // The launch itself and the filling of shared memory are in the time: the clock is about 0.3 % low.
    const double mhz = per_block / (ms * 1e3);
    char rate[64] = "";
    if (unit == kPerWarp) std::snprintf(rate, sizeof rate, "%.4f per clk and warp", row.rate);
    if (unit == kBytes) {
      std::snprintf(rate, sizeof rate, "%5.2f B/clk/SM %5.0f GB/s", row.rate, row.rate * blocks_ * mhz / 1e3);
    }
    std::printf("%c %s %-36s %9.2f %+6.1f%% %8.1f %5.0f  %s%s\n", section, tf32 ? "tf32" : "bf16",
                what.c_str(), row.clocks, 100 * row.slower, row.tflops, mhz, rate,
                stat[kOverrun] != 0 ? " STOPPED BY ITS CLOCK" : "");
    std::fflush(stdout);
    rows_.push_back(row);
  }

 private:
  double warm_ms_, timed_ms_;
  int blocks_;
  uint4* operands_[2];
  std::uint8_t *memory_, *target_;
  std::uint32_t* sink_;
  Counter* stat_;
  cudaEvent_t begin_, end_;
  std::chrono::steady_clock::time_point started_;
  std::vector<Row> rows_;
};

constexpr std::uint32_t kRareGap = 100;

template <class Op>
void both_intensities(Probe& probe, const char* name, bool in_tf32) {
  Job job{};
  job.warps = 4;
  probe.measure<Instructions<Op>>('A', false, std::string(name) + ", full", kPerWarp, job);
  if (in_tf32) probe.measure<Instructions<Op>>('A', true, std::string(name) + ", full", kPerWarp, job);
  job.gap = kRareGap;
  probe.measure<Instructions<Op>>('A', false, std::string(name) + ", rare", kPerWarp, job);
}

void section_a(Probe& probe) {
  probe.heading("A. Instructions of four warps; full: as fast as they go, rare: one per 100 clk and warp");
  Job job{};
  job.warps = 4;
  probe.measure<Nothing>('A', false, "nothing", kNone, job);
  probe.measure<Nothing>('A', true, "nothing", kNone, job);
  job.gap = kRareGap;
  probe.measure<Spin>('A', false, "spinning on the clock", kPerWarp, job);
  both_intensities<MadLow>(probe, "IMAD 32", true);
  both_intensities<MadWideUnsigned>(probe, "IMAD.WIDE.U32 +addend, IADD3", true);
  both_intensities<MulWideUnsigned>(probe, "IMAD.WIDE.U32, LOP3", false);
  both_intensities<MulWideSigned>(probe, "IMAD.WIDE, LOP3", false);
  both_intensities<Product64>(probe, "64x64 product", true);
  both_intensities<MadHigh>(probe, "IMAD.HI.U32", true);
  both_intensities<Add64>(probe, "64-bit add", false);
  both_intensities<Compare64>(probe, "64-bit compare, select", false);
  both_intensities<Add3>(probe, "IADD3", false);
  both_intensities<Logic3>(probe, "LOP3", false);
  both_intensities<FunnelShift>(probe, "SHF", false);
  both_intensities<Divide>(probe, "u32 / u32", false);
  both_intensities<ToFloatAndBack>(probe, "I2F and F2I", false);
  both_intensities<Fma>(probe, "FFMA", false);
  both_intensities<FloatAdd>(probe, "FADD", false);
  both_intensities<FloatProduct>(probe, "FMUL", false);
  both_intensities<FloatMaximum>(probe, "FMNMX", false);
  both_intensities<PackBf16>(probe, "F2FP bf16x2", false);
  both_intensities<ReadClock64>(probe, "clock64", false);
  both_intensities<ClockProductOnly>(probe, "clock64, product", false);
  both_intensities<ClockProduct>(probe, "clock64, product, compare", true);
  job.gap = 0;
  probe.measure<Nothing>('A', false, "nothing, again", kNone, job);
}

Job rows_job(std::uint8_t* memory, std::uint32_t width, std::uint32_t element, std::uint32_t channels,
             std::size_t bytes) {
  Job job{};
  job.memory = memory;
  job.row_bytes = width * element;
  job.height = width;
  job.rows = static_cast<std::uint32_t>(bytes / (std::size_t{channels} * width * width * element)) * width;
  return job;
}

// What the first headline of a convolution needs: 64 KB of halo, and as much output, per 9216 clocks.
constexpr double kPace = 7;

template <int kLoads>
void gather(Probe& probe, std::uint32_t width, int threads, bool large, bool paced) {
  Job job = rows_job(probe.memory(), width, 4, kInputChannels, large ? kLarge : kSmall);
  job.warps = threads / 32;
  // All steps wait equally long: the row's 32 channels are divided among them.
  const std::uint32_t segments = (width + 31) / 32;
  if (paced) job.gap = static_cast<std::uint32_t>(job.warps * (width * 4.0 * 32 / segments) / kPace);
  char what[64];
  std::snprintf(what, sizeof what, "gather %3u wide, %2d loads x %3d, %s%s", width, kLoads, threads,
                large ? "DRAM" : "L2", paced ? ", paced" : "");
  probe.measure<Gather<kLoads>>('B', true, what, kBytes, job);
}

template <int kLaneBytes>
void store_rows(Probe& probe, std::uint32_t width, std::uint32_t element, bool large, bool paced) {
  Job job = rows_job(probe.target(), width, element, kFilters, large ? kLarge : kSmall);
  job.warps = 4;
  if (paced) {
    job.gap = static_cast<std::uint32_t>(4 * StoreRows<kLaneBytes>::kRowsPerStep * job.row_bytes / kPace);
  }
  char what[64];
  std::snprintf(what, sizeof what, "store %3u x %u B, %d B a lane, %s%s", width, element, kLaneBytes,
                large ? "DRAM" : "L2", paced ? ", paced" : "");
  probe.measure<StoreRows<kLaneBytes>>('B', element == 4, what, kBytes, job);
}

void section_b(Probe& probe) {
  probe.heading("B. Gathering (16 or 32 loads in flight x threads) and storing rows; paced: at 7 B/clk");
  Job none{};
  probe.measure<Nothing>('B', true, "nothing", kNone, none);
  for (const bool large : {true, false}) {
    for (const std::uint32_t width : {126u, 128u, 57u}) {
      for (const int threads : {96, 128}) {
        gather<16>(probe, width, threads, large, false);
        gather<32>(probe, width, threads, large, false);
      }
    }
  }
  for (const std::uint32_t width : {126u, 128u, 57u}) gather<16>(probe, width, 128, true, true);
  for (const int how : {0, 1, 2}) {
    const bool large = how != 1, paced = how == 2;
    store_rows<4>(probe, 126, 4, large, paced);
    store_rows<8>(probe, 126, 4, large, paced);
    store_rows<4>(probe, 128, 4, large, paced);
    store_rows<4>(probe, 57, 4, large, paced);
  }
  probe.measure<Nothing>('B', false, "nothing", kNone, none);
  for (const int how : {0, 1, 2}) {
    const bool large = how != 1, paced = how == 2;
    store_rows<2>(probe, 126, 2, large, paced);
    store_rows<4>(probe, 126, 2, large, paced);
    store_rows<2>(probe, 57, 2, large, paced);
  }
}

const char* const kKinds[] = {"read L2", "read DRAM", "write L2", "write DRAM"};

void section_c(Probe& probe) {
  probe.heading("C. Bulk copies of 8 KB at 4, 8 and 12 B/clk and SM");
  for (const bool tf32 : {false, true}) {
    Job job{};
    job.warps = 1;
    probe.measure<Nothing>('C', tf32, "nothing", kNone, job);
    for (int kind = 0; kind < 4; ++kind) {
      job.write = kind >= 2;
      job.memory = job.write ? probe.target() : probe.memory();
      const std::size_t share = (kind % 2 == 0 ? kSmall : kMemory) / static_cast<std::size_t>(probe.blocks());
      job.block_bytes = static_cast<std::uint32_t>(share / kChunk * kChunk);
      for (const std::uint32_t rate : {4u, 8u, 12u}) {
        job.gap = kChunk / rate;
        const std::string what = std::string(kKinds[kind]) + ", " + std::to_string(rate) + " B/clk";
        probe.measure<Bulk>('C', tf32, what, kBytes, job);
      }
    }
    job.gap = 0;
    probe.measure<Nothing>('C', tf32, "nothing, again", kNone, job);
  }
}

void summary(const Probe& probe) {
  std::printf("\nSummary (%.0f s)\n", probe.seconds());
  // A: worst first. Below one per cent a row is as good as undisturbed.
  std::vector<Row> slow;
  for (const Row& row : probe.rows()) {
    if (row.section == 'A' && row.slower > 0.01) slow.push_back(row);
  }
  std::sort(slow.begin(), slow.end(), [](const Row& x, const Row& y) { return x.slower > y.slower; });
  std::printf("A: instructions that slow the wgmma by more than 1 %%:%s\n", slow.empty() ? " none" : "");
  for (const Row& row : slow) {
    std::printf("   %s %-36s %+6.1f%%  %.4f per clk and warp\n", row.tf32 ? "tf32" : "bf16", row.what.c_str(),
                100 * row.slower, row.rate);
  }
  const auto range = [&](const char* name, const std::string& start, const std::string& part) {
    const Row *low = nullptr, *high = nullptr;
    double slower = -1;
    for (const Row& row : probe.rows()) {
      if (row.section != 'B' || row.what.rfind(start, 0) != 0 || row.what.find(part) == std::string::npos ||
          row.what.find("paced") != std::string::npos) {
        continue;
      }
      if (low == nullptr || row.rate < low->rate) low = &row;
      if (high == nullptr || row.rate > high->rate) high = &row;
      slower = std::max(slower, row.slower);
    }
    if (low == nullptr) return;
    std::printf("B: %-13s %5.2f (%s) to %5.2f (%s) B/clk/SM; wgmma at most %+.1f%%\n", name, low->rate,
                low->what.c_str() + start.size() + 1, high->rate, high->what.c_str() + start.size() + 1,
                100 * slower);
  };
  range("gather DRAM", "gather", "DRAM");
  range("gather L2", "gather", "L2");
  range("store DRAM", "store", "DRAM");
  range("store L2", "store", "L2");
  for (const bool tf32 : {false, true}) {
    // TFLOP/s lost per B/clk/SM: a line through the origin. "Nothing" is the mean of its two rows, against
    // drift.
    double none = 0;
    int count = 0;
    for (const Row& row : probe.rows()) {
      if (row.section == 'C' && row.tf32 == tf32 && row.unit == kNone) none += row.tflops, ++count;
    }
    if (count == 0) continue;
    none /= count;
    std::printf("C: %s %.0f TFLOP/s alone; lost per B/clk/SM:", tf32 ? "tf32" : "bf16", none);
    for (const char* kind : kKinds) {
      double product = 0, square = 0;
      for (const Row& row : probe.rows()) {
        if (row.section == 'C' && row.tf32 == tf32 && row.what.rfind(kind, 0) == 0) {
          product += row.rate * (none - row.tflops);
          square += row.rate * row.rate;
        }
      }
      if (square > 0) std::printf(" %s %.2f;", kind, product / square);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else {
      std::printf("usage: %s [--quick]\n", argv[0]);
      return 2;
    }
  }
  Probe probe(quick);
  section_a(probe);
  section_b(probe);
  section_c(probe);
  summary(probe);
  return 0;
}
