"""Random convolutions straight through the core's ConvPlan, on small integers and compared bit for bit.

    python tests/fuzz_conv.py --seed 0 --count 3000
    python tests/fuzz_conv.py --only 0:17

Every buffer lies between guard bands and starts as NaN: the gaps in the input's strides, the packed weight,
the output. A difference, a byte written elsewhere or an input that changed prints the line that repeats it.
"""

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from epiconv import _core
from epiconv.core_tensors import operand_layout, operand_reader
from epiconv.program import Program

GUARD = 1024  # bytes on each side
MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("contiguous", "channels_last", "sliced", "turned", "expanded", "rows")
DTYPES = ("float32", "float16", "bfloat16")
MOST_PRODUCTS = 2**31  # per problem, to keep the float64 reference quick


@dataclass(frozen=True)
class Conv:
    """A problem that can be made again. Layouts are words of `LAYOUTS`; `offset` is in elements."""

    seed: str
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    begin: tuple[int, int]
    end: tuple[int, int]
    dilation: tuple[int, int]
    mode: str
    dtype: str
    math: str
    input_layout: str
    weight_layout: str
    offset: int
    bias: bool
    program: str
    operands: tuple[tuple[str, str, str], ...]  # kind, dtype, layout
    output_dtype: str
    output_layout: str

    @property
    def output(self):
        n, _, *extents = self.input
        k, _, *taps = self.weight
        return (n, k, *map(_extent, extents, self.begin, self.end, self.dilation, taps))


def _extent(extent, begin, end, dilation, taps):
    return extent + begin + end - dilation * (taps - 1)


def draw(seed):
    """The problem of a seed, "0:17"."""
    rng = random.Random(seed)
    while True:
        conv = _draw(rng, seed)
        n, k, p, q = conv.output
        _, c, r, s = conv.weight
        if min(p, q) >= 1 and n * k * p * q * c * r * s <= MOST_PRODUCTS and _can_pad(conv):
            return conv


def _can_pad(conv):
    sides = zip(conv.input[2:], conv.begin, conv.end, strict=True)
    most = {"reflect": -1, "circular": 0}.get(conv.mode)
    return most is None or all(max(begin, end) <= extent + most for extent, begin, end in sides)


def _draw(rng, seed):
    n, c = rng.choice((1, 1, 2, 3, 17)), rng.choice((1, 3, 4, 8, 9, 16, 32, 64, 66, 130))
    k = rng.choice((1, 7, 8, 32, 64, 96, 128, 130, 200))
    h, w = (rng.choice((rng.randint(1, 12), rng.randint(8, 40), rng.randint(40, 140))) for _ in range(2))
    taps = rng.choice(((3, 3), (3, 3), (1, 1), (rng.randint(1, 7), rng.randint(1, 7))))
    padding = rng.choice((0, 1, 4))
    begin, end = (tuple(rng.randint(0, padding) for _ in range(2)) for _ in range(2))
    dtype = rng.choice(DTYPES)
    maths = {"float16": ["fp16"], "bfloat16": ["bf16"]}.get(dtype, ["tf32", "tf32", "bf16", "fp16"])
    program, operands = _draw_program(rng)
    return Conv(
        seed=seed,
        input=(n, c, h, w),
        weight=(k, c, *taps),
        begin=begin,
        end=rng.choice((begin, end)),
        dilation=rng.choice(((1, 1), (1, 1), (rng.randint(1, 3), rng.randint(1, 3)))),
        mode=rng.choice(("zeros", *MODES)),
        dtype=dtype,
        math=rng.choice(maths),
        input_layout=rng.choice(("contiguous", "channels_last", "rows", *LAYOUTS)),
        weight_layout=rng.choice(("contiguous", "channels_last", "sliced")),
        offset=rng.choice((0, 0, 0, rng.randint(1, 8))),
        bias=rng.random() < 0.5,
        program=program,
        operands=operands,
        output_dtype=rng.choice((dtype, dtype, *DTYPES)),
        output_layout=rng.choice(("contiguous", "channels_last")),
    )


