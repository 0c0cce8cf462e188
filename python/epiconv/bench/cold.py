"""Times with a cold L2 cache: before each call a buffer that is larger than the cache is written.

What `timing` measures are calls one behind another, as in a network that runs: weights and code are in the
cache, and a layer's input where it fits; those of other problems are rotated, so that they come from memory.
Here nothing is in the cache. Each call is timed alone, so that a time includes what it takes to begin a CUDA
graph, some microseconds, alike for all peers.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch

from epiconv.bench.timing import Stopwatch, Timing, l2_bytes

ROUNDS: Final = 51
_WARM_UP_ROUNDS: Final = 2


def l2_flush(device: torch.device) -> Callable[[], object]:
    """What replaces the content of the L2 cache, on the current stream: writes four times its size.

    Twice would do for the cache. The rest is time in which the host gets ahead of the device, so that no call
    waits for its launch.

    Args:
        device: a CUDA device.

    Example:
        >>> flush = l2_flush(torch.device("cuda"))
        >>> flush()
    """
    buffer = torch.empty(4 * l2_bytes(device) // 4, dtype=torch.float32, device=device)
    return lambda: buffer.fill_(1.0)


def cold_times(
    calls: Mapping[str, Callable[[], object]],
    stopwatch: Stopwatch,
    flush: Callable[[], object],
    rounds: int = ROUNDS,
) -> dict[str, Timing]:
    """Times calls in turns, each with intervals of its own and behind a flush that is not timed.

    Args:
        calls: what to time, by name; the host must be done with one before the device is done with the
            flush, as with CUDA graphs.
        stopwatch: measures each call.
        flush: makes the cache cold.
        rounds: how many calls of each are timed, after two that are not.

    Returns:
        A `Timing` for each name.

    Example:
        >>> cold_times({"a": graph}, stopwatch_for(device), l2_flush(device))["a"].seconds
    """
    for number in range(_WARM_UP_ROUNDS + rounds):
        if number == _WARM_UP_ROUNDS:
            stopwatch.seconds()
        for call in calls.values():
            flush()
            stopwatch.start()
            call()
            stopwatch.stop()
    samples = stopwatch.seconds()
    return {name: Timing.of(samples[first :: len(calls)]) for first, name in enumerate(calls)}
