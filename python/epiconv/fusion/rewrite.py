"""`epiconv.fuse`: a copy of a model in which convolutions and the chains behind them are one call each."""

import operator
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, Final, TypeVar

import torch
from torch import fx, nn

from epiconv import _torch_private
from epiconv.fusion.graphs import FORM, ModelGraph, Untraceable, argument_names, trace_model
from epiconv.fusion.matching import Match, find_matches, why_not_a_convolution
from epiconv.fusion.recorder import BatchStatistics, Owned, Scale
from epiconv.fusion.shapes import Form, forms_of_calls, propagate
from epiconv.fusion.site import NormPlan, Operand, Site, SitePlan
from epiconv.packed_weights import OwnPackedWeights

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Fused:
    """A site of a fused model, as `report` tells of it.

    Attributes:
        root: name of the module whose forward has the site; "" is the model.
        conv: name of the convolution in the model.
        site: name of the site among those of the root.
        modules: names of all modules that the site stands for.
        program: text of what follows the convolution.
        ended_by: why the chain ends.
        forms: of the input and the site's arguments, where example inputs were given.
    """

    root: str
    conv: str
    site: str
    modules: tuple[str, ...]
    program: str
    ended_by: str
    forms: tuple[Form | None, ...] | None


@dataclass(frozen=True)
class NotFused:
    """A convolution that runs as before.

    Attributes:
        conv: its name in the model.
        reason: why.
    """

    conv: str
    reason: str


@dataclass
class _Root:
    """What the forward of one module has become."""

    run: Callable[..., Any]
    sites: dict[str, Site]
    arguments: tuple[str, ...]
    evaluating: list[nn.Module]
    replaced: list[nn.Module]
    example: tuple[Form | None, ...] | None


class FusedForward(nn.Module):
    """The forward of a fused module; its class stands before the module's own."""

    _epiconv_root: _Root

    def __reduce__(self) -> Any:
        state = dict(vars(self))
        root = state.pop("_epiconv_root")
        return _fused_again, (type(self).__mro__[2], state, root.example)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        vars(other).update(deepcopy(vars(self), memo))
        return other


def _fused_again(
    kind: type[nn.Module], state: dict[str, Any], example: tuple[Form | None, ...] | None
) -> nn.Module:
    """A module from its pickle: traced and matched anew."""
    module = kind.__new__(kind)
    restored: Any = module
    restored.__setstate__(state)
    with suppress(Untraceable):  # if its class has changed since, it runs as it is
        _install(module, trace_model(module), "", example)
    return module


