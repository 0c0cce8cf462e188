"""Random convolutions straight through the core's ConvPlan, half of them transposed, on small integers and
compared bit for bit; a third of them with a GroupNorm, whose error is bounded (`fuzz_norms.py`).

    python tests/fuzz_conv.py --seed 0 --count 3000
    python tests/fuzz_conv.py --only 0:17

Every buffer lies between guard bands and starts as NaN: the gaps in the input's strides, the packed weight,
the output; a workspace starts as some number, which must not be taken for a result. A difference, a byte
written elsewhere or an input that changed prints the line that repeats it.
"""

import argparse
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace

import fuzz_norms
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
MOST_OUTPUTS = 2**26  # and small
# Behind a bias they have evaluators of their own.
RECIPES = (
    "v1 = minimum(v0, 50.0); v2 = add(v1, b0); v3 = mul(v2, 2.0)",
    "v1 = relu(v0); v2 = add(v1, b0)",
    "v1 = add(v0, b0); v2 = clamp(v1, -9.0, 60.0); v3 = mul(v2, 4.0); v4 = clamp(v3, -9.0, 60.0); "
    "v5 = div(v4, 4.0)",
)
# As this one has, with a GroupNorm at its end.
SIGMOID = "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sigmoid(v2)"


@dataclass(frozen=True)
class Conv:
    """A problem that can be made again, of one dimension or two. Layouts are words of `LAYOUTS`; `offset` is
    in elements."""

    seed: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    transposed: bool
    stride: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
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
    def has_norm(self):
        return "group_norm" in self.program

    @property
    def filters(self):
        return self.weight[1 if self.transposed else 0]

    @property
    def output(self):
        given = (self.stride, self.begin, self.end, self.dilation, self.output_padding)
        pixels = map(self._extent, self.input[2:], self.weight[2:], *given)
        return (self.input[0], self.filters, *pixels)

    def _extent(self, extent, taps, stride, begin, end, dilation, more):
        reach = dilation * (taps - 1)
        if self.transposed:
            return (extent - 1) * stride + 1 + reach - begin - end + more
        return extent + begin + end - reach

    @property
    def products(self):
        pixels = (self.input if self.transposed else self.output)[2:]
        return self.input[0] * math.prod(pixels) * math.prod(self.weight)


def draw(seed):
    """The problem of a seed, "0:17"."""
    rng = random.Random(seed)
    while True:
        conv = _draw(rng, seed)
        is_small = conv.products <= MOST_PRODUCTS and math.prod(conv.output) <= MOST_OUTPUTS
        # A group of one pixel may have one element, which torch refuses to normalise.
        is_refused = conv.has_norm and math.prod(conv.output) == conv.filters
        if min(conv.output) >= 1 and is_small and _can_pad(conv) and not is_refused:
            return conv


def _can_pad(conv):
    sides = zip(conv.input[2:], conv.begin, conv.end, strict=True)
    most = {"reflect": -1, "circular": 0}.get(conv.mode)
    return most is None or all(max(begin, end) <= extent + most for extent, begin, end in sides)


