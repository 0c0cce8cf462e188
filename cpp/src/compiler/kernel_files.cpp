#include "compiler/kernel_files.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>

namespace epiconv {
namespace {

// Before the value: the digest of key and value, the key's length, both on lines of their own; then the key.
std::string header_of(const std::string& key, const std::string& value) {
  std::ostringstream out;
  out << digest_of(key + value) << '\n' << key.size() << '\n' << key;
  return out.str();
}

}  // namespace

std::string digest_of(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char character : text) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3u;
  }
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << hash;
  return out.str();
}

std::string KernelFiles::path_of(const std::string& key) const {
  return directory_ + "/" + digest_of(key) + ".kernel";
}

std::optional<std::string> KernelFiles::find(const std::string& key) const {
  if (directory_.empty()) return std::nullopt;
  std::ifstream file(path_of(key), std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream read;
  read << file.rdbuf();
  const std::string content = read.str();
  const std::size_t end = content.find('\n', content.find('\n') + 1);  // of the lines
  if (end == std::string::npos || content.size() < end + 1 + key.size()) return std::nullopt;
  std::string value = content.substr(end + 1 + key.size());
  // Another key with the same digest, or a damaged file.
  const std::string header = header_of(key, value);
  if (content.compare(0, header.size(), header) != 0) return std::nullopt;
  return value;
}

void KernelFiles::keep(const std::string& key, const std::string& value) const {
  if (directory_.empty()) return;
  static std::atomic<unsigned> written{0};
  std::error_code failed;
  std::filesystem::create_directories(directory_, failed);
  if (failed) return;
  const std::string path = path_of(key);
  const std::string own = path + "." + std::to_string(getpid()) + "." + std::to_string(written++);
  {
    std::ofstream file(own, std::ios::binary);
    file << header_of(key, value) << value;
    file.close();
    if (!file) {
      std::filesystem::remove(own, failed);
      return;
    }
  }
  std::filesystem::rename(own, path, failed);  // at once, so that nobody reads half of it
  if (failed) std::filesystem::remove(own, failed);
}

}  // namespace epiconv