def fuse(model: _Model, example_inputs: Any = None) -> _Model:
    """A copy of a model in which convolutions and the elementwise chains behind them are one call each.

    Chains are found where `torch.fx` can trace the model, else in those of its submodules that it can trace:
    activations, residuals, GroupNorm and InstanceNorm, scalings, clamps, and BatchNorm, which is part of the
    chain while it is in eval mode and runs as before while it is in training mode. `epiconv.report` tells
    what was fused and what was not.

    Modules, parameters and `state_dict` keys are those of the model; the class of a fused module is a
    subclass of what it was. A submodule that has become part of a chain, or of a fused forward, is not
    called: hooks that are registered on one later make the forward around it run as it was written.

    Args:
        model: not changed.
        example_inputs: a tensor, or a tuple of the arguments of `model.forward`; any values. Shapes are
            worked out for them without computing anything, so that operands that do not fit are known.
            Without, a site finds out at its first call of each form, and runs as it was written if they do
            not fit.

    Returns:
        The copy, in the mode of the model.

    Raises:
        TypeError: `model` is no module, or a fused one; example inputs are no tensor or tuple.

    Example:
        >>> fused = epiconv.fuse(model.eval(), torch.randn(8, 3, 224, 224))
        >>> y = fused(x)
        >>> epiconv.report(fused)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module, not a {type(model).__name__}")
    if any(isinstance(each, FusedForward) or "_epiconv_rows" in vars(each) for each in model.modules()):
        raise TypeError("the model has been through fuse: give fuse the model as it was before")
    if example_inputs is not None and not isinstance(example_inputs, tuple):
        if not isinstance(example_inputs, torch.Tensor):
            raise TypeError(
                f"example_inputs is a {type(example_inputs).__name__}, but it is a tensor or a tuple of the "
                "arguments of the model's forward"
            )
        example_inputs = (example_inputs,)
    copy = deepcopy(model)
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):  # a trace may draw numbers, and is dropped then
            vars(copy)["_epiconv_rows"] = _fuse_in_place(copy, example_inputs)
    finally:
        random.setstate(state)
    return copy


def _fuse_in_place(
    model: nn.Module, example_inputs: tuple[Any, ...] | None
) -> "tuple[Fused | NotFused, ...]":
    work = _Work()
    work.descend(model, "")
    forms: Mapping[nn.Module, tuple[Form | None, ...]] = {}
    if example_inputs is not None:
        forms = forms_of_calls(model, example_inputs, [module for module, _, _ in work.roots])
    rows: list[Fused | NotFused] = []
    for module, traced, name in work.roots:
        rows += _install(module, traced, name, forms.get(module))
    return (*rows, *work.rows)


_NOT_TRACED: Final = "the module around it is not traced"


@dataclass
class _Work:
    """Which submodules are traced."""

    roots: list[tuple[nn.Module, ModelGraph, str]] = field(default_factory=list)
    rows: list[NotFused] = field(default_factory=list)
    _seen: set[nn.Module] = field(default_factory=set)

    def descend(self, module: nn.Module, name: str) -> None:
        """Traces a module, or, where that fails, its submodules."""
        if module in self._seen:
            return
        self._seen.add(module)
        reason = why_not_a_convolution(module)
        if reason is not None:
            self.rows.append(NotFused(name, reason or _NOT_TRACED))
            return
        if name and not any(why_not_a_convolution(each) is not None for each in module.modules()):
            return
        try:
            traced = _traced(module)
        except Untraceable as error:
            for child, submodule in module.named_children():
                self.descend(submodule, f"{name}.{child}".lstrip("."))
            self._explain(name, str(error))
            return
        self.roots.append((module, traced, name))
        for node in traced.graph.nodes:
            if node.op == "call_module":
                child = str(node.target)
                submodule = module.get_submodule(child)
                if why_not_a_convolution(submodule) is None:
                    self.descend(submodule, f"{name}.{child}".lstrip("."))

    def _explain(self, name: str, reason: str) -> None:
        """Adds to the reasons of convolutions directly within an untraceable module why it is that."""
        for index, row in enumerate(self.rows):
            if row.conv.rpartition(".")[0] == name and row.reason == _NOT_TRACED:
                self.rows[index] = NotFused(row.conv, f"{name or 'the model'} is not traced: {reason}")


def _traced(module: nn.Module) -> ModelGraph:
    kind = type(module)
    if isinstance(module, FusedForward) or "forward" in vars(module):
        raise Untraceable("its forward was replaced already")
    if isinstance(module, torch.jit.ScriptModule) or kind.__module__.startswith("torch.nn.utils.parametrize"):
        raise Untraceable(f"it is a {kind.__name__}")
    return trace_model(module)


def _install(
    module: nn.Module, traced: ModelGraph, name: str, example: tuple[Form | None, ...] | None
) -> list[Fused | NotFused]:
    """Gives a module the forward in which its sites are calls."""
    if example is not None:
        propagate(module, traced.graph, example)
    matches, unmatched = find_matches(module, traced)

    def full(inner: str) -> str:
        return f"{name}.{inner}".lstrip(".")

    rows: list[Fused | NotFused] = [NotFused(full(found.conv), found.reason) for found in unmatched]
    if not matches:
        return rows
    packed: dict[str, OwnPackedWeights] = {}
    sites: dict[str, Site] = {}
    calls: list[tuple[str, Match, list[fx.Node]]] = []
    for index, match in enumerate(matches):
        site = f"site_{index}"
        plan, data = _plan(module, match)
        sites[site] = Site(plan, packed.setdefault(match.conv, OwnPackedWeights()))
        calls.append((site, match, data))
        forms = [node.meta.get(FORM) for node in (match.input, *data)] if FORM in match.input.meta else None
        rows.append(
            Fused(
                root=name,
                conv=full(match.conv),
                site=site,
                modules=tuple([full(inner) for inner in match.modules]),
                program=match.program.text,
                ended_by=match.ended_by,
                forms=None if forms is None else tuple(forms),
            )
        )
    passed = ["", *traced.passed]
    run = _rewritten(traced.graph, calls)
    replaced = dict.fromkeys([*traced.passed, *(inner for match in matches for inner in match.modules)])
    vars(module)["_epiconv_root"] = _Root(
        run=run,
        sites=sites,
        arguments=tuple(argument_names(module)),
        evaluating=[module.get_submodule(inner) for inner in passed] if traced.depends_on_mode else [],
        replaced=[each for inner in replaced for each in module.get_submodule(inner).modules()],
        example=example,
    )
    kind: Any = type(module)
    module.__class__ = _fused_class(kind)
    return rows


def _plan(module: nn.Module, match: Match) -> tuple[SitePlan, list[fx.Node]]:
    """What a site does, and the nodes of the graph that are its arguments behind the input."""
    data: list[fx.Node] = []
    norms: list[BatchStatistics] = []
    operands: list[Operand] = []
    for source in match.sources:
        if isinstance(source, fx.Node):
            operands.append(Operand("data", len(data)))
            data.append(source)
        elif isinstance(source, Owned):
            operands.append(Operand("owned", tuple(source.name.split("."))))
        else:
            if source.of not in norms:
                norms.append(source.of)
            kind = "scale" if isinstance(source, Scale) else "shift"
            operands.append(Operand(kind, norms.index(source.of)))
    # What only the original operations read: a BatchNorm's tensors that are nodes of the graph.
    known = {*match.nodes, match.input, *data}
    read = dict.fromkeys(source for node in match.nodes for source in node.all_input_nodes)
    data += [node for node in read if node not in known]
    plan = SitePlan(
        conv=tuple(match.conv.split(".")),
        transposed=bool(getattr(module.get_submodule(match.conv), "transposed", False)),
        program=match.program,
        operands=tuple(operands),
        norms=tuple([_norm_plan(norm) for norm in norms]),
        evaluating=tuple([tuple(path.split(".")) for path in match.evaluating]),
        unfused=_original(match, data),
    )
    return plan, data


def _norm_plan(norm: BatchStatistics) -> NormPlan:
    names = (norm.mean, norm.var, norm.weight, norm.bias)
    return NormPlan(tuple([None if name is None else tuple(name.split(".")) for name in names]), norm.eps)


def _original(match: Match, data: list[fx.Node]) -> Callable[..., Any]:
    """The operations of a match as a function of the module and the site's arguments."""
    graph = fx.Graph()
    # The input may be an operand, too; either stands for it.
    arguments = (match.input, *data)
    copies = {node: graph.placeholder(f"argument_{index}") for index, node in enumerate(arguments)}
    for node in match.nodes:
        copies[node] = graph.node_copy(node, lambda read: copies[read])
    graph.output(copies[match.nodes[-1]])
    return _function(graph)


