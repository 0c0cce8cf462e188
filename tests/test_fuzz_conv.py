"""What the fuzzer of convolutions draws, what it takes for right and what it finds, without a card: a
stand-in computes, or what a kernel would is computed here.
"""

import ctypes
import itertools
import math
from collections import Counter
from dataclasses import replace

import fuzz_conv
import pytest
import torch
import torch.nn.functional as F
from exact_convolution import exact_convolution
from fake_conv_core import Plan
from fuzz_problems import MODES, draw, problem
from portable_problems import FEW, ORDINARY, TRANSPOSED

from epiconv.convolution import round_to

CPU = torch.device("cpu")


def in_torch(conv, x, weight):
    """torch's own convolution, in float64."""
    x, weight, rank = x.double(), weight.double(), len(conv.stride)
    words = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    if conv.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        y = function(x, weight, output_padding=conv.output_padding, **words)
        sides = zip(conv.begin, conv.end, y.shape[2:], strict=True)
        return y[(..., *(slice(begin, n - end) for begin, end, n in sides))]
    sides = zip(reversed(conv.begin), reversed(conv.end), strict=True)
    mode = "constant" if conv.mode == "zeros" else conv.mode
    x = F.pad(x, [side for both in sides for side in both], mode=mode)
    return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](x, weight, **words)


def small_problems(name, most=2**22):
    """Drawn ones that are quick on the CPU."""
    draws = (draw(f"{name}:{index}") for index in itertools.count())
    return (conv for conv in draws if conv.products < most and math.prod(conv.output) < 2**16)


def test_the_reference_is_torch_s():
    forms = Counter()
    for conv in itertools.islice(small_problems("reference", most=2**20), 200):
        if 0 in conv.output:
            continue
        given = fuzz_conv.make(conv, CPU)
        y = fuzz_conv.convolved(conv, given)
        assert y.shape == conv.output
        assert torch.equal(y, in_torch(conv, given.x, given.weight)), conv
        assert y.abs().max() < 2**24
        forms[(conv.transposed, len(conv.stride), conv.groups > 1)] += 1
    assert len(forms) == 12


def test_an_infinity_stays_with_what_it_is_multiplied_with():
    x, weight = torch.ones(1, 1, 5), torch.ones(1, 1, 2)
    x[0, 0, 2] = math.inf
    y = exact_convolution(x, weight, stride=2, transposed=True)
    assert y.isinf().sum() == 2 and not y.isnan().any()
    assert exact_convolution(x, weight).isinf().sum() == 2


def test_what_the_fuzzer_accepts(core):
    tally = fuzz_conv.Tally()
    for conv in itertools.islice(small_problems("accepted", most=2**20), 150):
        assert fuzz_conv.check(conv, CPU, tally) == (True, ""), conv
    kernels = [plan.kernel[:5] for plan, _, _ in core.runs]
    assert min(kernels.count("fprop"), kernels.count("dgrad")) > 50
    assert tally.kernels.total() == len(core.runs) == 150
    assert tally.norms.total() > 30
    assert len({name.rsplit(" ", 1)[0] for name in tally.kernels}) > 14


def test_what_the_fuzzer_draws():
    drawn = [draw(f"drawn:{index}") for index in range(2000)]
    assert drawn == [draw(conv.seed) for conv in drawn]
    both, ranks = {False, True}, {1, 2, 3}
    families = Counter(conv.family for conv in drawn)
    assert families.keys() == {"any", "sm80"} and abs(families["any"] - 1000) < 100
    assert abs(sum(conv.transposed for conv in drawn) - 1000) < 100
    forms = {(conv.transposed, len(conv.stride), conv.groups > 1) for conv in drawn}
    assert forms == set(itertools.product(both, ranks, both))
    steps = {(conv.transposed, d, step) for conv in drawn for d, step in enumerate(conv.stride)}
    ordinary = set(itertools.product([False], range(3), range(1, 6)))
    assert steps == ordinary | set(itertools.product([True], range(3), range(1, 7)))
    apart = {(conv.transposed, d, step) for conv in drawn for d, step in enumerate(conv.dilation)}
    assert apart == set(itertools.product(both, range(3), range(1, 5)))
    assert {(len(conv.stride), conv.mode) for conv in drawn} == set(itertools.product(ranks, MODES))
    assert {(conv.dtype, conv.math) for conv in drawn} == {
        *(("float32", math) for math in ("tf32", "bf16", "fp16", "ieee")),
        *(("float16", "fp16"), ("bfloat16", "bf16")),
    }
    assert {conv.large for conv in drawn if conv.math == "ieee"} == {"", "input", "weight"}
    layouts = {(len(conv.stride), conv.input_layout, conv.output_layout) for conv in drawn}
    assert len(layouts) == 3 * 6 * 2
    assert {conv.in_double for conv in drawn} == both


