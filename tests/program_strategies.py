"""Random programs with the tensors they need, and how to run them.

`cases()` draws a `Case`, whose repr is a line of Python that makes it again. `run` puts it through the core's
`EpiloguePlan`.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from epiconv import _core
from epiconv.program import Program, operand_signature, result_dtype

_SPECIAL = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e4, 1e-6, -3.0)
LAYOUTS = ("contiguous", "channels_last", "sliced", "reversed")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that can be made again: shape, dtype, layout, and the seed of its values.

    `values` are "normal", "special" (zeros, infinities, NaN, large and small ones among them) or "integers"
    from -9 to 9.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: str = "contiguous"
    seed: int = 0
    values: str = "normal"


@dataclass(frozen=True)
class Case:
    """A program, and the tensors to run it on."""

    text: str
    y: TensorSpec
    operands: tuple[TensorSpec, ...]
    bias: TensorSpec | None = None
    output_layout: str = "contiguous"
    in_place: bool = False
    threads: int = 1


def empty(shape, dtype, layout, device="cpu", fill=math.nan):
    """A tensor in a given layout, and the whole buffer that it lies in."""
    rank = len(shape)
    guard = 8
    if layout == "expanded":
        base, buffer = empty(
            tuple(1 if d == 0 else n for d, n in enumerate(shape)), dtype, "contiguous", device
        )
        return base.expand(shape), buffer
    order = list(range(rank))
    step = 1
    if layout == "channels_last" and rank > 2:
        order = [0, *range(2, rank), 1]
    elif layout == "reversed":
        order = order[::-1]
    elif layout == "sliced":
        step = 3
    strides = [0] * rank
    dense = step
    for d in reversed(order):
        strides[d] = dense
        dense *= shape[d] + (1 if layout == "sliced" else 0)
    buffer = torch.empty(dense + 2 * guard, device=device, dtype=dtype)
    buffer.fill_(fill if dtype.is_floating_point else 1)
    return buffer.as_strided(shape, strides, guard), buffer


def values_of(spec):
    """The values of a tensor, contiguous."""
    generator = torch.Generator().manual_seed(spec.seed)
    dtype = getattr(torch, spec.dtype)
    count = math.prod(spec.shape)
    if dtype == torch.bool:
        flat = torch.rand(count, generator=generator) < 0.5
    elif not dtype.is_floating_point or spec.values == "integers":
        flat = torch.randint(0 if dtype == torch.uint8 else -9, 10, (count,), generator=generator)
    else:
        flat = torch.randn(count, generator=generator, dtype=torch.float64) * 2
        if spec.values == "special":
            odd = torch.tensor(_SPECIAL, dtype=flat.dtype)
            chosen = torch.randint(0, len(odd), (count,), generator=generator)
            flat = torch.where(torch.rand(count, generator=generator) < 0.15, odd[chosen], flat)
    return flat.to(dtype).reshape(spec.shape)


def make(spec, device="cpu"):
    """The tensor of a spec, in its layout."""
    tensor, _ = empty(spec.shape, getattr(torch, spec.dtype), spec.layout, device)
    target = tensor[:1] if spec.layout == "expanded" else tensor
    target.copy_(values_of(spec)[: len(target)] if spec.shape else values_of(spec))
    return tensor


def tensors_of(case, device="cpu"):
    """y, operands and bias of a case; 0-d operands stay on the CPU."""
    operands = [make(spec, device if spec.shape else "cpu") for spec in case.operands]
    return make(case.y, device), operands, None if case.bias is None else make(case.bias, device)


def output_dtype(case, operands):
    return result_dtype(Program(case.text), getattr(torch, case.y.dtype), operand_signature(operands))


def run(case, device="cpu"):
    """The result of a case through the core; raises AssertionError when it wrote beside its output."""
    program = Program(case.text)
    y, operands, bias = tensors_of(case, device)
    dtype = output_dtype(case, operands)
    if case.in_place and dtype == y.dtype and case.y.layout != "expanded":
        output, buffer = y, None
    else:
        output, buffer = empty(case.y.shape, dtype, case.output_layout, device, fill=123.0)

    def layout(tensor):
        name = str(tensor.dtype).removeprefix("torch.")
        return _core.OperandLayout(
            name, tensor.shape, tensor.stride(), tensor.dim() == 0 and tensor.device.type == "cpu"
        )

    plan = _core.EpiloguePlan(
        program.core,
        device,
        y.shape,
        case.y.dtype,
        y.stride(),
        str(dtype).removeprefix("torch."),
        output.stride(),
        None if bias is None else layout(bias),
        [layout(b) for b in operands],
    )
    cuda = device == "cuda"
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    workspace.fill_(255)  # NaN, whatever is read from it
    plan.run(
        y.data_ptr(),
        output.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        workspace.data_ptr(),
        torch.cuda.current_device() if cuda else 0,
        torch.cuda.current_stream().cuda_stream if cuda else 0,
        case.threads,
        *[float(b) if b.dim() == 0 and b.device.type == "cpu" else b.data_ptr() for b in operands],
    )
    if buffer is not None:
        result = output.clone()
        output.fill_(123.0)
        assert (buffer == 123.0).all(), "it wrote beside its output"
        return result.cpu()
    return output.cpu()


# ---- Drawing.

_UNARY = (
    "neg", "abs", "square", "sqrt", "rsqrt", "exp", "log", "relu", "relu6", "selu", "silu", "mish", "sigmoid",
    "logsigmoid", "tanh", "softsign", "hardswish", "hardsigmoid", "elu", "celu", "gelu", "softplus",
    "leaky_relu", "hardtanh", "hardshrink", "softshrink",
)  # fmt: skip
_PARAMETERS = {
    "elu": ["", ", alpha=0.5"],
    "celu": ["", ", alpha=0.75"],
    "gelu": ["", ", approximate=tanh"],
    "softplus": ["", ", beta=0.5, threshold=3.0"],
    "leaky_relu": ["", ", negative_slope=-0.5"],
    "hardtanh": ["", ", min_val=0.25, max_val=3.0", ", max_val=2"],
    "hardshrink": ["", ", lambd=2.0"],
    "softshrink": ["", ", lambd=0.25"],
}
_NUMBERS = ("0.5", "-1.0", "2", "0.1", "-3", "True", "1.5", "0.0", "10.0")
_FLOATING = ("float32", "float16", "bfloat16", "float64")
_INTEGER = ("uint8", "int8", "int16", "int32", "int64")


class _Builder:
    """A program under construction: `pool` are the values that are still to be used."""

    def __init__(self, draw, shape):
        self.draw = draw
        self.shape = shape
        self.statements = []
        self.operands = []
        self.pool = [0]
        self.has_group_norm = False

    def emit(self, name, *words):
        self.statements.append(f"v{len(self.statements) + 1} = {name}({', '.join(words)})")
        return len(self.statements)

    def operand(self, dtypes=_FLOATING + _INTEGER, channel=False):
        n, k, *space = self.shape
        ones = [1] * len(space)
        shapes = [(k,), (1,)] if channel else [
            (), (k, *ones), (1, k, *ones), (n, k, *ones), (n, 1, *space), (1, 1, *space), tuple(space),
            tuple(self.shape), (space[-1],), (1,) * len(self.shape),
        ]  # fmt: skip
        shape = self.draw(st.sampled_from(shapes))
        layouts = ["contiguous", "sliced"] if len(shape) < 2 else [*LAYOUTS, "expanded"]
        layout = self.draw(st.sampled_from(layouts)) if shape else "contiguous"
        dtype = self.draw(st.sampled_from(dtypes))
        values = "special" if self.draw(st.booleans()) and not channel else "normal"
        seed = self.draw(st.integers(0, 999))
        self.operands.append(TensorSpec(shape, dtype, layout, seed, values))
        return f"b{len(self.operands) - 1}"

    def other(self):
        """A number or an operand."""
        if len(self.operands) < 8 and self.draw(st.booleans()):
            return self.operand()
        return self.draw(st.sampled_from(_NUMBERS))

    def take(self, keep):
        """A value of the pool, which may be read again if `keep`."""
        place = self.draw(st.integers(0, len(self.pool) - 1))
        value = self.pool[place] if keep else self.pool.pop(place)
        return f"v{value}"

    def in_place(self, name):
        return f"{name}_" if self.draw(st.integers(0, 5)) == 0 else name

    def unary(self, keep):
        name = self.draw(st.sampled_from(_UNARY))
        value = self.take(keep)
        extra = self.draw(st.sampled_from(_PARAMETERS.get(name, [""])))
        self.pool.append(self.emit(self.in_place(name), value + extra))

    def binary(self, keep):
        name = self.draw(st.sampled_from(("add", "sub", "mul", "div", "minimum", "maximum")))
        value, other = self.take(keep), self.other()
        if other == "True" and name == "sub":
            other = "1.0"
        if name in ("add", "sub") and self.draw(st.integers(0, 3)) == 0:
            other += ", alpha=0.5"
        elif name != "sub" and self.draw(st.integers(0, 4)) == 0:
            value, other = other, value
            self.pool.append(self.emit(name, value, other))
            return
        self.pool.append(self.emit(self.in_place(name), value, other))

    def clamp(self, keep):
        value = self.take(keep)
        bounds = self.draw(st.sampled_from(("min", "max", "both", "tensors")))
        words = {"min": ["min=-0.5"], "max": ["max=0.5"], "both": ["min=-1", "max=2.0"]}.get(bounds)
        if words is None:
            words = [f"min={self.operand(_FLOATING)}", "max=2.5"] if len(self.operands) < 8 else ["min=0.25"]
        self.pool.append(self.emit("clamp", value, *words))

    def rare(self, keep):
        kind = self.draw(st.sampled_from(("pow", "threshold", "cast", "prelu")))
        value = self.take(keep)
        if kind == "prelu" and len(self.operands) < 8:
            self.pool.append(self.emit("prelu", value, self.operand(_FLOATING, channel=True)))
        elif kind == "cast":
            # A cast to float64 would make all of the program compute in it.
            dtype = self.draw(st.sampled_from(("float32", "float16", "bfloat16")))
            self.pool.append(self.emit("cast", value, f"dtype={dtype}"))
        elif kind == "threshold":
            self.pool.append(self.emit("threshold", value, "0.25", "-2.0"))
        else:
            exponent = self.draw(st.sampled_from(("2", "3", "0.5", "-1", "1.5", "0")))
            self.pool.append(self.emit("pow", value, exponent))

    def choose(self, keep):
        """A comparison, and `where` or a product with it."""
        value = self.take(True)
        name = self.draw(st.sampled_from(("gt", "ge", "lt", "le", "eq", "ne")))
        if len(self.operands) < 8 and self.draw(st.integers(0, 2)) == 0:
            condition = self.operand(("bool",))
        else:
            condition = f"v{self.emit(name, value, self.other())}"
        if not keep:
            self.pool.remove(int(value[1:]))
        if self.draw(st.booleans()):
            self.pool.append(self.emit("where", condition, value, self.other()))
        else:
            self.pool.append(self.emit("mul", value, condition))

    def merge(self):
        name = self.draw(st.sampled_from(("add", "sub", "mul", "minimum", "maximum", "where")))
        a, b = self.take(False), self.take(False)
        if name == "where":
            condition = self.emit("gt", a, b)
            self.pool.append(self.emit("where", f"v{condition}", a, b))
        else:
            self.pool.append(self.emit(name, a, b))

    def group_norm(self):
        while len(self.pool) > 1:
            self.merge()
        n, k, *space = self.shape
        # torch.nn.functional.group_norm refuses a single value.
        choices = [g for g in range(1, k + 1) if k % g == 0 and n * (k // g) * math.prod(space) > 1]
        if not choices:
            return
        words = [self.take(False), str(self.draw(st.sampled_from(choices)))]
        for name in ("weight", "bias"):
            if self.draw(st.booleans()):
                words.append(f"{name}={self.operand(_FLOATING, channel=True)}")
                self.operands[-1] = dataclasses.replace(self.operands[-1], shape=(k,))
        self.pool.append(self.emit("group_norm", *words))
        self.has_group_norm = True

    def step(self):
        kinds = [self.unary] * 2 + [self.binary] * 3 + [self.clamp, self.choose, self.rare]
        action = self.draw(st.integers(0, 9))
        if action < 2 and len(self.pool) > 1:
            self.merge()
        elif action == 9 and not self.has_group_norm and self.draw(st.booleans()):
            self.group_norm()
        else:
            # A comparison is a value more for a moment.
            self.draw(st.sampled_from(kinds))(keep=action > 6 and len(self.pool) < 3)


@st.composite
def cases(draw):
    """A random valid program of up to about 14 statements, chain or DAG, with its tensors."""
    rank = draw(st.integers(1, 3))
    largest = {1: 301, 2: 19, 3: 7}[rank]
    shape = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 2, 3, 4, 6, 9))),
        *[draw(st.integers(1, largest)) for _ in range(rank)],
    )
    builder = _Builder(draw, shape)
    for _ in range(draw(st.integers(0, 9))):
        builder.step()
    while len(builder.pool) > 1:
        builder.merge()
    dtype = draw(st.sampled_from(_FLOATING))
    layout = draw(st.sampled_from((*LAYOUTS, "expanded")))
    y = TensorSpec(
        shape, dtype, layout, draw(st.integers(0, 999)), draw(st.sampled_from(("normal", "special")))
    )
    bias = None
    if draw(st.booleans()):
        layout = draw(st.sampled_from(("contiguous", "sliced")))
        bias = TensorSpec((shape[1],), dtype, layout, draw(st.integers(0, 999)))
    return Case(
        "; ".join(builder.statements),
        y,
        tuple(builder.operands),
        bias,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.booleans()),
        draw(st.sampled_from((1, 3))),
    )
