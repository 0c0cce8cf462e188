"""Convolutions in a graph, and the chains of operations behind them that a program can say."""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn

from epiconv.fusion.graphs import (
    FORM,
    IN_PLACE_OPERATORS,
    ModelGraph,
    depends_on_mode_only,
    training_flags,
    why_not_called_through,
)
from epiconv.fusion.recorder import ChainRecorder, Owned, Source
from epiconv.program import Program
from epiconv.recording import Cell, Refusal
from epiconv.tracing import record_module, record_operation

CONVOLUTIONS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_FUNCTIONAL: Final = frozenset(
    f"conv{transposed}{rank}d" for transposed in ("", "_transpose") for rank in (1, 2, 3)
)


@dataclass
class Match:
    """A convolution and what follows it, as one site.

    Attributes:
        conv: name of the convolution in the model.
        nodes: of the graph, the convolution first and the result last.
        input: of the convolution.
        program: what follows.
        sources: of its operands.
        evaluating: names of the modules that have to be in eval mode.
        modules: names of all modules that the site stands for.
        ended_by: why the chain ends, "" where nothing follows.
    """

    conv: str
    nodes: list[fx.Node]
    input: fx.Node
    program: Program
    sources: list[Source]
    evaluating: list[str]
    modules: list[str]
    ended_by: str


@dataclass
class Unmatched:
    """A convolution that stays as it is.

    Attributes:
        conv: its name in the model.
        reason: why.
    """

    conv: str
    reason: str


def why_not_a_convolution(module: nn.Module) -> str | None:
    """Why a convolution cannot be fused, "" where it can; None for other modules."""
    for base in CONVOLUTIONS:
        if isinstance(module, base):
            kind: Any = type(module)
            own: Any = base
            same = kind.forward is own.forward
            if not same or getattr(kind, "_conv_forward", None) is not getattr(own, "_conv_forward", None):
                return why_not_called_through(module) or (
                    f"{kind.__name__} has a forward of its own, which is not torch.nn.{base.__name__}'s"
                )
            return why_not_called_through(module)
    return None


def find_matches(module: nn.Module, traced: ModelGraph) -> tuple[list[Match], list[Unmatched]]:
    """All sites of a traced module.

    Args:
        module: its parameters are named in the result.
        traced: of `trace_model`; nodes may have a form.

    Returns:
        The sites, and the convolutions without one.
    """
    finder = _Finder(module, traced)
    matches: list[Match] = []
    unmatched: list[Unmatched] = []
    for node in traced.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "") in _FUNCTIONAL:
            name = node.target.__name__
            unmatched.append(
                Unmatched(node.name, f"it is a call of torch.nn.functional.{name}: write it as a module")
            )
        if node.op != "call_module":
            continue
        reason = why_not_a_convolution(module.get_submodule(str(node.target)))
        if reason is None:
            continue
        found = Unmatched(str(node.target), reason) if reason else finder.match(node)
        if isinstance(found, Match):
            matches.append(found)
        else:
            unmatched.append(found)
    return matches, unmatched


