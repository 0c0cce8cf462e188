"""The arguments of `fused_conv_epilogue`, brought into one form.

`torch.compile` traces `normalise`. Extents are checked by the core's `ConvProblem`, the only place that
computes them.
"""

import operator
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from epiconv import _core

FLOATING: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes of inputs and results."""

PRECISIONS: Final = ("ieee", "tf32", "bf16", "fp16")
ALGORITHMS: Final = ("auto", "implicit_gemm", "cudnn")
SAVES: Final = ("auto", "conv", "recompute")
PADDING_MODES: Final = ("zeros", "reflect", "replicate", "circular")

_CHANNELS_LAST: Final = {1: None, 2: torch.channels_last, 3: torch.channels_last_3d}
FLOATING_NAMES: Final = ", ".join([str(dtype) for dtype in FLOATING])

Extents = int | Sequence[int]


class ConvArguments(NamedTuple):
    """What the operator takes after its tensors and the program, in its order."""

    stride: tuple[int, ...]
    padding_begin: tuple[int, ...]
    padding_end: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    padding_mode: str
    precision: str | None
    algorithm: str
    memory_format: torch.memory_format | None
    dtype: torch.dtype | None
    save: str = "auto"


def channels_last(rank: int) -> torch.memory_format | None:
    """torch's channels_last format for a number of spatial dimensions; None where it has none.

    Example:
        >>> channels_last(3)
        torch.channels_last_3d
    """
    return _CHANNELS_LAST[rank]


def _integer(name: str, value: Any) -> int:
    if type(value) is int or isinstance(value, torch.SymInt):
        result: Any = value
        return result  # type: ignore[no-any-return]
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} is {value!r}, but it takes an int or one int per spatial dimension")


def _per_dimension(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One int per spatial dimension; a single one counts for all."""
    if not isinstance(value, list | tuple):
        return (_integer(name, value),) * rank
    entries = tuple([_integer(name, entry) for entry in value])
    if len(entries) == 1:
        return entries * rank
    if len(entries) != rank:
        raise ValueError(f"{name} is {entries}, but {rank} spatial dimensions take 1 or {rank} entries")
    return entries


