"""Which dtype a program computes in, and which one its result has: torch's type promotion."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

from epiconv.ops import TABLE
from epiconv.steps import Step, call, is_tensor, resolve

if TYPE_CHECKING:
    from epiconv.program import Program

OperandSignature = tuple[tuple[torch.dtype, bool], ...]

# Operations of which torch demands that all tensors have one dtype; here the first one decides.
_DTYPE_OF_FIRST: Final = frozenset({"prelu", "group_norm"})
_NOT_OF_BOOLS: Final = frozenset({"add", "abs", "clamp"})


def operand_signature(operands: Sequence[torch.Tensor]) -> OperandSignature:
    """What type promotion needs to know of operands: (dtype, whether it is 0-d) of each.

    Args:
        operands: tensors of any shape and dtype.

    Example:
        >>> operand_signature([torch.zeros(3, 1, 1)])
        ((torch.float32, False),)
    """
    return tuple([(operand.dtype, operand.dim() == 0) for operand in operands])


@lru_cache(maxsize=4096)
def compute_dtype(program: "Program", y_dtype: torch.dtype, signature: OperandSignature) -> torch.dtype:
    """The dtype of a program's intermediates, one for the whole program: float32 or float64.

    It is float64 when the output, an operand with dimensions, or a cast in the program is float64.

    Args:
        program: the program.
        y_dtype: dtype of the convolution's output.
        signature: `operand_signature` of the operands.

    Example:
        >>> compute_dtype(Program(""), torch.bfloat16, ())
        torch.float32
    """
    double = torch.float64
    if (
        y_dtype == double
        or any(dtype == double and not is_0d for dtype, is_0d in signature)
        or any(step.name == "cast" and step.arguments[1] == "float64" for step in program.steps)
    ):
        return double
    return torch.float32


def result_dtype(program: "Program", y_dtype: torch.dtype, signature: OperandSignature) -> torch.dtype:
    """The dtype that torch's type promotion gives the chain; worked out on meta tensors, then cached.

    An in-place step keeps the dtype of its first argument, a cast gives its own, PReLU and GroupNorm
    keep the dtype of their input; numbers are Python scalars.

    Args:
        program: the program.
        y_dtype: dtype of the convolution's output.
        signature: `operand_signature` of the operands.

    Raises:
        TypeError: torch refuses the chain, or its result is not floating (a comparison).

    Example:
        >>> result_dtype(Program("v1 = add(v0, b0)"), torch.bfloat16, ((torch.float32, False),))
        torch.float32
    """
    return _result_dtype(program, y_dtype, signature, torch.get_default_dtype())


@lru_cache(maxsize=4096)
def _result_dtype(
    program: "Program", y_dtype: torch.dtype, signature: OperandSignature, default_dtype: torch.dtype
) -> torch.dtype:
    # default_dtype is torch's global setting: part of the key, since where(c, 1.0, 0.0) depends on it.
    if len(signature) != program.num_operands:
        raise TypeError(
            f"the program '{program.text}' needs {program.num_operands} operands, got {len(signature)}"
        )
    values = [torch.empty(1, 1, 1, 1, dtype=y_dtype, device="meta")]
    operands = [
        torch.empty(() if is_0d else (1, 1, 1, 1), dtype=dtype, device="meta") for dtype, is_0d in signature
    ]
    for index, step in enumerate(program.steps):
        try:
            values.append(_promote(step, values, operands))
        except (RuntimeError, TypeError) as error:
            given = ", ".join([f"v0 {y_dtype}", *(f"b{i} {dtype}" for i, (dtype, _) in enumerate(signature))])
            raise TypeError(
                f"{step.name}, statement {index + 1} of '{program.text}', does not take these dtypes "
                f"({given}): {error}"
            ) from None
    result = values[-1].dtype
    if not result.is_floating_point:
        raise TypeError(
            f"the program '{program.text}' gives {result}, which is not floating: "
            "end it with ops.cast(torch.float32), or pass dtype="
        )
    return result


def _is_bool(argument: object) -> bool:
    return isinstance(argument, bool) or (isinstance(argument, torch.Tensor) and argument.dtype == torch.bool)


def _promote(step: Step, values: Sequence[torch.Tensor], operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """One statement on meta tensors."""
    arguments = resolve(step, values, operands)
    first: torch.Tensor = arguments[0]
    if step.name == "cast":
        return first.to(getattr(torch, arguments[1]))
    # On meta tensors torch lets through what its kernels refuse.
    if TABLE[step.name].torch_path.startswith("nn.functional.") and not first.is_floating_point():
        raise TypeError(f"its input is {first.dtype}; cast it to a floating dtype first")
    if step.name in _DTYPE_OF_FIRST:
        return first
    if step.name == "sub" and any(_is_bool(argument) for argument in arguments):
        raise TypeError("torch does not subtract bools; cast them first")
    if step.name == "where" and first.dtype != torch.bool:
        raise TypeError(f"its condition is {first.dtype}, not torch.bool; compare it, as in ne(b0, 0)")
    result: torch.Tensor
    if step.name in ("minimum", "maximum") and not all(map(is_tensor, arguments)):
        tensor = first if is_tensor(first) else arguments[1]
        result = torch.empty_like(tensor, dtype=torch.result_type(*arguments))
    elif TABLE[step.name].is_predicate and not is_tensor(first):
        result = torch.empty_like(arguments[1], dtype=torch.bool)
    elif step.name == "clamp" and any(map(is_tensor, arguments[1:])):
        result = first
        for bound in arguments[1:]:
            if bound is not None:
                extents = bound.shape if is_tensor(bound) else ()
                shape = torch.broadcast_shapes(result.shape, extents)  # type: ignore[no-untyped-call]
                result = torch.empty(shape, dtype=torch.result_type(result, bound), device="meta")
    else:
        result = call(step.name, arguments)
    if step.name in _NOT_OF_BOOLS and result.dtype == torch.bool:
        raise TypeError("it would give a bool, in torch, or be refused; cast the bools first")
    if not step.in_place:
        return result
    if not torch.can_cast(result.dtype, first.dtype):
        raise TypeError(f"its result is {result.dtype}, which cannot be stored into {first.dtype}")
    if result.shape != first.shape:
        raise TypeError("it would write a tensor into a 0-d tensor")
    return result.to(first.dtype)
