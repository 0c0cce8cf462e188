"""Times of several calls, interleaved: each round runs every one of them, and the median of rounds counts.

A card that is limited by power slows down after some tenths of a second of load, so that what runs first
looks fast: everything is measured in turns, after warming up.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

WARM_UP_SECONDS: Final = 0.5
SMALL_PROBLEM_SECONDS: Final = 0.2e-3
"""Below this, launching from the host would be timed: CUDA graphs are replayed instead."""

_MIN_ROUNDS: Final = 7
_MAX_ROUNDS: Final = 2000
_ROUNDS_PER_BLOCK: Final = 10
_GRAPH_SECONDS: Final = 1e-3
_MAX_INPUT_SETS: Final = 64


class Stopwatch(Protocol):
    """Measures intervals that are read later, so that a device need not be waited for in between."""

    def start(self) -> None:
        """Begins an interval."""

    def stop(self) -> None:
        """Ends it."""

    def seconds(self) -> list[float]:
        """Waits for the device, returns the intervals since the last call in order, and forgets them."""


class HostStopwatch:
    """Intervals of the host's clock, for a CPU.

    Example:
        >>> stopwatch = HostStopwatch()
        >>> stopwatch.start(); stopwatch.stop(); stopwatch.seconds()
    """

    def __init__(self) -> None:
        self._marks: list[float] = []

    def start(self) -> None:
        """Begins an interval."""
        self._marks.append(time.perf_counter())

    def stop(self) -> None:
        """Ends it."""
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The intervals since the last call."""
        marks, self._marks = self._marks, []
        return [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]


