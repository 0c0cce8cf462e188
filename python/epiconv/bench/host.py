"""Host time of a call: what it costs before any work begins, `python -m epiconv.bench --host`."""

import time
from dataclasses import dataclass
from typing import Final

import torch

import epiconv
from epiconv.bench.timing import Timing, interleave
from epiconv.program import Program

_CALLS: Final = 100  # per interval; on CUDA few enough that the launch queue (1024) never fills


@dataclass(frozen=True)
class HostTimes:
    """Microseconds per call, medians, on tensors so small that their work is negligible.

    Attributes:
        device: "cpu" or "cuda".
        with_grad: whether input and parameters want a gradient, in grad mode; the backward pass is not run.
        eager_us: PyTorch's convolution and three pointwise operations.
        epiconv_us: the same by `fused_conv_epilogue`, operands bound in the call.
    """

    device: str
    with_grad: bool
    eager_us: float
    epiconv_us: float

    @property
    def ratio(self) -> float:
        """epiconv's time / eager's."""
        return self.epiconv_us / self.eager_us


class _HostOnlyStopwatch:
    """Intervals of the host's clock that begin when the device is idle and do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[float] = []

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._marks.append(time.perf_counter())

    def stop(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        marks, self._marks = self._marks, []
        return [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]


def host_times(device: torch.device, seconds: float = 2.0, with_grad: bool = False) -> HostTimes:
    """Measures host time per call of eager conv + 3 pointwise operations and of `fused_conv_epilogue`.

    Args:
        device: "cpu" or a CUDA device.
        seconds: to measure for.
        with_grad: whether gradients are wanted.

    Example:
        >>> host_times(torch.device("cpu")).ratio
    """
    x = torch.randn(1, 4, 4, 4, device=device)
    weight = torch.randn(4, 4, 3, 3, device=device)
    conv_bias = torch.randn(4, device=device)
    bias = torch.randn(4, 1, 1, device=device)
    for tensor in (x, weight, conv_bias, bias):
        tensor.requires_grad_(with_grad)
    program = Program("v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)")

    def eager() -> None:
        for _ in range(_CALLS):
            y = torch.nn.functional.conv2d(x, weight, conv_bias)
            torch.clamp(y, max=0.5).add(bias).mul(2.0)

    def fused() -> None:
        for _ in range(_CALLS):
            epiconv.fused_conv_epilogue(x, weight, conv_bias, epilogue=program(bias))

    with torch.set_grad_enabled(with_grad):
        timings: dict[str, Timing] = interleave(
            {"eager": eager, "epiconv": fused}, _HostOnlyStopwatch(device), seconds=seconds, runs=_CALLS
        )
    return HostTimes(device.type, with_grad, timings["eager"].seconds * 1e6, timings["epiconv"].seconds * 1e6)
