"""Random convolutions straight through the core's ConvPlan, half of them transposed, on small integers and
compared bit for bit; a third of them with a GroupNorm, whose error is bounded (`fuzz_norms.py`).

    python tests/fuzz_conv.py --seed 0 --count 3000
    python tests/fuzz_conv.py --family sm80 --only 0:17

Each problem is drawn with a family of kernels, "any" or "sm80", unless one is given. These take every
problem, and a refusal is a failure; refusals of others are counted, and further problems are drawn until
`--count` of them ran. What a kernel of sm_90a has computed one of sm_80 computes too.

Every buffer lies between guard bands and starts as NaN: the gaps in the input's strides, the packed weight,
the output; a workspace starts as some number, which must not be taken for a result. A difference, a byte
written elsewhere or an input that changed prints the line that repeats it.
"""

import argparse
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

import fuzz_norms
import torch
from exact_convolution import exact_convolution
from fuzz_problems import COMPILED_FAMILIES, FAMILIES, draw, operand_shape, strides_of

from epiconv import _core, compiler
from epiconv.core_tensors import operand_layout, operand_reader
from epiconv.program import Program

GUARD = 1024  # bytes on each side


@dataclass
class Tally:
    """Of what ran: kernels by family, form of the convolution and math; of problems with a norm, what
    evaluates their programs, and how the norm is taken."""

    kernels: Counter = field(default_factory=Counter)
    norms: Counter = field(default_factory=Counter)

    def add(self, conv, kernel):
        family = kernel.split("_")[1] if "_" in kernel else kernel
        channels = conv.input[1] // conv.groups
        groups = "" if conv.groups == 1 else ", depthwise" if channels == 1 else ", groups"
        form = f"{len(conv.stride)}-d{' transposed' * conv.transposed}{groups}"
        self.kernels[f"{family} {form} {conv.math}"] += 1
        if conv.has_norm:
            first, _, behind = kernel.partition(", ")
            self.norms[f"{family} {first.partition('_f32_')[2]}{', ' * bool(behind)}{behind}"] += 1


class Guarded:
    """A tensor in the middle of a buffer of NaN, `offset` elements behind an address that 256 divides."""

    def __init__(self, shape, strides, dtype, device, offset=0):
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        span = 0 if 0 in shape else span
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


