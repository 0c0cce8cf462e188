"""`epiconv.trace`: a program from a function of torch operations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import Parameter, isclass, signature
from traceback import walk_stack
from types import BuiltinFunctionType
from typing import Any, Final, NoReturn

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer, TraceError
from torch.overrides import TorchFunctionMode, resolve_name

from epiconv.ops import TABLE, Operation, plain_number
from epiconv.program import BoundProgram, PartialProgram, Program
from epiconv.recording import Cell, Recording, Refusal, operation_name

_CONTROL_FLOW: Final = (
    "a condition depends on the values of a tensor, which are not known while tracing; choose between values "
    "with torch.where(condition, a, b)"
)
_LOOP: Final = (
    "it loops over a tensor, or unpacks it, whose extents are not known while tracing; an epilogue is "
    "applied to each value on its own"
)


class _StandIn(fx.Proxy):
    """A tensor of the function that is traced.

    fx takes `y += b` for `y + b`; it is `y.add_(b)`, which other names of y see too.
    """

    __array_ufunc__ = None  # numpy's numbers leave their operators to this class

    def __iadd__(self, other: Any) -> Any:
        return self.add_(other)

    def __isub__(self, other: Any) -> Any:
        return self.sub_(other)

    def __imul__(self, other: Any) -> Any:
        return self.mul_(other)

    def __itruediv__(self, other: Any) -> Any:
        return self.div_(other)

    def __ipow__(self, other: Any) -> Any:
        return self.pow_(other)


class _OutputStandIn(_StandIn):
    """A tensor of the extents of a known convolution's output, of which modules of torch.nn ask."""

    tracer: "_Tracer"

    @property
    def ndim(self) -> int:
        return self.tracer.dimensions

    def dim(self) -> int:
        return self.tracer.dimensions

    def size(self, dim: Any = None) -> Any:
        if dim in (1, 1 - self.tracer.dimensions):
            return self.tracer.channels
        return self.tracer.create_proxy("call_method", "size", (self,), {})