def _draw_program(rng):
    statements, operands = [], []
    for index in range(rng.randint(0, 4)):
        operation = rng.choice(("relu", "clamp", "mul", "add", "sub", "maximum"))
        given = {"relu": "", "clamp": ", -50.0, 60.0", "mul": ", 2.0"}.get(operation)
        if given is None:
            given = f", b{len(operands)}"
            kind = rng.choice(("number", "0-d", "width", "plane", "channel", "image", "full", "full"))
            dtype = rng.choice((*DTYPES, "float32", "int32"))
            operands.append((kind, dtype, rng.choice(("contiguous", "channels_last", "sliced"))))
        statements.append(f"v{index + 1} = {operation}(v{index}{given})")
    return "; ".join(statements), tuple(operands)


def operand_shape(kind, output):
    n, k, p, q = output
    shapes = {"width": (q,), "plane": (p, q), "channel": (k, 1, 1), "image": (n, 1, 1, 1), "full": output}
    return shapes.get(kind, ())


def strides_of(shape, layout):
    """In elements; "sliced" leaves gaps in every dimension, "rows" behind rows, to whole eights."""
    order = list(range(len(shape)))
    if len(shape) == 4 and layout == "channels_last":
        order = [0, 2, 3, 1]
    elif layout == "turned":
        order[-2:] = order[:-3:-1]
    strides, dense = [0] * len(shape), 2 if layout == "sliced" else 1
    for dimension in reversed(order):
        strides[dimension] = dense
        dense *= shape[dimension] + (layout == "sliced")
        dense += -dense % 8 if layout == "rows" else 0
    if layout == "expanded":
        strides[0] = 0
    return tuple(strides)


class Guarded:
    """A tensor in the middle of a buffer of NaN, `offset` elements behind an address that 256 divides."""

    def __init__(self, shape, strides, dtype, device, offset=0):
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        size = (span + offset) * dtype.itemsize
        self.buffer = torch.full((size + 2 * GUARD + 256,), 0xFF, dtype=torch.uint8, device=device)
        self.begin = GUARD + -(self.buffer.data_ptr() + GUARD) % 256 + offset * dtype.itemsize
        self.end = self.begin + span * dtype.itemsize
        self.tensor = self.buffer[self.begin : self.end].view(dtype).as_strided(shape, strides)

    def filled(self, values):
        for dimension, stride in enumerate(self.tensor.stride()):
            if stride == 0 and values.shape[dimension] > 1:
                values = values.narrow(dimension, 0, 1)
        target = self.tensor
        for dimension, extent in enumerate(values.shape):
            target = target.narrow(dimension, 0, extent)
        target.copy_(values)
        self.before = self.buffer.clone()
        return self

    def is_unchanged(self):
        return torch.equal(self.buffer, self.before)

    def has_clean_guards(self):
        outside = (self.buffer[: self.begin], self.buffer[self.end :])
        return all(bool((band == 0xFF).all()) for band in outside)


def make(conv, device):
    """Input, weight, bias and operands, guarded; numbers as they are."""
    generator = torch.Generator().manual_seed(random.Random(f"values {conv.seed}").getrandbits(60))

    def tensor(shape, dtype, layout, offset=0, most=3):
        values = torch.randint(-most, most + 1, shape, generator=generator)
        dtype = getattr(torch, dtype)
        return Guarded(shape, strides_of(shape, layout), dtype, device, offset).filled(values.to(device))

    x = tensor(conv.input, conv.dtype, conv.input_layout, conv.offset)
    weight = tensor(conv.weight, conv.dtype, conv.weight_layout)
    bias = tensor(conv.weight[:1], conv.dtype, "contiguous") if conv.bias else None
    operands = []
    for kind, dtype, layout in conv.operands:
        if kind == "number":
            number = torch.randint(-9, 10, (), generator=generator)
            operands.append(number.to(getattr(torch, dtype)))
        else:
            operands.append(tensor(operand_shape(kind, conv.output), dtype, layout, most=9))
    return x, weight, bias, operands


