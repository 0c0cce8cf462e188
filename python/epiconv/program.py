"""Epilogue programs on the Python side: what they are, how they are bound, what they compute in torch.

A program is a straight line of operations applied to each value of a convolution's output. `_core`
parses, checks and canonicalises its text; here it gets operands, a result dtype, and a meaning in plain
torch operations (`Program.apply`), which is the reference and the route of autograd.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NoReturn

import torch

from epiconv import _core
from epiconv.ops import Operation, statement_text
from epiconv.promotion import OperandSignature, compute_dtype, operand_signature, result_dtype
from epiconv.steps import Step, evaluate

__all__ = [
    "IDENTITY",
    "BoundProgram",
    "OperandSignature",
    "PartialProgram",
    "Program",
    "Step",
    "bind_epilogue",
    "compute_dtype",
    "epilogue_text",
    "operand_signature",
    "result_dtype",
]

_ALLOWED: Final = (
    "an epilogue is None, a list of ops.* such as [ops.add(bias), ops.relu()], a program of epiconv.trace "
    "or epiconv.Program that needs no operands, or such a program called with its operands"
)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Program:
    """An epilogue program, immutable, equal and hashed by its canonical text; pickles by it too.

    `v0` is the convolution's output, `b0, b1, …` are the operands. Calling a program with its operands
    gives what `epilogue=` takes; a program without operands may be given as it is.

    Args:
        text: statements separated by `;`, as `str(program)` prints them. "" is the identity.

    Attributes:
        text: the canonical text.
        num_operands: how many operands a call needs.
        channel_operands: indices of the operands of shape (K,): PReLU weights, GroupNorm's affine.
            All others broadcast against the output (N, K, P, Q) as in torch.
        steps: the statements.
        core: the compiled core's own program.

    Raises:
        ValueError: the text is no program; the message says where and why.

    Example:
        >>> program = Program("v1 = minimum(v0, 0.5); v2 = add(v1, b0)")
        >>> y = fused_conv_epilogue(x, weight, epilogue=program(bias))
    """

    text: str
    num_operands: int
    channel_operands: tuple[int, ...]
    steps: tuple[Step, ...]
    core: _core.Program

    def __init__(self, text: str = "") -> None:
        core = _core.Program(text)
        store = object.__setattr__
        store(self, "core", core)
        store(self, "text", core.text)
        store(self, "num_operands", core.num_operands)
        store(self, "channel_operands", tuple(core.channel_operands))
        store(self, "steps", tuple(Step(s.name, s.in_place, tuple(s.arguments)) for s in core.steps))

    def __call__(self, *operands: torch.Tensor) -> "BoundProgram":
        """Binds operands, by reference.

        Args:
            operands: one tensor for each of `b0, b1, …`, any dtype. Shapes are checked against the
                output when the program runs; a 0-d CPU tensor is read at each run.

        Returns:
            What `epilogue=` takes.

        Raises:
            TypeError: their number is wrong, or one of them is not a tensor.

        Example:
            >>> Program("v1 = add(v0, b0)")(residual)
        """
        if len(operands) != self.num_operands:
            raise TypeError(f"{_needs(self)}, got {len(operands)}")
        for operand in operands:
            if not isinstance(operand, torch.Tensor):
                _check_tensors(operands)  # raises
        return BoundProgram(self, operands)

    def apply(
        self, y: torch.Tensor, operands: Sequence[torch.Tensor] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Runs the program as plain torch operations, differentiably.

        Intermediates are float32 and are not rounded between operations; they are float64 when
        `compute_dtype` says so.

        Args:
            y: what `v0` stands for, usually (N, K, P, Q); floating.
            operands: one tensor for each operand. 0-d CPU tensors go with any device.
            dtype: of the result. None: as torch would promote (`result_dtype`).

        Returns:
            A tensor of y's shape.

        Raises:
            TypeError: the number of operands is wrong, y is not floating, or the result would not be.

        Example:
            >>> Program("v1 = mul(v0, 2.0)").apply(torch.ones(1, 1, 2, 2))
        """
        if len(operands) != self.num_operands:
            raise TypeError(f"{_needs(self)}, got {len(operands)}")
        if not y.dtype.is_floating_point:
            raise TypeError(f"an epilogue applies to a floating tensor, not to {y.dtype}")
        signature = operand_signature(operands)
        if dtype is None:
            dtype = result_dtype(self, y.dtype, signature)
        compute = compute_dtype(self, y.dtype, signature)
        bound = [b if b.dtype == torch.bool else b.to(compute) for b in operands]
        values: list[torch.Tensor | None] = [y.to(compute)]
        last_uses = _last_uses(self)
        for index, step in enumerate(self.steps):
            values.append(evaluate(step, values, bound, compute))
            for dead in last_uses[index]:
                values[dead] = None
        result = values[-1]
        assert result is not None
        return result.to(dtype)

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Program) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Program({self.text!r})"

    def __reduce__(self) -> "tuple[type[Program], tuple[str]]":
        return type(self), (self.text,)


