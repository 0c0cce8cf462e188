"""Shapes of a model's values for example inputs, worked out on meta tensors: nothing is computed."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.func import functional_call

from epiconv.fusion.graphs import FORM, attributes_of, restore_attributes, training_flags


class Form(NamedTuple):
    """What is known of a tensor.

    Attributes:
        shape: its extents.
        dtype: of its elements.
        strides: as many.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]


def forms_of_calls(
    model: nn.Module, example_inputs: Sequence[Any], modules: Iterable[nn.Module]
) -> dict[nn.Module, tuple[Form | None, ...]]:
    """What some modules of a model are called with.

    Args:
        model: in any mode.
        example_inputs: of its forward.
        modules: of the model, or it.

    Returns:
        By module the forms of its positional arguments at its first call; None stands for what is no tensor.
        Modules that are not called, or not reached, are missing.
    """
    found: dict[nn.Module, tuple[Form | None, ...]] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.setdefault(module, tuple([form_of(argument) for argument in args]))

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        _call(model, model, tuple([_meta(argument) for argument in example_inputs]))
    except Exception:
        # What the model does with shapes or values cannot be done without them; sites find out when they run.
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def propagate(module: nn.Module, graph: fx.Graph, example: Sequence[Form | None]) -> None:
    """Notes the forms of a graph's values in their nodes, under `FORM`, as far as they can be told.

    Args:
        module: that was traced.
        graph: its operations.
        example: forms of its arguments.
    """
    if None in example:
        return
    tensors = [torch.empty_strided(f.shape, f.strides, dtype=f.dtype, device="meta") for f in example if f]
    with suppress(Exception):  # as above; what was noted until then is right
        _call(module, _Noting(module, graph), tuple(tensors), "module.")


def form_of(value: Any) -> Form | None:
    """The form of a tensor, None of anything else."""
    if not isinstance(value, torch.Tensor):
        return None
    return Form(tuple(value.shape), value.dtype, tuple(value.stride()))


def _meta(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _call(owner: nn.Module, called: nn.Module, arguments: tuple[Any, ...], prefix: str = "") -> None:
    tensors = [*owner.named_parameters(remove_duplicate=False), *owner.named_buffers(remove_duplicate=False)]
    substitutes = {f"{prefix}{name}": _meta(tensor.detach()) for name, tensor in tensors}
    before = [(module, attributes_of(module)) for module in owner.modules()]
    try:
        with torch.no_grad(), training_flags(owner, False):
            functional_call(called, substitutes, arguments, tie_weights=False)
    finally:
        for module, attributes in before:
            restore_attributes(module, attributes)


class _Noting(nn.Module):
    """Runs a graph, operation by operation, and notes what each gives."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self.module = module
        self._graph = graph

    def forward(self, *arguments: Any) -> Any:
        interpreter = _Interpreter(self.module, graph=self._graph)
        return interpreter.run(*arguments)


class _Interpreter(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta[FORM] = form_of(value)
        return value
