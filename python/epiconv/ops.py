"""The operations of an epilogue: `ops.minimum(0.5)`, `ops.add(bias)`, `ops.gelu(approximate="tanh")`.

Every function here is made from one row of the core's operation table, with torch's name, argument
names and order. Its first argument, the running value, is left out: a list of operations is a chain,
and each is applied to the result of the one before it. `where` takes the running value as condition.

    epilogue = [ops.minimum(0.5), ops.add(bias), ops.mul(2.0)]

Module-level names of this file must not collide with names of the table (`abs`, `pow`, …).
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch

from epiconv import _core

_REQUIRED: Final = inspect.Parameter.empty
_OPERAND_KINDS: Final = frozenset({"tensor", "any", "optional", "channel", "optional_channel"})
_ANNOTATIONS: Final[dict[str, Any]] = {
    "tensor": torch.Tensor,
    "any": torch.Tensor | float,
    "optional": torch.Tensor | float | None,
    "number": float,
    "integer": int,
    "channel": torch.Tensor,
    "optional_channel": torch.Tensor | None,
    "choice": str,
    "dtype": torch.dtype | str,
}
_MEANINGS: Final[dict[str, str]] = {
    "tensor": "a tensor that broadcasts against the output",
    "any": "a number, or a tensor that broadcasts against the output",
    "optional": "a number, a tensor that broadcasts against the output, or None",
    "number": "a number",
    "integer": "a positive integer",
    "channel": "a tensor of shape (K,)",
    "optional_channel": "a tensor of shape (K,), or None",
    "choice": "one of",
    "dtype": "a floating torch dtype, or its name",
}


@dataclass(frozen=True)
class ArgumentSpec:
    """One argument of an operation, as plain Python that Dynamo can read.

    `kind` is one of the kinds of `_core.ArgumentInfo`; `default` is `inspect.Parameter.empty` when the
    argument must be given.
    """

    name: str
    kind: str
    default: Any
    choices: tuple[str, ...]


@dataclass(frozen=True)
class OperationSpec:
    """A row of the operation table, as plain Python that Dynamo can read."""

    name: str
    torch_path: str
    arguments: tuple[ArgumentSpec, ...]
    max_ulp: int
    is_predicate: bool
    is_terminal: bool
    summary: str
    signature: str  # as the user calls it: "clamp(min=None, max=None)"


def _argument_spec(info: _core.ArgumentInfo) -> ArgumentSpec:
    default: Any = _REQUIRED
    if info.has_default:
        if info.kind in ("optional", "optional_channel"):
            default = None
        elif info.kind == "choice":
            default = info.choices[int(info.default)]
        else:
            default = info.default
    return ArgumentSpec(info.name, info.kind, default, tuple(info.choices))


def _operation_spec(info: _core.OperationInfo) -> OperationSpec:
    arguments = tuple(_argument_spec(argument) for argument in info.arguments)
    parameters = ", ".join(
        argument.name if argument.default is _REQUIRED else f"{argument.name}={argument.default!r}"
        for argument in arguments[1:]
    )
    return OperationSpec(
        info.name,
        info.torch_path,
        arguments,
        info.max_ulp,
        info.is_predicate,
        info.is_terminal,
        info.summary,
        f"{info.name}({parameters})",
    )


TABLE: Final[dict[str, OperationSpec]] = {info.name: _operation_spec(info) for info in _core.operations()}


def number_text(value: float) -> str:
    """The text of a number in a program: `2`, `2.0`, `1e-05`, `inf`, `nan`, `True`."""
    return repr(value)


def plain_number(value: Any) -> bool | int | float | None:
    """`value` as a Python bool, int or float, or None when it is no real number.

    numpy scalars (anything with a `dtype`, no dimensions and `item()`) count as numbers; tensors do not.
    """
    if isinstance(value, bool | int | float) and type(value) in (bool, int, float):
        return value
    if isinstance(value, torch.Tensor):
        return None
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return None


def dtype_word(value: Any) -> str | None:
    """The name of a torch dtype, "bfloat16" of `torch.bfloat16`; a name passes through."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value if isinstance(value, str) else None