class CudaStopwatch:
    """Intervals between CUDA events on the current stream.

    Args:
        device: whose current stream is timed.

    Example:
        >>> stopwatch = CudaStopwatch(torch.device("cuda"))
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def start(self) -> None:
        """Begins an interval."""
        self._mark()

    def stop(self) -> None:
        """Ends it."""
        self._mark()

    def seconds(self) -> list[float]:
        """Waits for the last event; the intervals since the last call."""
        events, self._events = self._events, []
        if events:
            events[-1].synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in zip(events[::2], events[1::2], strict=True)]


def stopwatch_for(device: torch.device) -> Stopwatch:
    """The stopwatch of a device: CUDA events, or the host's clock.

    Example:
        >>> stopwatch_for(torch.device("cpu"))
    """
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


@dataclass(frozen=True)
class Timing:
    """What was measured of one call.

    Attributes:
        seconds: the median of the rounds.
        low, high: the rounds' 10th and 90th percentile.
        rounds: how many there were.
    """

    seconds: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float], runs: int = 1) -> "Timing":
        """Summarises samples, each the time of `runs` calls.

        Raises:
            ValueError: there are none.

        Example:
            >>> Timing.of([1.0, 2.0, 9.0]).seconds
            2.0
        """
        if not samples:
            raise ValueError("no samples")
        ordered = sorted(samples)
        last = len(ordered) - 1
        low, high = ordered[math.floor(0.1 * last)], ordered[math.ceil(0.9 * last)]
        return cls(statistics.median(ordered) / runs, low / runs, high / runs, len(ordered))


def rough_seconds(
    calls: Mapping[str, Callable[[], object]], stopwatch: Stopwatch, rounds: int
) -> dict[str, float]:
    """The shortest time of each call in a few rounds: enough to tell small problems from large ones.

    Args:
        calls: what to time, by name.
        stopwatch: measures each call.
        rounds: how often.

    Example:
        >>> rough_seconds({"a": f}, HostStopwatch(), 3)["a"]
    """
    samples = []
    for _ in range(rounds):
        for call in calls.values():
            stopwatch.start()
            call()
            stopwatch.stop()
        samples.append(stopwatch.seconds())
    return {name: min(times) for name, times in zip(calls, zip(*samples, strict=True), strict=True)}


def interleave(
    calls: Mapping[str, Callable[[], object]],
    stopwatch: Stopwatch,
    *,
    seconds: float,
    runs: int = 1,
    warm_up: float = WARM_UP_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Timing]:
    """Times calls in turns, after a warm-up of all of them.

    Args:
        calls: what to time, by name.
        stopwatch: measures each call.
        seconds: how long to measure for; at least 7 rounds are made, at most 2000.
        runs: how often each call does its work; times are divided by it.
        warm_up: seconds of load before.
        clock: tells when `seconds` and `warm_up` are over.
        progress: called now and then with the fraction done.

    Returns:
        A `Timing` for each name.

    Example:
        >>> interleave({"a": f, "b": g}, HostStopwatch(), seconds=1.0)["a"].seconds
    """
    if not calls:
        return {}
    names = list(calls)
    started = clock()
    while True:
        round_started = clock()
        for call in calls.values():
            stopwatch.start()
            call()
            stopwatch.stop()
        stopwatch.seconds()
        if clock() - started >= warm_up:
            break
    round_seconds = max(1e-9, clock() - round_started)
    block = max(1, min(_ROUNDS_PER_BLOCK, int(0.2 * seconds / round_seconds)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    rounds = 0
    while rounds < _MAX_ROUNDS:
        elapsed = clock() - started
        if rounds >= _MIN_ROUNDS and elapsed >= seconds:
            break
        progress(min(1.0, elapsed / seconds) if seconds > 0 else 1.0)
        calls[names[-1]]()  # untimed: the device has work queued when the first interval begins
        order: list[str] = []
        for _ in range(block):
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                stopwatch.start()
                calls[name]()
                stopwatch.stop()
                order.append(name)
            rounds += 1
        for name, interval in zip(order, stopwatch.seconds(), strict=True):
            samples[name].append(interval)
    progress(1.0)
    return {name: Timing.of(samples[name], runs) for name in names}


def input_set_count(set_bytes: int, l2_bytes: int) -> int:
    """How many sets of tensors to rotate so that none is found in the L2 cache.

    Args:
        set_bytes: bytes that one call touches.
        l2_bytes: size of the cache; 0 when it does not matter.

    Returns:
        1 when one call touches at least three times the cache, else enough for that; at most 64.

    Example:
        >>> input_set_count(60 << 20, 60 << 20)
        3
    """
    return max(1, min(_MAX_INPUT_SETS, math.ceil(3 * l2_bytes / max(1, set_bytes))))


def l2_bytes(device: torch.device) -> int:
    """Size of a CUDA device's L2 cache in bytes; 0 for a CPU, where inputs are not rotated.

    Example:
        >>> l2_bytes(torch.device("cpu"))
        0
    """
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


class Rotation:
    """Calls a function once for each set of arguments.

    Results of several sets are kept until their turn comes again, so that they occupy different memory;
    a single one is dropped at once.

    Args:
        function: what to call.
        argument_sets: its positional arguments, one tuple per call.
        repeats: how often to go through the sets.

    Example:
        >>> Rotation(torch.relu, [(x0,), (x1,)])()
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        argument_sets: Sequence[tuple[Any, ...]],
        repeats: int = 1,
    ) -> None:
        self.function = function
        self.argument_sets = tuple(argument_sets)
        self.repeats = repeats
        self._results: list[torch.Tensor | None] = [None] * len(self.argument_sets)

    @property
    def runs(self) -> int:
        """How many calls of the function one call makes."""
        return len(self.argument_sets) * self.repeats

    def __call__(self) -> None:
        """Goes through the sets."""
        for _ in range(self.repeats):
            for index, arguments in enumerate(self.argument_sets):
                self._results[index] = None
                self._results[index] = self.function(*arguments)
        if len(self.argument_sets) == 1:
            self._results[0] = None


def graph_repeats(call_seconds: float, input_sets: int) -> int:
    """How often a CUDA graph goes through the input sets, to last about a millisecond.

    Args:
        call_seconds: rough time of one call.
        input_sets: calls in one pass.

    Example:
        >>> graph_repeats(50e-6, 4)
        5
    """
    return max(1, min(100, math.ceil(_GRAPH_SECONDS / max(1e-9, call_seconds * input_sets))))


class CapturedCall:
    """What a call launches, captured as a CUDA graph; calling this replays it.

    Args:
        call: must have run before, and must launch on the current stream without waiting for it.
        device: a CUDA device.

    Raises:
        RuntimeError: something in the call cannot be captured.

    Example:
        >>> CapturedCall(Rotation(f, sets), torch.device("cuda"))()
    """

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self._call = call  # its tensors must live as long as the graph
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            call()

    def __call__(self) -> None:
        """Replays the graph on the current stream."""
        self._graph.replay()
