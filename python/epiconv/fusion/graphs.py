"""The operations of a whole model: `torch.fx`'s trace, and what it may not be trusted with.

A trace runs `forward` once and keeps the operations that it saw. What depends on anything else is not kept:
a module of which that is found out is left as it is, one operation of the graph around it.
"""

import inspect
import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from epiconv import _torch_private

IN_PLACE_OPERATORS: Final[dict[Any, str]] = {
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
    operator.ipow: "pow_",
}
"""Python's operators that write into a tensor, and the methods that do the same."""


FORM: Final = "epiconv_form"
"""The key of a node's `meta` that has the shape and the dtype of its value, where they are known."""


class Untraceable(Exception):
    """A trace of a module would not be the module."""


class _Value(fx.Proxy):
    """fx takes `y += b` for `y + b`; it writes into y, which other names of y see too."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __ipow__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.ipow, (self, other), {})


class _ModelTracer(fx.Tracer):
    """Traces through modules that are neither torch.nn's, nor opaque, nor called with hooks.

    Attributes:
        culprit: the innermost module in which the trace failed.
        passed: names of the modules that were traced through.
    """

    proxy_buffer_attributes = True  # else what is computed from a buffer would be a constant

    def __init__(self, opaque: "dict[type[nn.Module], str]") -> None:
        super().__init__()
        self._opaque = opaque
        self.culprit: nn.Module | None = None
        self.passed: dict[str, None] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name) or type(m) in self._opaque:
            return True
        # A subclass that adds no more than a constructor is what it is a subclass of.
        is_torch_s = type(m).forward.__module__.startswith("torch.nn")
        return (is_torch_s and not isinstance(m, nn.Sequential)) or bool(why_not_called_through(m))

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in argument_names(self.root)]
        return self._watched(self.root, root_fn), [self.root, *proxies]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        self.passed[name] = None
        return super().call_module(m, self._watched(m, forward), args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        argument: Any = super().create_arg(a)
        if isinstance(a, torch.Tensor) and argument.target not in self._names:
            raise Untraceable(
                "its forward makes a tensor of its own, which a trace would do once and for all"
            )
        return argument

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        self._names = {name for name, _ in root.named_parameters(remove_duplicate=False)}
        self._names |= {name for name, _ in root.named_buffers(remove_duplicate=False)}
        return super().trace(root, concrete_args)

    def _watched(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward`, which fails where it leaves anything behind but its result."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            before, numbers = attributes_of(module), (random.getstate(), torch.get_rng_state())
            try:
                result = forward(*args, **kwargs)
                after = attributes_of(module)
                if changed := _changed(before, after):
                    raise Untraceable(f"its forward writes to the attribute {changed}")
                if random.getstate() != numbers[0] or not torch.equal(torch.get_rng_state(), numbers[1]):
                    raise Untraceable("its forward draws random numbers")
                return result
            except Exception:
                self.culprit = self.culprit or module
                restore_attributes(module, before)
                raise

        return watched


def attributes_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """The attributes, parameters, buffers and submodules of a module, for `restore_attributes`."""
    own = vars(module)
    return {"": dict(own)} | {name: dict(own[name]) for name in ("_buffers", "_parameters", "_modules")}


def _changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> str:
    for kind, values in before.items():
        for name in values.keys() | after[kind].keys():
            if name not in values or name not in after[kind] or values[name] is not after[kind][name]:
                return name
    return ""


def restore_attributes(module: nn.Module, before: dict[str, dict[str, Any]]) -> None:
    """Gives a module back what it had.

    Args:
        module: any.
        before: of `attributes_of`.
    """
    for kind, values in before.items():
        target = vars(module)[kind] if kind else vars(module)
        target.clear()
        target.update(values)


def why_not_called_through(module: nn.Module) -> str:
    """Why a call of a module is more than its forward, or "".

    Example:
        >>> why_not_called_through(nn.ReLU())
        ''
    """
    if parametrize.is_parametrized(module):
        return "it is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
    if _torch_private.has_hooks(module):
        return "it has hooks, which would not run: remove them first"
    return ""


def argument_names(module: nn.Module) -> list[str]:
    """The arguments of a module's forward that have no default.

    Raises:
        Untraceable: they cannot be told.
    """
    names = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
            raise Untraceable(f"its forward takes {parameter}")
        if parameter.kind != parameter.VAR_KEYWORD and parameter.default is parameter.empty:
            names.append(parameter.name)
    return names


@contextmanager
def training_flags(module: nn.Module, training: bool) -> Iterator[None]:
    """Sets the mode of a module and its submodules for a while."""
    before = [(each, each.training) for each in module.modules()]
    try:
        for each, _ in before:
            each.training = training
        yield
    finally:
        for each, flag in before:
            each.training = flag


@dataclass
class ModelGraph:
    """What a module does.

    Attributes:
        graph: its operations in eval mode; placeholders are the arguments without a default.
        passed: names of the submodules that are not called any more, since the graph has what they do.
        depends_on_mode: whether it does something else in training mode.
        opaque: classes of submodules that were not traced through, and why.
    """

    graph: fx.Graph
    passed: list[str]
    depends_on_mode: bool
    opaque: dict[type[nn.Module], str]


def trace_model(module: nn.Module) -> ModelGraph:
    """Traces a module; submodules that cannot be traced become one operation each.

    Args:
        module: its attributes, modes and values are left as they are.

    Raises:
        Untraceable: its own forward cannot be traced.

    Example:
        >>> trace_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).passed
        []
    """
    opaque: dict[type[nn.Module], str] = {}
    while True:
        tracers = {training: _ModelTracer(opaque) for training in (False, True)}
        graphs: dict[bool, fx.Graph] = {}
        culprit: nn.Module | None = None
        reason = ""
        for training, tracer in tracers.items():
            try:
                with training_flags(module, training):
                    graphs[training] = tracer.trace(module)
            except Exception as error:
                culprit = tracer.culprit or module
                reason = _MODES if training else _first_line(error)
                break
        if culprit is None and len(graphs) == 2:
            culprit = _difference(module, graphs[False], graphs[True])
            reason = _MODES if culprit is not None else ""
        if culprit is None or (culprit is module and graphs):
            return ModelGraph(graphs[False], list(tracers[False].passed), bool(reason), opaque)
        if culprit is module or type(culprit) in opaque:
            raise Untraceable(reason)
        opaque[type(culprit)] = reason


_MODES: Final = "it does something else in training mode"


def depends_on_mode_only(reason: str) -> bool:
    """Whether a class of submodules is opaque for nothing but its training mode.

    Args:
        reason: of `ModelGraph.opaque`.
    """
    return reason == _MODES


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return text if isinstance(error, Untraceable) else f"torch.fx cannot trace it: {text}"


def _difference(module: nn.Module, one: fx.Graph, other: fx.Graph) -> nn.Module | None:
    """The innermost module with the first operation that differs, or None where all are the same."""
    nodes, others = list(one.nodes), list(other.nodes)
    for node, counterpart in zip(nodes, others, strict=False):
        if _described(node) != _described(counterpart):
            stacks = [list((n.meta.get("nn_module_stack") or {}).values()) for n in (node, counterpart)]
            paths = [_owner(stack, n) for stack, n in zip(stacks, (node, counterpart), strict=True)]
            return module.get_submodule(max(paths, key=len))
    return None if len(nodes) == len(others) else module


def _owner(stack: list[tuple[str, Any]], node: fx.Node) -> str:
    """The path of the module whose forward made a node; that of a call is not the module it calls."""
    if node.op == "call_module" and stack and stack[-1][0] == node.target:
        stack = stack[:-1]
    return stack[-1][0] if stack else ""


def _described(node: fx.Node) -> tuple[Any, ...]:
    return (node.op, str(node.target), str(node.args), str(node.kwargs))