def reference(conv, x, weight, bias, operands):
    """Computed in float64, where every sum is exact, and rounded once."""
    x = x.double()
    (top, left), (bottom, right) = conv.begin, conv.end
    if top or left or bottom or right:
        mode = "constant" if conv.mode == "zeros" else conv.mode
        x = F.pad(x, (left, right, top, bottom), mode=mode)
    y = F.conv2d(x, weight.double(), None if bias is None else bias.double(), dilation=conv.dilation)
    exact = [operand.double() for operand in operands]
    result = Program(conv.program).apply(y, exact, torch.float64)
    return result.to(getattr(torch, conv.output_dtype))


def plan_of(conv, x, bias, operands):
    """The core's plan, or its reason."""
    output_shape = conv.output
    bias_shape = None if bias is None else tuple(bias.shape)
    ones, zeros = (1, 1), (0, 0)
    problem = _core.ConvProblem(
        *(conv.input, conv.weight, bias_shape, ones, conv.begin, conv.end, conv.dilation, 1, False, zeros)
    )
    address = x.data_ptr()
    return _core.make_conv_plan(
        *(problem, conv.math, conv.dtype, x.stride(), min(16, address & -address), conv.mode),
        Program(conv.program).core,
        None if bias is None else operand_layout(bias),
        [operand_layout(operand) for operand in operands],
        *(conv.output_dtype, strides_of(output_shape, conv.output_layout)),
    )


def check(conv, device):
    """Runs one problem.

    Returns:
        Whether it ran, and what is wrong with the result or why it did not run; "" for a right result.
    """
    guarded_x, guarded_weight, guarded_bias, given = make(conv, device)
    operands = [operand.tensor if isinstance(operand, Guarded) else operand for operand in given]
    x, weight = guarded_x.tensor, guarded_weight.tensor
    bias = None if guarded_bias is None else guarded_bias.tensor
    plan = plan_of(conv, x, bias, operands)
    if isinstance(plan, str):
        return False, plan
    index, stream = 0, 0
    if device.type == "cuda":
        index, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    dtype, shape = getattr(torch, conv.output_dtype), conv.output
    packed = Guarded((plan.packed_bytes,), (1,), torch.uint8, device)
    output = Guarded(shape, strides_of(shape, conv.output_layout), dtype, device)
    plan.pack(weight.data_ptr(), conv.dtype, weight.stride(), packed.tensor.data_ptr(), index, stream)
    packed.before = packed.buffer.clone()
    plan.run(
        *(x.data_ptr(), packed.tensor.data_ptr(), output.tensor.data_ptr()),
        *(0 if bias is None else bias.data_ptr(), index, stream),
        *operand_reader(operands)(operands),
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    read = {"input": guarded_x, "weight": guarded_weight, "bias": guarded_bias, "packed weight": packed}
    read |= {f"b{i}": operand for i, operand in enumerate(given)}
    for name, buffer in read.items():
        if isinstance(buffer, Guarded) and not buffer.is_unchanged():
            return True, f"{plan.kernel} wrote into the buffer of {name}"
    if not packed.has_clean_guards():
        return True, f"{plan.kernel} packed beside the packed weight"
    if not output.has_clean_guards():
        return True, f"{plan.kernel} wrote beside its output"
    expected = reference(conv, x, weight, bias, operands)
    wrong = ~(output.tensor == expected)
    if not wrong.any():
        return True, ""
    first = tuple(wrong.nonzero()[0].tolist())
    got, right = output.tensor[first].item(), expected[first].item()
    count = int(wrong.sum())
    return True, f"{plan.kernel}: {count} of {wrong.numel()} differ, first {first}: {got}, not {right}"


def command(seed):
    """What repeats a problem."""
    return f"python tests/fuzz_conv.py --only {seed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--only", metavar="SEED:INDEX")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("fuzz_conv.py needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    seeds = [options.only] if options.only else [f"{options.seed}:{i}" for i in range(options.count)]
    tally, failures = Counter(), 0
    for seed in seeds:
        conv = draw(seed)
        if options.only:
            print(conv)
        ran, finding = check(conv, device)
        tally["ran" if ran else f"refused: {finding}"] += 1
        if ran and finding:
            failures += 1
            print(f"{command(seed)}  # {finding}", flush=True)
    for outcome, count in tally.most_common():
        print(f"{count:6}  {outcome}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