def _draw(rng, seed):
    transposed, rank = rng.random() < 0.5, rng.choice((1, 2, 2, 2))

    def each(*choices):
        return tuple(rng.choice(choices)() for _ in range(rank))

    def up_to(most, least=0):
        return lambda: rng.randint(least, most)

    def alike(value):
        return (value,) * rank

    n = rng.choice((1, 1, 2, 3, 17, rng.randint(1, 17)))
    c = rng.choice((1, 3, 4, 8, 8, 9, 16, 31, 32, 64, 64, 66, 130))
    k = rng.choice((1, 3, 7, 8, 32, 64, 96, 128, 130, 200))
    long = (up_to(3000, 140),) if rank == 1 else ()
    extents = each(up_to(12, 1), up_to(40, 8), up_to(140, 40), *long)
    taps = rng.choice((alike(3), alike(3), alike(1), alike(rng.choice((2, 4))), each(up_to(7, 1))))
    stride, dilation, output_padding, mode = alike(1), alike(1), alike(0), "zeros"
    if transposed:
        stride = rng.choice((alike(2), alike(2), each(up_to(4, 1)), each(up_to(4, 1))))
        output_padding = tuple(rng.choice((0, rng.randint(0, step - 1))) for step in stride)
    else:
        dilation = rng.choice((alike(1), alike(1), each(up_to(3, 1))))
        mode = rng.choice(("zeros", "zeros", *MODES))
    padding = up_to(rng.choice((0, 1, 4)))
    begin, end = each(padding), each(padding)
    dtype = rng.choice(DTYPES)
    maths = {"float16": ["fp16"], "bfloat16": ["bf16"]}.get(dtype, ["tf32", "tf32", "bf16", "fp16"])
    program, operands = _draw_program(rng)
    conv = Conv(
        seed=seed,
        input=(n, c, *extents),
        weight=(c, k, *taps) if transposed else (k, c, *taps),
        transposed=transposed,
        stride=stride,
        begin=begin,
        end=rng.choice((begin, end)),
        dilation=dilation,
        output_padding=output_padding,
        mode=mode,
        dtype=dtype,
        math=rng.choice(maths),
        input_layout=rng.choice(("contiguous", *("channels_last", "rows") * 2, *LAYOUTS)),
        weight_layout=rng.choice(("contiguous", "channels_last", "sliced")),
        offset=rng.choice((0, 0, 0, 0, rng.randint(1, 8))),
        bias=program in RECIPES or rng.random() < 0.5,
        program=program,
        operands=operands,
        output_dtype=rng.choice((dtype, dtype, *DTYPES)),
        output_layout=rng.choice(("contiguous", "channels_last")),
    )
    return _with_norm(rng, conv) if rng.random() < 1 / 3 else conv


def _draw_program(rng):
    if rng.random() < 0.2:
        return rng.choice((*RECIPES, RECIPES[-1])), (("channel", rng.choice(DTYPES), "contiguous"),)
    statements, operands = [], []
    kinds = ("number", "0-d", "width", "plane", "channel", "image", "full", "full")
    for index in range(rng.randint(0, 4)):
        operation = rng.choice(("relu", "clamp", "mul", "add", "sub", "maximum"))
        given = {"relu": "", "clamp": ", -50.0, 60.0", "mul": ", 2.0"}.get(operation)
        if given is None and rng.random() < 0.2:
            given = f", v{rng.randint(0, index)}"
        elif given is None:
            given = _draw_operand(rng, operands, kinds)
        statements.append(f"v{index + 1} = {operation}(v{index}{given})")
    return "; ".join(statements), tuple(operands)


def _draw_operand(rng, operands, kinds):
    kind, dtype = rng.choice(kinds), rng.choice((*DTYPES, "float32", "int32"))
    operands.append((kind, dtype, rng.choice(("contiguous", "channels_last", "sliced"))))
    return f", b{len(operands) - 1}"


def _with_norm(rng, conv):
    """The problem with a GroupNorm behind its program or a sigmoid, sometimes with more or larger images."""
    n, c, *extents = conv.input
    k, size = conv.filters, rng.random()
    if size < 0.15:  # more tiles of an image than a card holds
        n, c, k = rng.randint(1, 2), rng.choice((1, 3, 4, 8)), rng.choice((1, 7, 8, 16, 32, 32, 64))
        extents = [rng.randint(300, 600), rng.randint(520, 900)][-len(extents) :]
        extents[-1] *= 200 if len(extents) == 1 else 1
    elif size < 0.25:
        n, extents = rng.randint(50, 400), [rng.randint(1, 12) for _ in extents]
    statements, operands, bias = conv.program.split("; ") if conv.program else [], [*conv.operands], conv.bias
    if rng.random() < 0.3:
        statements, operands, bias = SIGMOID.split("; "), _draw_operands_of_sigmoid(rng), True
    elif rng.random() < 0.15:  # brings the variance near eps
        statements.append(f"v{len(statements) + 1} = mul(v{len(statements)}, {2.0**-14})")
    elif rng.random() < 0.3:
        given = _draw_operand(rng, operands, ("each", "channel"))
        statements.append(f"v{len(statements) + 1} = add(v{len(statements)}{given})")
    _draw_norm(rng, k, statements, operands)
    return replace(
        conv,
        input=(n, c, *extents),
        weight=(*((c, k) if conv.transposed else (k, c)), *conv.weight[2:]),
        bias=bias,
        program="; ".join(statements),
        operands=tuple(operands),
    )


