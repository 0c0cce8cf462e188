// A directory of files with what was compiled, shared by processes.
#pragma once

#include <optional>
#include <string>

namespace epiconv {

// The file of a key holds the key too, and is complete or not there.
class KernelFiles {
 public:
  explicit KernelFiles(std::string directory) : directory_(std::move(directory)) {}

  std::optional<std::string> find(const std::string& key) const;
  // What cannot be written is not kept.
  void keep(const std::string& key, const std::string& value) const;

 private:
  std::string path_of(const std::string& key) const;

  std::string directory_;  // "": nothing is kept
};

// FNV-1a, of 64 bits.
std::string digest_of(const std::string& text);

}  // namespace epiconv
