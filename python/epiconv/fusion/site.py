"""One site: a convolution of a model and the chain behind it, as one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from epiconv import _torch_private
from epiconv.functional import fused_in_module
from epiconv.fusion.batch_norm import AffineCache
from epiconv.packed_weights import OwnPackedWeights
from epiconv.program import Program
from epiconv.promotion import result_dtype

# What autocast computes in float32, whatever it is given.
_FLOAT32_UNDER_AUTOCAST: Final = {
    "cuda": frozenset({"exp", "group_norm", "log", "pow", "rsqrt", "softplus"}),
    "cpu": frozenset[str](),
}
_CAST_UNDER_AUTOCAST: Final = "prelu"  # autocast rounds what it is given
_UNFUSED: Final = "unfused"


@dataclass(frozen=True)
class Operand:
    """Where an operand of a site comes from.

    Attributes:
        kind: "data", an argument of the call; "owned", a parameter or buffer; "scale" or "shift".
        place: for "data" its place among the arguments; "owned" its name, split; for the others the place
            of the BatchNorm among those of the site.
    """

    kind: str
    place: Any


@dataclass(frozen=True)
class NormPlan:
    """A BatchNorm whose scale and shift are operands.

    Attributes:
        tensors: names of mean, variance, weight and bias, split; None for those it lacks.
        eps: added to the variance.
    """

    tensors: tuple[tuple[str, ...] | None, ...]
    eps: float


@dataclass(frozen=True)
class SitePlan:
    """What a site does; shared by the copies of a model.

    Attributes:
        conv: name of the convolution, split.
        transposed: whether it is a transposed one.
        program: the epilogue.
        operands: of the program.
        norms: the BatchNorms in it.
        evaluating: names of the modules that have to be in eval mode, split.
        unfused: the original operations; takes the model and the arguments of the site.
    """

    conv: tuple[str, ...]
    transposed: bool
    program: Program
    operands: tuple[Operand, ...]
    norms: tuple[NormPlan, ...]
    evaluating: tuple[tuple[str, ...], ...]
    unfused: Callable[..., Any]


class Site:
    """Runs a convolution and what follows it, fused where that is the same, else as it was written.

    It refers to no module: it finds them in the model at each call, so that replaced parameters, hooks of
    the whole model, copies and `functional_call` are what they are without it.

    Args:
        plan: what it does.
        packed: the packed weights of its convolution.
    """

    def __init__(self, plan: SitePlan, packed: OwnPackedWeights) -> None:
        self.plan = plan
        self.packed = packed
        self._affines = tuple([AffineCache() for _ in plan.norms])
        self._forms: dict[Any, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Site":
        if id(self.packed) not in memo:
            memo[id(self.packed)] = OwnPackedWeights()
        return Site(self.plan, memo[id(self.packed)])

    def run(self, model: torch.nn.Module, input: torch.Tensor, *data: Any) -> Any:
        """The chain's result.

        Args:
            model: the module that has those of the site.
            input: of the convolution.
            data: operands that are computed elsewhere.
        """
        plan = self.plan
        for path in plan.evaluating:
            if find(model, path).training:
                return plan.unfused(model, input, *data)
        prepared = self.prepare(model, input, data)
        if prepared is None:
            return plan.unfused(model, input, *data)
        conv, operands, arguments = prepared
        return fused_in_module(input, conv.weight, conv.bias, plan.program(*operands), arguments, self.packed)

    def prepare(
        self, model: torch.nn.Module, input: Any, data: Sequence[Any]
    ) -> tuple[Any, list[torch.Tensor], tuple[Any, ...]] | None:
        """The convolution, the operands and the further arguments of the call that is the same as the chain;
        None where there is none.

        Args:
            model, input, data: as of `run`.
        """
        plan = self.plan
        if not all(isinstance(tensor, torch.Tensor) for tensor in (input, *data)):
            return None
        conv: Any = find(model, plan.conv)
        output_padding = conv.output_padding if plan.transposed else 0
        convolution = (
            *(conv.stride, conv.padding, conv.dilation, conv.groups),
            *(plan.transposed, output_padding, conv.padding_mode),
        )
        operands = self._operands(model, data)
        dtype = self._result(input, conv.weight, operands, convolution)
        if dtype is _UNFUSED:
            return None
        return conv, operands, (*convolution, None, "auto", None, dtype, "auto")

    def _operands(self, model: torch.nn.Module, data: Sequence[Any]) -> list[torch.Tensor]:
        rank = len(find(model, self.plan.conv).kernel_size)
        affines = []
        for norm, cache in zip(self.plan.norms, self._affines, strict=True):
            tensors: list[Any] = [None if path is None else find(model, path) for path in norm.tensors]
            mean, var, weight, bias = tensors
            affines.append(cache.find(mean, var, weight, bias, norm.eps, rank))
        operands: list[torch.Tensor] = []
        for operand in self.plan.operands:
            if operand.kind == "data":
                operands.append(data[operand.place])
            elif operand.kind == "owned":
                operands.append(find(model, operand.place))
            else:
                operands.append(affines[operand.place][0 if operand.kind == "scale" else 1])
        return operands

    def _result(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        operands: Sequence[torch.Tensor],
        convolution: tuple[Any, ...],
    ) -> Any:
        """The dtype that the original operations give, or `_UNFUSED` where a program does not do the same."""
        device = input.device.type
        autocast = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
        if torch.compiler.is_compiling():
            return self._prepared(input, weight, operands, convolution, autocast)
        if _torch_private.is_transformed():
            return _UNFUSED
        key = (
            (input.shape, input.dtype, input.device, weight.shape, weight.dtype, convolution),
            torch.get_autocast_dtype(device) if autocast else None,
            tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in operands]),
        )
        found = self._forms.get(key)
        if found is None:
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            found = self._forms[key] = self._prepared(input, weight, operands, convolution, autocast)
        return found

    def _prepared(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        operands: Sequence[torch.Tensor],
        convolution: tuple[Any, ...],
        autocast: bool,
    ) -> Any:
        plan = self.plan
        y_dtype = input.dtype
        if autocast and y_dtype != torch.float64:
            y_dtype = torch.get_autocast_dtype(input.device.type)
        elif weight.dtype != y_dtype:
            return _UNFUSED
        if input.dim() != weight.dim():
            return _UNFUSED
        output = output_shape(input, weight, convolution)
        signature = []
        for index, (place, tensor) in enumerate(zip(plan.operands, operands, strict=True)):
            if place.kind in ("scale", "shift"):
                signature.append((torch.bool, False))  # a BatchNorm keeps the dtype of its input, as bools do
                continue
            if tensor.dim() and tensor.device != input.device:
                return _UNFUSED
            if not _fits(tensor.shape, output, index in plan.program.channel_operands):
                return _UNFUSED
            signature.append((tensor.dtype, tensor.dim() == 0))
        mode = input.device.type if autocast else ""
        return _result_dtype(plan.program.text, y_dtype, tuple(signature), mode)


_MOST_FORMS: Final = 256


def find(model: Any, path: Sequence[str]) -> Any:
    """What has a dotted name, given in parts, in a module.

    Example:
        >>> find(nn.Sequential(nn.ReLU()), ("0",))
        ReLU()
    """
    for name in path:
        model = getattr(model, name)
    return model


def output_shape(input: torch.Tensor, weight: torch.Tensor, convolution: Sequence[Any]) -> list[int]:
    """(N, K, spatial…) of a convolution; extents may be symbols of a traced graph.

    Args:
        input: (N, C, spatial…).
        weight: of the convolution.
        convolution: stride, padding, dilation, groups, transposed, output padding; as modules have them.
    """
    stride, padding, dilation, groups, transposed, output_padding = convolution[:6]
    shape = [input.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for axis, extent in enumerate(input.shape[2:]):
        reach = dilation[axis] * (weight.shape[2 + axis] - 1)
        if padding == "same":
            shape.append(extent)
        elif transposed:
            shape.append((extent - 1) * stride[axis] - 2 * padding[axis] + reach + output_padding[axis] + 1)
        else:
            margin = 0 if padding == "valid" else padding[axis]
            shape.append((extent + 2 * margin - reach - 1) // stride[axis] + 1)
    return shape


def _fits(operand: Sequence[int], output: Sequence[int], per_channel: bool) -> bool:
    """Whether an operand broadcasts against the output without growing it."""
    if per_channel:
        return len(operand) == 1 and operand[0] in (1, output[1])
    if len(operand) > len(output):
        return False
    behind = len(output) - len(operand)
    return all(extent in (1, output[behind + axis]) for axis, extent in enumerate(operand))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _result_dtype(
    text: str, y_dtype: torch.dtype, signature: tuple[tuple[torch.dtype, bool], ...], autocast: str
) -> Any:
    program = Program(text)
    names = {step.name for step in program.steps}
    if autocast and _CAST_UNDER_AUTOCAST in names:
        return _UNFUSED
    try:
        dtype = result_dtype(program, y_dtype, signature)
    except TypeError:
        return _UNFUSED  # the original operations raise torch's error
    wide = autocast and names & _FLOAT32_UNDER_AUTOCAST[autocast] and dtype != torch.float64
    return torch.float32 if wide else dtype