class _Tracer(GraphAppendingTracer):
    """Hands every operation to a `Recording` as it is called, so that a refusal names the user's line."""

    def __init__(
        self, computed: "_CapturedArithmetic", recording: Recording, extents: tuple[int, int] | None = None
    ) -> None:
        super().__init__(fx.Graph())
        self.recording = recording
        self.channels, self.dimensions = extents or (0, 0)
        self._computed = computed
        self._cells: dict[fx.Node, Cell] = {}
        self._captured: dict[int, fx.Node] = {}

    def parameter(self, name: str, cell: Cell) -> fx.Proxy:
        """The stand-in for a parameter of the function."""
        node = super().create_node("placeholder", name, (), {})
        self._cells[node] = cell
        return self.proxy(node)

    def cell(self, proxy: fx.Proxy) -> Cell:
        """What a stand-in refers to."""
        return self._cells[proxy.node]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _OutputStandIn(node, self) if self.dimensions else _StandIn(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return self._capture(a)
        number = None if isinstance(a, fx.Proxy) else plain_number(a)
        return super().create_arg(a) if number is None else number

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        cells: Any = self._cells
        found: Any = fx.node.map_arg((args, kwargs), cells.__getitem__)
        try:
            self._cells[node] = self.recording.call(target, _shown(target, args), *found)
        except Refusal as refusal:
            raise _refusal_here(str(refusal), advise=self.dimensions == 0) from None
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        _ = obj.node  # an attribute, such as y.is_cuda, is refused as such
        raise _refusal_here(_CONTROL_FLOW)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise _refusal_here(_LOOP)

    def _capture(self, tensor: torch.Tensor) -> fx.Node:
        made_by = self._computed.maker([tensor])
        if made_by is not None:
            raise Refusal(
                f"{made_by} computes a tensor from captured tensors alone. That would happen once, while "
                "tracing, and miss their later changes: make it a parameter of the function, and compute it "
                "at each call"
            )
        if id(tensor) not in self._captured:
            node = super().create_node("get_attr", f"captured_{len(self._captured)}", (), {})
            self._captured[id(tensor)] = node
            self._cells[node] = self.recording.captured_cell(tensor)
        return self._captured[id(tensor)]


class _CapturedArithmetic(TorchFunctionMode):
    """Notes which tensors a function computes from captured ones; views of those are theirs still."""

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[int, tuple[torch.Tensor, str]] = {}
        self._constants: dict[int, torch.Tensor] = {}

    def maker(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """The name of the operation that computed the first of the tensors that any did."""
        return next((self._makers[id(tensor)][1] for tensor in tensors if id(tensor) in self._makers), None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            made_by = self.maker(given)
            if made_by is None and all(id(a) in self._constants for a in given):
                self._constants[id(result)] = result
            elif made_by is not None or not any(_same_memory(a, result) for a in given):
                self._makers[id(result)] = result, made_by or _shown(func, ())
        return result


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _shown(target: Any, args: tuple[Any, ...]) -> str:
    """What messages call an operation."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    if target is getattr:
        return f"Tensor.{args[1]}"
    name = getattr(target, "__name__", repr(target))
    if getattr(target, "__module__", "") == "_operator":
        return f"operator.{name}"
    return resolve_name(target) or name


def _refusal_here(problem: str, advise: bool = True) -> Refusal:
    """A refusal that names the module whose forward is running, if one is, or advises what to do about it."""
    for frame, _ in walk_stack(None):
        if frame.f_code is trace.__code__:
            break
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            advice = _advice(owner) if advise else ""
            return Refusal(advice or f"in {type(owner).__name__}, {problem}")
    return Refusal(problem)


def _advice(module: nn.Module) -> str:
    """What to do about a normalisation of torch that a program does not have."""
    name = type(module).__name__
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
        if module.training:
            return (
                f"{name} in training mode depends on the whole batch: apply it outside, to the result of the "
                "convolution, or call eval() and fold it"
            )
        return f"{name}: fold it into the convolution with torch.nn.utils.fusion.fuse_conv_bn_eval"
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        return (
            f"{name} is not an operation of an epilogue; without running statistics "
            f"torch.nn.GroupNorm({module.num_features}, {module.num_features}) computes the same"
        )
    return ""


def _table_parameters(function: Any) -> list[str]:
    """The tensors that a builtin without signature takes, as far as the table knows it."""
    bound, keywords = 0, set[str]()
    while isinstance(function, partial):
        bound += len(function.args)
        keywords |= function.keywords.keys()
        function = function.func
    if isinstance(getattr(function, "__self__", None), torch.Tensor):
        bound += 1
    spec = TABLE.get(operation_name(getattr(function, "__name__", ""))[0])
    arguments = spec.arguments[bound:] if spec else ()
    names = [
        argument.name
        for argument in arguments
        if argument.name not in keywords
        and argument.default is Parameter.empty
        and argument.kind in ("tensor", "any", "channel")
    ]
    return names or ["input"]


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the tensors that a function takes; parameters with a default keep it."""
    try:
        described = signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return _table_parameters(function)
    names: list[str] = []
    for parameter in described.parameters.values():
        if parameter.kind == Parameter.VAR_POSITIONAL:
            raise Refusal(
                f"its parameter *{parameter.name} leaves open how many operands there are; name them"
            )
        if parameter.default is not Parameter.empty or parameter.kind == Parameter.VAR_KEYWORD:
            continue
        if parameter.kind == Parameter.KEYWORD_ONLY:
            raise Refusal(
                f"its parameter {parameter.name} is keyword-only, and operands are given by position; fix it "
                "with functools.partial, or make it positional"
            )
        names.append(parameter.name)
    if not names:
        raise Refusal("it has no parameter for the convolution's output, which is the first one")
    return names


def _check_traceable(function: object) -> None:
    """Raises the TypeError for what is no function of torch operations."""
    if isinstance(function, Program | BoundProgram | PartialProgram):
        raise TypeError(f"{function!r} is a program already: give it as epilogue=, called with its operands")
    if isinstance(function, list | tuple | Operation):
        raise TypeError("operations of epiconv.ops need no trace: give the list of them as epilogue=")
    if getattr(function, "__module__", "") == "epiconv.ops":
        raise TypeError(
            f"{function!r} is of epiconv.ops, which makes lists; trace takes functions of torch's"
        )
    if isclass(function):
        raise TypeError(f"{function.__name__} is a class: give trace an instance, {function.__name__}(…)")
    if not callable(function):
        raise TypeError(f"trace takes a function of torch operations, not {function!r}")


def _result_cell(tracer: _Tracer, result: Any) -> Cell:
    if isinstance(result, fx.Proxy):
        return tracer.cell(result)
    if isinstance(result, list | tuple | dict):
        raise Refusal(
            f"it returns {len(result)} results in a {type(result).__name__}; an epilogue has one result"
        )
    if isinstance(result, torch.Tensor):
        raise Refusal("its result is not computed from its first argument, the convolution's output")
    raise Refusal(f"it returns {result!r}, not a tensor computed from its first argument")


def trace(function: Callable[..., Any]) -> Program | PartialProgram | BoundProgram:
    """Makes a program from a function of torch operations.

    The function is called once, with stand-ins for tensors: lambdas, partials, torch's own functions, bound
    methods and modules (also tails of models, `nn.Sequential(nn.GELU(), nn.GroupNorm(8, 64))`) all work. Its
    first parameter is the convolution's output; those after it, except where they have a default, are the
    operands `b0, b1, …` in their order. Trace once, outside `forward`.

    Tensors that the function captures, a module's parameters and buffers among them, become further operands,
    held by reference: changes to their values are seen later. Each is one operand, however often it is used.
    Numbers are fixed at their value, as is what Python does: loops, conditions, modules' modes.

    Args:
        function: takes tensors, gives one tensor; applies only what a program can say.

    Returns:
        A `Program`; a `PartialProgram` if tensors are captured and operands remain to be given; a
        `BoundProgram`, which needs no call, if tensors are captured and none remain.

    Raises:
        TypeError: the function does what no program can say, such as to change the shape, to ask for it,
            to branch on values, or to return more than one tensor; the message names the operation.
        ValueError: the program is longer than a program may be, or keeps too many values.

    Example:
        >>> program = epiconv.trace(lambda y, b: torch.clamp(y, max=0.5).add(b).mul(2.0))
        >>> program
        Program('v1 = clamp(v0, max=0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)')
        >>> y = epiconv.fused_conv_epilogue(x, weight, epilogue=program(bias))
    """
    _check_traceable(function)
    what = getattr(function, "__qualname__", type(function).__name__)
    if isinstance(function, BuiltinFunctionType):
        what = _shown(function, ())
    computed = _CapturedArithmetic()
    tracer = _Tracer(computed, Recording())
    try:
        names = _parameters(function)
        arguments = [tracer.parameter(names[0], tracer.recording.output_cell())]
        for index, name in enumerate(names[1:]):
            arguments.append(tracer.parameter(name, tracer.recording.operand_cell(index)))
        with computed:
            result = function(*arguments)
        program, captured = tracer.recording.finish(_result_cell(tracer, result), names[1:])
    except Refusal as refusal:
        # The traceback leads to the line of the function.
        raise TypeError(f"cannot trace {what}: {refusal}").with_traceback(refusal.__traceback__) from None
    except ValueError as error:
        if isinstance(error, TraceError):
            _refuse_python(what, error)
        raise ValueError(f"cannot trace {what}: {error}") from error
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        _refuse_python(what, error)
    if not captured:
        return program
    return program(*captured) if len(names) == 1 else PartialProgram(program, captured)


def record_operation(
    recording: Recording, target: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Cell:
    """Adds one operation to a recording.

    Args:
        recording: in progress.
        target: a function of torch, or the name of a method of its first argument.
        args, kwargs: its arguments; tensors are cells of the recording.

    Returns:
        The cell of its result.

    Raises:
        Refusal: a program cannot say it.
    """
    return recording.call(target, _shown(target, args), args, kwargs)


def record_module(
    recording: Recording, module: nn.Module, arguments: Sequence[Cell], rank: int, channels: int
) -> Cell:
    """Adds what a module does, in its mode of now, to a recording.

    Args:
        recording: in progress.
        module: its forward is called once, with stand-ins for tensors.
        arguments: cells of the recording, one for each argument.
        rank: number of spatial dimensions of the convolution's output.
        channels: of the convolution's output.

    Returns:
        The cell of its result.

    Raises:
        Refusal: the module does what no program can say.
    """
    computed = _CapturedArithmetic()
    tracer = _Tracer(computed, recording, (channels, rank + 2))
    stand_ins = [tracer.parameter(f"argument{index}", cell) for index, cell in enumerate(arguments)]
    try:
        with computed:
            result = module.forward(*stand_ins)
        return _result_cell(tracer, result)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise Refusal(f"{type(module).__name__}: {str(error).partition(chr(10))[0]}") from error


def _refuse_python(what: str, error: Exception) -> NoReturn:
    reason = str(error).partition("\n")[0].rstrip(":.")
    raise TypeError(
        f"cannot trace {what}: {reason}. It is called with stand-ins for tensors, on which it may use torch "
        "operations only"
    ) from error
