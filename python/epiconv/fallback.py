"""Behind a convolution of torch: bias and epilogue in one pass of ours, or in plain torch operations."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

import torch

from epiconv import _core, _torch_private
from epiconv.core_tensors import address, dtype_name, operand_layout, operand_reader
from epiconv.program import Program, compute_dtype, operand_signature

_DEVICE_TYPES: Final = ("cpu", "cuda")


@lru_cache(maxsize=64)
def why_not_fused(device: torch.device) -> str:
    """Why epiconv's pass cannot run on a device, "" if it can. Then plain torch operations run.

    Args:
        device: with its index, if it has one.

    Example:
        >>> why_not_fused(torch.device("cpu"))
        ''
    """
    if device.type not in _DEVICE_TYPES:
        return f"epiconv has no kernels for {device.type}"
    if device.type == "cpu":
        return ""
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and epiconv's kernels for CUDA"
    driver = _core.why_not_on_driver(_core.driver_version())
    return driver or _core.why_not_on_card(*torch.cuda.get_device_capability(device))


@lru_cache(maxsize=64)
def warn_not_fused(reason: str) -> None:
    """Warns, once per reason, that plain torch operations run.

    Args:
        reason: of `why_not_fused`.
    """
    warnings.warn(f"epiconv runs plain torch operations: {reason}", RuntimeWarning, stacklevel=5)


@contextmanager
def launch_place(device: torch.device, workspace_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Where a pass of the core is launched, with its device current: workspace, device and stream, as the
    core takes them; zeros on the CPU.

    Args:
        device: of the tensors.
        workspace_bytes: of the plan.
    """
    if device.type == "cpu":
        yield 0, 0, 0
        return
    with torch.cuda.device(device):
        # The caching allocator hands the memory out again to later work on this stream only, so that it may
        # be freed before the kernels have run.
        workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
        yield address(workspace), device.index, _torch_private.raw_stream(device.index)


RunPass = Callable[..., torch.Tensor]


class EpiloguePass:
    """A program over a convolution's output, planned for tensors of one form.

    Args:
        program: to be run.
        shape: (N, K, spatial…) of the output, or (K, spatial…).
        device: of the tensors.
        source: dtype and strides of what the convolution wrote.
        target: dtype and strides of what the pass writes.
        bias: (K,), or None.
        operands: one for each of b0, b1, …

    Attributes:
        plan: the core's plan.
        run: takes y, bias, operands and, where the result is another tensor than y, that tensor, all of the
            form planned for; returns the result. On CUDA asynchronous, on the current stream.
    """

    def __init__(
        self,
        program: Program,
        shape: Sequence[int],
        device: torch.device,
        source: tuple[torch.dtype, tuple[int, ...]],
        target: tuple[torch.dtype, tuple[int, ...]],
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        *,
        batched: bool = True,
    ) -> None:
        one = () if batched else (1,)  # the stride of a single sample counts for nothing
        self.plan = _core.EpiloguePlan(
            program.core,
            device.type,
            (*one, *shape),
            dtype_name(source[0]),
            (*one, *source[1]),
            dtype_name(target[0]),
            (*one, *target[1]),
            None if bias is None else operand_layout(bias),
            [operand_layout(operand) for operand in operands],
        )
        self.run = self._on_cpu(operands) if device.type == "cpu" else self._on_cuda(operands, device)

    # What runs is a closure: each attribute of self would cost the call some of its few microseconds.

    def _on_cpu(self, planned_operands: Sequence[torch.Tensor]) -> RunPass:
        launch = self.plan.run
        addresses = operand_reader(planned_operands)

        def run(
            y: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            output: torch.Tensor | None = None,
        ) -> torch.Tensor:
            result = y if output is None else output
            bias_address = 0 if bias is None else address(bias)
            threads = torch.get_num_threads()
            launch(address(y), address(result), bias_address, 0, 0, 0, threads, *addresses(operands))
            return result

        return run

    def run_with_statistics(
        self,
        y: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        output: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
    ) -> None:
        """`run` of a program with a GroupNorm, whose statistics it gives.

        Args:
            y, bias, operands: of the form planned for.
            output: where the result goes, y or another tensor.
            mean, rstd: (N, groups), of the dtype that the program computes in.
        """
        with launch_place(y.device, self.plan.workspace_bytes) as place:
            self.plan.run_with_statistics(
                address(y),
                address(output),
                0 if bias is None else address(bias),
                address(mean),
                address(rstd),
                *place,
                torch.get_num_threads(),
                *operand_reader(operands)(operands),
            )

    def _on_cuda(self, planned_operands: Sequence[torch.Tensor], device: torch.device) -> RunPass:
        launch = self.plan.run
        addresses = operand_reader(planned_operands)
        workspace_bytes = self.plan.workspace_bytes
        index = device.index
        raw_stream, current_device = _torch_private.raw_stream, _torch_private.current_cuda_device

        def run(
            y: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            output: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if current_device() != index:
                with torch.cuda.device(index):
                    return run(y, bias, operands, output)
            source = target = address(y)
            if output is not None:
                target = address(output)
            bias_address = 0 if bias is None else address(bias)
            workspace_address = 0
            if workspace_bytes:
                # The caching allocator hands the memory out again to later work on this stream only, so
                # that it may be freed before the kernels have run.
                workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
                workspace_address = address(workspace)
            launch(
                *(source, target, bias_address, workspace_address, index, raw_stream(index), 1),
                *addresses(operands),
            )
            return y if output is None else output

        return run


def apply_epilogue(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Bias and program in plain torch operations.

    Args:
        y: (N, K, spatial…).
        bias: (K,), or None.
        operands: one for each of b0, b1, …
        program: the epilogue.
        dtype: of the result.

    Returns:
        A tensor of y's shape.
    """
    if dtype == torch.float64:
        y = y.to(dtype)  # intermediates are, as in the kernels
    if bias is not None:
        compute = compute_dtype(program, y.dtype, operand_signature(operands))
        y = y.to(compute) + bias.to(compute).view(-1, *[1] * (y.dim() - 2))
    return program.apply(y, operands, dtype)
