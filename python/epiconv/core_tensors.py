"""Tensors as the compiled core takes them: addresses, names of dtypes, layouts."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import torch

from epiconv import _core
from epiconv.checks import is_number

address: Final = torch.Tensor.data_ptr
"""Of a tensor's first element."""


def dtype_name(dtype: torch.dtype) -> str:
    """The core's name of a dtype.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def operand_layout(operand: torch.Tensor) -> _core.OperandLayout:
    """Of an operand, or of a bias.

    Example:
        >>> operand_layout(torch.zeros(4, 1, 1))
    """
    return _core.OperandLayout(
        dtype_name(operand.dtype), tuple(operand.shape), operand.stride(), is_number(operand)
    )


def operand_reader(
    planned: Sequence[torch.Tensor],
) -> Callable[[Sequence[torch.Tensor]], Iterable[int | float]]:
    """What gives operands to the core: addresses, and the values of numbers, which are read at each call.

    Args:
        planned: tensors of the operands' form.

    Example:
        >>> list(operand_reader([torch.tensor(2.0)])([torch.tensor(3.0)]))
        [3.0]
    """
    numbers = [is_number(operand) for operand in planned]
    if not any(numbers):
        return partial(map, address)

    def read(operands: Sequence[torch.Tensor]) -> Iterable[int | float]:
        return [
            float(operand) if number else address(operand)
            for operand, number in zip(operands, numbers, strict=True)
        ]

    return read
