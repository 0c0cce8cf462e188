"""The problems of `fuzz_conv.py`: what one is, and how one is drawn from a seed."""

import math
import random
from dataclasses import dataclass, replace

MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("contiguous", "channels_last", "sliced", "turned", "expanded", "rows")
DTYPES = ("float32", "float16", "bfloat16")
COMPILED_FAMILIES = ("sm90_compiled", "sm90_im2col")  # for each problem, or not at all
FAMILIES = ("any", "sm80", "sm90", *COMPILED_FAMILIES)
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

# Extents by how many spatial dimensions there are, so that images of three are no larger than others.
_EXTENTS = {
    1: ((1, 12), (8, 40), (40, 140), (140, 3000)),
    2: ((1, 12), (8, 40), (40, 140)),
    3: ((1, 6), (4, 12), (8, 40)),
}


@dataclass(frozen=True)
class Conv:
    """A problem that can be made again, of one to three dimensions. Layouts are words of `LAYOUTS`; `offset`
    is in elements. `large` names what has integers of 13 bits instead of 2: "input", "weight" or neither."""

    seed: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    transposed: bool
    stride: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    mode: str
    dtype: str
    math: str
    large: str
    input_layout: str
    weight_layout: str
    offset: int
    bias: bool
    program: str
    operands: tuple[tuple[str, str, str], ...]  # kind, dtype, layout
    output_dtype: str
    output_layout: str
    family: str

    @property
    def has_norm(self):
        return "group_norm" in self.program

    @property
    def filters(self):
        return self.weight[1] * self.groups if self.transposed else self.weight[0]

    @property
    def depth(self):
        """Products of an output, at most."""
        return math.prod(self.weight) // self.filters

    @property
    def output(self):
        given = (self.stride, self.begin, self.end, self.dilation, self.output_padding)
        pixels = map(self._extent, self.input[2:], self.weight[2:], *given)
        return (self.input[0], self.filters, *pixels)

    def _extent(self, extent, taps, stride, begin, end, dilation, more):
        reach = dilation * (taps - 1)
        if self.transposed:
            return (extent - 1) * stride + 1 + reach - begin - end + more
        return (extent + begin + end - reach - 1) // stride + 1

    @property
    def products(self):
        pixels = (self.input if self.transposed else self.output)[2:]
        return self.input[0] * math.prod(pixels) * math.prod(self.weight)

    @property
    def in_double(self):
        """Whether the program computes in float64."""
        scalars = ("number", "0-d")
        operands = any(dtype == "float64" and kind not in scalars for kind, dtype, _ in self.operands)
        return operands or self.output_dtype == "float64" or "float64" in self.program

    def most(self, name):
        """Of the integers of "input" or "weight": every sum of products is exact in float32."""
        return max(3, min(2**13 - 1, 2**22 // (3 * self.depth))) if name == self.large else 3


def problem(input, weight, **changes):
    """One written down: TF32, without bias and program, on kernels of sm_80; numbers stand for every
    dimension."""
    given = {"stride": 1, "begin": 0, "end": 0, "dilation": 1, "output_padding": 0} | changes
    for name in ("stride", "begin", "end", "dilation", "output_padding"):
        if isinstance(given[name], int):
            given[name] = (given[name],) * (len(input) - 2)
    words = {"mode": "zeros", "math": "tf32", "large": "", "program": "", "family": "sm80", "seed": "written"}
    words |= dict.fromkeys(("dtype", "output_dtype"), "float32")
    words |= dict.fromkeys(("input_layout", "weight_layout", "output_layout"), "contiguous")
    words |= {"transposed": False, "groups": 1, "offset": 0, "bias": False, "operands": ()}
    return Conv(input=input, weight=weight, **(words | given))


def draw(seed):
    """The problem of a seed, "0:17"."""
    rng = random.Random(seed)
    while True:
        conv = _draw(rng, seed)
        is_small = conv.products <= MOST_PRODUCTS and math.prod(conv.output) <= MOST_OUTPUTS
        # A group of one pixel may have one element, which torch refuses to normalise.
        is_refused = conv.has_norm and math.prod(conv.output) == conv.filters
        if min(conv.output[1:]) >= 1 and is_small and _can_pad(conv) and not is_refused:
            return conv


def _can_pad(conv):
    sides = zip(conv.input[2:], conv.begin, conv.end, strict=True)
    most = {"reflect": -1, "circular": 0}.get(conv.mode)
    return most is None or all(max(begin, end) <= extent + most for extent, begin, end in sides)


def _draw(rng, seed):
    # A third is what kernels of sm_90a may take.
    transposed, is_plain = rng.random() < 0.5, rng.random() < 1 / 3
    rank = rng.choice((1, 2, 2, 2) if is_plain else (1, 2, 2, 3, 3))

    def each(*choices):
        return tuple(rng.randint(*rng.choice(choices)) for _ in range(rank))

    def alike(value):
        return (value,) * rank

    n = rng.choice((1, 1, 2, 3, 17, rng.randint(1, 17)))
    extents = each(*_EXTENTS[rank])
    c, k, groups = _draw_channels(rng, is_plain)
    if not is_plain and rng.random() < 0.1:  # long sums for few outputs
        n, extents, groups = rng.randint(1, 2), each((1, 7)), rng.choice((1, 1, 2))
        c, k = groups * rng.choice((256, 512, 1000)), groups * rng.choice((1, 24, 64, 130))
    elif rng.random() < 0.01:
        n = 0
    taps = rng.choice(
        (alike(3), alike(3), alike(1), alike(rng.choice((2, 4))), each((1, 7 if rank < 3 else 5)))
    )
    dilation = rng.choice((alike(1), alike(1), each((1, 3 if is_plain else 4))))
    stride, output_padding, mode = alike(1), alike(0), "zeros"
    if transposed:
        dilation = alike(1) if is_plain else dilation
        steps = each((1, 4 if is_plain else 6))
        stride = rng.choice((alike(2), alike(2), steps, steps))
        most = map(max, stride, dilation)
        output_padding = tuple(rng.choice((0, rng.randint(0, step - 1))) for step in most)
    else:
        stride = stride if is_plain else rng.choice((alike(1), alike(2), each((1, 5)), each((1, 5))))
        mode = rng.choice(("zeros", "zeros", *MODES))
    padding = (0, rng.choice((0, 1, 4)))
    begin, end = each(padding), each(padding)
    dtype = rng.choice(("float32", *DTYPES))
    maths = ["tf32", "tf32", "bf16", "fp16", "ieee", "ieee"]
    multiplied = rng.choice({"float16": ["fp16"], "bfloat16": ["bf16"]}.get(dtype, maths))
    program, operands = _draw_program(rng)
    conv = Conv(
        seed=seed,
        input=(n, c, *extents),
        weight=(c, k // groups, *taps) if transposed else (k, c // groups, *taps),
        transposed=transposed,
        stride=stride,
        begin=begin,
        end=rng.choice((begin, end)),
        dilation=dilation,
        output_padding=output_padding,
        groups=groups,
        mode=mode,
        dtype=dtype,
        math=multiplied,
        # Only float32's products tell its low bits.
        large=rng.choice(("", "input", "weight")) if multiplied == "ieee" else "",
        input_layout=rng.choice(("contiguous", *("channels_last", "rows") * 2, *LAYOUTS)),
        weight_layout=rng.choice(("contiguous", "channels_last", "sliced")),
        offset=rng.choice((0, 0, 0, 0, rng.randint(1, 8))),
        bias=program in RECIPES or rng.random() < 0.5,
        program=program,
        operands=operands,
        output_dtype="float64" if rng.random() < 0.02 else rng.choice((dtype, dtype, *DTYPES)),
        output_layout=rng.choice(("contiguous", "channels_last")),
        family="any" if is_plain else rng.choice(("any", "sm80", "sm80", "sm80")),
    )
    return _with_norm(rng, conv) if rng.random() < 1 / 3 else conv


def _draw_channels(rng, is_plain):
    """C, K and groups: one, a group for each channel, some groups of many channels, and any."""
    c = rng.choice((1, 3, 4, 8, 8, 9, 16, 31, 32, 64, 64, 66, 130))
    k = rng.choice((1, 3, 7, 8, 32, 64, 96, 128, 130, 200))
    kind = rng.random()
    if is_plain or kind < 0.5:
        return c, k, 1
    if kind < 0.65:
        c = rng.choice((3, 8, 32, 33, 64, 130, 256))
        return c, c * rng.choice((1, 1, 1, 2, 3)), c
    if kind < 0.8:
        groups = rng.choice((2, 3, 4))
        return groups * rng.choice((32, 48, 64, 72)), groups * rng.choice((1, 8, 32, 64, 80)), groups
    groups = rng.randint(2, 16)
    return groups * rng.randint(1, 12), groups * rng.randint(1, 20), groups


def _draw_program(rng):
    if rng.random() < 0.2:
        return rng.choice((*RECIPES, RECIPES[-1])), (("channel", rng.choice(DTYPES), "contiguous"),)
    statements, operands = [], []
    kinds = ("number", "0-d", "width", "rows", "plane", "channel", "image", "full", "full")
    for index in range(rng.randint(0, 4)):
        operation = rng.choice(("relu", "clamp", "mul", "add", "sub", "maximum"))
        given = {"relu": "", "clamp": ", -50.0, 60.0", "mul": ", 2.0"}.get(operation)
        if given is None and rng.random() < 0.2:
            given = f", v{rng.randint(0, index)}"
        elif given is None:
            given = _draw_operand(rng, operation, operands, kinds)
        statements.append(f"v{index + 1} = {operation}(v{index}{given})")
    return "; ".join(statements), tuple(operands)


def _draw_operand(rng, operation, operands, kinds):
    # torch subtracts no bools.
    dtypes = (*DTYPES, "float32", "int32") if operation == "sub" else (*DTYPES, "float32", "int32", "bool")
    dtype = "float64" if rng.random() < 0.03 else rng.choice(dtypes)
    operands.append((rng.choice(kinds), dtype, rng.choice(("contiguous", "channels_last", "sliced"))))
    return f", b{len(operands) - 1}"


def _with_norm(rng, conv):
    """The problem with a GroupNorm behind its program or a sigmoid, sometimes with more or larger images."""
    (n, c, *extents), groups = conv.input, conv.groups
    k, size = conv.filters, rng.random()
    if size < 0.15:  # more tiles of an image than a card holds
        n, c, k = rng.randint(1, 2), rng.choice((1, 3, 4, 8)), rng.choice((1, 7, 8, 16, 32, 32, 64))
        groups = 1
        if len(extents) == 3:
            extents = [rng.randint(8, 16), rng.randint(60, 120), rng.randint(100, 200)]
        else:
            extents = [rng.randint(300, 600), rng.randint(520, 900)][-len(extents) :]
        extents[-1] *= 200 if len(extents) == 1 else 1
    elif size < 0.25:
        n, extents = rng.randint(50, 400), [rng.randint(1, 12 if len(extents) < 3 else 6) for _ in extents]
    statements, operands, bias = conv.program.split("; ") if conv.program else [], [*conv.operands], conv.bias
    if rng.random() < 0.3:
        statements, operands, bias = SIGMOID.split("; "), _draw_operands_of_sigmoid(rng), True
    elif rng.random() < 0.15:  # brings the variance near eps
        statements.append(f"v{len(statements) + 1} = mul(v{len(statements)}, {2.0**-14})")
    elif rng.random() < 0.3:
        given = _draw_operand(rng, "add", operands, ("each", "channel"))
        statements.append(f"v{len(statements) + 1} = add(v{len(statements)}{given})")
    _draw_norm(rng, k, statements, operands)
    return replace(
        conv,
        input=(n, c, *extents),
        weight=(*((c, k // groups) if conv.transposed else (k, c // groups)), *conv.weight[2:]),
        groups=groups,
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
            given = _draw_operand(rng, operation, operands, kinds)
        statements.append(f"v{index + 1} = {operation}(v{index}{given})")


def operand_shape(kind, output):
    n, k, *pixels = output
    ones = (1,) * len(pixels)
    shapes = {"width": pixels[-1:], "plane": pixels, "image": (n, 1, *ones), "each": (n, k, *ones)}
    shapes |= {"channel": (k, *ones), "slope": (k, *ones), "affine": (k,), "full": output}
    shapes |= {"rows": (*pixels[:-1], 1)}
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
