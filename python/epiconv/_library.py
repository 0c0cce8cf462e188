"""The operator `torch.ops.epiconv.fused_conv_epilogue`: what tracers, modes and transforms see.

It is functional: it writes none of its arguments, and its result is a new tensor. The program crosses as
text.

    kernel              does
    CPU, CUDA           what a `Call` chooses
    fake, Meta          shape, dtype and strides
    Autograd            where a gradient is wanted, the operators of `_training_library` on the CPU and plain
                        torch operations elsewhere; where none is, the kernels above
    Autocast            casts input, weight and bias, as torch does for its convolutions
    FuncTorchBatched    plain torch operations, for vmap

Code that AOTInductor made passes an empty list of operands as None.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch

from epiconv import _torch_private, _training_library  # noqa: F401 - registers its operators
from epiconv.arguments import ConvArguments
from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled
from epiconv.call import Call, decompose, fake_result
from epiconv.form_cache import FormCache
from epiconv.operator_schema import CONV_SCHEMA, conv_arguments, flat_arguments, program_of
from epiconv.training import Training, apply_training, trains

_NAME: Final = "fused_conv_epilogue"

_calls: Final[FormCache[Call]] = FormCache()

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Sequence[torch.Tensor]]


def call_operator(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    arguments: ConvArguments,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """Calls the operator through torch's dispatcher.

    Args:
        input, weight, bias, operands: of `fused_conv_epilogue`.
        program: text, which need not be canonical.
        arguments: `normalise`d; their memory format does not count.
        memory_format: of the result.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_conv_epilogue`.
    """
    result: torch.Tensor = torch.ops.epiconv.fused_conv_epilogue(
        input,
        weight,
        bias,
        list(operands),
        program,
        *flat_arguments(arguments, memory_format),
    )
    return result


def _kernel(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor] | None,
    program: str,
    *rest: Any,
) -> torch.Tensor:
    arguments, operands = conv_arguments(weight, rest), operands or ()
    tensors = [tensor for tensor in (input, weight, bias, *operands) if tensor is not None]
    key = (input.shape, bias is None, program, arguments, torch.get_default_dtype())
    call = _calls.get(key, tensors)
    if call is None:
        call = Call(input, weight, bias, operands, program_of(program), arguments)
        _calls.keep(key, tensors, call)
    return call.run(input, weight, bias, operands)


def _fake(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    *rest: Any,
) -> torch.Tensor:
    return fake_result(input, weight, bias, operands, program_of(program), conv_arguments(weight, rest))


def _decompose(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
    program: str,
    *rest: Any,
) -> torch.Tensor:
    return decompose(input, weight, bias, operands, program_of(program), conv_arguments(weight, rest))


def _batched(*arguments: Any) -> torch.Tensor:
    if are_batch_invariant_algorithms_enabled():
        raise NotImplementedError(
            "batch-invariant algorithms are asked for, and torch.vmap computes its examples together: put "
            "them into one batch, or call for each alone"
        )
    return _decompose(*arguments)


def _autograd(keys: Any, input: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    bias, operands = rest[0], rest[1] or ()
    rest = (bias, operands, *rest[2:])
    tensors = [tensor for tensor in (input, weight, bias, *operands) if tensor is not None]
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if _torch_private.has_tangent(tensors) or not _torch_private.can_redispatch:
        return _decompose(input, weight, *rest)
    if wanted:
        program, arguments = program_of(rest[2]), conv_arguments(weight, rest[3:])
        is_wrong = len(operands) != program.num_operands
        if is_wrong or not trains(input.device, arguments) or _torch_private.transforms_active():
            return _decompose(input, weight, *rest)
        layout = arguments.memory_format or torch.contiguous_format
        training = Training(input, weight, bias, operands, program, arguments, layout)
        if not training.gives_none:
            return apply_training(training, None, input, weight, bias, *operands)
    overload = torch.ops.epiconv.fused_conv_epilogue.default
    return _torch_private.redispatch_below_autograd(overload, keys, (input, weight, *rest))


def cast_for_autocast(device_type: str, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Tensors as autocast gives them to a convolution: floating ones of the device, float64 apart.

    Args:
        device_type: whose autocast it is.
        tensors: input, weight and bias.
    """
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        [
            tensor.to(dtype)
            if tensor is not None
            and tensor.device.type == device_type
            and tensor.is_floating_point()
            and tensor.dtype != torch.float64
            else tensor
            for tensor in tensors
        ]
    )


def _autocast(device_type: str) -> Any:
    def kernel(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any
    ) -> torch.Tensor:
        cast = cast_for_autocast(device_type, input, weight, bias)
        with torch.autocast(device_type, enabled=False):
            result: torch.Tensor = torch.ops.epiconv.fused_conv_epilogue(*cast, *rest)
        return result

    return kernel


_LIBRARY: Final[Any] = torch.library.Library("epiconv", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"{_NAME}({CONV_SCHEMA}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
for _device_key in ("CPU", "CUDA"):
    _LIBRARY.impl(_NAME, _kernel, _device_key)
    _LIBRARY.impl(_NAME, _autocast(_device_key.lower()), f"Autocast{_device_key}")
_LIBRARY.impl(_NAME, _autograd, "Autograd", with_keyset=True)
_LIBRARY.impl(_NAME, _batched, "FuncTorchBatched")
torch.library.register_fake(f"epiconv::{_NAME}", _fake, lib=_LIBRARY)
