"""Torch operations, one after another, become the statements of a program.

`Recording` knows torch's many spellings of an operation and what none of them may do. It knows nothing of
how the operations are found: `epiconv.trace` calls a function to see them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, Final, NamedTuple, NoReturn

import torch

from epiconv import ops
from epiconv.ops import TABLE, OperationSpec
from epiconv.program import Program


class Refusal(Exception):
    """What the function does cannot be said in a program.

    It is no TypeError, which torch's operators would take for an invitation to try the reflected form.
    """


class Reference(NamedTuple):
    """A value ("v"), an operand ("b") or a captured tensor ("c")."""

    kind: str
    number: int


@dataclass(eq=False)
class Cell:
    """A tensor of the traced function: operations in place change what it refers to.

    A cell and its `twins` may or may not share memory, depending on dtypes and strides that are not known:
    once one of them is changed in place, by the operation that `unclear` names, the others cannot be read.
    """

    reference: Reference
    twins: "set[Cell]" = field(default_factory=set)
    unclear: str = ""

    def twin(self, reference: Reference) -> "Cell":
        """A cell that may share memory with this one."""
        other = Cell(reference, self.twins)
        self.twins |= {self, other}
        return other


class _Statement(NamedTuple):
    name: str
    in_place: bool
    arguments: list[Reference | str]


_OTHER_NAMES: Final = {
    "absolute": "abs",
    "clip": "clamp",
    "divide": "div",
    "expit": "sigmoid",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "log_sigmoid": "logsigmoid",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_expit": "sigmoid",
    "subtract": "sub",
    "true_divide": "div",
}
_DTYPE_METHODS: Final = {
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
}
_DROPOUTS: Final = frozenset(
    {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"}
)

_READS: Final = (
    "reads a number out of a tensor, which has no values while tracing; an epilogue cannot do that"
)
_SHAPE: Final = (
    "asks for a property of a tensor, which is not known while tracing: a program does not depend on shapes, "
    "dtypes or devices. Put what you need in as a constant, or compute it outside the function"
)
_LOOKS_ACROSS: Final = (
    "looks across values or changes the shape: an epilogue gives one value for each value of the "
    "convolution's output. Apply it outside, to the result of the convolution"
)
_REASONS: Final[dict[str, str]] = {
    **dict.fromkeys(("item", "tolist", "numpy", "__array__", "is_nonzero", "allclose", "equal"), _READS),
    **dict.fromkeys(
        ("getattr", "size", "dim", "ndimension", "stride", "numel", "is_contiguous", "get_device"),
        _SHAPE,
    ),
    **dict.fromkeys(("is_floating_point", "is_complex", "element_size", "type_as"), _SHAPE),
    **dict.fromkeys(
        (
            "amax", "amin", "argmax", "argmin", "cat", "chunk", "concat", "cumsum", "expand", "flatten",
            "flip", "getitem", "layer_norm", "log_softmax", "matmul", "mean", "movedim", "norm", "permute",
            "pixel_shuffle", "prod", "repeat", "reshape", "roll", "softmax", "softmin", "split", "squeeze",
            "stack", "std", "sum", "transpose", "unbind", "unflatten", "unsqueeze", "var", "view",
            "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d",
            "avg_pool3d", "interpolate", "linear", "normalize", "pad", "conv1d", "conv2d", "conv3d",
            "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "t", "swapaxes",
        ),
        _LOOKS_ACROSS,
    ),
    "batch_norm": (
        "is a normalisation over the batch. In eval mode fold it into the convolution with "
        "torch.nn.utils.fusion.fuse_conv_bn_eval; in training mode apply it outside, to the result"
    ),
    "instance_norm": (
        "is a normalisation over pixels, which a program has as group_norm only: without running statistics "
        "torch.nn.GroupNorm(K, K) computes the same"
    ),
    "detach": "cuts the gradient, which an epilogue does not do; detach the input of the convolution instead",
    "masked_fill": "is not an operation of an epilogue; write torch.where(mask, value, y)",
    "rrelu": "is random in training mode; in eval mode write leaky_relu(y, (lower + upper) / 2)",
}  # fmt: skip


class _Call(NamedTuple):
    """One torch operation as the function called it; tensors are cells."""

    name: str  # without the underscore of the in-place form
    shown: str
    in_place: bool
    target: Callable[..., Any] | None  # None for a method
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def refuse(self, problem: str) -> NoReturn:
        raise Refusal(f"{self.shown} {problem}")

    def bind(self, names: Sequence[str]) -> dict[str, Any]:
        """The arguments by name; positional ones are named in turn."""
        if len(self.args) > len(names):
            self.refuse(f"takes at most {len(names)} arguments in a program: {', '.join(names)}")
        given = dict(zip(names, self.args, strict=False))
        for name, value in self.kwargs.items():
            if name in given:
                self.refuse(f"has two values for its argument {name}")
            given[name] = value
        return given


def operation_name(name: str) -> tuple[str, bool]:
    """The table's name of what torch calls `name`, and whether that is an in-place form.

    Example:
        >>> operation_name("multiply_")
        ('mul', True)
    """
    in_place = name.endswith("_") and not name.endswith("__")
    name = name if name.startswith("__") else name.strip("_")
    return _OTHER_NAMES.get(name, name), in_place


class Recording:
    """The program that a sequence of torch operations makes.

    Attributes:
        captured: tensors that are no parameters, in the order in which they were met.

    Example:
        >>> recording = Recording()
        >>> y, b = recording.output_cell(), recording.operand_cell(0)
        >>> recording.finish(recording.call(torch.add, "torch.add", (y, b), {}), ["b"])[0]
        Program('v1 = add(v0, b0)')
    """

    def __init__(self) -> None:
        self.captured: list[torch.Tensor] = []
        self._statements: list[_Statement] = []
        self._from_output = [True]  # whether v0, v1, … are computed from v0

    def output_cell(self) -> Cell:
        """The cell of the convolution's output."""
        return Cell(Reference("v", 0))

    def operand_cell(self, index: int) -> Cell:
        """The cell of an operand of the call."""
        return Cell(Reference("b", index))

    def captured_cell(self, tensor: torch.Tensor) -> Cell:
        """The cell of a tensor that is not a parameter of the function."""
        for index, known in enumerate(self.captured):
            if known is tensor:
                return Cell(Reference("c", index))
        self.captured.append(tensor)
        return Cell(Reference("c", len(self.captured) - 1))

    def call(
        self,
        target: Callable[..., Any] | str,
        shown: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Cell:
        """Records one operation.

        Args:
            target: a function, or the name of a method of its first argument.
            shown: what messages call it.
            args: its arguments; tensors are cells.
            kwargs: its keyword arguments.

        Returns:
            The cell of its result.

        Raises:
            Refusal: a program cannot say it.
        """
        function = None if isinstance(target, str) else target
        name, in_place = operation_name(
            target if isinstance(target, str) else getattr(target, "__name__", "")
        )
        call = _Call(name, shown, in_place, function, args, dict(kwargs))
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Cell):
                _check_clear(shown, argument)
        if call.kwargs.pop("out", None) is not None:
            call.refuse("writes to out=, which a program cannot; use its result")
        return _SPECIAL.get(call.name, Recording._operation)(self, call)

    def finish(self, result: Cell, operands: Sequence[str]) -> tuple[Program, tuple[torch.Tensor, ...]]:
        """The program whose result is that of a cell, and its captured operands.

        Args:
            result: one of the cells given out.
            operands: names of the operands of the call; the captured ones are numbered behind them.

        Raises:
            Refusal: the result is not computed from the convolution's output, or not from all operands.
            ValueError: the core refuses the program.
        """
        _check_clear("the result", result)
        kind, index = result.reference
        if kind != "v" or not self._from_output[index]:
            raise Refusal("the result is not computed from the first argument, the convolution's output")
        needed = {index}
        for number in range(index, 0, -1):
            if number in needed:
                needed.update(a.number for a in self._references(number) if a.kind == "v")
        numbers = sorted(needed - {0})
        others = [a for number in numbers for a in self._references(number) if a.kind != "v"]
        for place, name in enumerate(operands):
            if Reference("b", place) not in others:
                raise Refusal(f"the result does not depend on the parameter {name}; leave it out")
        captured = list(dict.fromkeys(a.number for a in others if a.kind == "c"))
        words = {Reference("v", number): f"v{place}" for place, number in enumerate(numbers, 1)}
        words[Reference("v", 0)] = "v0"
        words |= {Reference("b", place): f"b{place}" for place in range(len(operands))}
        words |= {Reference("c", index): f"b{place}" for place, index in enumerate(captured, len(operands))}
        lines: list[str] = []
        for place, number in enumerate(numbers, 1):
            name, in_place, arguments = self._statements[number - 1]
            listed = ", ".join(words[a] if isinstance(a, Reference) else a for a in arguments)
            lines.append(f"v{place} = {name}{'_' if in_place else ''}({listed})")
        return Program("; ".join(lines)), tuple(self.captured[index] for index in captured)

    def _references(self, number: int) -> list[Reference]:
        return [a for a in self._statements[number - 1].arguments if isinstance(a, Reference)]

    def _operation(self, call: _Call) -> Cell:
        """An operation of the table, under any of its names."""
        spec = TABLE.get(call.name)
        if spec is None or spec.name == "cast":
            self._refuse_unknown(call)
        names = [argument.name for argument in spec.arguments]
        if isinstance(call.target, FunctionType):
            names = list(signature(call.target).parameters)
        return self._push(call, spec, call.bind(names))

    def _where(self, call: _Call) -> Cell:
        names = ("condition", "input", "other") if call.target else ("input", "condition", "other")
        return self._push(call, TABLE["where"], call.bind(names))

    def _extreme(self, call: _Call) -> Cell:
        """torch.min and torch.max, which are reductions unless they are given two tensors."""
        given = call.bind(("input", "other"))
        if not isinstance(given.get("other"), Cell):
            call.refuse(
                "of one tensor looks for the extreme over a dimension, which an epilogue cannot do; for the "
                "smaller or larger of a value and a number write torch.clamp"
            )
        return self._push(call, TABLE[f"{call.name}imum"], given)

    def _clamp_one_side(self, call: _Call) -> Cell:
        given = call.bind(("input", call.name.removeprefix("clamp_")))
        return self._push(call, TABLE["clamp"], given)

    def _rsub(self, call: _Call) -> Cell:
        given = call.bind(("input", "other", "alpha"))
        missing = Parameter.empty
        swapped = {"input": given.get("other", missing), "other": given.get("input", missing)}
        return self._push(call, TABLE["sub"], given | swapped)

    def _reciprocal(self, call: _Call) -> Cell:
        if call.in_place:
            call.refuse("is not an operation of an epilogue; write y = 1 / y")
        (value,) = call.bind(("input",)).values()
        return self._push(call, TABLE["div"], {"input": 1.0, "other": value})

    def _truediv(self, call: _Call) -> Cell:
        number, divisor = call.args
        if isinstance(number, Cell):
            return self._push(call, TABLE["div"], {"input": number, "other": divisor})
        # torch's own meaning of number / tensor.
        reciprocal = self._push(call, TABLE["div"], {"input": 1.0, "other": divisor})
        if number == 1:
            return reciprocal
        return self._push(call, TABLE["mul"], {"input": reciprocal, "other": number})

    def _cast(self, call: _Call) -> Cell:
        """Tensor.float, .half, … and the forms of Tensor.to and Tensor.type that name a dtype."""
        source, dtype = call.args[0], _DTYPE_METHODS.get(call.name)
        rest = list(call.args[1:])
        if dtype is None:
            dtype = call.kwargs.get("dtype")
            if rest and isinstance(rest[0], torch.dtype):
                dtype = rest.pop(0)
        if not isinstance(dtype, torch.dtype) or any(not isinstance(flag, bool) for flag in rest):
            call.refuse(
                "with anything but a dtype is not an operation of an epilogue; y.to(torch.float16) is"
            )
        for name in ("device", "memory_format"):
            if call.kwargs.get(name) not in (None, torch.preserve_format):
                call.refuse(f"with {name}= is not an operation of an epilogue, which changes dtypes only")
        result = self._push(call, TABLE["cast"], {"input": source, "dtype": dtype})
        return source.twin(result.reference)  # type: ignore[no-any-return]

    def _dropout(self, call: _Call) -> Cell:
        names = ["input", "p", "train"]
        given: dict[str, Any] = {}
        if isinstance(call.target, FunctionType):
            parameters = signature(call.target).parameters
            names = list(parameters)
            given = {name: parameter.default for name, parameter in parameters.items()}
        given |= call.bind(names)
        if given.get("training", given.get("train")) and given["p"] != 0:
            call.refuse(
                "in training mode is random, which an epilogue is not: call eval() on the module before "
                "tracing, or apply the dropout outside, to the result of the convolution"
            )
        return given["input"]  # type: ignore[no-any-return]

    def _clone(self, call: _Call) -> Cell:
        return Cell(call.args[0].reference)

    def _contiguous(self, call: _Call) -> Cell:
        if len(call.args) > 1 or call.kwargs:
            call.refuse(
                "with a memory format is not an operation of an epilogue; give the convolution memory_format="
            )
        source: Cell = call.args[0]
        return source.twin(source.reference)

    def _positive(self, call: _Call) -> Cell:
        return call.args[0]  # type: ignore[no-any-return]

    def _refuse_unknown(self, call: _Call) -> NoReturn:
        if call.name in _REASONS:
            call.refuse(_REASONS[call.name])
        matches = ops.close_matches(call.name) or f"; there are {', '.join(TABLE)}"
        call.refuse(
            f"is not an operation of an epilogue{matches}. Say it with these, or apply it outside, to the "
            "result of the convolution"
        )

    def _push(self, call: _Call, spec: OperationSpec, given: dict[str, Any]) -> Cell:
        """Records a statement; `given` are the arguments by name."""
        in_place = bool(given.pop("inplace", False)) or call.in_place
        known = [argument.name for argument in spec.arguments]
        for name, value in given.items():
            if name not in known and value is not None:
                call.refuse(f"with {name}= is not an operation of an epilogue; {spec.signature} is")
        arguments = [given.get(argument.name, argument.default) for argument in spec.arguments]
        words: list[Reference | str] = []
        from_output = False
        for argument, value in zip(spec.arguments, arguments, strict=True):
            if value is Parameter.empty:
                call.refuse(f"lacks its argument {argument.name}")
            if isinstance(value, Cell):
                self._check_tensor(call, argument, value)
                kind, index = value.reference
                from_output |= kind == "v" and self._from_output[index]
                words.append(value.reference)
            else:
                words.append(_text_of(call, spec, argument, value))
        if not any(isinstance(word, Reference) for word in words):
            call.refuse("has no tensor among its arguments")
        self._statements.append(_Statement(spec.name, in_place, words))
        self._from_output.append(from_output)
        result = Reference("v", len(self._statements))
        if not in_place:
            return Cell(result)
        return self._store(call, arguments[0], result)

    def _check_tensor(self, call: _Call, argument: ops.ArgumentSpec, cell: Cell) -> None:
        kind = argument.kind
        if kind in ("channel", "optional_channel"):
            if cell.reference.kind == "v":
                call.refuse(
                    f"takes as {argument.name} a tensor of shape (K,) that is an operand, not computed"
                )
        elif kind not in ("tensor", "any", "optional"):
            call.refuse(
                f"takes {argument.name} as a constant, not as a tensor; write the number, or float(tensor) "
                "of a captured tensor, which is then fixed"
            )

    def _store(self, call: _Call, target: Any, result: Reference) -> Cell:
        """What an operation in place does: the tensor itself has the new value."""
        if not isinstance(target, Cell) or target.reference.kind != "v":
            call.refuse(
                "would change an operand or a captured tensor in place; use the form without underscore"
            )
        if not self._from_output[target.reference.number]:
            call.refuse(
                "would change a tensor in place that is not computed from the convolution's output; "
                "use the form without underscore"
            )
        target.reference = result
        target.twins.discard(target)
        for twin in target.twins:
            twin.unclear = call.shown
        target.twins = set()
        return target