class BoundProgram:
    """A program together with all its operands: what `epilogue=` takes. Made by calling a program.

    The operands are held by reference: later changes to them are seen. They take no part in equality
    and hash, which are the program's; pickling and copying carry them along, as any container does.

    Attributes:
        program: the `Program`.
        operands: `program.num_operands` tensors, in the order of `b0, b1, …`.

    Example:
        >>> epilogue = Program("v1 = add(v0, b0)")(bias)
    """

    # One is made in every call, and a frozen dataclass takes twice as long to make.
    __slots__ = ("operands", "program")

    def __init__(self, program: Program, operands: tuple[torch.Tensor, ...]) -> None:
        self.program = program
        self.operands = operands

    def __repr__(self) -> str:
        return f"BoundProgram(program={self.program!r}, operands={self.operands!r})"

    def __call__(self, *operands: torch.Tensor) -> "BoundProgram":
        """Returns itself: nothing is left to bind.

        Raises:
            TypeError: an operand is given.

        Example:
            >>> bound() is bound
        """
        if operands:
            raise TypeError(f"{self.program!r} has all its operands already, got {len(operands)} more")
        return self

    def __eq__(self, other: object) -> bool:
        return self.program == other.program if isinstance(other, BoundProgram) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.program)


@dataclass(frozen=True, eq=False)
class PartialProgram:
    """A program whose last operands are bound and whose first ones are given at each call.

    `epiconv.trace` returns it for a function that captures tensors and takes operands as well.
    Equality and hash are the program's.

    Attributes:
        program: the `Program`; its operands are those of the call, then the captured ones.
        captured: the bound tensors, held by reference.

    Example:
        >>> partial = epiconv.trace(lambda y, residual: y * scale + residual)
        >>> y = fused_conv_epilogue(x, weight, epilogue=partial(residual))
    """

    program: Program
    captured: tuple[torch.Tensor, ...]

    @property
    def num_operands(self) -> int:
        """How many operands a call needs."""
        return self.program.num_operands - len(self.captured)

    def __call__(self, *operands: torch.Tensor) -> BoundProgram:
        """Binds the remaining operands, by reference.

        Args:
            operands: one tensor for each operand that is not captured, as for `Program`.

        Returns:
            What `epilogue=` takes.

        Raises:
            TypeError: their number is wrong, or one of them is not a tensor.

        Example:
            >>> partial(residual)
        """
        if len(operands) != self.num_operands:
            raise TypeError(f"{_needs(self)}, got {len(operands)}")
        _check_tensors(operands)
        return BoundProgram(self.program, (*operands, *self.captured))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartialProgram):
            return NotImplemented
        return self.program == other.program and len(self.captured) == len(other.captured)

    def __hash__(self) -> int:
        return hash(self.program)


def _needs(program: Program | PartialProgram) -> str:
    count = program.num_operands
    names = ", ".join(f"b{index}" for index in range(count))
    what = "no operands" if count == 0 else f"{count} operand{'s' if count > 1 else ''} ({names})"
    text = program.text if isinstance(program, Program) else program.program.text
    return f"the program '{text}' needs {what}"


def _check_tensors(operands: Sequence[object]) -> None:
    for index, operand in enumerate(operands):
        if not isinstance(operand, torch.Tensor):
            raise TypeError(
                f"operand b{index} is a {type(operand).__name__}, not a tensor; "
                "a number is written into the program, or given as a 0-d tensor"
            )


@lru_cache(maxsize=1024)
def _last_uses(program: Program) -> tuple[tuple[int, ...], ...]:
    """For each step, the values that no later step reads."""
    uses: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        for argument in step.arguments:
            if isinstance(argument, tuple) and argument[0] == "v":
                uses[argument[1]] = index
    return tuple(
        tuple(value for value, last in uses.items() if last == index) for index in range(len(program.steps))
    )


@lru_cache(maxsize=1024)
def _chain_program(operations: tuple[tuple[str, tuple[str, ...]], ...]) -> Program:
    """The program of a chain, each operation given by its name and pieces, so that no tensor is kept."""
    statements: list[str] = []
    num_operands = 0
    for name, pieces in operations:
        statements.append(statement_text(name, pieces, len(statements) + 1, num_operands))
        num_operands += len(pieces) - 1
    return Program("; ".join(statements))


