"""What `fused_conv_epilogue` refuses: tensors and epilogues that cannot run, each with a reason."""

from collections.abc import Sequence
from typing import Any, Final, NoReturn

import torch

from epiconv.arguments import FLOATING, FLOATING_NAMES, ConvArguments
from epiconv.program import Program

_INTEGERS: Final = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check_floating(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is {tensor.layout}, but tensors are dense: call {name}.to_dense()")
    if tensor.dtype not in FLOATING:
        hint = "; dequantize it" if tensor.is_quantized else ""
        raise TypeError(f"{name} is {tensor.dtype}, but it is one of {FLOATING_NAMES}{hint}")


def _check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, but input is on {device}: all tensors are on one device "
            "(a 0-d operand on the CPU is a number and goes with any)"
        )


def check_tensor_types(**tensors: object) -> None:
    """Refuses what is no tensor.

    Args:
        tensors: by name; None passes for `bias`.

    Raises:
        TypeError: one is something else.

    Example:
        >>> check_tensor_types(input=torch.zeros(1), bias=None)
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or name != "bias"):
            raise TypeError(f"{name} is a {type(tensor).__name__}, not a tensor")


def check_tensors(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    arguments: ConvArguments,
) -> None:
    """Refuses tensors of the wrong dtype, layout or device, a precision that they cannot have, and cuDNN
    where there is none.

    Args:
        input: as the other tensors, of `fused_conv_epilogue`.
        arguments: `normalise`d.

    Raises:
        TypeError: a dtype, or a layout that is not dense.
        ValueError: mixed devices, or algorithm "cudnn" without one.

    Example:
        >>> check_tensors(x, weight, None, (), arguments)
    """
    _check_floating("input", input)
    _check_like_input("weight", weight, input)
    _check_like_input("bias", bias, input)
    _check_operands(operands, input.device)
    if arguments.precision is not None and input.dtype != torch.float32:
        raise TypeError(
            f"precision={arguments.precision!r} is for float32 tensors, but input is {input.dtype}"
            + ("" if input.dtype == torch.float64 else " (under autocast it has been cast)")
            + ": leave precision=None"
        )
    check_algorithm(arguments.algorithm, input.device)


def _check_like_input(name: str, tensor: torch.Tensor | None, input: torch.Tensor) -> None:
    if tensor is None:
        return
    _check_floating(name, tensor)
    _check_device(name, tensor, input.device)
    if tensor.dtype != input.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, but input is {input.dtype}: convert one of them")


def _check_operands(operands: Sequence[torch.Tensor], device: torch.device) -> None:
    for index, operand in enumerate(operands):
        if operand.layout != torch.strided:
            raise TypeError(f"operand b{index} is {operand.layout}, but tensors are dense: call to_dense()")
        if operand.dtype not in FLOATING and operand.dtype not in _INTEGERS:
            raise TypeError(f"operand b{index} is {operand.dtype}, but it is floating, an integer or bool")
        if not is_number(operand):
            _check_device(f"operand b{index}", operand, device)


def check_pass(
    y: torch.Tensor, bias: torch.Tensor | None, operands: Sequence[torch.Tensor], program: Program
) -> None:
    """Refuses what `epilogue_pass` cannot run on.

    Args:
        y: as the other tensors, of `epilogue_pass`.
        program: the epilogue.

    Raises:
        TypeError: a dtype, or a layout that is not dense.
        ValueError: mixed devices, or a shape.

    Example:
        >>> check_pass(torch.zeros(2, 4, 8, 8), None, (), Program(""))
    """
    _check_floating("y", y)
    if y.dim() not in (3, 4, 5):
        raise ValueError(
            f"y has {y.dim()} dimensions, {tuple(y.shape)}, but it is (N, K, spatial…) "
            "with 1 to 3 spatial dimensions"
        )
    _check_like_input("bias", bias, y)
    if bias is not None and tuple(bias.shape) != (y.shape[1],):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, but y has {y.shape[1]} channels: ({y.shape[1]},)"
        )
    _check_operands(operands, y.device)
    check_epilogue(program, operands, y.shape, y.dim() - 2)


def check_algorithm(algorithm: str, device: torch.device) -> None:
    """Refuses cuDNN where there is none; `implicit_gemm` says what that algorithm cannot run.

    Args:
        algorithm: one of `ALGORITHMS`.
        device: of the tensors.

    Raises:
        ValueError: it is "cudnn", and there is none.

    Example:
        >>> check_algorithm("auto", torch.device("cpu"))
    """
    if algorithm == "cudnn" and (reason := no_cudnn(device)):
        raise ValueError(f"algorithm='cudnn' cannot run: {reason}; leave algorithm='auto'")


def no_cudnn(device: torch.device) -> str:
    """Why cuDNN cannot compute a convolution on the device, "" if it can.

    Example:
        >>> no_cudnn(torch.device("cpu"))
        'the tensors are on cpu'
    """
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    cudnn: Any = torch.backends.cudnn
    if not cudnn.is_available():
        return "this torch has no cuDNN"
    return "" if cudnn.enabled else "torch.backends.cudnn.enabled is False"


def is_number(operand: torch.Tensor) -> bool:
    """Whether an operand is read on the host at each call, as torch reads 0-d CPU tensors.

    Example:
        >>> is_number(torch.tensor(0.5))
        True
    """
    return operand.dim() == 0 and operand.device.type == "cpu"


def _refuse_operand(index: int, operand: Sequence[int], output: Sequence[int], rank: int) -> NoReturn:
    channels = output[-rank - 1]
    given = f"operand b{index} of shape {tuple(operand)}"
    hint = ""
    if len(operand) == 1 and operand[0] == channels:
        view = f"b.view(-1{', 1' * rank})"
        hint = f". A plain (K,) runs along the width, as in torch; for one value per channel write {view}"
    elif len(operand) > len(output) or all(
        a == b or a == 1 or b == 1 for a, b in zip(reversed(operand), reversed(output), strict=False)
    ):
        raise ValueError(f"{given} would grow the output {tuple(output)}, which an operand may not")
    raise ValueError(f"{given} does not broadcast against the output {tuple(output)}{hint}")


def check_epilogue(
    program: Program, operands: Sequence[torch.Tensor], output: Sequence[int], rank: int
) -> None:
    """Refuses operands that do not broadcast against the output, or that would grow it, and a GroupNorm
    that torch refuses.

    Args:
        program: says which operands are (K,).
        operands: one for each of b0, b1, …
        output: shape as it is returned: (N, K, spatial…), unbatched (K, spatial…).
        rank: how many spatial dimensions there are.

    Raises:
        TypeError: the number of operands is wrong.
        ValueError: a shape is, or groups do not divide the channels, or hold one value each.

    Example:
        >>> check_epilogue(Program("v1 = add(v0, b0)"), [torch.zeros(4, 1, 1)], (2, 4, 8, 8), 2)
    """
    if len(operands) != program.num_operands:
        raise TypeError(
            f"the program '{program.text}' needs {program.num_operands} operands, got {len(operands)}"
        )
    channels = output[-rank - 1]
    for index, operand in enumerate(operands):
        shape = operand.shape
        if index in program.channel_operands:
            one_for_all = len(shape) == 1 and shape[0] == 1 and _is_prelu(program, index)
            if not one_for_all and (len(shape) != 1 or shape[0] != channels):
                raise ValueError(
                    f"operand b{index} of shape {tuple(shape)} is per channel: its shape is ({channels},)"
                )
        elif len(shape) > len(output):
            _refuse_operand(index, shape, output, rank)
        else:
            for position in range(-len(shape), 0):
                if shape[position] != 1 and shape[position] != output[position]:
                    _refuse_operand(index, shape, output, rank)
    for step in program.steps:
        if step.name == "group_norm":
            _check_groups(step.arguments[1], output, rank)


def _is_prelu(program: Program, index: int) -> bool:
    """Whether every use of the operand is the weight of a PReLU, which may be one for all channels."""
    users = [step.name for step in program.steps if ("b", index) in step.arguments]
    return all(name == "prelu" for name in users)


def _check_groups(groups: int, output: Sequence[int], rank: int) -> None:
    """As `torch.nn.functional.group_norm` does."""
    channels = output[-rank - 1]
    if channels % groups != 0:
        raise ValueError(
            f"group_norm with num_groups={groups} over {channels} channels: num_groups must divide them"
        )
    batched = output if len(output) == rank + 2 else (1, *output)
    values = batched[0] * channels // groups
    for extent in batched[2:]:
        values = values * extent
    if values == 1:
        raise ValueError(
            "group_norm: expected more than 1 value per channel when training, got an output "
            f"{tuple(output)} in {groups} groups: each group has one value, and none varies"
        )
