"""The ways to compute a problem that are timed side by side."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final
from unittest import mock

import torch

import epiconv
from epiconv import implicit_gemm
from epiconv.arguments import normalise
from epiconv.bench.problems import Problem, torch_convolution, torch_epilogue
from epiconv.call import Call
from epiconv.checks import no_cudnn
from epiconv.convolution import round_to
from epiconv.functional import arguments_of, fused_in_module
from epiconv.packed_weights import OwnPackedWeights

Function = Callable[..., torch.Tensor]

DTYPES: Final = {
    "fp32": torch.float32,
    "fp32_ieee": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtypes by the words of `--dtypes`; fp32 uses TF32 as torch's flags say, fp32_ieee never does."""

LAYOUTS: Final = ("nchw", "channels_last")
_CHANNELS_LAST: Final = {2: torch.channels_last, 3: torch.channels_last_3d}


class Unavailable(Exception):
    """A peer cannot compute this case here; the message says why."""


def _conv_settings() -> Any:
    """torch's settings of cuDNN convolutions, whose `fp32_precision` is "tf32" or "ieee"."""
    return torch.backends.cudnn.conv  # type: ignore[attr-defined]


def math_name(dtype_word: str, device: torch.device) -> str:
    """The math of the convolution: "bf16", "fp16", "tf32", or "fp32" without tensor cores.

    Args:
        dtype_word: of `DTYPES`.
        device: where it runs; a CPU has no TF32.

    Example:
        >>> math_name("bf16", torch.device("cpu"))
        'bf16'
    """
    if dtype_word != "fp32":
        return dtype_word.removesuffix("_ieee")
    return "tf32" if device.type == "cuda" and _conv_settings().fp32_precision == "tf32" else "fp32"


@contextmanager
def dtype_settings(dtype_word: str) -> Iterator[None]:
    """Turns TF32 convolutions off while the body runs, if the word is fp32_ieee.

    Example:
        >>> with dtype_settings("fp32_ieee"): ...
    """
    settings = _conv_settings()
    before = settings.fp32_precision
    if dtype_word == "fp32_ieee":
        settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        if settings.fp32_precision != before:
            settings.fp32_precision = before


def to_layout(tensor: torch.Tensor, layout: str, spatial_rank: int) -> torch.Tensor:
    """A tensor in a layout; operands of other ranks than the output's stay as they are.

    Args:
        tensor: any.
        layout: of `LAYOUTS`.
        spatial_rank: 1, 2 or 3.

    Raises:
        Unavailable: torch has no channels_last for one spatial dimension.

    Example:
        >>> to_layout(x, "channels_last", 2)
    """
    if tensor.dim() != spatial_rank + 2:
        return tensor
    if layout == "nchw":
        return tensor.contiguous()
    if spatial_rank not in _CHANNELS_LAST:
        raise Unavailable("torch has no channels_last layout for one spatial dimension")
    return tensor.contiguous(memory_format=_CHANNELS_LAST[spatial_rank])


