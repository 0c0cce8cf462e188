"""Runs an `EpiloguePlan` on tensors, with everything around it watched.

The output and the workspace start as NaN and lie between guard bands, which must come back untouched.
"""

import torch

from epiconv import _core

_GUARD = 256  # elements; a multiple of 16 bytes in every dtype


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def operand_layout(operand):
    """The layout of an operand; a 0-d CPU tensor is a number."""
    is_number = operand.dim() == 0 and operand.device.type == "cpu"
    return _core.OperandLayout(dtype_name(operand.dtype), operand.shape, operand.stride(), is_number)


def make_plan(program, y, operands=(), bias=None, *, dtype=None, strides=None):
    return _core.EpiloguePlan(
        _core.Program(program),
        y.device.type,
        list(y.shape),
        dtype_name(y.dtype),
        list(y.stride()),
        dtype_name(dtype or y.dtype),
        list(strides or y.stride()),
        None if bias is None else operand_layout(bias),
        [operand_layout(operand) for operand in operands],
    )


def guarded(shape, strides, dtype, device, shift=0):
    """A NaN tensor between guard bands, and its whole memory; `shift` moves it by elements."""
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    memory = torch.full((span + 2 * _GUARD + shift,), float("nan"), dtype=dtype, device=device)
    return memory.as_strided(shape, strides, _GUARD + shift), memory


def _check_guards(memory, shift=0):
    assert memory[: _GUARD + shift].isnan().all(), "something was written before the tensor"
    assert memory[-_GUARD:].isnan().all(), "something was written behind the tensor"


def run_plan(
    plan, y, operands=(), bias=None, *, in_place=False, dtype=None, strides=None, shift=0, threads=2
):
    """The plan's output for those tensors."""
    dtype, strides = dtype or y.dtype, strides or y.stride()
    output, memory = guarded(y.shape, strides, dtype, y.device, shift)
    if in_place:
        output.copy_(y)
    entries = -(-plan.workspace_bytes // 8)
    workspace, workspace_memory = guarded((entries,), (1,), torch.float64, y.device)
    stream = torch.cuda.current_stream(y.device).cuda_stream if y.is_cuda else 0
    plan.run(
        output.data_ptr() if in_place else y.data_ptr(),
        output.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        workspace.data_ptr(),
        y.device.index or 0,
        stream,
        threads,
        *[float(b) if b.dim() == 0 and not b.is_cuda else b.data_ptr() for b in operands],
    )
    _check_guards(memory, shift)
    _check_guards(workspace_memory)
    return output