def _rewritten(graph: fx.Graph, calls: list[tuple[str, Match, list[fx.Node]]]) -> Callable[..., Any]:
    """The graph with a call for each site, as a function of the module, its sites and its arguments."""
    with graph.inserting_before(next(iter(graph.nodes))):
        sites = graph.placeholder("epiconv_sites")
        model = graph.placeholder("epiconv_model")
    replaced: dict[fx.Node, fx.Node] = {}
    for name, match, data in calls:
        last = match.nodes[-1]
        arguments = [replaced.get(node, node) for node in (match.input, *data)]
        with graph.inserting_before(last):
            site = graph.call_function(operator.getitem, (sites, name))
            call = graph.call_method("run", (site, model, *arguments))
        last.replace_all_uses_with(call)
        replaced[last] = call
        for node in reversed(match.nodes):
            graph.erase_node(node)
    return _function(graph)


def _function(graph: fx.Graph) -> Callable[..., Any]:
    """The graph's code; its first argument is the module whose submodules it calls."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<epiconv.fuse>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


@cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a fused module that was of a class."""
    own: Any = kind.forward

    @wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        root: _Root = self._epiconv_root
        given = args
        if kwargs and len(args) + len(kwargs) == len(root.arguments):
            rest = root.arguments[len(args) :]
            if all(name in kwargs for name in rest):
                given = (*args, *[kwargs[name] for name in rest])
        if (
            len(given) != len(root.arguments)
            or (kwargs and given is args)
            or any(each.training for each in root.evaluating)
            or _torch_private.any_hooks(root.replaced)
        ):
            return own(self, *args, **kwargs)
        return root.run(self, root.sites, self, *given)

    names = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Fused{kind.__name__}", (FusedForward, kind), names)
