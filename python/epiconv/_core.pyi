"""The compiled core: programs, plans and kernels. Torch-free: tensors cross as addresses."""

from collections.abc import Sequence
from typing import Any, Final

has_cuda: Final[bool]
cuda_toolkit: Final[str]  # "13.0", or "" when built for the CPU only
cuda_architectures: Final[str]  # "sm_80, compute_80, sm_90a", or ""
version: Final[str]
max_operands: Final[int]
max_statements: Final[int]
max_live_values: Final[int]

class CudaError(RuntimeError):
    """A CUDA call failed; the message names the kernel and the problem."""

class ArgumentInfo:
    name: str
    kind: str  # tensor, any, optional, number, integer, channel, optional_channel, choice, dtype
    has_default: bool
    default: float
    choices: tuple[str, ...]

class OperationInfo:
    name: str
    torch_path: str
    arguments: tuple[ArgumentInfo, ...]
    max_ulp: int
    is_predicate: bool
    is_terminal: bool
    summary: str

def operations() -> tuple[OperationInfo, ...]: ...

class Step:
    """One statement of a program. Each argument, in signature order with defaults filled in:
    ("v", i) an earlier value, ("b", i) an operand, or a bool, int, float, str or None."""

    name: str
    in_place: bool
    arguments: tuple[Any, ...]

class Program:
    def __init__(self, text: str) -> None: ...
    text: str
    num_operands: int
    steps: tuple[Step, ...]
    channel_operands: tuple[int, ...]
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class ConvProblem:
    """Extents of a batched convolution, checked; ValueError says what is wrong.

    `input` is (N, C, spatial…), `weight` (K, C / groups, spatial…), transposed (C, K / groups, spatial…);
    the other sequences have one entry per spatial dimension. Rank 1 to 3."""

    def __init__(
        self,
        input: Sequence[int],
        weight: Sequence[int],
        bias: Sequence[int] | None,
        stride: Sequence[int],
        padding_begin: Sequence[int],
        padding_end: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        transposed: bool,
        output_padding: Sequence[int],
    ) -> None: ...
    output: tuple[int, ...]  # (N, K, spatial…)
    flops: int  # two per multiply-add; a transposed convolution's inserted zeros are not multiplied

class OperandLayout:
    """A tensor that a program reads: extents and strides in elements, aligned with the output's from the
    right as in broadcasting. A channel operand has one dimension, (K,). `is_number`: a 0-d tensor on the
    host, whose value is given to `run` as a float."""

    def __init__(
        self, dtype: str, extents: Sequence[int], strides: Sequence[int], is_number: bool = False
    ) -> None: ...

class EpiloguePlan:
    """A program over one tensor, ready to run: `output = program(input)`, element by element, `output` and
    `input` may be the same memory. The conv bias, if any, is added before the program."""

    def __init__(
        self,
        program: Program,
        device: str,  # "cpu" or "cuda"
        extents: Sequence[int],  # (N, K, spatial…)
        input_dtype: str,
        input_strides: Sequence[int],
        output_dtype: str,
        output_strides: Sequence[int],
        bias: OperandLayout | None,
        operands: Sequence[OperandLayout],
    ) -> None: ...
    kernel: str  # the name of what runs: "elementwise_cuda_f32_static", …
    workspace_bytes: int
    bytes_moved: int  # memory traffic of the pass: input, output, operands
    def run(
        self,
        input: int,
        output: int,
        bias: int,
        workspace: int,
        device: int,
        stream: int,
        threads: int,
        *operands: int | float,
    ) -> None:
        """Addresses, and numbers for the operands that are numbers. On CUDA `device` is the current device;
        nothing is synchronised. On the CPU `threads` is the most threads to use."""

    def run_with_statistics(
        self,
        input: int,
        output: int,
        bias: int,
        mean: int,
        rstd: int,
        workspace: int,
        device: int,
        stream: int,
        threads: int,
        *operands: int | float,
    ) -> None:
        """The same; a GroupNorm's statistics go to `mean` and `rstd`, (N, groups) in float32, or in float64
        where the program computes in it."""

class BackwardNeeds:
    """What a program's backward pass reads and gives, whatever the shapes."""

    saved: str  # the least that suffices: "nothing", "output", "conv" (the convolution's output)
    reads_bias: bool
    reads_operand: list[bool]
    gives_input: bool  # the gradients that there are of those wanted: none passes a comparison
    gives_bias: bool
    gives_operand: list[bool]

def backward_needs(
    program: Program,
    wants_input: bool,
    wants_bias: bool,
    wants_operand: Sequence[bool],  # one for each operand
    saved: str,  # what is read is that from this, or from the least that suffices
) -> BackwardNeeds: ...

class BackwardPlan:
    """The backward pass of a program over one tensor: the gradients of the convolution's output, of the bias
    and of operands, each summed to its own shape, with the same bits in every run.

    A gradient is (dtype, strides), None where it is not wanted; one that is summed is contiguous."""

    def __init__(
        self,
        program: Program,
        device: str,  # "cpu" or "cuda"
        compiled_for: int,  # the card for which kernels are compiled for the plan, 90 for 9.0; 0: none are
        extents: Sequence[int],  # (N, K, spatial…)
        input_dtype: str,  # of the convolution's output
        output_dtype: str,
        saved: str,  # "conv", "output" or "nothing"
        saved_strides: Sequence[int],  # () for "nothing"
        gradient_dtype: str,  # of the output's gradient
        gradient_strides: Sequence[int],
        bias: OperandLayout | None,
        operands: Sequence[OperandLayout],
        input_gradient: tuple[str, Sequence[int]] | None,
        bias_gradient: tuple[str, Sequence[int]] | None,
        operand_gradients: Sequence[tuple[str, Sequence[int]] | None],
    ) -> None: ...
    kernel: str  # "backward_cpu_f32", "backward_cuda_f32_compiled"
    why_not_compiled: str  # where that was asked for; else ""
    workspace_bytes: int
    def run(
        self,
        saved: int,
        output_gradient: int,
        mean: int,  # of `run_with_statistics`, 0 without a GroupNorm
        rstd: int,
        input_gradient: int,
        bias: int,
        bias_gradient: int,
        workspace: int,
        device: int,
        stream: int,
        threads: int,
        operands: tuple[int | float, ...],
        operand_gradients: tuple[int, ...],
    ) -> None:
        """Addresses, 0 where nothing is read or wanted, and numbers for the operands that are numbers."""

