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
