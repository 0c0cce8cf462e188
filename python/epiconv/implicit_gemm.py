"""The path "implicit_gemm": convolution, bias and epilogue in one kernel of ours, with packed weights.

What is decided here, each refusal with a reason: the card, and what no kernel computes. Whether a kernel
can run a given problem and program is decided by the core, which answers with a plan or with its reason.

The environment variable EPICONV_KERNELS says of which family kernels are planned. It is read once, when
this module is imported; what is none of these words raises a ValueError then:

- "any", as without the variable: whichever is fastest.
- "sm80": those that take any convolution, on any card of compute capability 8.0 or newer.
- "sm90": those made for compute capability 9.0, which take some.
- "sm90_compiled": those compiled for the plan on 9.0, which take any but for products of float32;
- "sm90_im2col": compiled, too, of channels that lie side by side, or are copied so.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from itertools import product
from typing import Any, Final, NoReturn

import torch

from epiconv import _core, _torch_private, compiler, packed_weights, search
from epiconv.arguments import ConvArguments, check_word
from epiconv.batch_invariance import are_batch_invariant_algorithms_enabled
from epiconv.convolution import output_format, output_maker
from epiconv.core_tensors import address, dtype_name, operand_layout, operand_reader
from epiconv.fallback import why_not_fused
from epiconv.packed_weights import OwnPackedWeights, packing_of
from epiconv.program import Program

RunCall = Callable[..., torch.Tensor]
"""Takes input, weight, bias, operands and, if a module calls, its packed weights."""

_ALIGNMENT: Final = 16  # bytes; no kernel asks more of an address
_MATHS: Final = {torch.float16: "fp16", torch.bfloat16: "bf16"}
_MATHS_OF_SETTINGS: Final = ("tf32", "ieee")  # of float32, by torch's setting

_BATCH_INVARIANT: Final = ("sm90_im2col", "sm90_compiled", "sm80")  # in the order of choice
_FAMILIES: Final = ("sm90", "sm90_compiled", "sm90_im2col", "sm80")

FAMILY: Final = os.environ.get("EPICONV_KERNELS", "any")
"""Of the kernels that are planned."""

check_word("EPICONV_KERNELS", FAMILY, ("any", *sorted(_FAMILIES)))


@lru_cache(maxsize=64)
def why_not_on(device: torch.device) -> str:
    """Why there are no implicit-GEMM kernels for a device, "" if there are.

    Args:
        device: with its index, if it has one.

    Example:
        >>> why_not_on(torch.device("cpu"))
        'the tensors are on cpu'
    """
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    reason = why_not_fused(device)
    return reason or _core.why_no_conv_kernels(*torch.cuda.get_device_capability(device))


def why_not_computed(dtype: torch.dtype, arguments: ConvArguments) -> str:
    """Why no kernel computes such a convolution on any card, "" if one may.

    Args:
        dtype: of input and weight.
        arguments: `normalise`d.

    Example:
        >>> why_not_computed(torch.float64, arguments)
        'the kernels do not multiply float64'
    """
    if arguments.algorithm == "cudnn":
        return "algorithm='cudnn' asks for torch's convolution"
    return "the kernels do not multiply float64" if dtype == torch.float64 else ""


def refuse(reason: str) -> NoReturn:
    """Raises what algorithm "implicit_gemm" raises where it cannot run.

    Args:
        reason: a sentence without a full stop.
    """
    raise NotImplementedError(f"algorithm='implicit_gemm' cannot run: {reason}; leave 'auto'")


def _alignment(location: int) -> int:
    """What an address divides, as far as kernels ask: an empty tensor may lie at 0, which everything does."""
    return min(location & -location, _ALIGNMENT) or _ALIGNMENT


def _image_strides(batched: torch.Tensor) -> tuple[int, ...]:
    """Strides of a batch of such images, in channels_last if torch takes it for that, without gaps."""
    layout = output_format(batched, batched, None)
    strides: tuple[int, ...] = torch.empty(batched.shape, device="meta", memory_format=layout).stride()
    return strides


class ImplicitGemm:
    """One kernel for tensors of one form, on a device that has kernels.

    Args:
        problem: extents of the convolution.
        input, weight, bias, operands: tensors of the form.
        program: the epilogue.
        arguments: `normalise`d; `why_not_computed` has no reason.
        shape, dtype, memory_format: of the result; (K, P, Q) where the input has no batch dimension.
        otherwise: what runs for an input that the kernel cannot take; it is called as `run` is.

    Attributes:
        run: takes input, weight, bias and operands of the form and, if a module calls, its packed weights;
            returns the result, without a graph for autograd. Asynchronous, on the current stream.
    """

    def __init__(
        self,
        problem: _core.ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Sequence[torch.Tensor],
        program: Program,
        arguments: ConvArguments,
        shape: Sequence[int],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        otherwise: RunCall,
    ) -> None:
        self._math = _MATHS.get(input.dtype) or arguments.precision  # None: torch's setting decides
        self._maths = (self._math,) if self._math else _MATHS_OF_SETTINGS
        batched = input if input.dim() == weight.dim() else input.unsqueeze(0)
        make_output = output_maker(shape, dtype, input.device, memory_format)
        output = output_maker(shape, dtype, torch.device("meta"), memory_format)()
        device = input.device
        # Batch-invariant plans are for images without gaps between them, at addresses that divide by what
        # those of all images do: so they are the same for each part of a batch.
        given = {False: batched.stride(), True: _image_strides(batched)}
        dense = all(
            extent == 1 or stride == wanted
            for extent, stride, wanted in zip(batched.shape, *given.values(), strict=True)
        )
        self._image_alignment = _alignment(batched[:1].numel() * input.element_size())
        bias_layout = None if bias is None else operand_layout(bias)
        operand_layouts = [operand_layout(operand) for operand in operands]
        wanted = (dtype_name(dtype), (output if batched is input else output.unsqueeze(0)).stride())

        def core_arguments(
            family: str, compile: str, math: str, alignment: int, batch_invariant: bool
        ) -> tuple[Any, ...]:
            return (
                *(problem, math, dtype_name(input.dtype), given[batch_invariant], alignment),
                *(arguments.padding_mode, program.core),
                *(bias_layout, operand_layouts, *wanted),
                *(torch.cuda.get_device_capability(device), family, compile, batch_invariant),
            )

        def make_plan(
            family: str, compile: str, math: str, alignment: int, batch_invariant: bool
        ) -> "_core.ConvPlan | str":
            if compile != "never":
                compiler.prepare()
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return _core.make_conv_plan(
                    *core_arguments(family, compile, math, alignment, batch_invariant)
                )

        self._core_arguments = core_arguments
        self._make_plan = make_plan
        self._plans: dict[tuple[str, str, str, int, bool], _core.ConvPlan | str] = {}
        self._device = device
        self._is_free = arguments.algorithm == "auto"
        self._family = FAMILY
        # All that times depend on, but for the math and the input's alignment.
        self._form = (
            *(device, arguments, program.text, shape, dtype, memory_format),
            *((tensor.dtype, tensor.shape, tensor.stride()) for tensor in (input, weight)),
            *(
                None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
                for tensor in (bias, *operands)
            ),
        )
        image_alignment, is_batched = self._image_alignment, batched is input

        def like_others(input: torch.Tensor) -> torch.Tensor:
            if dense and address(input) % image_alignment == 0:
                return input
            copy = torch.empty_strided(batched.shape, given[True], dtype=input.dtype, device=device)
            return copy.copy_(input if is_batched else input.unsqueeze(0))

        self.run = self._prepare_run(weight, operands, like_others, make_output, otherwise)

    def plan(self, input: torch.Tensor) -> "_core.ConvPlan | str":
        """The core's plan for this input, with the settings of now, or the reason why there is none.

        Args:
            input: of the form.
        """
        found = self._found(input)
        if found is None:
            return self._plan_at(compiler.is_wanted(), self._math_of_now(), address(input))
        if found.fastest == search.TORCH:
            return f"{found.why()}; algorithm='implicit_gemm' runs a kernel of ours all the same"
        return self._plan_of(found.fastest, "always", self._math_of_now(), address(input))

    def predict(self, input: torch.Tensor) -> "dict[str, _core.PredictedTime | str]":
        """What each family would take for this input, with a kernel compiled for it if that is wanted now or
        its only way, and torch's convolution with a pass behind it; or why it does not take it. By the model
        of an H200, docs/planner.md.

        Args:
            input: of the form.
        """
        compile = "always" if compiler.is_wanted() else "never"
        batch_invariant = are_batch_invariant_algorithms_enabled()
        return _core.predict_conv_ways(
            *self._core_arguments(
                *("any", compile, self._math_of_now(), _alignment(address(input)), batch_invariant)
            )
        )

    def why(self, input: torch.Tensor) -> str:
        """What was measured or is to be, of the plan for this input, "" if rules have decided.

        Args:
            input: of the form.
        """
        found = self._found(input)
        if found is not None:
            return found.why()
        return "to be measured beside other ways by the first call" if self._is_searched() else ""

    def why_never(self, input: torch.Tensor) -> str:
        """Why no input of the form can run, whatever its address and the settings; "" if one may, or if the
        setting of now, that nothing is to be measured, may change.

        Args:
            input: of the form.
        """
        location, plan = address(input), self.plan(input)
        # An address that the kernels cannot do anything with says nothing about others.
        if not isinstance(plan, str) or location % _ALIGNMENT != 0:
            return ""
        compiles = compiler.is_wanted()
        if self._is_searched() or (self._is_free and compiler.follows_torch() and self._family == "any"):
            return ""
        never = all(isinstance(self._plan_at(compiles, math, location), str) for math in self._maths)
        return plan if never else ""

    def _math_of_now(self) -> str:
        return self._math or ("tf32" if _torch_private.conv_precision() == "tf32" else "ieee")

    def _is_searched(self) -> bool:
        """Whether what is fastest is to be measured, by the settings of now."""
        return (
            self._is_free
            and self._family == "any"
            and compiler.is_wanted()
            and not are_batch_invariant_algorithms_enabled()
            and search.is_possible(self._device)
        )

    def _found(self, input: torch.Tensor) -> search.Found | None:
        return search.remembered(self._search_key(address(input))) if self._is_searched() else None

    def _search_key(self, location: int) -> tuple[object, ...]:
        return (*self._form, self._math_of_now(), _alignment(location))

    def _plan_at(self, compiles: bool, math: str, location: int) -> "_core.ConvPlan | str":
        """The core's plan, or why there is none or, for "auto", had better be none."""
        if are_batch_invariant_algorithms_enabled():
            return self._batch_invariant_plan(compiles, math, location)
        compile = "never" if not compiles else "if faster" if self._is_free else "always"
        plan = self._plan_of(self._family, compile, math, location)
        if self._is_free and not isinstance(plan, str) and plan.why_slower:
            return f"{plan.why_slower}; algorithm='implicit_gemm' runs it all the same"
        return plan

    def _batch_invariant_plan(self, compiles: bool, math: str, location: int) -> "_core.ConvPlan | str":
        """That of the first family that takes the form, which is the same for every batch."""
        families = _BATCH_INVARIANT if self._family == "any" else (self._family,)
        plan: _core.ConvPlan | str = ""
        for family in families:
            plan = self._plan_of(family, "always" if compiles else "never", math, location)
            if isinstance(plan, str) and plan.startswith("the batch is too large"):
                raise NotImplementedError(
                    f"batch-invariant algorithms are asked for, and {plan}: call with parts of the batch"
                )
            if not isinstance(plan, str):
                break
        return plan

    def _plan_of(self, family: str, compile: str, math: str, location: int) -> "_core.ConvPlan | str":
        batch_invariant = are_batch_invariant_algorithms_enabled()
        alignment = self._image_alignment if batch_invariant else _alignment(location)
        key = family, compile, math, alignment, batch_invariant
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._make_plan(*key)
        return plan

    def _search(
        self,
        launch: Callable[["_core.ConvPlan"], Callable[[], object]],
        otherwise: Callable[[], object],
        input: torch.Tensor,
    ) -> search.Found:
        """Measures the families that take the call, and torch's convolution with a pass behind it."""
        location = address(input)
        predictions = self.predict(input).items()
        predicted = {way: time.us for way, time in predictions if not isinstance(time, str)}
        left_out = search.not_worth_measuring(predicted)
        ways: dict[str, Callable[[], object]] = {search.TORCH: otherwise}
        for family in _FAMILIES:
            if family in left_out:
                continue
            plan = self._plan_of(family, "always", self._math_of_now(), location)
            if not isinstance(plan, str):
                ways[family] = launch(plan)
        with torch.no_grad():
            found = search.measure(ways, self._device)
        return search.remember(self._search_key(location), found, left_out)

    def _prepare_run(
        self,
        planned_weight: torch.Tensor,
        planned_operands: Sequence[torch.Tensor],
        like_others: Callable[[torch.Tensor], torch.Tensor],
        make_output: Callable[[], torch.Tensor],
        otherwise: RunCall,
    ) -> RunCall:
        # A closure: each attribute of self would cost the call some of its few microseconds.
        raw_stream, current_device = _torch_private.raw_stream, _torch_private.current_cuda_device
        conv_precision = _torch_private.conv_precision
        wants_compiled = compiler.is_wanted
        device = self._device
        is_batch_invariant = are_batch_invariant_algorithms_enabled
        index = device.index
        addresses = operand_reader(planned_operands)
        own_math = self._math
        last_bits = _ALIGNMENT - 1
        has_versions = not planned_weight.is_inference()
        is_kept = has_versions and not planned_weight.requires_grad
        # By whether kernels are batch-invariant, and compiled, the math, and the last bits of the input's
        # address: launch, find, find_owned, make_workspace; launch is None where no kernel runs so,
        # make_workspace where it takes none.
        both = (False, True)
        prepared: dict[tuple[bool, bool], dict[str, list[tuple[Any, Any, Any, Any] | None]]] = {
            key: {math: [None] * _ALIGNMENT for math in self._maths} for key in product(both, both)
        }

        def prepare(plan: "_core.ConvPlan | str", weight: torch.Tensor) -> tuple[Any, Any, Any, Any]:
            if isinstance(plan, str):
                return None, None, None, None
            size = plan.workspace_bytes
            make_workspace = partial(torch.empty, size, dtype=torch.uint8, device=device) if size else None
            packing = packing_of(plan, weight)
            once = packing.once
            return (
                plan.run,
                packing.find if is_kept else once,
                packing.find_owned if has_versions else lambda weight, stream, owner: once(weight, stream),
                make_workspace,
            )

        def launch_of(
            plan: "_core.ConvPlan",
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
        ) -> Callable[[], object]:
            """The same as `run` with a plan, the weight being packed."""
            stream = raw_stream(index)
            packed = packing_of(plan, weight).once(weight, stream)

            def launch() -> object:
                output = make_output()
                size = plan.workspace_bytes
                workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
                plan.run(
                    *(address(input), packed.address, address(output)),
                    0 if bias is None else address(bias),
                    *(0 if workspace is None else address(workspace), index, stream),
                    *addresses(operands),
                )
                return output

            return launch

        def run(
            input: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            operands: Sequence[torch.Tensor],
            owner: OwnPackedWeights | None = None,
        ) -> torch.Tensor:
            math = own_math or ("tf32" if conv_precision() == "tf32" else "ieee")
            batch_invariant = is_batch_invariant()
            # Held to the end of this call: its memory is not handed out again before.
            given = like_others(input) if batch_invariant else input
            source = address(given)
            by_address = prepared[batch_invariant, wants_compiled()][math]
            found = by_address[source & last_bits]
            if found is None:
                if self._is_searched() and self._found(input) is None:
                    self._search(
                        lambda plan: launch_of(plan, input, weight, bias, operands),
                        lambda: otherwise(input, weight, bias, operands, None),
                        input,
                    )
                found = prepare(self.plan(input), weight)
                if not packed_weights.capturing():
                    by_address[source & last_bits] = found
            launch, find, find_owned, make_workspace = found
            if launch is None:
                return otherwise(input, weight, bias, operands, owner)
            if current_device() != index:
                with torch.cuda.device(index):
                    return run(input, weight, bias, operands, owner)
            stream = raw_stream(index)
            # Both are freed at the end of this call at the earliest: the caching allocator hands their memory
            # out again to later work on this stream only.
            packed = find(weight, stream) if owner is None else find_owned(weight, stream, owner)
            workspace = None if make_workspace is None else make_workspace()
            output = make_output()
            bias_address = 0 if bias is None else address(bias)
            launch(
                *(source, packed.address, address(output), bias_address),
                *(0 if workspace is None else address(workspace), index, stream),
                *addresses(operands),
            )
            return output

        return run
