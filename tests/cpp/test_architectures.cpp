// On which cards a build runs.
#include "architectures.h"
#include "expectations.h"

using namespace epiconv;
using namespace expectations;

int main() {
  const auto check = [](const char* architectures, int capability, bool expected) {
    subject = concat(architectures, " on ", capability);
    expect(has_code_for(architectures, capability) == expected, "not ", expected);
  };
  for (const int capability : {80, 86, 89, 90, 100, 120})
    check("sm_80, compute_80, sm_90a", capability, true);
  check("sm_80, compute_80, sm_90a", 75, false);
  for (const int capability : {80, 89, 100}) check("sm_90a", capability, false);
  check("sm_90a", 90, true);
  check("compute_90a", 100, false);
  check("sm_86", 80, false);
  check("sm_86", 89, true);
  check("sm_86", 90, false);
  check("compute_90", 89, false);
  check("compute_90", 120, true);
  check("", 90, false);
  return failures == 0 ? 0 : 1;
}
