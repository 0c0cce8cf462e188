"""A recording of what follows one convolution: normalisations of torch become what a program can say."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from epiconv.program import Program
from epiconv.recording import Cell, Recording, Refusal


@dataclass(frozen=True)
class BatchStatistics:
    """Where the tensors of a BatchNorm in eval mode are: their names in the model, or None.

    Attributes:
        mean, var: running statistics, (K,).
        weight, bias: (K,), or None.
        eps: added to the variance.
    """

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float


@dataclass(frozen=True)
class Scale:
    """The operand that a BatchNorm multiplies by."""

    of: BatchStatistics


@dataclass(frozen=True)
class Shift:
    """The operand that a BatchNorm adds."""

    of: BatchStatistics


@dataclass(frozen=True)
class Owned:
    """An operand that is a parameter or a buffer of the model."""

    name: str


Source = fx.Node | Scale | Shift | Owned


class ChainRecorder(Recording):
    """Records the operations behind a convolution.

    Args:
        channels: of the convolution's output.
        names: of the model's parameters and buffers, by their ids.

    Attributes:
        sources: what the operands `b0, b1, …` are, as far as they are not captured.
    """

    def __init__(self, channels: int, names: Mapping[int, str]) -> None:
        super().__init__()
        self.sources: list[Source] = []
        self._channels = channels
        self._names_of = names

    def operand(self, source: Source) -> Cell:
        """The cell of an operand."""
        if source not in self.sources:
            self.sources.append(source)
        return self.operand_cell(self.sources.index(source))

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name of a parameter or buffer.

        Raises:
            Refusal: it is neither.
        """
        if id(tensor) not in self._names_of:
            raise Refusal("a tensor is neither a parameter nor a buffer of the model: register it")
        return self._names_of[id(tensor)]

    def program(self, result: Cell) -> tuple[Program, tuple[torch.Tensor, ...]]:
        """The program whose result is that of a cell, and the captured tensors behind `sources`.

        Raises:
            Refusal, ValueError: as `finish`.
        """
        return self.finish(result, [f"b{index}" for index in range(len(self.sources))])

    def call(
        self, target: Callable[..., Any] | str, shown: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Cell:
        if target is F.batch_norm:
            given = inspect.signature(F.batch_norm).bind(*args, **kwargs)
            given.apply_defaults()
            return self._batch_norm(shown, **given.arguments)
        if target is F.instance_norm:
            given = inspect.signature(F.instance_norm).bind(*args, **kwargs)
            given.apply_defaults()
            return self._instance_norm(shown, **given.arguments)
        return super().call(target, shown, args, kwargs)

    def _batch_norm(self, shown: str, input: Cell, eps: float, training: bool, **tensors: Any) -> Cell:
        mean, var = tensors["running_mean"], tensors["running_var"]
        if training or mean is None or var is None:
            raise Refusal(
                f"{shown} takes the statistics of the whole batch: call eval(), or keep running statistics"
            )
        named = {name: self._owned(shown, tensors[name]) for name in ("weight", "bias")}
        of = BatchStatistics(self._captured(shown, mean), self._captured(shown, var), eps=eps, **named)
        scaled = super().call(torch.mul, shown, (input, self.operand(Scale(of))), {})
        return super().call(torch.add, shown, (scaled, self.operand(Shift(of))), {})

    def _instance_norm(
        self, shown: str, input: Cell, eps: float, use_input_stats: bool, **tensors: Any
    ) -> Cell:
        if not use_input_stats or tensors["running_mean"] is not None:
            raise Refusal(f"{shown} with running statistics is not an operation of an epilogue")
        arguments = (input, self._channels, tensors["weight"], tensors["bias"], eps)
        return super().call(F.group_norm, shown, arguments, {})

    def _owned(self, shown: str, cell: Any) -> str | None:
        return None if cell is None else self._captured(shown, cell)

    def _captured(self, shown: str, cell: Any) -> str:
        if isinstance(cell, Cell) and cell.reference.kind == "c":
            return self.name_of(self.captured[cell.reference.number])
        if isinstance(cell, Cell) and cell.reference.kind == "b":
            source = self.sources[cell.reference.number]
            if isinstance(source, fx.Node) and source.op == "get_attr":
                return str(source.target)
        raise Refusal(f"{shown} takes a tensor that is neither a parameter nor a buffer of the model")