def _draw_operands_of_sigmoid(rng):
    """Mostly those that the recipe's own kernel takes."""
    first, second = rng.choice((*("channel",) * 6, "each", "image")), rng.choice((*("slope",) * 4, "channel"))
    return [
        (first, rng.choice((*DTYPES, "int32")), "contiguous"),
        (second, rng.choice(DTYPES), rng.choice(("contiguous", "sliced"))),
    ]


def _draw_norm(rng, filters, statements, operands):
    """Appends a GroupNorm, and sometimes what follows it, whose values are around 1."""
    before = len(statements)
    divisors = [groups for groups in range(1, filters + 1) if filters % groups == 0]
    words = [f"v{before}", str(rng.choice((1, filters, *divisors)))]
    for name in rng.choice(((), ("weight",), ("bias",), ("weight", "bias"), ("weight", "bias"))):
        words.append(f"{name}=b{len(operands)}")
        operands.append(("affine", rng.choice(DTYPES), rng.choice(("contiguous", "sliced"))))
    words.append(f"eps={rng.choice((1e-5, 1e-5, 1e-3, 0.5, 1e-8))}")
    statements.append(f"v{before + 1} = group_norm({', '.join(words)})")
    kinds = ("number", "0-d", "width", "plane", "channel", "channel", "image", "each", "each", "full", "full")
    for index in range(before + 1, before + 1 + rng.choice((0, 0, 0, 1, 2, 3))):
        operation = rng.choice(("relu", "clamp", "mul", "add", "sub", "maximum"))
        given = {"relu": "", "clamp": ", -0.75, 1.5"}.get(operation)
        if given is None and rng.random() < 0.2:
            # Of what is older than the norm its input alone, so that few values are alive at once.
            given = ", 2.0" if operation == "mul" else f", v{rng.randint(before, index)}"
        elif given is None:
            given = _draw_operand(rng, operands, kinds)
        statements.append(f"v{index + 1} = {operation}(v{index}{given})")


def operand_shape(kind, output):
    n, k, *pixels = output
    ones = (1,) * len(pixels)
    shapes = {"width": pixels[-1:], "plane": pixels, "image": (n, 1, *ones), "each": (n, k, *ones)}
    shapes |= {"channel": (k, *ones), "slope": (k, *ones), "affine": (k,), "full": output}
    return tuple(shapes.get(kind, ()))


def strides_of(shape, layout):
    """In elements; "sliced" leaves gaps in every dimension, "rows" behind rows, to whole eights."""
    order = list(range(len(shape)))
    if len(shape) > 2 and layout == "channels_last":
        order = [0, *order[2:], 1]
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

    def tensor(shape, dtype, layout, offset=0, most=3, scale=1):
        values = torch.randint(-most, most + 1, shape, generator=generator) * scale
        dtype = getattr(torch, dtype)
        return Guarded(shape, strides_of(shape, layout), dtype, device, offset).filled(values.to(device))

    x = tensor(conv.input, conv.dtype, conv.input_layout, conv.offset)
    weight = tensor(conv.weight, conv.dtype, conv.weight_layout)
    bias = tensor((conv.filters,), conv.dtype, "contiguous") if conv.bias else None
    # A sigmoid has something to tell where its argument is not much larger than 1.
    sums = 4 * math.sqrt(math.prod(conv.weight) / conv.filters)
    scales = {"slope": 2.0 ** -round(math.log2(sums)), "affine": 0.125}
    operands = []
    for kind, dtype, layout in conv.operands:
        if kind == "number":
            number = torch.randint(-9, 10, (), generator=generator)
            operands.append(number.to(getattr(torch, dtype)))
        else:
            shape, scale = operand_shape(kind, conv.output), scales.get(kind, 1)
            operands.append(tensor(shape, dtype, layout, most=9, scale=scale))
    return x, weight, bias, operands