def statement_text(name: str, pieces: tuple[str, ...], index: int, first_operand: int) -> str:
    """Statement `index` of a program from an `Operation`'s name and pieces, applied to value `index - 1`."""
    text = f"v{index} = {name}(v{index - 1}{pieces[0]}"
    for position in range(len(pieces) - 1):
        text += f"b{first_operand + position}{pieces[position + 1]}"
    return text


@dataclass(frozen=True, eq=False, repr=False)
class Operation:
    """One step of a chain, made by the functions of this module. Immutable.

    Two operations are equal, and hash alike, when they are the same operation with the same numbers
    and words and have their tensors in the same places; which tensors does not matter.

    Attributes:
        name: torch's name of the operation.
        arguments: what was given, as (argument name, value) pairs, tensors included.
        operands: the tensors among them, in order; they are held by reference.
        structure: the operation as text, with `b` for each tensor.
        pieces: the text between the running value and the first operand, between operands, and after
            the last: `len(operands) + 1` strings.

    Example:
        >>> ops.clamp(0, 1)
        ops.clamp(0, 1)
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    operands: tuple[torch.Tensor, ...]
    structure: str
    pieces: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return self.structure == other.structure if isinstance(other, Operation) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.structure)

    def __repr__(self) -> str:
        words = []
        by_position = True
        for (name, value), argument in zip(self.arguments, TABLE[self.name].arguments[1:], strict=False):
            by_position = by_position and name == argument.name
            word = f"<tensor {tuple(value.shape)}>" if isinstance(value, torch.Tensor) else repr(value)
            words.append(word if by_position else f"{name}={word}")
        return f"ops.{self.name}({', '.join(words)})"

    def statement(self, index: int, first_operand: int) -> str:
        """This operation as statement `index` of a program, applied to value `index - 1`."""
        return statement_text(self.name, self.pieces, index, first_operand)


def _refuse(spec: OperationSpec, problem: str, error: type[Exception] = TypeError) -> NoReturn:
    raise error(f"ops.{spec.name}: {problem}; its signature is {spec.signature}")


def argument_text(spec: OperationSpec, argument: ArgumentSpec, value: Any) -> str:
    """The text of an argument that is not a tensor.

    Raises:
        TypeError, ValueError: the operation does not take it.
    """
    if argument.kind == "choice":
        if value not in argument.choices:
            _refuse(
                spec, f"{argument.name} is one of {', '.join(argument.choices)}, not {value!r}", ValueError
            )
        return str(value)
    if argument.kind == "dtype":
        word = dtype_word(value)
        if word is None:
            _refuse(spec, f"{argument.name} is {_MEANINGS['dtype']}, not {value!r}")
        dtype = getattr(torch, word, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            _refuse(spec, f"{argument.name} is {_MEANINGS['dtype']}, not {value!r}", ValueError)
        return str(dtype).removeprefix("torch.")
    if value is None and argument.kind in ("optional", "optional_channel"):
        return "None"
    number = plain_number(value)
    if number is None or argument.kind in ("channel", "optional_channel", "tensor"):
        _refuse(spec, f"{argument.name} is {_MEANINGS[argument.kind]}, not {value!r}")
    if argument.kind == "integer":
        if isinstance(number, bool) or not isinstance(number, int):
            _refuse(spec, f"{argument.name} is a positive integer, not {value!r}")
        if number < 1:
            _refuse(spec, f"{argument.name} is a positive integer, not {value!r}", ValueError)
    return number_text(number)


def _operation(spec: OperationSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation:
    """Binds what the user gave to the operation's arguments."""
    rest = spec.arguments[1:]
    if len(args) > len(rest):
        _refuse(spec, f"takes at most {len(rest)} arguments, got {len(args)}")
    used_keywords = 0
    given: list[tuple[str, Any]] = []
    operands: list[torch.Tensor] = []
    pieces: list[str] = []
    piece = ""
    for position, argument in enumerate(rest):
        if position < len(args):
            if argument.name in kwargs:
                _refuse(spec, f"{argument.name} is given twice")
            value = args[position]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
            used_keywords += 1
        elif argument.default is _REQUIRED:
            _refuse(spec, f"{argument.name} is missing")
        else:
            continue
        given.append((argument.name, value))
        piece += ", " if argument.default is _REQUIRED and argument.kind != "dtype" else f", {argument.name}="
        if isinstance(value, torch.Tensor) and argument.kind in _OPERAND_KINDS:
            operands.append(value)
            pieces.append(piece)
            piece = ""
        else:
            piece += argument_text(spec, argument, value)
    if used_keywords != len(kwargs):
        names = [argument.name for argument in rest]
        unknown = ", ".join([name for name in kwargs if name not in names])
        _refuse(spec, f"has no argument {unknown}")
    pieces.append(piece + ")")
    structure = spec.name + "(v" + "b".join(pieces)
    return Operation(spec.name, tuple(given), tuple(operands), structure, tuple(pieces))