class _Finder:
    def __init__(self, module: nn.Module, traced: ModelGraph) -> None:
        self._module = module
        self._traced = traced
        self._order = {node: index for index, node in enumerate(traced.graph.nodes)}
        self._taken: set[fx.Node] = set()
        self._names = {id(tensor): name for name, tensor in reversed(_tensors(module))}
        self._modes: dict[str, bool] = {}
        self._memories: dict[fx.Node, frozenset[Any]] = {}

    def match(self, conv: fx.Node) -> Match | Unmatched:
        """The longest chain behind a convolution."""
        name = str(conv.target)
        if len(conv.args) + len(conv.kwargs) != 1 or len(conv.all_input_nodes) != 1:
            return Unmatched(name, "it is called with more than its input, such as an output size")
        recorded, reason = self._follow(conv)
        for last in reversed(recorded[1:]):
            nodes = _closed(conv, last, recorded)
            if nodes is None:
                reason = _read_by_others(conv, last, recorded) or reason
                continue
            try:
                found = self._record(conv, nodes, reason)
            except (Refusal, ValueError) as error:
                reason = str(error)
                continue
            if found is not None:
                self._taken.update(nodes)
                return found
        return Unmatched(name, reason or "nothing follows it that a program has")

    def _follow(self, conv: fx.Node) -> tuple[list[fx.Node], str]:
        """The nodes behind a convolution up to the first that cannot be recorded, and why it cannot."""
        chain = _Chain(self, conv)
        recorded = [conv]
        for node in list(self._traced.graph.nodes)[self._order[conv] + 1 :]:
            if node.op == "output":
                break
            if not any(source in chain.cells for source in node.all_input_nodes):
                continue
            if node in self._taken:
                return recorded, f"{node.name} belongs to the chain of another convolution"
            try:
                chain.add(node)
            except Refusal as refusal:
                return recorded, str(refusal)
            recorded.append(node)
        return recorded, ""

    def _record(self, conv: fx.Node, nodes: list[fx.Node], ended_by: str) -> Match | None:
        chain = _Chain(self, conv)
        for node in nodes[1:]:
            chain.add(node)
        recorder = chain.recorder
        for source in (conv.all_input_nodes[0], *recorder.sources):
            if isinstance(source, fx.Node) and (writer := self._overwritten(source, nodes)):
                raise Refusal(
                    f"{writer} writes in place to what may be {source.name}, which the chain has read before"
                )
        program, captured = recorder.program(chain.cells[nodes[-1]])
        if program.text == "":
            return None
        return Match(
            conv=str(conv.target),
            nodes=nodes,
            input=conv.all_input_nodes[0],
            program=program,
            sources=[*recorder.sources, *(Owned(recorder.name_of(tensor)) for tensor in captured)],
            evaluating=chain.evaluating,
            modules=[str(node.target) for node in nodes if node.op == "call_module"],
            ended_by=ended_by,
        )

    def recordable(self, node: fx.Node) -> nn.Module:
        """The module that a node calls.

        Raises:
            Refusal: what it does is not known.
        """
        name = str(node.target)
        module = self._module.get_submodule(name)
        if isinstance(module, CONVOLUTIONS):
            raise Refusal(f"{name} is a convolution of its own")
        for each in module.modules():
            if reason := why_not_called_through(each):
                raise Refusal(f"{name}: {reason}")
        opaque = self._traced.opaque.get(type(module), "")
        if opaque and not depends_on_mode_only(opaque):
            raise Refusal(f"{name}, a {type(module).__name__}, could not be traced: {opaque}")
        if node.kwargs or any(not isinstance(argument, fx.Node) for argument in node.args):
            raise Refusal(f"{name} is called with more than tensors")
        if len(list(module.modules())) > _LARGEST:
            raise Refusal(f"{name}, a {type(module).__name__}, is not an operation of an epilogue")
        return module

    def depends_on_mode(self, name: str, rank: int, channels: int, count: int) -> bool:
        """Whether a module that was recorded in eval mode does something else in training."""
        if name not in self._modes:
            module = self._module.get_submodule(name)
            texts = []
            for training in (False, True):
                # In training mode a module may count its calls in a buffer.
                tried = deepcopy(module) if training and list(module.buffers()) else module
                recorder = ChainRecorder(channels, {id(t): n for n, t in _tensors(tried)})
                others = [recorder.operand(Owned(f"argument{index}")) for index in range(1, count)]
                cells = [recorder.output_cell(), *others]
                try:
                    with training_flags(tried, training):
                        result = record_module(recorder, tried, cells, rank, channels)
                    texts.append(recorder.program(result)[0].text)
                except (Refusal, ValueError) as error:
                    texts.append(str(error))
            self._modes[name] = texts[0] != texts[1]
        return self._modes[name]

    def _writes(self, node: fx.Node) -> bool:
        """Whether an operation may write to a tensor that it is given."""
        if node.op == "call_module":
            module = self._module.get_submodule(str(node.target))
            return not type(module).__module__.startswith("torch.nn") or any(
                getattr(each, "inplace", False) or why_not_called_through(each) for each in module.modules()
            )
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
        if node.target in IN_PLACE_OPERATORS or name in ("setitem", "__setitem__"):
            return True
        if name.endswith("_") and not name.endswith("__"):
            return True
        return bool(node.kwargs.get("out") is not None or _argument(node, "inplace"))

    def _overwritten(self, source: fx.Node, nodes: list[fx.Node]) -> str:
        """The operation that may write to what a chain reads, after it is read and before the chain ends."""
        first = min(self._order[node] for node in nodes if source in node.all_input_nodes)
        for node in list(self._traced.graph.nodes)[first + 1 : self._order[nodes[-1]]]:
            if node not in nodes and self._writes(node):
                written = frozenset[Any]().union(*[self._memory(given) for given in node.all_input_nodes])
                if written & self._memory(source):
                    return str(node.name)
        return ""

    def _memory(self, node: fx.Node) -> frozenset[Any]:
        """Where the memory of a value may come from; arguments and attributes of the model may be one."""
        if not self._memories:
            for each in self._traced.graph.nodes:
                found = {each if each.op not in ("placeholder", "get_attr") else "given"}
                module = self._module.get_submodule(str(each.target)) if each.op == "call_module" else None
                if not isinstance(module, _NEW_MEMORY):
                    found = found.union(*[self._memories[source] for source in each.all_input_nodes])
                self._memories[each] = frozenset(found)
        return self._memories[node]

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def names(self) -> Mapping[int, str]:
        return self._names