def reference(conv, x, weight, bias, operands, kernel):
    """Computed in float64, where every sum is exact, and rounded once: the least and the largest that the
    result may be, which are the same without a norm."""
    x, weight, rank = x.double(), weight.double(), len(conv.stride)
    if conv.transposed:
        y = (F.conv_transpose1d, F.conv_transpose2d)[rank - 1](x, weight, stride=conv.stride)
        y = F.pad(y, [side for more in reversed(conv.output_padding) for side in (0, more)])
        for d, (begin, extent) in enumerate(zip(conv.begin, conv.output[2:], strict=True), 2):
            y = y.narrow(d, begin, extent)
    else:
        if any((*conv.begin, *conv.end)):
            mode = "constant" if conv.mode == "zeros" else conv.mode
            ends = zip(reversed(conv.begin), reversed(conv.end), strict=True)
            x = F.pad(x, [side for both in ends for side in both], mode=mode)
        y = (F.conv1d, F.conv2d)[rank - 1](x, weight, dilation=conv.dilation)
    y = y.round()  # an algorithm of cuDNN's may be off by a little
    bias = None if bias is None else bias.double().view(-1, *(1,) * rank)
    exact = [operand.double() for operand in operands]
    result = fuzz_norms.follow(Program(conv.program), y, bias, exact, kernel, conv.math)
    dtype = getattr(torch, conv.output_dtype)
    return (result.value - result.error).to(dtype), (result.value + result.error).to(dtype)


def plan_of(conv, x, bias, operands):
    """The core's plan, or its reason."""
    output_shape = conv.output
    bias_shape = None if bias is None else tuple(bias.shape)
    problem = _core.ConvProblem(
        *(conv.input, conv.weight, bias_shape, conv.stride, conv.begin, conv.end, conv.dilation, 1),
        *(conv.transposed, conv.output_padding),
    )
    assert tuple(problem.output) == output_shape
    address = x.data_ptr()
    return _core.make_conv_plan(
        *(problem, conv.math, conv.dtype, x.stride(), min(16, address & -address), conv.mode),
        Program(conv.program).core,
        None if bias is None else operand_layout(bias),
        [operand_layout(operand) for operand in operands],
        *(conv.output_dtype, strides_of(output_shape, conv.output_layout)),
    )


def check(conv, device, norms=None):
    """Runs one problem.

    Args:
        norms: a Counter of what evaluates the programs of problems with a norm, and how the norm is taken.

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
    if norms is not None and conv.has_norm:
        norms[plan.kernel.split(",")[0].partition("_f32_")[2]] += 1
    index, stream = 0, 0
    if device.type == "cuda":
        index, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    dtype, shape = getattr(torch, conv.output_dtype), conv.output
    packed = Guarded((plan.packed_bytes,), (1,), torch.uint8, device)
    output = Guarded(shape, strides_of(shape, conv.output_layout), dtype, device)
    workspace = Guarded((plan.workspace_bytes,), (1,), torch.uint8, device)
    workspace.tensor.fill_(0x3F)
    plan.pack(weight.data_ptr(), conv.dtype, weight.stride(), packed.tensor.data_ptr(), index, stream)
    packed.before = packed.buffer.clone()
    plan.run(
        *(x.data_ptr(), packed.tensor.data_ptr(), output.tensor.data_ptr()),
        0 if bias is None else bias.data_ptr(),
        workspace.tensor.data_ptr() if plan.workspace_bytes else 0,
        *(index, stream),
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
    if not workspace.has_clean_guards():
        return True, f"{plan.kernel} wrote beside its workspace"
    least, most = reference(conv, x, weight, bias, operands, plan.kernel)
    wrong = ~((least <= output.tensor) & (output.tensor <= most))
    if not wrong.any():
        return True, ""
    first = tuple(wrong.nonzero()[0].tolist())
    got, low, high = (tensor[first].item() for tensor in (output.tensor, least, most))
    right = str(low) if low == high else f"within {low} … {high}"
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
    tally, norms, failures = Counter(), Counter(), 0
    for seed in seeds:
        conv = draw(seed)
        if options.only:
            print(conv)
        ran, finding = check(conv, device, norms)
        tally["ran" if ran else f"refused: {finding}"] += 1
        if ran and finding:
            failures += 1
            print(f"{command(seed)}  # {finding}", flush=True)
    for outcome, count in tally.most_common():
        print(f"{count:6}  {outcome}")
    print(f"{norms.total():6}  with a GroupNorm")
    for kernel, count in norms.most_common():
        print(f"{count:6}    {kernel}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
