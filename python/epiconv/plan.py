"""How a call runs, without running it: `epiconv.explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from epiconv import _core, _torch_private
from epiconv._library import cast_for_autocast
from epiconv.arguments import Extents, normalise
from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled
from epiconv.call import Call
from epiconv.cards import CARDS
from epiconv.checks import check_tensor_types, is_number, no_cudnn
from epiconv.form_cache import are_plain
from epiconv.functional import wants_grad
from epiconv.implicit_gemm import refuse
from epiconv.program import bind_epilogue
from epiconv.training import Training, trains

_LABEL_WIDTH: Final = 10
_WANTS_GRADIENT: Final = "a tensor requires grad, and grad mode is on"


@dataclass(frozen=True)
class Plan:
    """How a call of `fused_conv_epilogue` runs; prints as a table.

    Attributes:
        path: what runs:
            "implicit_gemm": one kernel of this library, convolution and epilogue;
            "cpu": torch's convolution, then one pass of this library;
            "cudnn+epilogue": the same on the card;
            "torch": plain torch operations.
        convolution: what torch computes the convolution with, "cudnn" among others; "" where torch does
            not tell, and for path "implicit_gemm".
        kernel: name of the kernel, or of the pass, "none" where the result is empty; for path "torch" how
            many operations there are.
        why: for path "implicit_gemm" why this kernel and no other; why torch's convolution is called for each
            image alone, where batch-invariant algorithms are asked for; else "".
        predicted_ms: what this path takes by the model of an H200 in docs/planner.md, with a warm L2 cache;
            None where nothing is predicted: not on a card, in float64, and where plain torch operations run.
        predicted: the same with what each ceiling of the card would take alone, or "".
        ways: (name, milliseconds) by that model of every family of kernels that takes the call, also where
            its kernels are not compiled now, and of "cudnn+epilogue"; the least first.
        packing: for path "implicit_gemm" the format and size of the packed weight, and where it is kept;
            "" where none is, and for other paths.
        refused: (path, reason) of the paths that are not taken.
        saved: what is kept for the backward pass besides inputs and operands; "" where no gradient is wanted,
            and for path "torch", where torch keeps what its operations need.
        program: text of the epilogue.
        shape: of the result, (N, K, spatial…) or (K, spatial…).
        dtype: of the result.
        strides: of the result.
        device: of the result.
        flops: of the convolution, two per multiply-add.
        bytes_moved: what this path reads and writes: the convolution's tensors once, then the pass's; for
            path "implicit_gemm" the packed weight and each other tensor once. For path "torch" it is
            `least_bytes`, since torch's operations are not counted.
        least_bytes: what any path has to: each tensor that is given or returned, once; nothing where the
            result is empty.
        math: of the multiplications: "fp64", "fp32", "tf32", "bf16" or "fp16".
        floor_ms: the least time on this card, max(least_bytes / bandwidth, flops / rate); None where the
            rates are not known.
        floor_note: what bounds it and where the rates are from, or why there is none.
    """

    path: str
    convolution: str
    kernel: str
    why: str
    predicted_ms: float | None
    predicted: str
    ways: tuple[tuple[str, float], ...]
    packing: str
    refused: tuple[tuple[str, str], ...]
    saved: str
    program: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]
    device: torch.device
    flops: int
    bytes_moved: int
    least_bytes: int
    math: str
    floor_ms: float | None
    floor_note: str

    def __str__(self) -> str:
        by = f", convolution by {self.convolution}" if self.convolution else ""
        rows = [
            ("path", f"{self.path}{by}"),
            ("kernel", self.kernel),
            *([("why", self.why)] if self.why else []),
            *([("predicted", f"{self.predicted} on an H200")] if self.predicted else []),
            *([("ways", ", ".join(f"{way} {ms:.4f} ms" for way, ms in self.ways))] if self.ways else []),
            *([("packing", self.packing)] if self.packing else []),
            *[("not", f"{path}: {reason}") for path, reason in self.refused],
            *([("saved", self.saved)] if self.saved else []),
            ("program", self.program or "(none)"),
            ("output", f"{self.shape} {self.dtype}, strides {self.strides}, {self.device}"),
            ("FLOPs", f"{self.flops / 1e9:.3f} G in {self.math}"),
            ("bytes", f"{self.bytes_moved / 1e6:.3f} MB, at least {self.least_bytes / 1e6:.3f} MB"),
            (
                "floor",
                self.floor_note if self.floor_ms is None else f"{self.floor_ms:.4f} ms, {self.floor_note}",
            ),
        ]
        return "\n".join(f"{label:<{_LABEL_WIDTH}}{text}" for label, text in rows)


def explain(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: Extents = 1,
    padding: Extents | str = 0,
    dilation: Extents = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Extents = 0,
    padding_mode: str = "zeros",
    epilogue: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    memory_format: torch.memory_format | None = None,
    dtype: torch.dtype | None = None,
    save: str = "auto",
) -> Plan:
    """How `fused_conv_epilogue` would run with these arguments, in the grad and autocast mode of now.

    Nothing is computed, and no weight packed. A pass is planned for a convolution's output in the layout
    that torch's rule gives it; the few of torch's kernels that know the contiguous layout only may make it
    another.

    Args:
        input, weight, bias: as the rest, of `fused_conv_epilogue`.

    Returns:
        The plan.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.

    Example:
        >>> print(explain(x, weight, bias, padding=1, epilogue=[ops.relu()]))
    """
    check_tensor_types(input=input, weight=weight, bias=bias)
    program, operands = bind_epilogue(epilogue)
    device = input.device
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        cast: tuple[Any, ...] = cast_for_autocast(device.type, input, weight, bias)
        input, weight, bias = cast
    arguments = normalise(
        weight,
        *(stride, padding, dilation, groups, transposed, output_padding, padding_mode),
        *(precision, algorithm, memory_format, dtype, save),
    )
    call = Call(input, weight, bias, operands, program, arguments)
    tensors = [tensor for tensor in (input, weight, bias, *operands) if tensor is not None]
    why_torch = _why_torch(call, tensors)
    result = call.empty_result(torch.device("meta"))
    is_empty = result.numel() == 0
    least = 0 if is_empty else _bytes([*tensors, result])
    is_trained = not why_torch and _wants_gradient(tensors)
    gemm = why_torch or (_WANTS_GRADIENT if is_trained else call.implicit_gemm(input))
    if isinstance(gemm, str) and algorithm == "implicit_gemm":
        refuse(gemm)
    why = packing = ""
    if not isinstance(gemm, str):
        path, kernel, packing = "implicit_gemm", gemm.kernel, _packing(gemm, weight)
        why = "; ".join(filter(None, (call.why_measured(input), gemm.why_kernel)))
        moved = 0 if is_empty else least - _bytes([weight]) + gemm.packed_bytes
    elif why_torch:
        path, kernel, moved = "torch", _torch_operations(bias is not None, len(program.steps)), least
    elif is_empty:
        path, kernel, moved = _path(device), "none", 0
    else:
        planned = call.explain_pass(input, weight, bias, operands)
        path, kernel = _path(device), planned.kernel
        moved = _bytes([input, weight]) + _y_bytes(call, input) + planned.bytes_moved
    if path != "implicit_gemm" and are_batch_invariant_algorithms_enabled() and not is_empty:
        why = "batch-invariant algorithms are asked for: torch's convolution is called for each image alone"
    predictions = {} if why_torch or is_empty else call.predict(input, weight, bias, operands)
    times = {way: time for way, time in predictions.items() if not isinstance(time, str)}
    predicted = times.get(path) if isinstance(gemm, str) else gemm.predicted
    math = _math(input, precision)
    floor_ms, floor_note = _floor(device, math, call.flops, least)
    return Plan(
        path=path,
        convolution="" if path == "implicit_gemm" else _convolution(input, weight, call),
        kernel=kernel,
        why=why,
        predicted_ms=None if predicted is None else predicted.us * 1e-3,
        predicted="" if predicted is None else str(predicted),
        ways=tuple(sorted(((way, time.us * 1e-3) for way, time in times.items()), key=lambda item: item[1])),
        packing=packing,
        refused=_refused(device, path, why_torch, gemm),
        saved=_saved(call, input, weight, bias, operands) if is_trained and not is_empty else "",
        program=program.text,
        shape=tuple(result.shape),
        dtype=result.dtype,
        strides=result.stride(),
        device=device,
        flops=call.flops,
        bytes_moved=moved,
        least_bytes=least,
        math=math,
        floor_ms=floor_ms,
        floor_note=floor_note,
    )


def _path(device: torch.device) -> str:
    return "cudnn+epilogue" if device.type == "cuda" else "cpu"


def _wants_gradient(tensors: Sequence[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and wants_grad(tensors)


def _saved(
    call: Call,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
) -> str:
    training = Training(input, weight, bias, operands, call.program, call.arguments, call.memory_format)
    if training.keeps_conv:
        return f"the convolution's output, {_y_bytes(call, input) / 1e6:.3f} MB"
    if training.recomputes:
        return "nothing; the convolution is run again"
    return "the result" if training.saved_is == "output" else "nothing"


def _why_torch(call: Call, tensors: Sequence[torch.Tensor]) -> str:
    """Why plain torch operations run, or ""."""
    if call.not_fused:
        return call.not_fused
    if _wants_gradient(tensors) and not trains(tensors[0].device, call.arguments):
        return _WANTS_GRADIENT
    return "" if are_plain(tensors) else "a tensor is of a subclass or negated lazily; its own rules decide"


def _refused(
    device: torch.device, path: str, why_torch: str, gemm: "_core.ConvPlan | str"
) -> tuple[tuple[str, str], ...]:
    refused = [("implicit_gemm", gemm)] if isinstance(gemm, str) else []
    if path == "torch":
        refused.append((_path(device), why_torch))
    if path != "cudnn+epilogue" and (reason := no_cudnn(device)):
        refused.append(("cudnn+epilogue", reason))
    return tuple(dict(reversed(refused)).items())[::-1]


def _packing(plan: "_core.ConvPlan", weight: torch.Tensor) -> str:
    if plan.packed_bytes == 0:
        return ""
    if weight.is_inference() or weight.requires_grad:
        kept = "in every call, and kept by modules only" if not weight.is_inference() else "in every call"
    else:
        kept = "once for each version of the weight"
    return f"{plan.weight_format}, {plan.packed_bytes / 1e6:.3f} MB, {kept}"


def _torch_operations(has_bias: bool, count: int) -> str:
    return (
        f"torch: convolution{', bias' if has_bias else ''} and {count} operation{'' if count == 1 else 's'}"
    )


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if not is_number(tensor))


def _y_bytes(call: Call, input: torch.Tensor) -> int:
    """Of the convolution's output, before the pass."""
    return call.empty_result(torch.device("meta")).numel() * input.element_size()


def _math(input: torch.Tensor, precision: str | None) -> str:
    names = {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
    if input.dtype in names:
        return names[input.dtype]
    if precision is not None:
        return "fp32" if precision == "ieee" else precision
    setting = _torch_private.conv_precision()
    return "tf32" if input.device.type == "cuda" and setting == "tf32" else "fp32"


def _convolution(input: torch.Tensor, weight: torch.Tensor, call: Call) -> str:
    arguments = call.arguments
    return _torch_private.convolution_backend(
        input if call.batched else input.unsqueeze(0),
        weight,
        arguments.stride,
        arguments.padding_begin,
        arguments.dilation,
        arguments.transposed,
        arguments.output_padding,
        arguments.groups,
    )


def _floor(device: torch.device, math: str, flops: int, least_bytes: int) -> tuple[float | None, str]:
    if device.type != "cuda":
        return None, f"no floor is known for {device.type}"
    name = torch.cuda.get_device_name(device)
    card = CARDS.get(name)
    if card is None:
        return None, f"no floor is known for {name}; there are {', '.join(CARDS)}"
    seconds, bound_by = card.floor(math, flops, least_bytes)
    return seconds * 1e3, f"bound by {bound_by}; {card.source}"