@dataclass
class Given:
    """What a problem is computed of; `buffers` are those of the tensors, by what they are."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    operands: list[torch.Tensor]
    buffers: dict[str, Guarded]


def make(conv, device):
    """Small integers."""
    generator = torch.Generator().manual_seed(random.Random(f"values {conv.seed}").getrandbits(60))
    buffers = {}

    def tensor(name, shape, dtype, layout, offset=0, most=3, scale=1):
        values = torch.randint(-most, most + 1, shape, generator=generator) * scale
        strides = strides_of(shape, layout)
        buffers[name] = Guarded(shape, strides, getattr(torch, dtype), device, offset)
        return buffers[name].filled(values.to(device)).tensor

    most_x, most_weight = conv.most("input"), conv.most("weight")
    x = tensor("input", conv.input, conv.dtype, conv.input_layout, conv.offset, most_x)
    weight = tensor("weight", conv.weight, conv.dtype, conv.weight_layout, most=most_weight)
    bias = tensor("bias", (conv.filters,), conv.dtype, "contiguous") if conv.bias else None
    # A sigmoid has something to tell where its argument is not much larger than 1.
    sums = 4 * math.sqrt(conv.depth) * (most_x * most_weight / 9)
    scales = {"slope": 2.0 ** -round(math.log2(sums)), "affine": 0.125}
    operands = []
    for i, (kind, dtype, layout) in enumerate(conv.operands):
        if kind == "number":
            number = torch.randint(-9, 10, (), generator=generator)
            operands.append(number.to(getattr(torch, dtype)))
        else:
            shape, scale = operand_shape(kind, conv.output), scales.get(kind, 1)
            operands.append(tensor(f"b{i}", shape, dtype, layout, most=9, scale=scale))
    return Given(x, weight, bias, operands, buffers)


def convolved(conv, given):
    """The convolution in float64, where every sum is exact."""
    words = {"stride": conv.stride, "dilation": conv.dilation, "begin": conv.begin, "end": conv.end}
    words |= {"groups": conv.groups, "mode": conv.mode, "transposed": conv.transposed}
    return exact_convolution(given.x, given.weight, output_padding=conv.output_padding, **words)


def reference(conv, y, given, kernel):
    """What the program makes of y, rounded once: the least and the largest that the result may be, which are
    the same without a norm."""
    ones = (1,) * len(conv.stride)
    bias = None if given.bias is None else given.bias.double().view(-1, *ones)
    operands = [operand.double() for operand in given.operands]
    # A float32 kernel stores its sums, and a pass in float64 follows.
    in_double = conv.in_double and fuzz_norms.has_pass(kernel)
    result = fuzz_norms.follow(Program(conv.program), y, bias, operands, kernel, conv.math, in_double)
    dtype = getattr(torch, conv.output_dtype)
    return (result.value - result.error).to(dtype), (result.value + result.error).to(dtype)


def plan_of(conv, given, family, capability, compile="never"):
    """The core's plan, or its reason."""
    output_shape = conv.output
    bias_shape = None if given.bias is None else tuple(given.bias.shape)
    problem = _core.ConvProblem(
        *(conv.input, conv.weight, bias_shape, conv.stride, conv.begin, conv.end, conv.dilation),
        *(conv.groups, conv.transposed, conv.output_padding),
    )
    assert tuple(problem.output) == output_shape
    address = given.x.data_ptr()
    return _core.make_conv_plan(
        *(problem, conv.math, conv.dtype, given.x.stride(), min(16, address & -address or 16), conv.mode),
        Program(conv.program).core,
        None if given.bias is None else operand_layout(given.bias),
        [operand_layout(operand) for operand in given.operands],
        *(conv.output_dtype, strides_of(output_shape, conv.output_layout)),
        *(capability, family, compile),
    )


def is_named(conv, kernel, family, capability):
    """Whether a kernel's name is one of the family that was asked for."""
    if 0 in conv.output:
        return kernel == "none"
    any_family = ("sm80", "sm90") if capability == (9, 0) else ("sm80",)
    families = {"any": any_family} | dict.fromkeys(COMPILED_FAMILIES, ("sm90",))
    kind = "dgrad" if conv.transposed else "fprop"
    return any(kernel.startswith(f"{kind}_{each}_{conv.math}_") for each in families.get(family, (family,)))


def is_compiled(plan):
    """Whether its convolution is, if there is one: a pass behind it is not."""
    return plan.kernel == "none" or "_f32_compiled" in plan.kernel.split(", ")[0]


def may_be_interpreted(plan):
    """Whether a plan that was to be compiled is right to run a kernel of the library."""
    return "_sm90_" in plan.kernel or "an operand is a number on the host" in plan.why_kernel


def check(conv, device, tally=None, compile="never"):
    """Runs one problem, on kernels of sm_80 behind others of the library.

    Args:
        tally: a `Tally` to add to.
        compile: whether kernels of sm_80 are compiled for the plan, as `_core.make_conv_plan` has it.

    Returns:
        Whether it ran, and what is wrong with the result or why it did not run; "" for a right result. What
        must run and is refused counts as run, and is wrong.
    """
    given, expected = make(conv, device), None
    on_card = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if on_card else (9, 0)
    first = conv.family
    # The kernels made for the card run wherever they take the problem, and not where they are the fastest.
    if on_card and first == "any" and not isinstance(plan_of(conv, given, "sm90", capability), str):
        first = "sm90"
    for family in (first, "sm80"):
        compiles = "always" if family in COMPILED_FAMILIES else compile
        plan = plan_of(conv, given, family, capability, compiles)
        if isinstance(plan, str):
            return (False, plan) if family.startswith("sm90") else (True, f"{family} refuses it: {plan}")
        # On the CPU there is a stand-in of no family.
        if on_card and not is_named(conv, plan.kernel, family, capability):
            return True, f"{plan.kernel} is no kernel of {family} for this problem"
        is_right = is_compiled(plan) or may_be_interpreted(plan)
        if compiles == "always" and on_card and not is_right:
            return True, f"{plan.kernel} was not compiled: {plan.why_kernel}"
        if tally is not None:
            tally.add(conv, plan.kernel)
        expected = convolved(conv, given) if expected is None and 0 not in conv.output else expected
        if finding := _run(conv, given, plan, expected, device):
            return True, f"{plan.kernel} {finding}"
        if "_sm90_" not in plan.kernel or family in COMPILED_FAMILIES:
            break
    return True, ""


