"""The problems of the benchmark: one convolution and the program behind it.

`PROBLEMS` are the fused conv + elementwise models of the public KernelBench level 2 set; the layers of
networks are in `epiconv.bench.layers`. `parse_problem` makes one from what a user writes on the command line.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch

from epiconv.ops import TABLE
from epiconv.program import Program, Step

OUTPUT: Final = "output"
"""As an operand's shape: the shape of the convolution's output, such as a residual has."""

_OPS: Final = {
    "conv1d": (1, False),
    "conv2d": (2, False),
    "conv3d": (3, False),
    "conv_transpose1d": (1, True),
    "conv_transpose2d": (2, True),
    "conv_transpose3d": (3, True),
}
_REDUCED_EXTENT: Final = {1: 256, 2: 32, 3: 10}  # input pixels along each dimension on a CPU


@dataclass(frozen=True)
class Problem:
    """One convolution and its epilogue, without data.

    Attributes:
        id: short name, as `--problems` takes it.
        name: what it is, for people.
        op: conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d or conv_transpose3d.
        input: (N, C, *spatial).
        out_channels: K.
        kernel: filter extents, one per spatial dimension.
        epilogue: the program, as text; `b0, b1, …` are the operands.
        operands: a shape, or `OUTPUT`, for each of them.
        stride, padding, output_padding, dilation: the same along all dimensions.
        groups: as torch.
        conv_bias: whether the convolution has a bias of its own.
        why: what it is there to show.
        network: of a layer, the network that it is from; else "".
        half: of a layer, "tuning" or "measured", see `epiconv.bench.layers`; else "".

    Raises:
        ValueError: the op is unknown, ranks disagree, the output is empty, or the program does not parse
            or needs another number of operands.

    Example:
        >>> find_problem("kb31").output
        (128, 128, 126, 126)
    """

    id: str
    name: str
    op: str
    input: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    epilogue: str
    operands: tuple[tuple[int, ...] | str, ...] = ()
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    conv_bias: bool = True
    why: str = ""
    network: str = ""
    half: str = ""

    def __post_init__(self) -> None:
        if self.op not in _OPS:
            raise ValueError(f"unknown op {self.op!r}; there are {', '.join(_OPS)}")
        rank = _OPS[self.op][0]
        if len(self.input) != rank + 2 or len(self.kernel) != rank:
            raise ValueError(
                f"{self.op} takes an input of {rank + 2} extents and a kernel of {rank}, "
                f"not {self.input} and {self.kernel}"
            )
        channels = self.input[1]
        if min(self.groups, self.stride, self.dilation, self.out_channels, *self.input, *self.kernel) < 1:
            raise ValueError("extents, stride, dilation and groups are at least 1")
        if channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {channels} and {self.out_channels} channels"
            )
        if min(self.output) < 1:
            raise ValueError(f"the output {self.output} is empty")
        needed = self.program.num_operands
        if needed != len(self.operands):
            given = len(self.operands)
            raise ValueError(f"the program {self.program.text!r} needs {needed} operands, {given} given")

    @property
    def spatial_rank(self) -> int:
        """How many spatial dimensions: 1, 2 or 3."""
        return _OPS[self.op][0]

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return _OPS[self.op][1]

    @cached_property
    def program(self) -> Program:
        """The epilogue, parsed."""
        return Program(self.epilogue)

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of the weight: (K, C/groups, *kernel), transposed (C, K/groups, *kernel)."""
        if self.transposed:
            return (self.input[1], self.out_channels // self.groups, *self.kernel)
        return (self.out_channels, self.input[1] // self.groups, *self.kernel)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the output, (N, K, *spatial)."""
        spatial = []
        for extent, taps in zip(self.input[2:], self.kernel, strict=True):
            reach = self.dilation * (taps - 1)
            if self.transposed:
                steps = (extent - 1) * self.stride
                spatial.append(steps - 2 * self.padding + reach + self.output_padding + 1)
            else:
                spatial.append((extent + 2 * self.padding - reach - 1) // self.stride + 1)
        return (self.input[0], self.out_channels, *spatial)

    @property
    def operand_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The operands' shapes, `OUTPUT` filled in."""
        return tuple(self.output if isinstance(shape, str) else shape for shape in self.operands)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the convolution; the epilogue's are not counted."""
        pixels = math.prod(self.input[2:]) if self.transposed else math.prod(self.output[2:])
        pairs = self.input[1] * self.out_channels // self.groups
        return 2 * self.input[0] * pixels * pairs * math.prod(self.kernel)

    def bytes(self, itemsize: int) -> int:
        """Bytes moved when every tensor is touched once, all of them `itemsize` bytes a value."""
        bias = self.out_channels if self.conv_bias else 0
        values = sum(map(math.prod, (self.input, self.weight, self.output, *self.operand_shapes)))
        return (values + bias) * itemsize

    @property
    def conv_arguments(self) -> dict[str, Any]:
        """Keywords of `fused_conv_epilogue`, apart from the epilogue; those at their defaults left out."""
        arguments: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if self.transposed:
            arguments.update(transposed=True, output_padding=self.output_padding)
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
        return {name: value for name, value in arguments.items() if defaults.get(name) != value}

    def reduced(self) -> "Problem":
        """The same with at most 2 small images, for a CPU; channels and filters stay.

        Example:
            >>> find_problem("kb31").reduced().input
            (2, 64, 32, 32)
        """
        extent = _REDUCED_EXTENT[self.spatial_rank]
        spatial = tuple(min(size, extent) for size in self.input[2:])
        batch = min(self.input[0], 2)
        operands = tuple(
            (batch, *shape[1:]) if not isinstance(shape, str) and self.is_per_image(shape) else shape
            for shape in self.operands
        )
        return replace(self, input=(batch, self.input[1], *spatial), operands=operands)

    def is_per_image(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape, input, output or operand, has values of its own for each image.

        Example:
            >>> find_problem("diffusion-3x3-320-b8").is_per_image((8, 320, 1, 1))
            True
        """
        return len(shape) == len(self.input) and shape[0] == self.input[0]


def torch_convolution(problem: Problem) -> Callable[..., torch.Tensor]:
    """The convolution as a user would write it: `convolution(x, weight, bias)`.

    Args:
        problem: its op, stride, padding and so on are bound.

    Example:
        >>> y = torch_convolution(problem)(x, weight, None)
    """
    function: Callable[..., torch.Tensor] = getattr(torch.nn.functional, problem.op)
    arguments = {name: value for name, value in problem.conv_arguments.items() if name != "transposed"}

    def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return function(x, weight, bias, **arguments)

    return convolution


def torch_epilogue(program: Program) -> Callable[..., torch.Tensor]:
    """A program as the plain PyTorch code a user would write: `epilogue(v0, b0, b1, …)`.

    Unlike `Program.apply`, intermediates have the tensors' own dtype, as in eager PyTorch. It is made of
    Python source, so that neither the interpreter nor torch.compile sees anything but the operations.

    Args:
        program: any program.

    Example:
        >>> torch_epilogue(Program("v1 = minimum(v0, 0.5)"))(torch.ones(2))
        tensor([0.5000, 0.5000])
    """
    parameters = ", ".join(["v0", *(f"b{index}" for index in range(program.num_operands))])
    lines = [f"def epilogue({parameters}):"]
    for index, step in enumerate(program.steps):
        lines.append(f"    v{index + 1} = {_expression(step)}")
    lines.append(f"    return v{len(program.steps)}")
    namespace: dict[str, Any] = {"torch": torch, "inf": math.inf, "nan": math.nan}
    exec(compile("\n".join(lines), f"<epilogue {program.text}>", "exec"), namespace)
    epilogue: Callable[..., torch.Tensor] = namespace["epilogue"]
    return epilogue


# torch takes these by position, and everything from the first number or word on by name.
_POSITIONAL: Final = ("tensor", "any", "optional", "channel", "optional_channel")


def _expression(step: Step) -> str:
    """One statement's right-hand side, in Python."""
    words = [f"{a[0]}{a[1]}" if isinstance(a, tuple) else repr(a) for a in step.arguments]
    if step.name == "cast":
        return f"{words[0]}.to(torch.{step.arguments[1]})"
    if step.name in ("minimum", "maximum") and not isinstance(step.arguments[1], tuple):
        # torch takes tensors only there; clamp is the same for numbers, NaN included.
        bound = "max" if step.name == "minimum" else "min"
        return f"torch.clamp({words[0]}, {bound}={words[1]})"
    given: list[str] = []
    by_name = False
    for argument, word in zip(TABLE[step.name].arguments, words, strict=True):
        by_name = by_name or argument.kind not in _POSITIONAL
        given.append(f"{argument.name}={word}" if by_name else word)
    call = f"torch.{TABLE[step.name].torch_path}({', '.join(given)})"
    return f"{call}.to({words[0]}.dtype)" if step.in_place else call


_HEADLINE: Final = {"input": (128, 64, 128, 128), "out_channels": 128, "kernel": (3, 3)}
_TRANSPOSED: Final = {"kernel": (3, 3, 3), "stride": 2, "padding": 1, "output_padding": 1}

PROBLEMS: Final[tuple[Problem, ...]] = (
    Problem("kb31", "Conv2d_Min_Add_Multiply", "conv2d", **_HEADLINE,  # type: ignore[arg-type]
            epilogue="v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)", operands=((128, 1, 1),),
            why="headline: tensor-core bound, output 504-byte rows (not a multiple of 16)"),
    Problem("kb1", "Conv2D_ReLU_BiasAdd", "conv2d", **_HEADLINE,  # type: ignore[arg-type]
            epilogue="v1 = relu(v0); v2 = add(v1, b0)", operands=((128, 1, 1),),
            why="headline; relu must keep NaN"),
    Problem("kb21", "Conv2d_Add_Scale_Sigmoid_GroupNorm", "conv2d", (128, 8, 256, 256), 32, (3, 3),
            "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sigmoid(v2); v4 = group_norm(v3, 8, b2, b3)",
            ((32, 1, 1), (32, 1, 1), (32,), (32,)),
            why="headline: memory bound, statistics over a whole sample"),
    Problem("kb2", "ConvTranspose2d_BiasAdd_Clamp_Scaling_Clamp_Divide", "conv_transpose2d",
            (128, 64, 128, 128), 64, (3, 3),
            "v1 = add(v0, b0); v2 = clamp(v1, 0.0, 1.0); v3 = mul(v2, 2.0); v4 = clamp(v3, 0.0, 1.0); "
            "v5 = div(v4, 2.0)", ((64, 1, 1),), stride=2, padding=1, output_padding=1,
            why="headline: output-bytes bound, 4 phases"),
    Problem("kb4", "Conv2d_Mish_Mish", "conv2d", (64, 64, 256, 256), 128, (3, 3),
            "v1 = mish(v0); v2 = mish(v1)", why="transcendental-heavy epilogue"),
    Problem("kb7", "Conv3d_ReLU_LeakyReLU_GELU_Sigmoid_BiasAdd", "conv3d", (64, 8, 32, 64, 64), 32, (3, 3, 3),
            "v1 = relu(v0); v2 = leaky_relu(v1, 0.01); v3 = gelu(v2); v4 = sigmoid(v3); v5 = add(v4, b0)",
            ((32, 1, 1, 1),), why="3-D, few channels, long chain"),
    Problem("kb20", "ConvTranspose3d_Sum_ResidualAdd_Multiply_ResidualAdd", "conv_transpose3d",
            (16, 32, 16, 32, 32), 64,
            epilogue="v1 = add(v0, b0); v2 = add(v1, v0); v3 = mul(v2, v0); v4 = add(v3, v0)",
            operands=((64, 1, 1, 1),), **_TRANSPOSED,  # type: ignore[arg-type]
            why="a DAG, not a chain; 8 phases"),
    Problem("kb26", "ConvTranspose3d_Add_HardSwish", "conv_transpose3d", (128, 32, 16, 16, 16), 64,
            epilogue="v1 = add(v0, b0); v2 = hardswish(v1); v3 = mul(v1, v2)",
            operands=(OUTPUT,), **_TRANSPOSED,  # type: ignore[arg-type]
            why="full-tensor operand"),
    Problem("kb48", "Conv3d_Scaling_Tanh_Multiply_Sigmoid", "conv3d", (128, 3, 16, 64, 64), 16, (3, 3, 3),
            "v1 = mul(v0, b0); v2 = tanh(v1); v3 = mul(v2, b1); v4 = sigmoid(v3)",
            ((16, 1, 1, 1), (16, 1, 1, 1)), why="C = 3"),
    Problem("kb57", "Conv2d_ReLU_HardSwish", "conv2d", (128, 8, 128, 128), 64, (3, 3),
            "v1 = relu(v0); v2 = add(v1, 3.0); v3 = div(v2, 6.0); v4 = clamp(v3, 0.0, 1.0); v5 = mul(v1, v4)",
            why="small C, cheap chain"),
    Problem("kb71", "Conv2d_Divide_LeakyReLU", "conv2d", (128, 8, 128, 128), 64, (3, 3),
            "v1 = div(v0, 2.0); v2 = leaky_relu(v1, 0.01)", why="small C"),
    Problem("kb87", "Conv2d_Subtract_Subtract_Mish", "conv2d", (128, 8, 256, 256), 64, (3, 3),
            "v1 = sub(v0, 0.5); v2 = sub(v1, 0.2); v3 = mish(v2)", why="2.1 GB of output"),
)  # fmt: skip
"""Those of KernelBench, in the order of the project's table."""

RECIPE_IDS: Final = ("kb31", "kb1", "kb21", "kb2")
SMALL_IDS: Final = ("kb20", "kb48", "kb57", "kb71")
"""Those whose floor on an H200 is below 0.2 ms in float32."""


def parse_extents(text: str) -> tuple[int, ...]:
    """Extents written as `128x64x128x128`.

    Raises:
        ValueError: something else is written.

    Example:
        >>> parse_extents("3x3")
        (3, 3)
    """
    if not re.fullmatch(r"\d+(x\d+)*", text.strip()):
        raise ValueError(f"extents are written as 128x64x128x128, not {text!r}")
    return tuple(map(int, text.strip().split("x")))


def parse_problem(
    shape: str,
    filters: int,
    kernel: str,
    *,
    op: str | None = None,
    epilogue: str = "",
    operands: Sequence[str] = (),
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    conv_bias: bool = True,
) -> Problem:
    """A problem as a user names it on the command line.

    Args:
        shape: of the input, "128x64x128x128".
        filters: K.
        kernel: "3x3", or "3" for the same along all dimensions.
        op: as in `Problem`; None is conv1d, conv2d or conv3d by the rank of `shape`.
        epilogue: the program's text.
        operands: for each operand a shape ("128x1x1"), "scalar", or "output" for the output's shape.
        stride, padding, output_padding, dilation, groups, conv_bias: as in `Problem`.

    Returns:
        A problem with the id "custom".

    Raises:
        ValueError: as `Problem`, or something is not written as above.

    Example:
        >>> parse_problem("8x16x32x32", 32, "3", epilogue="v1 = relu(v0)").output
        (8, 32, 30, 30)
    """
    extents = parse_extents(shape)
    rank = len(extents) - 2
    if op is None:
        op = f"conv{rank}d"
    taps = parse_extents(kernel)
    if len(taps) == 1:
        taps = taps * max(rank, 1)
    shapes: list[tuple[int, ...] | str] = []
    for operand in operands:
        if operand == OUTPUT:
            shapes.append(OUTPUT)
        else:
            shapes.append(() if operand == "scalar" else parse_extents(operand))
    return Problem(
        id="custom",
        name=f"{op} {shape}, {filters} filters {kernel}",
        op=op,
        input=extents,
        out_channels=filters,
        kernel=taps,
        epilogue=epilogue,
        operands=tuple(shapes),
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        conv_bias=conv_bias,
        why="named on the command line",
    )
