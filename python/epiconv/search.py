"""Which of the ways to compute a convolution is fastest, as measured on its own tensors.

`torch.backends.cudnn.benchmark = True` says that shapes recur and that time may be spent on the first call of
each: torch's cuDNN then tries its algorithms, and algorithm "auto" tries every family of kernels of ours that
takes the call, compiled for it, and torch's convolution with a pass behind it, each a few times on the call's
own tensors; but none of ours that is predicted to take more than twice as long as another way. The fastest
runs from then on; `explain` says which it was, and how long each took. So the first call waits for the
device, and takes memory for a result of each. While a CUDA graph is captured, and where torch is set to
deterministic algorithms, nothing is measured, and predictions decide as without the setting.
"""

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from epiconv import _torch_private, packed_weights

TORCH: Final = "cudnn+epilogue"
"""The name of the way that is not ours."""

_ROUNDS: Final = 5
_RUNS: Final = 3  # of each in a round
_QUEUE_CYCLES: Final = 2_000_000  # for which the device is kept busy while the host issues the runs
_MOST_KEPT: Final = 4096
_MOST_OF_LEAST: Final = 2.0
"""Of the least prediction. What was fastest on the benchmark's layers was never predicted to take more than
1.4 times as long as another way."""


class Found(NamedTuple):
    """What was measured.

    Attributes:
        fastest: the name of the way.
        milliseconds: of each way, by name.
        left_out: the ways that were not measured, since others are predicted to be far faster.
    """

    fastest: str
    milliseconds: dict[str, float]
    left_out: tuple[str, ...] = ()

    def why(self) -> str:
        """A sentence without a full stop.

        Example:
            >>> Found("sm80", {"sm80": 0.02, "sm90": 0.031}).why()
            'the fastest as measured: sm80 0.0200 ms, sm90 0.0310 ms'
        """
        in_order = sorted(self.milliseconds.items(), key=lambda item: item[1])
        times = ", ".join(f"{name} {ms:.4f} ms" for name, ms in in_order)
        if not self.left_out:
            return f"the fastest as measured: {times}"
        return f"the fastest as measured: {times}; predicted to be far slower: {', '.join(self.left_out)}"


_found: Final[dict[Hashable, Found]] = {}


def is_possible(device: torch.device) -> bool:
    """Whether something may be measured now.

    Args:
        device: of the tensors.

    Example:
        >>> is_possible(torch.device("cpu"))
        False
    """
    if device.type != "cuda" or packed_weights.capturing():
        return False
    return not (torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled())


def remembered(key: Hashable) -> Found | None:
    """What was found before.

    Args:
        key: of `remember`.
    """
    return _found.get(key)


def not_worth_measuring(predicted: Mapping[str, float]) -> list[str]:
    """The ways of ours that are not the fastest, as far as predictions can be trusted; the fastest first.

    Args:
        predicted: times by the names of the ways, in any unit.

    Example:
        >>> not_worth_measuring({"sm90_im2col": 41.0, "sm80": 20.0, "sm90": 31.0})
        ['sm90_im2col']
    """
    most = _MOST_OF_LEAST * min(predicted.values(), default=0.0)
    slow = [name for name, time in predicted.items() if time > most and name != TORCH]
    return sorted(slow, key=lambda name: predicted[name])


def remember(key: Hashable, milliseconds: Mapping[str, float], left_out: Sequence[str] = ()) -> Found:
    """Keeps what was measured for later calls of the process; of very many the oldest are forgotten.

    Args:
        key: says all that the times depend on.
        milliseconds: by the names of the ways, at least one.
        left_out: ways that were not measured.

    Example:
        >>> remember("a", {"sm80": 0.02, "sm90": 0.031}).fastest
        'sm80'
    """
    fastest = min(milliseconds, key=lambda name: milliseconds[name])
    found = Found(fastest, dict(milliseconds), tuple(left_out))
    while len(_found) >= _MOST_KEPT:
        _found.pop(next(iter(_found)), None)
    _found[key] = found
    return found


def measure(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The time on the device of each way, in turns. Waits for the device.

    Args:
        ways: by name; each is called a few times, and issues work to the current stream.
        device: a CUDA device.

    Returns:
        Milliseconds; without the ways for which the device has too little memory.

    Example:
        >>> measure({"ours": f, "torch": g}, torch.device("cuda"))
    """
    with torch.cuda.device(device):
        samples = _samples(ways, device)
    return {name: statistics.median(times) if times else 0.0 for name, times in samples.items()}


def _samples(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    stream = torch.cuda.current_stream(device)
    samples: dict[str, list[float]] = {}
    for name, way in ways.items():
        try:
            way()  # what is done once is done now
        except torch.cuda.OutOfMemoryError:
            continue
        samples[name] = []
    for _ in range(_ROUNDS if len(samples) > 1 else 0):
        marks = {}
        for name in samples:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            _torch_private.keep_busy(_QUEUE_CYCLES)
            begin.record(stream)
            for _ in range(_RUNS):
                ways[name]()
            end.record(stream)
            marks[name] = (begin, end)
        torch.cuda.synchronize(device)
        for name, (begin, end) in marks.items():
            samples[name].append(begin.elapsed_time(end) / _RUNS)
    return samples