@pytest.mark.parametrize("problems", [ORDINARY, TRANSPOSED, FEW])
def test_written_problems(problems, core):
    for name, conv in problems.items():
        assert fuzz_conv.check(replace(conv, bias=True), CPU) == (True, ""), name
    assert len(core.runs) == len(problems)


# What must be among 2000 problems, each for its own way through a kernel or its planner.
RARE = {
    "no images": lambda conv: 0 in conv.output,
    "depthwise": lambda conv: conv.groups == conv.input[1] > 1,
    "depthwise, several filters a channel": lambda conv: 1 < conv.input[1] == conv.groups < conv.filters,
    "many channels a group": lambda conv: conv.groups > 1 and conv.input[1] // conv.groups >= 32,
    "one filter": lambda conv: conv.filters == 1,
    "one channel": lambda conv: conv.input[1] == 1,
    "nine channels": lambda conv: conv.input[1] == 9,
    "deep and small": lambda conv: conv.depth > 2000 and math.prod(conv.output[2:]) < 50,
    "fewer taps than the stride": lambda conv: conv.transposed and min(conv.weight[2:]) < min(conv.stride),
    "a stride and dilation that have a divisor": lambda conv: (
        conv.transposed and any(math.gcd(s, d) > 1 for s, d in zip(conv.stride, conv.dilation, strict=True))
    ),
    "output_padding beyond the stride": lambda conv: any(
        more >= step for more, step in zip(conv.output_padding, conv.stride, strict=True)
    ),
    "other padding behind": lambda conv: conv.begin != conv.end,
    "a strided convolution padded by reflection": lambda conv: (
        conv.mode == "reflect" and max(conv.stride) > 1
    ),
    "a norm in three dimensions": lambda conv: conv.has_norm and len(conv.stride) == 3,
    "a norm in float64": lambda conv: conv.has_norm and conv.in_double,
    "a norm of large images": lambda conv: conv.has_norm and math.prod(conv.output[2:]) > 2**16,
    "a norm of groups": lambda conv: conv.has_norm and conv.groups > 1,
    "a bool": lambda conv: any(dtype == "bool" for _, dtype, _ in conv.operands),
    "a sum of large integers": lambda conv: conv.large and conv.most(conv.large) > 2**12,
    "what kernels of sm_90a take": lambda conv: (
        conv.family == "any" and conv.groups == 1 and not conv.transposed and set(conv.stride) == {1}
    ),
}


def test_what_is_rare_is_drawn():
    drawn = [draw(f"drawn:{index}") for index in range(2000)]
    found = {name: sum(map(bool, map(test, drawn))) for name, test in RARE.items()}
    assert min(found.values()) >= 4, found


@pytest.mark.parametrize("large", ["input", "weight"])
def test_a_kernel_that_drops_low_parts_of_float32_is_found(large, core, monkeypatch):
    conv = problem((2, 8, 9, 11), (24, 8, 3, 3), math="ieee", large=large)
    assert fuzz_conv.check(conv, CPU) == (True, "")
    monkeypatch.setattr(Plan, "_rounded", lambda self, tensor: round_to(tensor.float(), "tf32"))
    assert "differ, first" in fuzz_conv.check(conv, CPU)[1]


def small_problem(transposed=False):
    draws = (conv for conv in small_problems("small", most=2**18) if conv.transposed == transposed)
    return next(c for c in draws if c.bias and c.operands and 0 not in c.output and not c.has_norm)