def _docstring(spec: OperationSpec) -> str:
    lines = [
        f"{spec.summary[:1].upper()}{spec.summary[1:]}.",
        "",
        f"`torch.{spec.torch_path}` applied to the running value (`{spec.arguments[0].name}`), any of",
        "float32, float16, bfloat16 and float64.",
        "",
    ]
    if len(spec.arguments) > 1:
        lines.append("Args:")
    for argument in spec.arguments[1:]:
        meaning = _MEANINGS[argument.kind]
        if argument.kind == "choice":
            meaning = f"one of {', '.join(argument.choices)}"
        default = "" if argument.default is _REQUIRED else f" (default {argument.default!r})"
        lines.append(f"    {argument.name}: {meaning}{default}.")
    lines += ["", "Returns:", "    An `Operation`, to be put into the list given as `epilogue=`.", ""]
    lines += ["Raises:", "    TypeError: an argument is missing, unknown or of the wrong type."]
    if any(argument.kind in ("choice", "dtype", "integer") for argument in spec.arguments):
        lines.append("    ValueError: a word or number that the operation does not know.")
    accuracy = f"within {spec.max_ulp} ulp of torch's" if spec.max_ulp else "the same bits as torch's"
    lines += ["", f"Accuracy: a float32 result is {accuracy}."]
    if spec.is_predicate:
        lines.append("The result is a bool: use it in `where`, or end the program with `ops.cast`.")
    if spec.is_terminal:
        lines.append("It looks across pixels; elementwise operations may follow it.")
    examples = {"integer": "8", "dtype": "torch.bfloat16", "channel": "weight"}
    required = [
        examples.get(a.kind, "0.5")
        for a in spec.arguments[1:]
        if a.default is _REQUIRED or a.kind == "optional"
    ]
    lines += ["", "Example:", f"    >>> epilogue = [ops.{spec.name}({', '.join(required)})]"]
    return "\n".join(lines)


def _function(spec: OperationSpec) -> Callable[..., Operation]:
    def operation(*args: Any, **kwargs: Any) -> Operation:
        return _operation(spec, args, kwargs)

    parameters = [
        inspect.Parameter(
            argument.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default,
            annotation=_ANNOTATIONS[argument.kind],
        )
        for argument in spec.arguments[1:]
    ]
    operation.__name__ = operation.__qualname__ = spec.name
    operation.__doc__ = _docstring(spec)
    operation.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=Operation
    )
    return operation


def close_matches(name: str) -> str:
    """ "; did you mean a, b?" for an unknown operation, or "" when nothing is near."""
    matches = difflib.get_close_matches(name, TABLE, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def __getattr__(name: str) -> NoReturn:
    allowed = "" if name.startswith("_") else close_matches(name) or f"; there are {', '.join(TABLE)}"
    raise AttributeError(f"epiconv.ops has no operation {name!r}{allowed}")


__all__ = ["Operation", *TABLE]


def __dir__() -> list[str]:
    return sorted(__all__)


globals().update({name: _function(spec) for name, spec in TABLE.items()})