predicted_bytes_per_second: Final[float]  # of memory, on the card that `PredictedTime` is of: an H200

class PredictedTime:
    """What a call is predicted to take on an H200 (docs/planner.md). Prints as
    "28.4 us (tensor 21.0, L2 fill 25.1, DRAM 6.2, launch 0.5; limited by L2 fill)"."""

    us: float
    terms: dict[str, float]  # of each ceiling alone, by its name; most happen at the same time
    limit: str  # the name of the largest term

class ConvPlan:
    """A convolution with its epilogue in one kernel, for tensors of one form and input addresses of one
    alignment. Output, operands and bias may lie anywhere that suits their dtypes. The stride of a dimension
    of one element counts for nothing."""

    kernel: str  # "fprop_sm90_tf32_rows_f32_static", "dgrad_sm80_bf16_…"; "none" for an empty output
    why_kernel: str  # why it is this kernel and no other
    why_slower: str  # why a pass behind another convolution is faster, "" if it is not
    predicted: PredictedTime  # with a kernel compiled for the plan, if it was to be compiled
    weight_format: str  # packed weights of one weight tensor serve every plan with the same format
    packed_bytes: int
    workspace_bytes: int  # of a run
    def pack(
        self,
        weight: int,
        weight_dtype: str,
        weight_strides: Sequence[int],  # in the order of the problem's weight, elements
        packed: int,  # aligned to 256 bytes
        device: int,
        stream: int,
    ) -> None:
        """Asynchronous; `device` is the current one, as for `run`."""

    def run(
        self,
        input: int,
        packed: int,
        output: int,
        bias: int,
        workspace: int,  # aligned to 256 bytes
        device: int,
        stream: int,
        *operands: int | float,
    ) -> None:
        """Addresses, and numbers for the operands that are numbers. Asynchronous."""

def make_conv_plan(
    problem: ConvProblem,
    math: str,  # what the tensor cores multiply: "tf32", "bf16", "fp16", "ieee" (float32, as three of TF32)
    input_dtype: str,
    input_strides: Sequence[int],  # (N, C, spatial…), elements
    input_alignment: int,  # bytes: the greatest power of two up to 16 that divides every address of an input
    padding_mode: str,  # "zeros", "reflect", "replicate", "circular"
    program: Program,
    bias: OperandLayout | None,
    operands: Sequence[OperandLayout],
    output_dtype: str,
    output_strides: Sequence[int],  # (N, K, spatial…), elements
    capability: tuple[int, int],  # compute capability of the card
    family: str = "any",  # of kernels: "any", "sm80", "sm90", "sm90_compiled", "sm90_im2col"
    compile: str = "never",  # for this plan, at run time: "never", "if faster" (`why_slower` is ""), "always"
    is_batch_invariant: bool = False,  # whether an image's bits are the same whatever the batch
) -> ConvPlan | str:
    """The plan, or why no kernel can run it: a sentence without a full stop."""

def predict_conv_ways(
    problem: ConvProblem,
    math: str,
    input_dtype: str,
    input_strides: Sequence[int],
    input_alignment: int,
    padding_mode: str,
    program: Program,
    bias: OperandLayout | None,
    operands: Sequence[OperandLayout],
    output_dtype: str,
    output_strides: Sequence[int],
    capability: tuple[int, int],
    family: str = "any",
    compile: str = "never",
) -> dict[str, PredictedTime | str]:
    """What each family of kernels would take on an H200, or why it does not take the problem, and, as
    "fallback", what another convolution with a pass behind it would. Arguments are those of `make_conv_plan`;
    the family does not count. Nothing is compiled, and families whose kernels are always compiled are
    predicted all the same. Empty where the output has no elements."""

def set_compiler(library: str, cache_directory: str) -> None:
    """Where NVRTC is, "" for where the loader looks; it is loaded once. Where compiled kernels are kept, ""
    for nowhere."""

def why_no_compiler() -> str:
    """Why no kernel can be compiled at run time, "" if it can. Loads NVRTC."""

def why_no_conv_kernels(major: int, minor: int) -> str:
    """Why this build has no implicit-GEMM kernels for a card of that compute capability, "" if it has."""

def why_not_on_card(major: int, minor: int) -> str:
    """Why this build cannot run on a card of that compute capability, "" if it can."""

def driver_version() -> str:
    """The newest CUDA version that the installed driver supports, "13.0", or "" without a driver."""

def why_not_on_driver(driver: str) -> str:
    """Why a driver, given as `driver_version` gives it, cannot run this build; "" if it can."""

def evaluate_operation(
    name: str,
    dtype: str,
    count: int,
    inputs: Sequence[int],
    parameters: Sequence[float],
    results: Sequence[int],
    device: int,
    stream: int,
) -> None:
    """Runs one row of the operation table for tests: `inputs` a, b, c; `parameters` p, q; `results` value
    and derivatives. `device` -1 is the CPU."""
