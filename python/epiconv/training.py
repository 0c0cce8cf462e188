"""Calls of which gradients are wanted: what the forward pass keeps, and the backward pass.

On CUDA this is so where the environment variable EPICONV_TRAINING, read once, when this module is imported,
says "fused"; by default, "torch", plain torch operations run there.

The forward pass is `call.Call`'s, and keeps what the backward pass needs besides its inputs: the
convolution's output, the result, or nothing. The backward pass is one walk over the elements for everything
behind the convolution (`epilogue_backward`), and torch's `convolution_backward`, of what is wanted only.

Second derivatives and transforms of the backward pass are those of plain torch operations (`call.decompose`).
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from epiconv import _torch_private, compiler
from epiconv.arguments import ConvArguments, check_word
from epiconv.call import Call, decompose
from epiconv.convolution import convolve
from epiconv.convolution_backward import convolution_gradients
from epiconv.epilogue_backward import (
    EpilogueGradients,
    GradientMakers,
    Needs,
    RunBackward,
    Wanted,
    backward_needs,
    form_of,
    plan_backward,
)
from epiconv.fallback import why_not_fused
from epiconv.form_cache import are_plain
from epiconv.implicit_gemm import RunCall
from epiconv.operator_schema import flat_arguments
from epiconv.packed_weights import OwnPackedWeights
from epiconv.program import Program
from epiconv.training_forward import Kept, prepare_forward

SETTING: Final = os.environ.get("EPICONV_TRAINING", "torch")
"""What computes gradients on CUDA."""

check_word("EPICONV_TRAINING", SETTING, ("torch", "fused"))


class Training:
    """Forward and backward of a call, for tensors of one form, by operators that tracers and modes see.

    Args:
        input, weight, bias, operands: tensors of that form; their extents may be symbolic.
        program: the epilogue.
        arguments: `normalise`d.
        memory_format: of the result.

    Attributes:
        needs: of the backward pass; `needs.given` are the gradients that it gives.
        saved_is: what it is computed from: "nothing", "output" (the result) or "conv".
        recomputes: whether it runs the convolution again, for that.
        keeps_conv: whether the forward pass keeps the convolution's output, for that.
    """

    def __init__(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        program: Program,
        arguments: ConvArguments,
        memory_format: torch.memory_format,
    ) -> None:
        self.program = program
        self.arguments = arguments
        self.memory_format = memory_format
        self.batched = input.dim() == weight.dim()
        self.input_dtype = input.dtype
        self.bias_form = None if bias is None else form_of(bias)
        self.operand_forms = [form_of(operand) for operand in operands]
        self.wants_input, self.wants_weight = input.requires_grad, weight.requires_grad
        wanted = Wanted(
            self.wants_input or self.wants_weight,
            bias is not None and bias.requires_grad,
            tuple([operand.requires_grad for operand in operands]),
        )
        self.saved_is, self.recomputes = _what_to_save(program, wanted, arguments.save)
        self.keeps_conv = self.saved_is == "conv" and not self.recomputes
        given = backward_needs(program, wanted, self.saved_is).given
        self.needs: Needs = backward_needs(program, given, self.saved_is)

    @property
    def gives_none(self) -> bool:
        """Whether there is no gradient of anything that wants one: the result does not require grad."""
        given = self.needs.given
        return not (given.conv or given.bias or any(given.operands))

    def forward(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        owner: OwnPackedWeights | None = None,
    ) -> Kept:
        """Runs the forward pass, past the packed weights of a module."""
        output, conv, mean, rstd = torch.ops.epiconv.fused_conv_epilogue_training(
            *(self.keeps_conv, input, weight, bias, list(operands), self.program.text),
            *flat_arguments(self.arguments, self.memory_format),
        )
        return Kept(output, conv if self.keeps_conv else None, mean, rstd)

    def _epilogue_backward(
        self,
        gradient: torch.Tensor,
        saved: torch.Tensor | None,
        mean: torch.Tensor | None,
        rstd: torch.Tensor | None,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor | None],
    ) -> EpilogueGradients:
        """Runs the backward pass up to the convolution, batched; bias and operands are None where they are
        not read."""
        bias, tensors = self._with_stand_ins(bias, operands)
        given = self.needs.given
        flags = [given.conv, given.bias, *given.operands]
        results = torch.ops.epiconv.epilogue_backward(
            *(gradient, saved, mean, rstd, bias, tensors, self.program.text, self.saved_is),
            *(self.input_dtype, self.memory_format != torch.contiguous_format, flags),
        )
        of_conv, of_bias, *rest = [each if flag else None for each, flag in zip(results, flags, strict=True)]
        return EpilogueGradients(of_conv, of_bias, tuple(rest))

    def _with_stand_ins(
        self, bias: torch.Tensor | None, operands: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Bias and operands, with stand-ins for those that are not kept."""
        if bias is None and self.bias_form is not None:
            bias = self.bias_form.stand_in()
        forms = self.operand_forms
        return bias, [form.stand_in() if b is None else b for b, form in zip(operands, forms, strict=True)]

    def to_save(
        self, kept: Kept, bias: torch.Tensor | None, operands: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, ...]:
        """What the backward pass takes besides input and weight."""
        saved = kept.output if self.saved_is == "output" else kept.conv
        read = [b if reads else None for b, reads in zip(operands, self.needs.reads_operands, strict=True)]
        return (saved, kept.mean, kept.rstd, bias if self.needs.reads_bias else None, *read)

    def backward(
        self, gradient: torch.Tensor, saved: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of input, weight, bias and operands; None where there is none or none is wanted.

        Args:
            gradient: of the result.
            saved: input, weight, and what `to_save` gave.
        """
        input, weight, conv, mean, rstd, bias, *operands = saved
        assert input is not None and weight is not None
        if self.recomputes:
            with torch.autocast(input.device.type, enabled=False):
                conv = convolve(input, weight, self.arguments)
        if mean is not None and rstd is not None:  # hooks may give them back in another layout
            mean, rstd = mean.contiguous(), rstd.contiguous()
        if not self.batched:
            gradient = gradient.unsqueeze(0)
            conv = None if conv is None else conv.unsqueeze(0)
        gradients = self._epilogue_backward(gradient, conv, mean, rstd, bias, operands)
        for_input = for_weight = None
        if gradients.conv is not None:
            for_input, for_weight = convolution_gradients(
                gradients.conv,
                input,
                weight,
                self.arguments,
                wants_input=self.wants_input,
                wants_weight=self.wants_weight,
            )
        return for_input, for_weight, gradients.bias, *gradients.operands

    def differentiable_backward(
        self, gradient: torch.Tensor, saved: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor | None, ...]:
        """The same in plain torch operations, differentiable.

        Gradients do not depend on the values of what is not saved, for which stand-ins will do.

        Args:
            gradient, saved: of `backward`.
        """
        input, weight, _, _, _, bias, *operands = saved
        given = self.needs.given
        bias, tensors = self._with_stand_ins(bias, operands)
        is_given = (given.conv and self.wants_input, given.conv and self.wants_weight, given.bias)
        places = [place for place, wanted in enumerate((*is_given, *given.operands)) if wanted]
        with torch.enable_grad():
            # Views: one tensor that is given twice has two gradients.
            views = [None if t is None else t.view_as(t) for t in (input, weight, bias, *tensors)]
            for place in places:
                view = views[place]
                if view is not None and not view.requires_grad:  # a stand-in
                    view.requires_grad_()
            of_input, of_weight, of_bias, *of_operands = views
            assert of_input is not None and of_weight is not None
            with torch.autocast(of_input.device.type, enabled=False):
                result = decompose(
                    of_input,
                    of_weight,
                    of_bias,
                    [operand for operand in of_operands if operand is not None],
                    self.program,
                    self.arguments,
                )
        found = torch.autograd.grad(
            result,
            [view for place in places if (view := views[place]) is not None],
            gradient,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        gradients: list[torch.Tensor | None] = [None] * len(views)
        for place, each in zip(places, found, strict=True):
            gradients[place] = each
        return tuple(gradients)


def _what_to_save(program: Program, wanted: Wanted, save: str) -> tuple[str, bool]:
    """What the backward pass is computed from, and whether the convolution is run again for it."""
    least = backward_needs(program, wanted, "nothing").saved
    if least == "nothing" or save == "auto":
        return least, False
    return "conv", save == "recompute"


class DirectTraining(Training):
    """By the compiled core, past torch's dispatcher.

    Args:
        call: prepared for tensors of this form; its result is not empty.
        input, weight, bias, operands: of that form.
    """

    def __init__(
        self,
        call: Call,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(input, weight, bias, operands, call.program, call.arguments, call.memory_format)
        self.forward = prepare_forward(  # type: ignore[method-assign]
            call, input, weight, bias, operands, self.keeps_conv
        )
        self._shape = call.shape if self.batched else (1, *call.shape)
        self._output_dtype = call.dtype
        self._runs: dict[Any, RunBackward] = {}

    def _epilogue_backward(
        self,
        gradient: torch.Tensor,
        saved: torch.Tensor | None,
        mean: torch.Tensor | None,
        rstd: torch.Tensor | None,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor | None],
    ) -> EpilogueGradients:
        if _torch_private.interposed() or not are_plain((gradient,)):
            return super()._epilogue_backward(gradient, saved, mean, rstd, bias, operands)
        # Hooks on saved tensors may give them back in another layout.
        compiles = gradient.is_cuda and compiler.is_wanted()
        strides = [None if t is None else t.stride() for t in (saved, bias, *operands)]
        key = (compiles, gradient.stride(), *strides)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._plan(gradient, saved, bias, operands)
        return run(gradient, saved, mean, rstd, bias, operands)

    def _plan(
        self,
        gradient: torch.Tensor,
        saved: torch.Tensor | None,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor | None],
    ) -> RunBackward:
        makers = GradientMakers(
            *(self._shape, self.input_dtype, self.memory_format, gradient.device),
            *(self.bias_form, self.operand_forms, self.needs.given),
        )
        bias, tensors = self._with_stand_ins(bias, operands)
        return plan_backward(
            *(self.program, makers, self.input_dtype, self._output_dtype, self.saved_is),
            *(saved, gradient, bias, tensors, self.needs),
        )


class _FusedConvEpilogue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, training: Training, owner: OwnPackedWeights | None, *tensors: torch.Tensor | None
    ) -> torch.Tensor:
        input, weight, bias, *given = tensors
        assert input is not None and weight is not None
        operands = [operand for operand in given if operand is not None]
        kept = training.forward(input, weight, bias, operands, owner)
        ctx.training = training
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, *training.to_save(kept, bias, operands))
        return kept.output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        (gradient,) = gradients
        training: Training = ctx.training
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        is_transformed = _torch_private.transforms_active() or not _torch_private.has_storage(gradient)
        if torch.is_grad_enabled() or is_transformed:
            return None, None, *training.differentiable_backward(gradient, saved)
        return None, None, *training.backward(gradient, saved)


apply_training: Final[Callable[..., torch.Tensor]] = _FusedConvEpilogue.apply
"""Takes a `Training`, packed weights or None, input, weight, bias and each operand; returns the result, with
a graph for autograd."""


def trains(device: torch.device, arguments: ConvArguments) -> bool:
    """Whether gradients are computed here; else plain torch operations run where some are wanted.

    Args:
        device: of the tensors.
        arguments: `normalise`d.

    Example:
        >>> trains(torch.device("cpu"), arguments)
        True
    """
    if arguments.algorithm == "implicit_gemm":
        return False
    if device.type == "cuda":
        return SETTING == "fused" and arguments.precision is None and not why_not_fused(device)
    return device.type == "cpu"


def _without_graph(run: RunCall) -> RunCall:
    def run_without_graph(*tensors: Any) -> torch.Tensor:
        with torch.no_grad():
            return run(*tensors)

    return run_without_graph


def prepare_training(
    call: Call,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    operands: Sequence[torch.Tensor],
) -> RunCall:
    """What runs a call of which gradients are wanted.

    Args:
        call: prepared for tensors of this form.
        input, weight, bias, operands: of that form; some of them require grad.
    """
    if not trains(input.device, call.arguments) or 0 in call.shape:
        return call.decompose
    training = DirectTraining(call, input, weight, bias, operands)
    if training.gives_none:
        return _without_graph(call.run)

    def run(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        owner: OwnPackedWeights | None = None,
    ) -> torch.Tensor:
        return apply_training(training, owner, input, weight, bias, *operands)

    return run