BROKEN = {  # a byte that is written in a run, and what is found
    "before the output": ("output", -1, "beside its output"),
    "behind the output": ("end of output", 0, "beside its output"),
    "into the input": ("input", 0, "buffer of input"),
    "before the packed weight": ("packed", -1, "buffer of packed weight"),
    "a wrong value": ("output", 1, "differ, first"),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_the_fuzzer_finds(case, transposed, core, monkeypatch):
    where, offset, finding = BROKEN[case]
    conv, run = small_problem(transposed), Plan.run

    def broken(self, input, packed, output, *rest):
        run(self, input, packed, output, *rest)
        size = math.prod(conv.output) * getattr(torch, conv.output_dtype).itemsize
        ends = {"input": input, "packed": packed, "output": output, "end of output": output + size}
        ctypes.c_ubyte.from_address(ends[where] + offset).value ^= 0x55

    monkeypatch.setattr(Plan, "run", broken)
    ran, found = fuzz_conv.check(conv, CPU)
    assert ran
    assert finding in found


def test_the_fuzzer_finds_packing_beside_the_packed_weight(core, monkeypatch):
    pack = Plan.pack

    def broken(self, weight, weight_dtype, weight_strides, packed, *rest):
        pack(self, weight, weight_dtype, weight_strides, packed, *rest)
        ctypes.c_ubyte.from_address(packed + self.packed_bytes).value = 0

    monkeypatch.setattr(Plan, "pack", broken)
    assert "beside the packed weight" in fuzz_conv.check(small_problem(), CPU)[1]


@pytest.mark.parametrize("family", ["any", "sm80", "sm90"])
def test_a_refusal_is_a_failure_where_every_problem_is_taken(family, core):
    core.refuse = lambda plan: "a reason" if plan.family == family else ""
    expected = (False, "a reason") if family == "sm90" else (True, f"{family} refuses it: a reason")
    assert fuzz_conv.check(replace(small_problem(), family=family), CPU) == expected


@pytest.mark.parametrize("wrong", ["sm80", "sm90", ""])
@pytest.mark.parametrize("family", ["any", "sm90"])
def test_behind_a_kernel_of_sm_90a_one_of_sm_80_runs(family, wrong, core, monkeypatch):
    make, run, asked_for = Plan.__init__, Plan.run, []

    def named(self, *given):
        make(self, *given)
        self.kernel = f"fprop_{'sm80' if self.family == 'sm80' else 'sm90'}_tf32_f32_interpreted_chain"
        asked_for.append(self.family)

    def broken(self, input, packed, output, *rest):
        run(self, input, packed, output, *rest)
        if wrong and wrong in self.kernel:
            ctypes.c_ubyte.from_address(output + 3).value ^= 0x55

    monkeypatch.setattr(Plan, "__init__", named)
    monkeypatch.setattr(Plan, "run", broken)
    tally = fuzz_conv.Tally()
    ran, finding = fuzz_conv.check(problem((2, 8, 9, 11), (24, 8, 3, 3), family=family), CPU, tally)
    assert ran
    assert finding.startswith(f"fprop_{wrong}_tf32") if wrong else finding == ""
    assert asked_for == ([family] if wrong == "sm90" else [family, "sm80"])
    assert tally.kernels == {f"{'sm80' if each == 'sm80' else 'sm90'} 2-d tf32": 1 for each in asked_for}


def test_names_of_kernels():
    conv, hopper = problem((2, 8, 9), (4, 8, 3)), (9, 0)
    up = problem((2, 8, 9), (8, 4, 3), transposed=True)
    for family, named, capability in (
        ("any", {"sm80", "sm90"}, hopper),
        ("any", {"sm80"}, (8, 6)),
        ("any", {"sm80"}, (10, 0)),
        ("sm80", {"sm80"}, hopper),
        ("sm90", {"sm90"}, hopper),
    ):
        for each in ("sm80", "sm90"):
            for given, right, wrong in ((conv, "fprop", "dgrad"), (up, "dgrad", "fprop")):
                kernel = f"{right}_{each}_tf32_f32"
                assert fuzz_conv.is_named(given, kernel, family, capability) == (each in named)
                assert not fuzz_conv.is_named(given, f"{wrong}_{each}_tf32_f32", family, capability)
                assert not fuzz_conv.is_named(given, f"{right}_{each}_bf16_f32", family, capability)
                assert not fuzz_conv.is_named(given, "none", family, capability)
    empty = replace(conv, input=(0, 8, 9))
    assert fuzz_conv.is_named(empty, "none", "any", hopper)
    assert not fuzz_conv.is_named(empty, "fprop_sm80_tf32_f32", "sm80", hopper)
