// The memories of the host model, and their elements.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "epiconv/error.h"
#include "host_model/halo_model.h"

namespace epiconv::host_model {

inline constexpr std::uint8_t kNanByte = 0xff;  // of float32 and of bfloat16

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw HaloFault(concat(parts...));
}

// Elements are float32 or bfloat16, which hold small integers exactly.
inline void store_element(std::int32_t element_bytes, float value, std::uint8_t* to) {
  const auto* const from = reinterpret_cast<const std::uint8_t*>(&value);
  std::memcpy(to, from + 4 - element_bytes, static_cast<std::size_t>(element_bytes));
}

inline float load_element(std::int32_t element_bytes, const std::uint8_t* from) {
  float value = 0;
  std::memcpy(reinterpret_cast<std::uint8_t*>(&value) + 4 - element_bytes, from,
              static_cast<std::size_t>(element_bytes));
  return value;
}

// To the nearest, ties to even. What is not to be used stays so.
inline std::uint16_t bfloat16_of(float value) {
  if (std::isnan(value)) return 0xffff;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::uint32_t packed_pair(float first, float second) {
  return bfloat16_of(first) | static_cast<std::uint32_t>(bfloat16_of(second)) << 16;
}

class SharedMemory {
 public:
  explicit SharedMemory(std::int32_t bytes) : bytes_(static_cast<std::size_t>(bytes), kNanByte) {}

  // What lay here before is not to be used again.
  void clear(std::uint32_t address, std::int32_t size) {
    std::memset(at(address, size), kNanByte, static_cast<std::size_t>(size));
  }
  void write(std::uint32_t address, const std::uint8_t* from, std::int32_t size) {
    std::memcpy(at(address, size), from, static_cast<std::size_t>(size));
  }
  std::uint8_t* at(std::uint32_t address, std::int32_t size) {
    require(address + static_cast<std::uint64_t>(size) <= bytes_.size(), "shared memory has ", bytes_.size(),
            " bytes; ", size, " are accessed at ", address);
    return bytes_.data() + address;
  }

 private:
  std::vector<std::uint8_t> bytes_;
};

class Ring {
 public:
  explicit Ring(std::int32_t size) : size_(size) {}
  std::int32_t take() {
    const std::int32_t place = next_;
    next_ = next_ + 1 == size_ ? 0 : next_ + 1;
    return place;
  }

 private:
  std::int32_t size_, next_ = 0;
};

// Every element is to be written once, and nothing beside them.
class Output {
 public:
  explicit Output(std::int64_t size)
      : values_(static_cast<std::size_t>(size), std::numeric_limits<float>::quiet_NaN()),
        writes_(values_.size(), 0) {}

  // One store of `count` elements.
  void write(std::int64_t index, std::int32_t count, std::int32_t element_bytes, const std::uint8_t* from) {
    require(index >= 0 && index + count <= static_cast<std::int64_t>(values_.size()), "output ", index,
            " of ", values_.size(), " is written, and ", count - 1, " behind it");
    require(index % count == 0, count, " outputs are written at ", index, ", which is not aligned");
    for (std::int32_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::size_t>(index + i);
      require(writes_[place]++ == 0, "output ", place, " is written twice");
      values_[place] = load_element(element_bytes, from + i * element_bytes);
    }
  }

  std::vector<float> take() {
    const auto missing = std::count(writes_.begin(), writes_.end(), 0);
    require(missing == 0, missing, " of ", writes_.size(), " outputs are not written");
    return std::move(values_);
  }

 private:
  std::vector<float> values_;
  std::vector<std::uint8_t> writes_;
};

}  // namespace epiconv::host_model