@dataclass(frozen=True)
class Case:
    """A problem with its tensors.

    Attributes:
        problem: what is computed.
        dtype_word: of `DTYPES`.
        layout: of `LAYOUTS`.
        weight: of shape `problem.weight`.
        bias: (K,), or None.
        argument_sets: (x, b0, b1, …) several times over, in different memory. Operands that are not as
            large as the output are the same in all of them.
    """

    problem: Problem
    dtype_word: str
    layout: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    argument_sets: tuple[tuple[torch.Tensor, ...], ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return DTYPES[self.dtype_word]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.weight.device

    @cached_property
    def epilogue(self) -> Function:
        """The program as plain PyTorch, `epilogue(v0, b0, …)`."""
        return torch_epilogue(self.problem.program)

    def in_layout(self, layout: str) -> "Case":
        """The same values in another layout.

        Raises:
            Unavailable: there is no such layout for the rank.
        """
        rank = self.problem.spatial_rank
        sets = tuple(tuple(to_layout(t, layout, rank) for t in arguments) for arguments in self.argument_sets)
        return Case(
            self.problem, self.dtype_word, layout, to_layout(self.weight, layout, rank), self.bias, sets
        )

    def float64_result(self, images: tuple[int, ...], precision: str | None = None) -> torch.Tensor:
        """The result for some images of the first set, computed in float64 by plain PyTorch.

        Args:
            images: indices into the batch.
            precision: "tf32" to round first what the convolution multiplies, float32 tensors; None does not.

        Returns:
            (len(images), K, *spatial), float64.
        """
        per_image = self.problem.is_per_image
        x, *operands = (t[list(images)] if per_image(t.shape) else t for t in self.argument_sets[0])
        weight = self.weight
        if precision is not None:
            x, weight = round_to(x, precision), round_to(weight, precision)
        bias = None if self.bias is None else self.bias.double()
        y = torch_convolution(self.problem)(x.double(), weight.double(), bias)
        return self.epilogue(y, *(operand.double() for operand in operands))


def make_case(
    problem: Problem, dtype_word: str, layout: str, device: torch.device, input_sets: int = 1
) -> Case:
    """A problem's tensors, random: normal inputs and operands, a weight as `nn.Conv2d` initialises it.

    Args:
        problem: what is computed.
        dtype_word: of `DTYPES`.
        layout: of `LAYOUTS`.
        device: where.
        input_sets: how many sets of inputs and full-size operands.

    Raises:
        Unavailable: there is no such layout for the rank.

    Example:
        >>> case = make_case(find_problem("kb31").reduced(), "fp32", "nchw", torch.device("cpu"))
    """
    generator = torch.Generator(device=device).manual_seed(0)
    dtype = DTYPES[dtype_word]

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        return to_layout(values, layout, problem.spatial_rank)

    def uniform(shape: tuple[int, ...], bound: float) -> torch.Tensor:
        values = torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound, generator=generator)
        return to_layout(values, layout, problem.spatial_rank)

    bound = 1 / math.sqrt(math.prod(problem.weight[1:]))
    weight = uniform(problem.weight, bound)
    bias = uniform((problem.out_channels,), bound) if problem.conv_bias else None
    shared = [None if isinstance(shape, str) else normal(shape) for shape in problem.operands]
    sets = []
    for _ in range(input_sets):
        operands = [normal(problem.output) if operand is None else operand for operand in shared]
        sets.append((normal(problem.input), *operands))
    return Case(problem, dtype_word, layout, weight, bias, tuple(sets))


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        name: as `--peers` takes it.
        summary: what it is.
        build: from a case, the function `f(x, b0, …)` and the case in the layout that it wants.
        competes: whether it counts as "the best peer"; this library and the bare convolution do not.
        own: whether it is this library; its times are not kept from run to run.
    """

    name: str
    summary: str
    build: Callable[[Case], tuple[Function, Case]]
    competes: bool = True
    own: bool = False


def _plain(case: Case) -> Function:
    """Convolution and epilogue as separate PyTorch operations."""
    convolution, epilogue = torch_convolution(case.problem), case.epilogue
    weight, bias = case.weight, case.bias

    def plain(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        return epilogue(convolution(x, weight, bias), *operands)

    return plain


def _build_eager(case: Case) -> tuple[Function, Case]:
    return _plain(case), case


def _build_eager_channels_last(case: Case) -> tuple[Function, Case]:
    if case.layout == "channels_last":
        raise Unavailable("the case is channels_last already: see eager")
    converted = case.in_layout("channels_last")
    return _plain(converted), converted


def _build_compile(case: Case) -> tuple[Function, Case]:
    return torch.compile(_plain(case), dynamic=False), case


def _build_compile_max_autotune(case: Case) -> tuple[Function, Case]:
    # Not "max-autotune": its CUDA graphs would copy the inputs; small cases are captured for all peers alike.
    return torch.compile(_plain(case), dynamic=False, mode="max-autotune-no-cudagraphs"), case


def _build_cudnn_graph(case: Case) -> tuple[Function, Case]:
    from epiconv.bench.cudnn_graph import CudnnGraph

    return CudnnGraph(case), case


def _build_convolution(case: Case) -> tuple[Function, Case]:
    convolution, weight = torch_convolution(case.problem), case.weight

    def bare(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        return convolution(x, weight, None)

    return bare, case


def _build_convolution_channels_last(case: Case) -> tuple[Function, Case]:
    if case.layout == "channels_last":
        raise Unavailable(f"the case is channels_last already: see {BARE_CONVOLUTION}")
    return _build_convolution(case.in_layout("channels_last"))


def _build_epiconv(case: Case, **options: Any) -> tuple[Function, Case]:
    """As a module calls: it keeps its packed weight, which a function packs again in each CUDA graph."""
    program, arguments = case.problem.program, arguments_of(case.problem.conv_arguments | options)
    weight, bias, owner = case.weight, case.bias, OwnPackedWeights()

    def fused(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        return fused_in_module(x, weight, bias, program(*operands), arguments, owner)

    return fused, case


def _build_epiconv_bf16(case: Case) -> tuple[Function, Case]:
    if case.dtype_word != "fp32":
        raise Unavailable("for float32 tensors")
    return _build_epiconv(case, precision="bf16")


def _build_implicit_gemm(case: Case) -> tuple[Function, Case]:
    return _build_epiconv(case, algorithm="implicit_gemm")


def _build_cudnn_path(case: Case) -> tuple[Function, Case]:
    if reason := no_cudnn(case.device):
        raise Unavailable(reason)
    return _build_epiconv(case, algorithm="cudnn")


def _build_repacking(case: Case) -> tuple[Function, Case]:
    """As a module calls whose weight has changed since its last call."""
    program, arguments = case.problem.program, arguments_of(case.problem.conv_arguments)
    weight, bias, owner = case.weight, case.bias, OwnPackedWeights()

    def fused(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        owner.repack()
        return fused_in_module(x, weight, bias, program(*operands), arguments, owner)

    return fused, case


def _build_family(family: str, case: Case) -> tuple[Function, Case]:
    # The family is read when a kernel is planned, and what `fused_conv_epilogue` has prepared for a form of
    # tensors is not kept by family. Hence a call that is prepared for this peer alone and kept nowhere else.
    x, *operands = case.argument_sets[0]
    words = case.problem.conv_arguments | {"algorithm": "implicit_gemm"}
    arguments = normalise(case.weight, *arguments_of(words))
    with mock.patch.object(implicit_gemm, "FAMILY", family):
        try:
            call = Call(x, case.weight, case.bias, operands, case.problem.program, arguments)
        except NotImplementedError as error:
            raise Unavailable(str(error)) from None
        for x, *_ in case.argument_sets:  # plans are kept by the input's address
            if isinstance(plan := call.implicit_gemm(x), str):
                raise Unavailable(plan)

    owner = OwnPackedWeights()

    def fused(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        return call.run(x, case.weight, case.bias, operands, owner)

    return fused, case


def explain_case(case: Case, **options: Any) -> Any:
    """The plan of epiconv for a case, from `epiconv.explain`, with options of that.

    Example:
        >>> explain_case(case).kernel
    """
    x, *operands = case.argument_sets[0]
    epilogue, words = case.problem.program(*operands), case.problem.conv_arguments | options
    return epiconv.explain(x, case.weight, case.bias, epilogue=epilogue, **words)


EPICONV: Final = "epiconv"
BARE_CONVOLUTION: Final = "convolution"
REPACKING: Final = "epiconv_repacking"

PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer("eager", "PyTorch, one kernel per operation", _build_eager),
        Peer("eager_channels_last", "the same on channels_last tensors", _build_eager_channels_last),
        Peer("compile", "torch.compile, default mode", _build_compile),
        Peer(
            "compile_max_autotune",
            "torch.compile, max-autotune; a minute a case",
            _build_compile_max_autotune,
        ),
        Peer("cudnn_graph", "cuDNN's graph API, fused", _build_cudnn_graph),
        Peer(
            BARE_CONVOLUTION,
            "the convolution alone: no bias, no epilogue",
            _build_convolution,
            competes=False,
        ),
        Peer(
            "convolution_channels_last",
            "the same on channels_last tensors",
            _build_convolution_channels_last,
            competes=False,
        ),
        *(
            Peer(name, summary, build, competes=False, own=True)
            for name, summary, build in (
                ("epiconv_bf16", "this library, precision bf16", _build_epiconv_bf16),
                ("implicit_gemm", "this library, its own convolution kernel", _build_implicit_gemm),
                ("epiconv_cudnn", "this library, cuDNN and a pass behind it", _build_cudnn_path),
                ("epiconv_sm90", "this library, kernels made for sm_90", partial(_build_family, "sm90")),
                (
                    "epiconv_sm90_compiled",
                    "this library, kernels compiled for sm_90",
                    partial(_build_family, "sm90_compiled"),
                ),
                (
                    "epiconv_sm90_im2col",
                    "this library, kernels compiled for sm_90 that read through im2col",
                    partial(_build_family, "sm90_im2col"),
                ),
                ("epiconv_sm80", "this library, portable kernels", partial(_build_family, "sm80")),
                (REPACKING, "this library, its weight packed anew in every call", _build_repacking),
                (EPICONV, "this library", _build_epiconv),
            )
        ),
    )
}
"""All peers by name, in the order of the table."""

FORCED_PATHS: Final = (
    "epiconv_cudnn",
    "epiconv_sm90",
    "epiconv_sm90_compiled",
    "epiconv_sm90_im2col",
    "epiconv_sm80",
)
"""The paths that this library chooses from, each made to run."""

DEFAULT_CUDA_PEERS: Final = ("eager", "eager_channels_last", "compile", BARE_CONVOLUTION, EPICONV)
DEFAULT_CPU_PEERS: Final = ("eager", EPICONV)
