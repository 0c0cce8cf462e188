"""What a card can do at most, and the floor that this puts under a problem's time.

floor = max(FLOPs / rate of the math, bytes / memory bandwidth), with every tensor touched once.
"""

from dataclasses import dataclass, field
from typing import Final

import torch

from epiconv.bench.problems import Problem
from epiconv.bench.timing import stopwatch_for
from epiconv.cards import CARDS

_CARD: Final = CARDS["NVIDIA H200"]

H200_FLOPS: Final = {math: _CARD.flops_per_second[math] for math in ("tf32", "bf16", "fp16")}
"""FLOP/s of wgmma m64n256 by math, random data, short runs. Measured on one NVIDIA H200 (700 W, CUDA 13.0,
driver 580)."""

H200_BYTES: Final = _CARD.bytes_per_second
"""Bytes read + bytes written per second of a device-to-device copy, measured on the same card."""

_COPY_BYTES: Final = 1 << 30
_COPIES: Final = 20


@dataclass(frozen=True)
class Ceilings:
    """The most a device can do.

    Attributes:
        bytes_per_second: read + written.
        flops_per_second: by math ("tf32", "bf16", "fp16", "fp32"); a math that is missing is not known.
        source: where the numbers are from, in words.
    """

    bytes_per_second: float
    source: str
    flops_per_second: dict[str, float] = field(default_factory=dict)

    def floor(self, problem: Problem, itemsize: int, math_name: str) -> tuple[float, str]:
        """The least time in which a problem could run.

        Args:
            problem: what is computed.
            itemsize: bytes per value of all its tensors.
            math_name: "tf32", "bf16", "fp16" or "fp32" (no tensor cores).

        Returns:
            Seconds, and what they are bound by: "bytes", "FLOPs", or "bytes (FLOP rate unknown)".

        Example:
            >>> seconds, bound_by = H200.floor(find_problem("kb31"), 4, "tf32")  # 0.657 ms, "FLOPs"
        """
        by_bytes = problem.bytes(itemsize) / self.bytes_per_second
        rate = self.flops_per_second.get(math_name)
        if rate is None:
            return by_bytes, "bytes (FLOP rate unknown)"
        by_flops = problem.flops / rate
        return (by_flops, "FLOPs") if by_flops > by_bytes else (by_bytes, "bytes")


H200: Final = Ceilings(
    H200_BYTES, "measured on an H200: wgmma rates in short runs, copy bandwidth", H200_FLOPS
)


def ceilings_of(device: torch.device) -> Ceilings:
    """The ceilings of a device: known for the H200, else its copy bandwidth, measured now.

    Args:
        device: a CUDA device or the CPU.

    Returns:
        Ceilings; `source` says when no FLOP rate is known and the floor is one of bytes only.

    Example:
        >>> ceilings_of(torch.device("cuda")).source
    """
    if device.type == "cuda" and "H200" in torch.cuda.get_device_name(device):
        return H200
    rate = copy_bandwidth(device)
    return Ceilings(rate, f"copy bandwidth measured at start ({rate / 1e9:.0f} GB/s); no FLOP rate known")


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes read + written per second of a copy on the device.

    Args:
        device: a CUDA device or the CPU.
        size: bytes to copy, a multiple of 4; None is 1 GiB, on a CPU 64 MiB.

    Returns:
        The best of 20 runs.

    Example:
        >>> copy_bandwidth(torch.device("cuda")) / 1e12  # TB/s
    """
    if size is None:
        size = _COPY_BYTES if device.type == "cuda" else _COPY_BYTES // 16
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    stopwatch = stopwatch_for(device)
    for _ in range(_COPIES):
        stopwatch.start()
        target.copy_(source)
        stopwatch.stop()
    return 2 * source.numel() * source.element_size() / min(stopwatch.seconds())
