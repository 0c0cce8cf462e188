"""Private names of torch, each of them feature-detected: no other file uses any.

Where a name is missing the answer is the cautious one: the slower route, which needs none of them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, Final

import torch
from torch.autograd import forward_ad


def _find(path: str) -> Any:
    """The object of a dotted path below torch, or None."""
    try:
        return attrgetter(path)(torch)
    except AttributeError:
        return None


_dispatch_modes: Final = _find("_C._len_torch_dispatch_stack")
_function_modes: Final = _find("_C._len_torch_function_stack")
_transform_level: Final = _find("_C._functorch.maybe_current_level")
_tracing_state: Final = _find("_C._get_tracing_state")
_any_autocast: Final = _find("_C._is_any_autocast_enabled")
_tensor_guards: Final = _find("_C._dynamo.guards.TensorGuards")
_disable_modes: Final = _find("utils._python_dispatch._disable_current_modes")
_raw_stream: Final = _find("_C._cuda_getCurrentRawStream")
_current_device: Final = _find("_C._cuda_getDevice")
_below_autograd: Final = _find("_C._AutoDispatchBelowAutograd")
_after_autograd_keys: Final = _find("_C._after_autograd_keyset")
_fp32_precision: Final = _find("_C._get_fp32_precision_getter")
_cudnn_benchmark: Final = _find("_C._get_cudnn_benchmark")
_select_conv_backend: Final = _find("_C._select_conv_backend")
_has_storage: Final = _find("_C._has_storage")
_sleep: Final = _find("cuda._sleep")

_global_hooks: Final = _find("nn.modules.module._has_any_global_hook") or (lambda: False)

_SEES_ALL: Final = None not in (
    _dispatch_modes,
    _function_modes,
    _transform_level,
    _tracing_state,
    _any_autocast,
    getattr(forward_ad, "_current_level", None),
)


def _always() -> bool:
    return True


def _modes_active() -> bool:
    return _dispatch_modes() > 0 or _function_modes() > 0 or forward_ad._current_level >= 0


def _interposed() -> bool:
    return (
        _modes_active() or _any_autocast() or _transform_level() is not None or _tracing_state() is not None
    )


modes_active: Final[Callable[[], bool]] = _modes_active if _SEES_ALL else _always
"""Whether a dispatch mode, a function mode or forward-mode differentiation is active: what `form_guards`
does not see."""

interposed: Final[Callable[[], bool]] = _interposed if _SEES_ALL else _always
"""Whether something may stand between a call and its kernels: what `modes_active` tells, autocast, a
functorch transform, a tracer. `torch.compile` is asked for elsewhere."""


def _transforms_active() -> bool:
    return _transform_level() is not None


transforms_active: Final[Callable[[], bool]] = _always if _transform_level is None else _transforms_active
"""Whether a transform of torch.func is active."""


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own, as one of a batch of gradients (`is_grads_batched`) has not.

    Args:
        tensor: any.

    Example:
        >>> has_storage(torch.zeros(1))
        True
    """
    return _has_storage is None or bool(_has_storage(tensor))


def _compiled_guards(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    guards = _tensor_guards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    )
    check: Callable[..., bool] = guards.check
    return check


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    return (
        type(tensor),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.is_neg(),
        tensor.is_inference(),
    )


