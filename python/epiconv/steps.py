"""The statements of a program, and what each computes in plain torch operations."""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch

from epiconv.ops import TABLE

# Operations that torch offers for tensors only: their numbers become 0-d tensors.
_TENSOR_ONLY: Final = frozenset({"minimum", "maximum", "where"})


class Step(NamedTuple):
    """One statement: arguments in signature order, `("v", i)` a value, `("b", i)` an operand."""

    name: str
    in_place: bool
    arguments: tuple[Any, ...]


def is_tensor(value: object) -> bool:
    """Whether an argument of a step is a tensor once it is resolved."""
    return isinstance(value, torch.Tensor)


def resolve(step: Step, values: Sequence[torch.Tensor | None], operands: Sequence[torch.Tensor]) -> list[Any]:
    """The arguments of a step with tensors in place of `("v", i)` and `("b", i)`.

    Args:
        step: the statement.
        values: `v0, v1, …` as far as they are computed.
        operands: `b0, b1, …`.

    Returns:
        One entry for each argument of the operation.
    """
    arguments: list[Any] = []
    for argument in step.arguments:
        if isinstance(argument, tuple):
            kind, index = argument
            arguments.append(values[index] if kind == "v" else operands[index])
        else:
            arguments.append(argument)
    return arguments


@lru_cache(maxsize=64)
def _torch_function(name: str) -> Callable[..., torch.Tensor]:
    function: Callable[..., torch.Tensor] = attrgetter(TABLE[name].torch_path)(torch)
    return function


def call(name: str, arguments: Sequence[Any]) -> torch.Tensor:
    """Calls the torch function of an operation.

    Args:
        name: of the operation; `cast` has no function that takes a word.
        arguments: in signature order, defaults filled in.

    Returns:
        What torch returns.

    Raises:
        RuntimeError, TypeError: torch refuses the arguments.

    Example:
        >>> call("add", [torch.ones(1), 2.0, 0.5])
        tensor([2.])
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for spec, argument in zip(TABLE[name].arguments, arguments, strict=True):
        if spec.default is inspect.Parameter.empty:
            positional.append(argument)
        elif type(argument) is not type(spec.default) or argument != spec.default:
            # Some are keyword-only, and torch refuses even alpha=1.0 between integers.
            keywords[spec.name] = argument
    return _torch_function(name)(*positional, **keywords)


def evaluate(
    step: Step, values: Sequence[torch.Tensor | None], operands: Sequence[torch.Tensor], compute: torch.dtype
) -> torch.Tensor:
    """Runs one statement on real tensors.

    Args:
        step: the statement.
        values: `v0, v1, …` as far as they are computed, all of them bool or of the compute dtype.
        operands: `b0, b1, …`, likewise.
        compute: float32 or float64.

    Returns:
        The next value, bool or of the compute dtype.

    Raises:
        RuntimeError, TypeError: torch refuses the arguments.
    """
    arguments = resolve(step, values, operands)
    first = arguments[0]
    if step.name == "cast":
        return _stored(first.to(getattr(torch, arguments[1])), compute)
    if (
        step.name in _TENSOR_ONLY
        or not is_tensor(first)
        or (step.name == "clamp" and any(map(is_tensor, arguments[1:])))
    ):
        kinds = [argument.kind for argument in TABLE[step.name].arguments]
        arguments = [
            torch.tensor(a, dtype=torch.bool if isinstance(a, bool) else compute)
            if isinstance(a, bool | int | float) and kind in ("any", "optional")
            else a
            for a, kind in zip(arguments, kinds, strict=True)
        ]
    result = call(step.name, arguments)
    return _stored(result.to(first.dtype) if step.in_place else result, compute)


def _stored(result: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    return result if result.dtype == torch.bool else result.to(compute)
