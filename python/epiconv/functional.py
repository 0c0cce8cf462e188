"""`fused_conv_epilogue`: the library's one function, and the pass behind it on its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from epiconv import _torch_private
from epiconv._library import call_operator
from epiconv.arguments import Extents, normalise
from epiconv.call import Call
from epiconv.checks import check_pass, check_tensor_types
from epiconv.convolution import output_format
from epiconv.fallback import EpiloguePass, apply_epilogue, warn_not_fused, why_not_fused
from epiconv.form_cache import FormCache, are_plain
from epiconv.implicit_gemm import RunCall
from epiconv.packed_weights import OwnPackedWeights
from epiconv.program import Program, bind_epilogue, epilogue_text
from epiconv.training import prepare_training

_runs: Final[FormCache[RunCall]] = FormCache()
_passes: Final[FormCache[EpiloguePass]] = FormCache()

_DEFAULTS: Final[dict[str, Any]] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "transposed": False,
    "output_padding": 0,
    "padding_mode": "zeros",
    "precision": None,
    "algorithm": "auto",
    "memory_format": None,
    "dtype": None,
    "save": "auto",
}
_DEFAULT_ARGUMENTS: Final = tuple(_DEFAULTS.values())
ARGUMENT_NAMES: Final = tuple(_DEFAULTS)
"""Of what `arguments_of` gives, in its order."""


def fused_conv_epilogue(
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
) -> torch.Tensor:
    """Convolution, bias and an elementwise epilogue in one call.

    Computes `epilogue(conv(input, weight) + bias)`. Bias and epilogue are one pass in float32 (float64
    tensors: float64) that rounds once, when it stores. On CUDA plain torch operations run instead where a
    gradient is wanted, with the same values up to rounding.

    Args:
        input: (N, C, spatial…) or (C, spatial…), one to three spatial dimensions; float32, float16,
            bfloat16 or float64, any strides.
        weight: (K, C / groups, spatial…), transposed (C, K / groups, spatial…); of input's dtype.
        bias: (K,), of input's dtype.
        stride, dilation: as in torch: an int, or one per spatial dimension.
        padding: likewise; or "valid", or "same" where the stride is 1.
        groups: divides C and K.
        transposed: a transposed convolution.
        output_padding: of a transposed convolution, as in torch.
        padding_mode: "zeros", "reflect", "replicate" or "circular"; transposed "zeros" only.
        epilogue: None; a list of `epiconv.ops`; a program of `epiconv.trace` or `epiconv.Program` without
            operands; or one called with its operands. Operands broadcast against the result as in torch
            and may not grow it: one value per channel is (K, 1, 1). 0-d CPU tensors go with any device
            and are read at each call.
        precision: what float32 convolutions multiply: "ieee" (float32), "tf32", "bf16" or "fp16",
            accumulated in float32. None: TF32 when `torch.backends.cudnn.conv.fp32_precision == "tf32"`,
            else float32; it is read at each call.
        algorithm: "auto"; "implicit_gemm" for one kernel with the epilogue in it, or an error that says
            why there is none; "cudnn" for torch's convolution on the card and one pass behind it. "auto"
            is the first where it can run and a pass behind another convolution is not faster.
        memory_format: of the result, `torch.contiguous_format` or channels_last. None: channels_last if
            input or weight is, as torch's convolutions. An operand's layout never counts.
        dtype: of the result, floating. None: what torch's type promotion gives the chain.
        save: what is kept for the backward pass besides inputs and operands, on the CPU. "auto": nothing
            where the chain's derivative needs no value of it, the result where that tells enough, as behind
            a relu, else the convolution's output. "conv": that, where any value is needed. "recompute":
            nothing; the convolution is run again.

    Returns:
        (N, K, spatial…), or (K, spatial…) for an input without N.

    Raises:
        TypeError: a dtype or a layout is not supported, dtypes do not go together, or `epilogue` is no
            epilogue.
        ValueError: shapes, devices or words do not go together.
        NotImplementedError: algorithm "implicit_gemm" cannot run; the message says why.
        CudaError: a kernel failed.

    Warns:
        RuntimeWarning: once, when this build or this card makes a CUDA tensor run plain torch operations.

    Example:
        >>> y = fused_conv_epilogue(x, weight, bias, padding=1, epilogue=[ops.relu(), ops.add(residual)])
    """
    arguments = (
        stride,
        padding,
        dilation,
        groups,
        transposed,
        output_padding,
        padding_mode,
        precision,
        algorithm,
        memory_format,
        dtype,
        save,
    )
    return fused_in_module(input, weight, bias, epilogue, arguments, None)


def arguments_of(words: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of `fused_conv_epilogue` that are neither tensors nor the epilogue, in its order.

    Args:
        words: some of them by keyword; the others have their defaults.

    Example:
        >>> arguments_of({"stride": 2})[0]
        2
    """
    return tuple({**_DEFAULTS, **words}.values()) if words else _DEFAULT_ARGUMENTS


