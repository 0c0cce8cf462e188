// The directory of compiled kernels.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "compiler/kernel_files.h"
#include "expectations.h"

using namespace epiconv;
using expectations::expect;

namespace {

namespace fs = std::filesystem;

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

}  // namespace

int main() {
  // Published values of FNV-1a.
  expect(digest_of("") == "cbf29ce484222325", "the digest of nothing");
  expect(digest_of("a") == "af63dc4c8601ec8c", "the digest of a letter");
  expect(digest_of("foobar") == "85944171f73967e8", "the digest of a word");

  const fs::path directory = fs::temp_directory_path() / ("epiconv_test_" + std::to_string(getpid()));
  fs::remove_all(directory);
  const KernelFiles files((directory / "below").string());
  const std::string key = "a key\nof two lines", value("\0bytes\n\xff", 8);
  expect(!files.find(key), "nothing is there yet");
  files.keep(key, value);
  expect(files.find(key) == value, "what was kept is found");
  expect(!files.find("another key"), "and no other");
  files.keep("empty", "");
  expect(files.find("empty") == "", "an empty value is one");
  files.keep(key, "new");
  expect(files.find(key) == "new", "the last one counts");
  int count = 0;
  fs::path kept;
  for (const auto& entry : fs::directory_iterator(directory / "below")) {
    ++count;
    if (contents(entry.path()).find(key) != std::string::npos) kept = entry.path();
  }
  expect(count == 2, "nothing else is left behind");

  const std::string right = contents(kept);
  for (std::size_t length = 0; length < right.size(); ++length) {
    write(kept, right.substr(0, length));
    expect(!files.find(key), "a file that was cut is not read");
  }
  for (std::size_t i = 0; i < right.size(); ++i) {
    std::string wrong = right;
    wrong[i] = static_cast<char>(wrong[i] ^ 1);
    write(kept, wrong);
    expect(!files.find(key), "a file with a wrong bit is not read");
  }
  write(kept, right);
  expect(files.find(key) == "new", "the right one is");

  KernelFiles("").keep(key, value);
  expect(!KernelFiles("").find(key), "without a directory nothing is kept");
  write(directory / "file", "no directory");
  const KernelFiles below_file((directory / "file").string());
  below_file.keep(key, value);
  expect(!below_file.find(key), "where there can be none, neither");
  fs::remove_all(directory);
  return expectations::failures == 0 ? 0 : 1;
}