def _plain_guards(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    expected = [_form(tensor) for tensor in tensors]

    def check(*others: torch.Tensor) -> bool:
        return not interposed() and [_form(tensor) for tensor in others] == expected

    return check


def _tells_apart(guards: Callable[[Sequence[torch.Tensor]], Callable[..., bool]]) -> bool:
    """Whether guards answer as `form_guards` says; they belong to another part of torch."""
    one = torch.zeros(2, 3, 4, 5)
    others = (
        one.double(),
        one[:, :, :3],
        one.transpose(2, 3).contiguous().transpose(2, 3),
        one.flatten(2),
        torch.zeros(2, 3, 4, 5, requires_grad=True),
        torch.nn.Parameter(one, requires_grad=False),
        torch.zeros(2, 3, 4, 5, dtype=torch.complex64).conj().imag.as_strided((2, 3, 4, 5), one.stride()),
        torch.zeros(2, 3, 4, 5, device="meta"),
    )
    try:
        check = guards([one, one])
        return check(one.clone(), one) and not any(check(one, other) for other in others)
    except Exception:  # whatever a changed interface raises
        return False


form_guards: Final[Callable[[Sequence[torch.Tensor]], Callable[..., bool]]] = (
    _compiled_guards if _tells_apart(_compiled_guards) else _plain_guards
)
"""From tensors a predicate on as many others: whether they have the same types, shapes, strides, dtypes,
devices and the same need of gradients, and are dispatched through the same keys (so that autocast,
transforms and tracers are seen). It holds none of the tensors."""


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """A context in which torch operations reach their kernels, past every dispatch mode."""
    return nullcontext() if _disable_modes is None else _disable_modes()


def has_tangent(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether forward-mode differentiation follows any of the tensors.

    Args:
        tensors: any.

    Example:
        >>> has_tangent([torch.zeros(1)])
        False
    """
    if getattr(forward_ad, "_current_level", 0) < 0:
        return False
    unpack: Any = forward_ad.unpack_dual
    return any(unpack(tensor).tangent is not None for tensor in tensors)


can_redispatch: Final = _below_autograd is not None and _after_autograd_keys is not None
"""Whether `redispatch_below_autograd` works with this torch."""


def redispatch_below_autograd(operator: Any, keys: Any, arguments: Sequence[Any]) -> torch.Tensor:
    """Calls the operator's kernel behind autograd, from within its autograd kernel.

    Args:
        operator: an `OpOverload`.
        keys: the dispatch key set that the autograd kernel was given.
        arguments: of the operator.
    """
    with _below_autograd():
        result: torch.Tensor = operator.redispatch(keys & _after_autograd_keys, *arguments)
    return result


def _public_raw_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


raw_stream: Final[Callable[[int], int]] = _public_raw_stream if _raw_stream is None else _raw_stream
"""The address of the current CUDA stream of a device, from the device's index."""

current_cuda_device: Final[Callable[[], int]] = (
    torch.cuda.current_device if _current_device is None else _current_device
)
"""The index of the current CUDA device; CUDA has been initialised."""


def _public_conv_precision() -> str:
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision


def _direct_conv_precision() -> Callable[[], str]:
    """What the public name comes to, which takes a sixth of its time; the public one where it differs."""
    try:
        settings = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        direct = partial(_fp32_precision, settings.backend, settings.op)
        if direct() == _public_conv_precision():
            return direct
    except Exception:  # whatever a changed interface raises
        pass
    return _public_conv_precision


conv_precision: Final[Callable[[], str]] = _direct_conv_precision()
"""`torch.backends.cudnn.conv.fp32_precision` as it is now."""


def convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    allow_tf32: bool,
) -> torch.Tensor:
    """torch's convolution without bias, whose use of TF32 is an argument instead of a global flag.

    The other settings of `torch.backends.cudnn` and `torch.use_deterministic_algorithms` are honoured.

    Args:
        input: (N, C, spatial…), batched.
        weight: (K, C / groups, spatial…), transposed (C, K / groups, spatial…).
        stride, padding, dilation, output_padding: one entry per spatial dimension.
        transposed, groups: as torch.
        allow_tf32: whether cuDNN may multiply in TF32.

    Returns:
        (N, K, spatial…).
    """
    cudnn = torch.backends.cudnn
    return torch._convolution(
        input,
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        cudnn.benchmark,
        cudnn.deterministic or torch.are_deterministic_algorithms_enabled(),
        cudnn.enabled,
        allow_tf32,
    )


def convolution_backend(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> str:
    """The name of what torch would compute a convolution with, "cudnn" or "mkldnn" among others.

    Args:
        input: (N, C, spatial…), batched.
        weight: as the rest, of `convolution`.

    Returns:
        The name, or "" where torch does not tell.
    """
    if _select_conv_backend is None:
        return ""
    backend = _select_conv_backend(
        input,
        weight,
        None,
        list(stride),
        list(padding),
        list(dilation),
        transposed,
        list(output_padding),
        groups,
    )
    name: str = backend.name
    return name.lower()


def transposed_output_padding(
    module: torch.nn.Module, input: torch.Tensor, output_size: Sequence[int] | None
) -> Sequence[int]:
    """The output padding with which a module of torch.nn gives an output of a wanted size.

    Args:
        module: a ConvTranspose1d, 2d or 3d.
        input: of its forward.
        output_size: as its forward takes it; None is the module's own output padding.

    Raises:
        ValueError: it cannot have that size.
    """
    own: Any = module
    rank = len(own.kernel_size)
    result: Sequence[int] = own._output_padding(
        input, output_size, own.stride, own.padding, own.kernel_size, rank, own.dilation
    )
    return result


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether calling a module does more than its forward.

    Args:
        module: any; its submodules do not count.
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def any_hooks(modules: Sequence[torch.nn.Module]) -> bool:
    """Whether calling one of some modules does more than its forward, hooks of all modules included.

    Args:
        modules: any; their submodules do not count.
    """
    for module in modules:
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return True
    return not torch.compiler.is_compiling() and _global_hooks()


def is_transformed() -> bool:
    """Whether a functorch transform, such as `torch.vmap`, is active."""
    return _transform_level is not None and _transform_level() is not None


def keep_busy(cycles: int) -> None:
    """Occupies the current CUDA device, on its current stream, for so many of its clocks.

    Without the function nothing happens; then launches count in what is timed behind it.

    Args:
        cycles: of the device.
    """
    if _sleep is not None:
        _sleep(cycles)


def _benchmark_attribute() -> bool:
    return bool(torch.backends.cudnn.benchmark)


cudnn_benchmark: Final[Callable[[], bool]] = _cudnn_benchmark or _benchmark_attribute
"""`torch.backends.cudnn.benchmark`."""
