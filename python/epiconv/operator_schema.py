"""How the arguments of a call cross torch's dispatcher: flat, the program as text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import torch

from epiconv.arguments import ConvArguments, channels_last
from epiconv.program import Program

CONV_SCHEMA: Final = (
    "Tensor input, Tensor weight, Tensor? bias, Tensor[] operands, str program, SymInt[] stride, "
    "SymInt[] padding_begin, SymInt[] padding_end, SymInt[] dilation, SymInt groups, bool transposed, "
    "SymInt[] output_padding, str padding_mode, str? precision, str algorithm, bool channels_last, "
    'ScalarType? dtype, str save="auto"'
)
"""The arguments of a convolution with its epilogue. Its layout is one of them, decided before the call, so
that real and fake kernels agree whatever strides a compiler gives to dimensions of one element."""

_MEMORY_FORMAT: Final = ConvArguments._fields.index("memory_format")


@lru_cache(maxsize=1024)
def program_of(text: str) -> Program:
    """The program of a text.

    Raises:
        ValueError: it is none.
    """
    return Program(text)


def layout_of(rank: int, in_channels_last: bool) -> torch.memory_format:
    """The memory format that a schema's `channels_last` stands for.

    Args:
        rank: how many spatial dimensions there are.
        in_channels_last: the argument.
    """
    layout = channels_last(rank) if in_channels_last else None
    return torch.contiguous_format if layout is None else layout


def conv_arguments(weight: torch.Tensor, rest: Sequence[Any]) -> ConvArguments:
    """What follows the program in the schema, as `ConvArguments`.

    Args:
        weight: its rank decides between channels_last and channels_last_3d.
        rest: in the schema's order; defaults may be missing.
    """
    given: list[Any] = [tuple(value) if isinstance(value, list) else value for value in rest]
    given[_MEMORY_FORMAT] = layout_of(weight.dim() - 2, given[_MEMORY_FORMAT])
    return ConvArguments(*given)


def flat_arguments(arguments: ConvArguments, memory_format: torch.memory_format) -> tuple[Any, ...]:
    """The inverse of `conv_arguments`.

    Args:
        arguments: `normalise`d; their memory format does not count.
        memory_format: of the result.
    """
    flat: list[Any] = list(arguments)
    flat[_MEMORY_FORMAT] = memory_format != torch.contiguous_format
    return tuple(flat)