def _run(conv, given, plan, y, device):
    """What is wrong with a plan's result, or ""."""
    index, stream = 0, 0
    if device.type == "cuda":
        index, stream = given.x.device.index, torch.cuda.current_stream(device).cuda_stream
    dtype, shape = getattr(torch, conv.output_dtype), conv.output
    packed = Guarded((plan.packed_bytes,), (1,), torch.uint8, device)
    output = Guarded(shape, strides_of(shape, conv.output_layout), dtype, device)
    workspace = Guarded((plan.workspace_bytes,), (1,), torch.uint8, device)
    workspace.tensor.fill_(0x3F)
    weight = given.weight
    plan.pack(weight.data_ptr(), conv.dtype, weight.stride(), packed.tensor.data_ptr(), index, stream)
    packed.before = packed.buffer.clone()
    plan.run(
        *(given.x.data_ptr(), packed.tensor.data_ptr(), output.tensor.data_ptr()),
        0 if given.bias is None else given.bias.data_ptr(),
        workspace.tensor.data_ptr() if plan.workspace_bytes else 0,
        *(index, stream),
        *operand_reader(given.operands)(given.operands),
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    for name, buffer in (given.buffers | {"packed weight": packed}).items():
        if not buffer.is_unchanged():
            return f"wrote into the buffer of {name}"
    written = {"the packed weight": packed, "its output": output, "its workspace": workspace}
    for name, buffer in written.items():
        if not buffer.has_clean_guards():
            return f"wrote beside {name}"
    return "" if y is None else _difference(output.tensor, *reference(conv, y, given, plan.kernel))


def _difference(got, least, most):
    wrong = ~((least <= got) & (got <= most))
    if not wrong.any():
        return ""
    first = tuple(wrong.nonzero()[0].tolist())
    got, low, high = (tensor[first].item() for tensor in (got, least, most))
    right = str(low) if low == high else f"within {low} … {high}"
    return f"is wrong: {int(wrong.sum())} of {wrong.numel()} differ, first {first}: {got}, not {right}"


def command(conv):
    """What repeats a drawn problem."""
    return f"python tests/fuzz_conv.py --family {conv.family} --only {conv.seed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3000, help="of problems that run")
    parser.add_argument("--family", choices=FAMILIES, help="of the kernels, for every problem")
    parser.add_argument("--compile", action="store_true", help="kernels of sm_80 for each problem")
    parser.add_argument("--only", metavar="SEED:INDEX")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("fuzz_conv.py needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    compiler.prepare()
    compile = "always" if options.compile else "never"
    most_drawn = 50 * options.count  # of a family that takes next to none
    seeds = [options.only] if options.only else (f"{options.seed}:{i}" for i in range(most_drawn))
    outcomes, tally, failures = Counter(), Tally(), 0
    for seed in seeds:
        if outcomes["ran"] == options.count:
            break
        conv = draw(seed)
        conv = replace(conv, family=options.family or conv.family)
        if options.only:
            print(conv)
        ran, finding = check(conv, device, tally, compile)
        outcomes["ran" if ran else f"refused: {finding}"] += 1
        if ran and finding:
            failures += 1
            print(f"{command(conv)}  # {finding}", flush=True)
    for title, counts in (("problems", outcomes), ("kernels", tally.kernels), ("with a norm", tally.norms)):
        print(f"{counts.total():6}  {title}")
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            print(f"{count:6}    {name}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