_LARGEST: Final = 8  # submodules of one that can be an operation
_NEW_MEMORY: Final = (*CONVOLUTIONS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.Linear)
"""Modules whose results share memory with nothing."""


class _Chain:
    """The cells of a recording, by the nodes of the graph."""

    def __init__(self, finder: _Finder, conv: fx.Node) -> None:
        module: Any = finder.module.get_submodule(str(conv.target))
        self._finder = finder
        self._rank = len(module.kernel_size)
        self._channels: int = module.out_channels
        self._form = conv.meta.get(FORM)
        self.recorder = ChainRecorder(self._channels, finder.names)
        self.cells: dict[fx.Node, Cell] = {conv: self.recorder.output_cell()}
        self.evaluating: list[str] = []

    def add(self, node: fx.Node) -> None:
        """Records a node.

        Raises:
            Refusal: a program cannot say it.
        """
        module = self._finder.recordable(node) if node.op == "call_module" else None
        self._check_form(node)
        if module is not None:
            arguments = [self._cell(argument) for argument in node.args if isinstance(argument, fx.Node)]
            with training_flags(module, False):
                result = record_module(self.recorder, module, arguments, self._rank, self._channels)
            name = str(node.target)
            if self._finder.depends_on_mode(name, self._rank, self._channels, len(arguments)):
                self.evaluating += [f"{name}.{inner}".rstrip(".") for inner, _ in module.named_modules()]
        elif node.op in ("call_function", "call_method"):
            target: Callable[..., Any] | str = node.target
            target = IN_PLACE_OPERATORS.get(target, target)
            cell_of: Any = self._cell
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), cell_of)
            result = record_operation(self.recorder, target, args, kwargs)
        else:
            raise Refusal(f"{node.name} is not an operation")
        self.cells[node] = result

    def _cell(self, node: fx.Node) -> Cell:
        if node in self.cells:
            return self.cells[node]
        if node.meta.get(FORM, (0,)) is None:
            raise Refusal(f"{node.name} is not a tensor")
        return self.recorder.operand(node)

    def _check_form(self, node: fx.Node) -> None:
        """Refuses a node whose result has other extents than the convolution's."""
        form = node.meta.get(FORM)
        if self._form is None or FORM not in node.meta:
            return
        if form is None or form[0] != self._form[0]:
            raise Refusal(
                f"{node.name} gives {'no tensor' if form is None else tuple(form[0])} of the convolution's "
                f"{tuple(self._form[0])}: an epilogue keeps the shape"
            )


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its name, where it can be told; True where it cannot."""
    if name in node.kwargs or not callable(node.target):
        return node.kwargs.get(name)
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):
        return None  # a builtin, whose in-place form has a name of its own


def _closed(conv: fx.Node, last: fx.Node, recorded: list[fx.Node]) -> list[fx.Node] | None:
    """The nodes between a convolution and a result, or None where others read a value between."""
    within = _between(last, recorded)
    if conv not in within or any(user not in within for node in within - {last} for user in node.users):
        return None
    return [node for node in recorded if node in within]


def _between(last: fx.Node, recorded: list[fx.Node]) -> set[fx.Node]:
    known, within, open_nodes = set(recorded), {last}, [last]
    while open_nodes:
        for source in open_nodes.pop().all_input_nodes:
            if source in known and source not in within:
                within.add(source)
                open_nodes.append(source)
    return within


def _read_by_others(conv: fx.Node, last: fx.Node, recorded: list[fx.Node]) -> str:
    within = _between(last, recorded)
    for node in recorded:
        others = [user.name for user in node.users if user not in within]
        if node in within - {last} and others:
            return f"the value of {node.name} is read by {', '.join(others)} too"
    return ""