def fused_in_module(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Any,
    arguments: tuple[Any, ...],
    owner: OwnPackedWeights | None,
) -> torch.Tensor:
    """`fused_conv_epilogue` of a module, which keeps the packed weight.

    Args:
        input, weight, bias, epilogue: of `fused_conv_epilogue`.
        arguments: of `arguments_of`.
        owner: the module's; None outside of modules.

    Raises:
        As `fused_conv_epilogue`.

    Example:
        >>> y = fused_in_module(x, conv.weight, conv.bias, [ops.relu()], arguments_of({}), module._packed)
    """
    if torch.compiler.is_compiling():
        text, operands = epilogue_text(epilogue)
        return _dispatch(input, weight, bias, operands, text, arguments)
    program, operands = bind_epilogue(epilogue)
    if not _torch_private.modes_active():
        tensors = (input, weight, *operands) if bias is None else (input, weight, bias, *operands)
        try:
            key = (
                input.shape,
                bias is None,
                program.text,
                arguments,
                torch.is_grad_enabled(),
                torch.get_default_dtype(),
            )
            run = _runs.get(key, tensors)
        except (AttributeError, TypeError):
            check_tensor_types(input=input, weight=weight, bias=bias)
            arguments = _with_tuples(weight, arguments)
            return fused_in_module(input, weight, bias, epilogue, arguments, owner)
        if run is None and not _torch_private.interposed() and are_plain(tensors):
            run = _prepare(input, weight, bias, operands, program, arguments)
            _runs.keep(key, tensors, run)
        if run is not None:
            return run(input, weight, bias, operands, owner)
    return _dispatch(input, weight, bias, operands, program.text, arguments)


def _with_tuples(weight: torch.Tensor, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, one of which is not hashable, with tuples for lists; anything else is refused."""
    if not any(isinstance(value, list) for value in arguments):
        normalise(weight, *arguments)
        raise TypeError("the arguments of a convolution are words, ints, and lists or tuples of ints")
    return tuple([tuple(value) if isinstance(value, list) else value for value in arguments])


def _prepare(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: Program,
    arguments: tuple[Any, ...],
) -> RunCall:
    """What runs for tensors of this form, in the grad mode of now."""
    call = Call(input, weight, bias, operands, program, normalise(weight, *arguments))
    if torch.is_grad_enabled() and wants_grad((input, weight, bias, *operands)):
        return prepare_training(call, input, weight, bias, operands)
    return call.run


def wants_grad(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether autograd follows one of the tensors, where grad mode is on.

    Args:
        tensors: None counts as one that it does not follow.

    Example:
        >>> wants_grad([torch.zeros(1, requires_grad=True)])
        True
    """
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _dispatch(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    arguments: tuple[Any, ...],
) -> torch.Tensor:
    """By way of torch's dispatcher; also what `torch.compile` traces."""
    check_tensor_types(input=input, weight=weight, bias=bias)
    normalised = normalise(weight, *arguments)
    layout = output_format(input, weight, normalised.memory_format)
    return call_operator(input, weight, bias, operands, program, normalised, layout)


def epilogue_pass(y: torch.Tensor, epilogue: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Runs bias and epilogue over an existing tensor, in place and without a graph for autograd.

    Args:
        y: (N, K, spatial…), one to three spatial dimensions, floating, without overlapping elements; what
            a convolution wrote. Operands must not share its memory.
        epilogue: as for `fused_conv_epilogue`.
        bias: (K,), of y's dtype, added first.

    Returns:
        y.

    Raises:
        TypeError, ValueError: as `fused_conv_epilogue`.
        RuntimeError: y wants a gradient.

    Example:
        >>> epilogue_pass(torch.nn.functional.conv2d(x, weight), [ops.relu()], bias)
    """
    program, operands = bind_epilogue(epilogue)
    if torch.is_grad_enabled() and wants_grad((y, bias, *operands)):
        raise RuntimeError(
            "epilogue_pass writes in place and has no gradient: call it under torch.no_grad(), or call "
            "fused_conv_epilogue"
        )
    tensors = (y, *operands) if bias is None else (y, bias, *operands)
    key = (y.shape, bias is None, program.text)
    planned = _passes.get(key, tensors)
    if planned is None:
        if not are_plain(tensors):
            raise TypeError("epilogue_pass takes plain torch tensors, without subclasses or lazy negation")
        check_pass(y, bias, operands, program)
        if reason := why_not_fused(y.device):
            warn_not_fused(reason)
            return y.copy_(apply_epilogue(y, bias, operands, program, y.dtype))
        source = (y.dtype, y.stride())
        planned = EpiloguePass(program, y.shape, y.device, source, source, bias, operands)
        _passes.keep(key, tensors, planned)
    planned.run(y, bias, operands)
    if not y.is_inference():
        torch.autograd.graph.increment_version(y)  # what was saved for a backward pass is gone
    return y