def _chain_text(operations: Sequence[Operation]) -> tuple[str, tuple[torch.Tensor, ...]]:
    statements: list[str] = []
    operands: list[torch.Tensor] = []
    for operation in operations:
        statements.append(operation.statement(len(statements) + 1, len(operands)))
        operands.extend(operation.operands)
    return "; ".join(statements), tuple(operands)


def _refuse(epilogue: object) -> NoReturn:
    """Raises the TypeError for something that is no epilogue."""
    if isinstance(epilogue, list | tuple):
        for index, item in enumerate(epilogue):
            if not isinstance(item, Operation):
                name = getattr(item, "__name__", "")
                hint = f"; call it: ops.{name}(…)" if getattr(item, "__module__", "") == "epiconv.ops" else ""
                raise TypeError(
                    f"item {index} of the epilogue is {item!r}, not an operation of epiconv.ops{hint}"
                )
    if isinstance(epilogue, Program | PartialProgram):
        raise TypeError(f"{_needs(epilogue)}: give it as epilogue=program(...)")
    if isinstance(epilogue, Operation):
        raise TypeError(f"a single operation goes into a list: epilogue=[{epilogue!r}]")
    if getattr(epilogue, "__module__", "") == "epiconv.ops" and callable(epilogue):
        name = getattr(epilogue, "__name__", "")
        raise TypeError(f"ops.{name} is not called: write epilogue=[ops.{name}(…)]")
    if isinstance(epilogue, torch.nn.Module) or callable(epilogue):
        raise TypeError(
            f"{epilogue!r} is a function: trace it once, outside forward: "
            "program = epiconv.trace(function), then epilogue=program or epilogue=program(operands)"
        )
    raise TypeError(f"epilogue is a {type(epilogue).__name__}; {_ALLOWED}")


IDENTITY: Final = Program("")


def bind_epilogue(epilogue: object) -> tuple[Program, tuple[torch.Tensor, ...]]:
    """The program and the operands of anything that `epilogue=` takes.

    A list costs about 1 µs once its structure has been seen. Not for use under `torch.compile`, which
    cannot see into the core: `epilogue_text` is.

    Args:
        epilogue: None (identity), a list or tuple of `ops.*`, a `Program` without operands, or a
            `BoundProgram`.

    Returns:
        The program, and one tensor for each of its operands.

    Raises:
        TypeError: it is none of these; the message says what to write instead.
        ValueError: the chain is no valid program.

    Example:
        >>> program, operands = bind_epilogue([ops.add(bias), ops.relu()])
    """
    if epilogue is None:
        return IDENTITY, ()
    kind = type(epilogue)
    if kind is BoundProgram:
        return epilogue.program, epilogue.operands  # type: ignore[attr-defined]
    if kind is list or kind is tuple:
        operations: Sequence[Operation] = epilogue  # type: ignore[assignment]
        try:
            structures = tuple([(operation.name, operation.pieces) for operation in operations])
        except AttributeError:
            _refuse(epilogue)
        program = _chain_program(structures)
        return program, tuple([tensor for operation in operations for tensor in operation.operands])
    if isinstance(epilogue, Program) and epilogue.num_operands == 0:
        return epilogue, ()
    _refuse(epilogue)


def epilogue_text(epilogue: object) -> tuple[str, tuple[torch.Tensor, ...]]:
    """The text of a program and the operands, of anything that `epilogue=` takes, under `torch.compile`.

    Dynamo traces it with `fullgraph=True`. The text of a list is built in plain Python and is not
    checked nor canonical: the operator that receives it does that, when it parses it.

    Args:
        epilogue: as for `bind_epilogue`.

    Returns:
        The text, and one tensor for each operand.

    Raises:
        TypeError: as `bind_epilogue`.

    Example:
        >>> epilogue_text([ops.add(bias), ops.relu()])[0]
        'v1 = add(v0, b0); v2 = relu(v1)'
    """
    if epilogue is None:
        return "", ()
    if isinstance(epilogue, BoundProgram):
        return epilogue.program.text, epilogue.operands
    if isinstance(epilogue, Program) and epilogue.num_operands == 0:
        return epilogue.text, ()
    if isinstance(epilogue, list | tuple) and all([isinstance(item, Operation) for item in epilogue]):  # noqa: C419
        return _chain_text(epilogue)
    _refuse(epilogue)
