// What the card does at most that plans are predicted for: an NVIDIA H200. Of other cards a prediction says
// which plan is likely to be the faster one, and not how long it takes.
#pragma once

namespace epiconv {

struct Ceilings {
  double multiprocessors;
  double clocks_per_us;
  double bytes_per_us;  // of memory, read + written
};

inline constexpr Ceilings kH200{
    132,
    1755,    // while the tensor cores are not at work all the time; power takes from it otherwise
    4.24e6,  // a copy on the device, measured
};

// What a kernel takes by the model that its tiles were chosen by, in clocks of that card: all of it on the
// slowest multiprocessor; and what each ceiling would take alone, if all multiprocessors had as much to do.
struct PlannedClocks {
  double all = 0;
  double tensor = 0, power = 0, shared_memory = 0, fill = 0, store = 0;
};

}  // namespace epiconv