def _text_of(call: _Call, spec: OperationSpec, argument: ops.ArgumentSpec, value: Any) -> str:
    if argument.kind == "tensor":
        call.refuse(f"takes {argument.name} as a tensor in a program, not {value!r}")
    try:
        return ops.argument_text(spec, argument, value)
    except (TypeError, ValueError) as error:
        raise Refusal(f"{call.shown}: {error}") from None


def _check_clear(shown: str, cell: Cell) -> None:
    if cell.unclear:
        raise Refusal(
            f"{shown} reads a tensor which {cell.unclear} may have changed in place, or not, depending on "
            "dtypes or strides that are not known while tracing; use the form without underscore there"
        )


_SPECIAL: Final[dict[str, Callable[[Recording, _Call], Cell]]] = {
    **dict.fromkeys((*_DTYPE_METHODS, "to", "type"), Recording._cast),
    **dict.fromkeys(_DROPOUTS, Recording._dropout),
    **dict.fromkeys(("clamp_min", "clamp_max"), Recording._clamp_one_side),
    **dict.fromkeys(("min", "max"), Recording._extreme),
    **dict.fromkeys(("pos", "positive"), Recording._positive),
    "clone": Recording._clone,
    "contiguous": Recording._contiguous,
    "reciprocal": Recording._reciprocal,
    "rsub": Recording._rsub,
    "truediv": Recording._truediv,
    "where": Recording._where,
}