def _padding(
    value: Any, weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], transposed: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial dimension."""
    rank = len(weight) - 2
    if not isinstance(value, str):
        both = _per_dimension("padding", value, rank)
        return both, both
    if value not in ("same", "valid"):
        raise ValueError(f"padding is {value!r}, but as a word it is 'same' or 'valid'")
    if transposed:
        raise ValueError(f"padding={value!r} is for convolutions; a transposed one takes ints")
    if value == "valid":
        return (0,) * rank, (0,) * rank
    if any(step != 1 for step in stride):
        raise ValueError(f"padding='same' needs stride 1, got {tuple(stride)}: give the padding as ints")
    total = [d * (taps - 1) for d, taps in zip(dilation, weight[2:], strict=True)]
    return tuple([t // 2 for t in total]), tuple([t - t // 2 for t in total])


def check_word(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses a word that is not known.

    Args:
        name: of what it was given for.
        value: the word.
        allowed: those that are known.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> check_word("precision", "tf32", PRECISIONS)
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but it is one of {', '.join(allowed)}")


def normalise(
    weight: torch.Tensor,
    stride: Extents,
    padding: Extents | str,
    dilation: Extents,
    groups: int,
    transposed: bool,
    output_padding: Extents,
    padding_mode: str,
    precision: str | None,
    algorithm: str,
    memory_format: torch.memory_format | None,
    dtype: torch.dtype | None,
    save: str = "auto",
) -> ConvArguments:
    """The arguments with one entry per spatial dimension, and with words that are known.

    Args:
        weight: its rank says how many spatial dimensions there are.
        stride: as all others, of `fused_conv_epilogue`.

    Raises:
        TypeError, ValueError: as `fused_conv_epilogue`.

    Example:
        >>> normalise(weight, 2, "valid", 1, 1, False, 0, "zeros", None, "auto", None, None).stride
        (2, 2)
    """
    if weight.dim() not in (3, 4, 5):
        raise ValueError(
            f"weight has {weight.dim()} dimensions, {tuple(weight.shape)}, but it is (K, C / groups, "
            "spatial…), or (C, K / groups, spatial…) if transposed, with 1 to 3 spatial dimensions"
        )
    rank = weight.dim() - 2
    check_word("padding_mode", padding_mode, PADDING_MODES)
    if precision is not None:
        check_word("precision", precision, PRECISIONS)
    check_word("algorithm", algorithm, ALGORITHMS)
    check_word("save", save, SAVES)
    if transposed and padding_mode != "zeros":
        raise ValueError(f"padding_mode={padding_mode!r} is for convolutions; a transposed one takes 'zeros'")
    if memory_format is not None:
        allowed = (torch.contiguous_format, *([channels_last(rank)] if rank > 1 else []))
        if memory_format not in allowed:
            raise ValueError(
                f"memory_format is {memory_format}, but the output of {rank} spatial dimensions can be "
                f"{' or '.join([str(word) for word in allowed])}; None follows input and weight"
            )
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"dtype is {dtype}, but a result is one of {FLOATING_NAMES}")
    steps = _per_dimension("stride", stride, rank)
    dilations = _per_dimension("dilation", dilation, rank)
    begin, end = _padding(padding, weight.shape, steps, dilations, transposed)
    return ConvArguments(
        steps,
        begin,
        end,
        dilations,
        _integer("groups", groups),
        bool(transposed),
        _per_dimension("output_padding", output_padding, rank),
        padding_mode,
        precision,
        algorithm,
        memory_format,
        dtype,
        save,
    )


def batched_shape(input: torch.Tensor, weight: torch.Tensor) -> tuple[int, ...]:
    """(N, C, spatial…) of an input that may lack the batch dimension.

    Args:
        input: (N, C, spatial…) or (C, spatial…).
        weight: its rank decides.

    Raises:
        ValueError: the ranks do not go together.

    Example:
        >>> batched_shape(torch.zeros(3, 8, 8), torch.zeros(4, 3, 3, 3))
        (1, 3, 8, 8)
    """
    missing = weight.dim() - input.dim()
    if missing not in (0, 1):
        rank = weight.dim() - 2
        raise ValueError(
            f"input has {input.dim()} dimensions, {tuple(input.shape)}, but a weight {tuple(weight.shape)} "
            f"takes (N, C, spatial…) of {rank + 2} dimensions, or (C, spatial…) of {rank + 1}"
        )
    return tuple(input.shape) if missing == 0 else (1, *input.shape)


def conv_problem(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arguments: ConvArguments
) -> _core.ConvProblem:
    """The convolution's extents, checked; none of them symbolic.

    Args:
        input: as the other tensors, of `fused_conv_epilogue`.
        arguments: `normalise`d.

    Raises:
        ValueError: the extents do not make a convolution.

    Example:
        >>> conv_problem(x, weight, None, arguments).output
    """
    shape = batched_shape(input, weight)
    begin, end = arguments.padding_begin, arguments.padding_end
    problem = _core.ConvProblem(
        shape,
        tuple(weight.shape),
        None if bias is None else tuple(bias.shape),
        arguments.stride,
        begin,
        end,
        arguments.dilation,
        arguments.groups,
        arguments.transposed,
        arguments.output_padding,
    )
    _check_padding_mode(arguments.padding_mode, shape[2:], begin, end)
    return problem


def has_symbolic_extents(tensors: Sequence[torch.Tensor | None], arguments: ConvArguments) -> bool:
    """Whether an extent is a symbol of a traced graph, which the core cannot read.

    Args:
        tensors: those whose shapes are asked about.
        arguments: `normalise`d.

    Example:
        >>> has_symbolic_extents((x, weight), arguments)
        False
    """
    extents = [extent for tensor in tensors if tensor is not None for extent in tensor.shape]
    given = [*arguments.stride, *arguments.padding_begin, *arguments.padding_end, *arguments.dilation]
    given += [arguments.groups, *arguments.output_padding]
    return any(isinstance(extent, torch.SymInt) for extent in (*extents, *given))


def _check_padding_mode(mode: str, extents: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> None:
    """reflect and circular padding take their values from the input: it must have as many."""
    if mode not in ("reflect", "circular"):
        return
    for extent, before, after in zip(extents, begin, end, strict=True):
        most = extent - 1 if mode == "reflect" else extent
        if max(before, after) > most:
            raise ValueError(
                f"padding {max(before, after)} is too large for padding_mode={mode!r}: "
                f"with an input extent of {extent} it is at most {most}"
            )
